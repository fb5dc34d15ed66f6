"""Reading, on a real database."""

import json
from collections.abc import Callable
from datetime import UTC, datetime

import pyarrow as pa
from sqlalchemy import Engine

from dare_core import schemas
from dare_core.warehouse import read
from dare_core.warehouse.load import Pulled, load_knowledge, upsert_entities

Rows = Callable[..., pa.Table]

#: Under which every entity is due that was not planned yet.
RULES = read.Rules(settings="", min_new_events=1)


def test_entities_stream_in_a_fixed_order_that_is_spread_over_groups(engine: Engine, entity_rows: Rows) -> None:
    rows = [{"entity_id": f"{n:04}", "group_name": "Action" if n < 1250 else "Drama"} for n in range(2500)]
    upsert_entities(engine, entity_rows(rows))
    upsert_entities(engine, entity_rows([{"entity_id": "user", "kind": "user"}]))
    batches = list(read.due(engine, "movies", "item", RULES))
    assert len(batches) == 3
    table = pa.Table.from_batches(batches, schemas.DUE)
    assert sorted(table["entity_id"].to_pylist()) == [row["entity_id"] for row in rows]
    assert 30 < table["group_name"].to_pylist()[:100].count("Action") < 70
    assert json.loads(table["attributes"][0].as_py()) == {"title": "Heat"}
    assert pa.Table.from_batches(read.due(engine, "movies", "item", RULES)) == table
    assert list(read.due(engine, "books", "item", RULES)) == []


def test_a_stream_that_is_left_early_gives_its_connection_back(engine: Engine, entity_rows: Rows) -> None:
    upsert_entities(engine, entity_rows([{"entity_id": f"{n}"} for n in range(1500)]))
    for _ in range(20):  # more than the pool has connections
        stream = read.due(engine, "movies", "item", RULES)
        next(stream)
        del stream
    assert read.watermark(engine, "movies", "item") is None


def test_the_watermark_is_what_the_pull_saw(engine: Engine, entity_rows: Rows) -> None:
    seen = datetime(1998, 3, 1, 12, 0, 0, 1, tzinfo=UTC)
    upsert_entities(engine, entity_rows([{"entity_id": "1"}]), Pulled("movies", "item", seen))
    assert read.watermark(engine, "movies", "item") == seen
    assert read.watermark(engine, "movies", "user") is None


def test_pool_texts_are_all_texts_of_a_tokenizer(engine: Engine, knowledge_rows: Rows, embedding_rows: Rows) -> None:
    none = embedding_rows([])
    load_knowledge(engine, knowledge_rows([{"request_id": "b", "entity_id": "1", "token_ids": [1]}]), none)
    load_knowledge(
        engine,
        knowledge_rows(
            [
                {"request_id": "a", "entity_id": "1", "token_ids": [2, 3], "group_name": "Comedy"},
                {"request_id": "c", "entity_id": "2", "tokenizer_hash": "another"},
                {"request_id": "d", "entity_id": "3", "kind": "user"},
            ]
        ),
        none,
    )
    texts = read.pool_texts(engine, "movies", "item", "t")
    assert texts.schema == schemas.POOL_KNOWLEDGE
    assert [(row["group"], row["token_ids"], row["entity_id"]) for row in texts.to_pylist()] == [
        ("Comedy", [2, 3], "1"),
        ("Drama", [1], "1"),
    ]
    assert read.pool_texts(engine, "books", "item", "t").num_rows == 0
