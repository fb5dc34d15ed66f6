"""Which entities are due, on a real database."""

import json
from collections.abc import Callable
from datetime import UTC, datetime

import pyarrow as pa
from sqlalchemy import Engine

from dare_core import schemas
from dare_core.warehouse.entities import upsert_entities, watermark
from dare_core.warehouse.renderings import Rules, due_entities, shown

Rows = Callable[..., pa.Table]

#: Under which every entity is due that was not planned yet.
RULES = Rules(settings="", min_new_events=1)


def test_who_is_due_streams_sorted_by_group_and_a_limit_takes_some_of_every_group(
    engine: Engine, entity_rows: Rows
) -> None:
    rows = [{"entity_id": f"{n:04}", "group_name": "Drama" if n < 1250 else "Action"} for n in range(2500)]
    upsert_entities(engine, entity_rows(rows))
    upsert_entities(engine, entity_rows([{"entity_id": "user", "kind": "user"}]))
    batches = list(due_entities(engine, "movies", "item", RULES))
    assert len(batches) == 3
    found = pa.Table.from_batches(batches, schemas.SHARD)["entity_id"].to_pylist()
    assert found == [f"{n:04}" for n in (*range(1250, 2500), *range(1250))]
    [few] = due_entities(engine, "movies", "item", RULES, limit=100)
    ids = few["entity_id"].to_pylist()
    assert (len(ids), ids) == (100, sorted(ids, key=lambda name: (int(name) < 1250, name)))
    assert 30 < sum(int(name) < 1250 for name in ids) < 70
    assert list(due_entities(engine, "movies", "item", RULES, limit=100)) == [few]
    assert list(due_entities(engine, "books", "item", RULES)) == []


def test_an_entity_is_shown_as_it_is_now_or_as_its_row_says_it_was(engine: Engine, entity_rows: Rows) -> None:
    upsert_entities(engine, entity_rows([{"entity_id": name} for name in "ab"]))
    as_it_is = {"domain": "movies", "kind": "item", "attributes": None, "data_as_of": None}
    then = {"attributes": '{"title": "Jaws"}', "data_as_of": datetime(1975, 6, 20, tzinfo=UTC)}
    rows = [as_it_is | {"entity_id": "gone"}, as_it_is | {"entity_id": "b"} | then, as_it_is | {"entity_id": "a"}]
    late, now = shown(engine, "movies", "item", rows)
    assert (late["entity_id"], late["group_name"], late["earlier"]) == ("b", "Drama", True)
    assert {name: late[name] for name in then} == then
    assert (now["entity_id"], json.loads(now["attributes"]), now["earlier"]) == ("a", {"title": "Heat"}, False)
    pa.Table.from_pylist([late, now], schemas.DUE).validate(full=True)


def test_a_stream_that_is_left_early_gives_its_connection_back(engine: Engine, entity_rows: Rows) -> None:
    upsert_entities(engine, entity_rows([{"entity_id": f"{n}"} for n in range(1500)]))
    for _ in range(20):  # more than the pool has connections
        stream = due_entities(engine, "movies", "item", RULES)
        next(stream)
        del stream
    assert watermark(engine, "movies", "item") is None
