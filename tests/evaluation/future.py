"""A source whose future is another one."""

from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np

from dare_core.evaluation.source import SourceRows


def other_future(rows: SourceRows, moment: datetime, seed: int = 0) -> SourceRows:
    """The same up to a moment; after it other values, other items, other times and another order.

    Every user who acts after the moment still does: it is known that a text will be seen, and not by what.
    """
    random = np.random.default_rng(seed)
    known = [one for one in rows.interactions if one.time <= moment]
    later = [one for one in rows.interactions if one.time > moment]
    items = sorted(rows.items)
    planted = [
        one._replace(
            time=moment + timedelta(minutes=int(random.integers(1, 10_000))),
            item=items[random.integers(len(items))],
            value=6 - one.value,
        )
        for one in later
    ]
    return replace(rows, interactions=known + sorted(planted))
