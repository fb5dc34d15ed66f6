"""The second engine of ``dare bench soak``: writes again what refreshes wrote, from the pools in force by then.

Run as a program, it answers each line on its standard input with one of JSON: the pool's ``version``, how many
``texts`` it wrote, and which of them came out otherwise than the first engine's.
"""

from collections.abc import Callable
from itertools import cycle
from typing import Any, Final

from sqlalchemy import text

from bench.soak.processes import answer_questions
from dare_core import models
from dare_core.config.settings import Settings
from dare_core.decoding import Request
from dare_core.knowledge.writer import Writer
from dare_core.pools import Pool
from dare_core.schemas import KINDS
from dare_core.warehouse.connection import connect
from dare_core.warehouse.pools import pool_store

_TEXTS: Final = 4


def follow(settings: Settings, url: str) -> Callable[[], dict[str, Any]]:
    """A function that writes some of the newest texts of one kind after the other."""
    engine, kinds = connect(url), cycle(KINDS)
    tokenizer = models.load_tokenizer(settings)
    writer = Writer(settings, tokenizer)
    stores = {kind: pool_store(settings, engine, "movies", kind) for kind in KINDS}
    query = text("""
        SELECT request_id, group_name, prompt_token_ids, token_ids FROM knowledge.knowledge
        WHERE domain = 'movies' AND kind = :kind ORDER BY available_at DESC, request_id LIMIT :most
    """)

    def written() -> dict[str, Any]:
        kind = next(kinds)
        with engine.connect() as connection:
            rows = connection.execute(query, {"kind": kind, "most": _TEXTS}).all()
        pool = Pool.open(stores[kind], models.tokenizer_hash(tokenizer))
        expected = {row.request_id: list(row.token_ids) for row in rows}
        new = settings.max_new_tokens
        requests = [Request(row.request_id, row.group_name, row.prompt_token_ids, new) for row in rows]
        longest = max(len(row.prompt_token_ids) for row in rows) + new
        found = {result.id: result.token_ids for result in writer.write(requests, pool, longest, len(requests))}
        different = [name for name, ids in found.items() if list(ids) != expected[name]]
        return {"version": pool.manifest.version, "texts": len(found), "different": different}

    return written


if __name__ == "__main__":
    answer_questions(follow)
