"""All rows that an installation holds, to be compared with those of another."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Engine

from dare_core.config.settings import Settings
from dare_core.operations.digest import Row, parts


@dataclass(frozen=True)
class Difference:
    """How what is there differs from what ought to be, in rows by part.

    Attributes:
        lost: rows that are missing.
        doubled: rows that are there besides.
        changed: rows that say something else.
    """

    lost: Mapping[str, int]
    doubled: Mapping[str, int]
    changed: Mapping[str, int]

    def __bool__(self) -> bool:
        return bool(self.lost or self.doubled or self.changed)


def inventory(settings: Settings, engine: Engine) -> dict[str, Counter[Row]]:
    """All rows of every part, for :func:`compare`; what :func:`dare_core.operations.digest.digest` sums up.

    Raises:
        PoolError: a pool in force is damaged.
    """
    return {name: Counter(rows) for name, rows in parts(settings, engine)}


def compare(wanted: Mapping[str, Counter[Row]], found: Mapping[str, Counter[Row]]) -> Difference:
    """What is lost, doubled and changed in ``found``."""
    lost, doubled, changed = dict[str, int](), dict[str, int](), dict[str, int]()
    for name in {*wanted, *found}:
        ought, there = wanted.get(name, Counter()), found.get(name, Counter())
        missing, extra = Counter[bytes](), Counter[bytes]()
        for row, count in (ought - there).items():
            missing[row.key] += count
        for row, count in (there - ought).items():
            extra[row.key] += count
        for counts, by_key in ((lost, missing - extra), (doubled, extra - missing), (changed, missing & extra)):
            if by_key:
                counts[name] = by_key.total()
    return Difference(lost, doubled, changed)
