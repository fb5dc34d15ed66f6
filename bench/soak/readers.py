"""SQL readers with the reader's role."""

import random
import threading
import time
from collections.abc import Callable
from typing import Final

import psycopg

from bench.soak.tally import Tally

#: Rows of the small MovieLens: ids from 1.
ITEMS: Final = 48
USERS: Final = 24
#: Seconds between a reader's queries, on average.
_PAUSE: Final = 1.0

#: What readers ask, each with the id of an item and of a user at hand.
_QUERIES: Final = {
    "similar_items": "SELECT * FROM features.similar_items(%(item)s, 10)",
    "match": "SELECT * FROM features.match(%(user)s, 10)",
    "as_of": "SELECT count(*) FROM features.as_of(now() - interval '1 minute')",
    "freshness": "SELECT * FROM features.freshness",
    "item": "SELECT item_id, text, embedding FROM features.item WHERE domain = 'movies' AND item_id = %(item)s",
    "user": "SELECT user_id, text, embedding FROM features.user WHERE domain = 'movies' AND user_id = %(user)s",
    "efficiency": "SELECT kind, sum(tokens) FROM features.decoding_efficiency GROUP BY kind",
}


def reader(url: str, number: int, ended: threading.Event, tally: Tally) -> Callable[[], None]:
    """A reader: one connection, one query after the other; after an error a new connection."""
    chance = random.Random(number)  # noqa: S311  no secret

    def read() -> None:
        while not ended.is_set():
            try:
                with psycopg.connect(url, autocommit=True) as connection:
                    connection.execute("SET ROLE dare_reader")
                    while not ended.wait(chance.uniform(0, 2 * _PAUSE)):
                        ids = {"item": str(chance.randint(1, ITEMS)), "user": str(chance.randint(1, USERS))}
                        query = chance.choice(list(_QUERIES))
                        began = time.perf_counter()
                        connection.execute(_QUERIES[query], ids).fetchall()
                        seconds = time.perf_counter() - began
                        tally.latencies.append(seconds)
                        tally.recent.append(seconds)
            except Exception as error:  # noqa: BLE001  whatever it is, it is counted
                tally.error("failed_queries", repr(error))

    return read
