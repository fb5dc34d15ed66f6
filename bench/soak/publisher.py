"""The publisher of ``dare bench soak``: rebuilds pools from the warehouse and puts each version in force.

Run as a program, it answers each line on its standard input with one of JSON: how many versions it ``published``, and
how many it had built in vain because a refresh published before it, as ``lost``.
"""

import time
from collections.abc import Callable
from itertools import count
from typing import Any, Final

from bench.soak.processes import answer_questions
from dare_core import models
from dare_core.config.settings import Settings
from dare_core.errors import PoolError
from dare_core.pools import PoolBuilder, retention
from dare_core.schemas import KINDS
from dare_core.warehouse.connection import connect
from dare_core.warehouse.knowledge import pool_texts
from dare_core.warehouse.pools import pool_store

_PAUSE: Final = 5.0
_KEPT: Final = 5


def publish(settings: Settings, url: str) -> Callable[[], dict[str, Any]]:
    """A function that publishes a version of each kind's pool: of all texts, and of all but one, in turns."""
    engine, rounds = connect(url), count()
    tokenizer_hash = models.tokenizer_hash(models.load_tokenizer(settings))
    vocabulary = models.vocabulary_size(settings)
    stores = {kind: pool_store(settings, engine, "movies", kind) for kind in KINDS}

    def published() -> dict[str, Any]:
        time.sleep(_PAUSE)
        left_out, said = next(rounds) % 2, {"published": 0, "lost": 0}
        for kind, store in stores.items():
            texts = pool_texts(engine, "movies", kind, tokenizer_hash)
            try:
                PoolBuilder(store, settings.model, tokenizer_hash, vocabulary).build(texts.slice(left_out))
                said["published"] += 1
            except PoolError as error:
                if "published" not in str(error):
                    raise
                said["lost"] += 1  # the slower of two builders is told so, and builds again
            retention.expire(store, _KEPT)
        return said

    return published


if __name__ == "__main__":
    answer_questions(publish)
