"""What pulls bring, on a real database."""

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial

import pyarrow as pa
import pytest
from sqlalchemy import Engine

from dare_core.errors import InputError, WarehouseError
from dare_core.warehouse import entities
from dare_core.warehouse.connection import connect
from dare_core.warehouse.entities import (
    EntityChanges,
    Pulled,
    merge_entities,
    tombstone,
    upsert_entities,
    watermark,
)
from dare_core.warehouse.entity_staging import EntityStaging, copy_entities, stretches

Rows = Callable[..., pa.Table]


def test_rows_without_a_column_are_refused(engine: Engine, entity_rows: Rows) -> None:
    with pytest.raises(InputError, match="group_name"):
        upsert_entities(engine, entity_rows([{"entity_id": "1"}]).drop(["group_name"]))


def test_a_database_without_tables_asks_for_the_upgrade(empty_database_url: str, entity_rows: Rows) -> None:
    engine = connect(empty_database_url)
    with pytest.raises(WarehouseError, match="run `dare warehouse upgrade`"):
        upsert_entities(engine, entity_rows([{"entity_id": "1"}]))
    engine.dispose()


def test_an_entity_is_updated_only_when_something_changed(engine: Engine, entity_rows: Rows) -> None:
    early, late = datetime(1998, 1, 1, tzinfo=UTC), datetime(1998, 2, 1, tzinfo=UTC)

    def upsert(attributes: str, data_as_of: datetime) -> tuple[int, datetime, str]:
        changed = upsert_entities(
            engine, entity_rows([{"entity_id": "1", "attributes": attributes, "data_as_of": data_as_of}])
        ).changed
        with engine.connect() as connection:
            query = "SELECT data_as_of, attributes ->> 'title' FROM knowledge.entity"
            moment, title = connection.exec_driver_sql(query).one()
        return changed, moment, title

    assert upsert('{"title": "Heat", "year": 1995}', late) == (1, late, "Heat")
    assert upsert('{"year":1995,"title":"Heat"}', late) == (0, late, "Heat"), "the same JSON, written otherwise"
    assert upsert('{"title": "Heat", "year": 1995}', early) == (0, late, "Heat"), "alone, data_as_of never moves back"
    assert upsert('{"title": "Ronin", "year": 1998}', early) == (1, early, "Ronin")
    assert upsert('{"title": "Ronin", "year": 1998}', late) == (1, late, "Ronin")


def test_entities_that_come_twice_or_with_broken_json_are_refused(engine: Engine, entity_rows: Rows) -> None:
    with pytest.raises(InputError, match="movies item 1 more than once"):
        upsert_entities(engine, entity_rows([{"entity_id": "1"}, {"entity_id": "1"}]))
    with pytest.raises(InputError, match="json"):
        upsert_entities(engine, entity_rows([{"entity_id": "1", "attributes": "{broken"}]))


def test_the_watermark_is_what_the_pull_saw(engine: Engine, entity_rows: Rows) -> None:
    seen = datetime(1998, 3, 1, 12, 0, 0, 1, tzinfo=UTC)
    upsert_entities(engine, entity_rows([{"entity_id": "1"}]), Pulled("movies", "item", seen))
    assert watermark(engine, "movies", "item") == seen
    assert watermark(engine, "movies", "user") is None


def test_a_tombstone_tells_domains_kinds_and_ids_apart() -> None:
    keys = (("a", "user", "1"), ("b", "user", "1"), ("a", "item", "1"), ("a", "user", "2"))
    marks = {tombstone(*key) for key in keys}
    assert len(marks) == 4
    assert all(re.fullmatch("[0-9a-f]{64}", mark) for mark in marks)


def test_what_writers_copied_is_merged_a_stretch_at_a_time_and_a_writer_that_comes_twice_counts_once(
    engine: Engine, warehouse_url: str, entity_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entities, "stretches", partial(stretches, blocks=1))
    upsert_entities(engine, entity_rows([{"entity_id": "old"}]))
    rows = entity_rows([{"entity_id": f"{n:04}", "attributes": json.dumps({"title": "x" * 99})} for n in range(500)])
    forget = (
        f"INSERT INTO knowledge.forgotten VALUES ('movies', 'item', '{tombstone('movies', 'item', '0007')}', now())"
    )
    with engine.begin() as connection:
        connection.exec_driver_sql(forget)
    staging, seen = EntityStaging("r", "item"), Pulled("movies", "item", datetime(1998, 3, 1, tzinfo=UTC), ["old"])
    EntityStaging("another's", "item").create(engine, 1)  # whom no lease says to be at it
    first, second = staging.create(engine, 2)
    assert EntityStaging("another's", "item").there(engine) == []
    for table, part in ((first, rows[:300]), (second, rows[300:]), (second, rows[300:])):
        assert copy_entities(warehouse_url, table, part.to_batches(max_chunksize=100)) == len(part)
    with pytest.raises(WarehouseError, match="500 of 501 items are staged"):
        merge_entities(engine, staging, 501, seen)
    assert watermark(engine, "movies", "item") is None
    assert merge_entities(engine, staging, 499, seen) == EntityChanges(deleted=1)  # what is there is not written again
    assert watermark(engine, "movies", "item") == seen.to
    with engine.connect() as connection:
        query = "SELECT count(*), count(*) FILTER (WHERE entity_id IN ('0007', 'old')) FROM knowledge.entity"
        assert connection.exec_driver_sql(query + " WHERE deleted_at IS NULL").one() == (499, 0)


def test_a_pull_that_saw_less_waits_for_its_turn_and_takes_nothing_back(engine: Engine, entity_rows: Rows) -> None:
    late = Pulled("movies", "item", datetime(1998, 3, 1, tzinfo=UTC))
    early = Pulled("movies", "item", datetime(1998, 2, 1, tzinfo=UTC), ["1"])
    new, old = (entity_rows([{"entity_id": "1", "events": events}]) for events in (9, 1))
    with ThreadPoolExecutor(1) as other:
        with entities._turn(engine, late) as latest:
            waiting = other.submit(upsert_entities, engine, old, early)
            assert latest
            upsert_entities(engine, new)
            entities._conclude(engine, late)
            assert not waiting.done()
        assert waiting.result(10) == EntityChanges()
    assert watermark(engine, "movies", "item") == late.to
