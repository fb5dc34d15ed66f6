"""What pulls bring, on a real database."""

import re
from collections.abc import Callable
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from sqlalchemy import Engine

from dare_core.errors import InputError, WarehouseError
from dare_core.warehouse.connection import connect
from dare_core.warehouse.entities import Pulled, tombstone, upsert_entities, watermark

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
