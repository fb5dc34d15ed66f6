"""Which entities are due, on a real database."""

import json
from collections.abc import Callable

import pyarrow as pa
from sqlalchemy import Engine

from dare_core import schemas
from dare_core.warehouse.entities import upsert_entities, watermark
from dare_core.warehouse.renderings import Rules, due_entities

Rows = Callable[..., pa.Table]

#: Under which every entity is due that was not planned yet.
RULES = Rules(settings="", min_new_events=1)


def test_entities_stream_in_a_fixed_order_that_is_spread_over_groups(engine: Engine, entity_rows: Rows) -> None:
    rows = [{"entity_id": f"{n:04}", "group_name": "Action" if n < 1250 else "Drama"} for n in range(2500)]
    upsert_entities(engine, entity_rows(rows))
    upsert_entities(engine, entity_rows([{"entity_id": "user", "kind": "user"}]))
    batches = list(due_entities(engine, "movies", "item", RULES))
    assert len(batches) == 3
    table = pa.Table.from_batches(batches, schemas.DUE)
    assert sorted(table["entity_id"].to_pylist()) == [row["entity_id"] for row in rows]
    assert 30 < table["group_name"].to_pylist()[:100].count("Action") < 70
    assert json.loads(table["attributes"][0].as_py()) == {"title": "Heat"}
    assert pa.Table.from_batches(due_entities(engine, "movies", "item", RULES)) == table
    assert list(due_entities(engine, "books", "item", RULES)) == []


def test_a_stream_that_is_left_early_gives_its_connection_back(engine: Engine, entity_rows: Rows) -> None:
    upsert_entities(engine, entity_rows([{"entity_id": f"{n}"} for n in range(1500)]))
    for _ in range(20):  # more than the pool has connections
        stream = due_entities(engine, "movies", "item", RULES)
        next(stream)
        del stream
    assert watermark(engine, "movies", "item") is None
