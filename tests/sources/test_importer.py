"""Importing source tables, on a real database."""

from typing import Any

import pyarrow as pa
import pytest
from sqlalchemy import Engine

from dare_core.errors import InputError, SourceError
from dare_core.sources.importer import described, import_tables
from dare_core.sources.movielens import read_movielens


def _all(engine: Engine, query: str) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(query)]


def _shop(**columns: list[Any]) -> dict[str, pa.Table]:
    return {"shop": described(pa.table(columns), "Shops", ["id"])}


def test_movielens_is_imported_with_keys_comments_and_content(engine: Engine) -> None:
    tables = read_movielens()
    expected = {"users": 943, "items": 1682, "ratings": 100_000}
    assert import_tables(engine, tables) == expected
    assert import_tables(engine, tables) == expected, "again: the same content"
    for name, rows in expected.items():
        assert _all(engine, f"SELECT count(*) FROM source.{name}") == [(rows,)]
        assert _all(engine, f"SELECT obj_description('source.{name}'::regclass) LIKE 'Imported: MovieLens%%'") == [
            (True,)
        ]
    [row] = tables["items"].slice(542, 1).to_pylist()
    assert _all(engine, f"SELECT * FROM source.items WHERE item_id = '{row['item_id']}'") == [tuple(row.values())]
    keys = _all(
        engine,
        "SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE contype = 'p' AND connamespace = 'source'::regnamespace ORDER BY 1",
    )
    assert keys == [
        ("source.items", "PRIMARY KEY (item_id)"),
        ("source.ratings", "PRIMARY KEY (user_id, item_id)"),
        ("source.users", "PRIMARY KEY (user_id)"),
    ]
    assert _all(
        engine,
        "SELECT attname FROM pg_attribute WHERE attrelid = 'source.items'::regclass AND attnum > 0 AND NOT attnotnull",
    ) == [("release_year",)]


def test_a_table_of_somebody_elses_is_left_alone(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE source.shop AS SELECT 'precious' AS id")
    with pytest.raises(SourceError, match=r"source.shop exists and was not imported"):
        import_tables(engine, _shop(id=["1"]))
    assert _all(engine, "SELECT id FROM source.shop") == [("precious",)]


def test_an_import_that_fails_leaves_the_tables_as_they_were(engine: Engine) -> None:
    import_tables(engine, _shop(id=["1"]))
    with pytest.raises(SourceError, match=r"source.shop cannot be imported: .*unique"):
        import_tables(engine, _shop(id=["2", "2"]))
    assert _all(engine, "SELECT id FROM source.shop") == [("1",)]


def test_a_table_that_a_view_reads_is_not_dropped_from_under_it(engine: Engine) -> None:
    import_tables(engine, _shop(id=["1"]))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE VIEW mine AS SELECT * FROM source.shop")
    with pytest.raises(SourceError, match="other objects depend on it"):
        import_tables(engine, _shop(id=["2"]))


@pytest.mark.parametrize("name", ["Shop", "shop; DROP TABLE x", "", "1shop", "s" * 64, 'sh"op'])
def test_names_that_are_no_identifiers_are_refused(engine: Engine, name: str) -> None:
    table = _shop(id=["1"])["shop"]
    for tables, schema in (
        ({name: table}, "source"),
        ({"shop": table}, name),
        (_shop(id=["1"], **{name: ["x"]}), "source"),
    ):
        with pytest.raises(InputError, match="cannot name a schema, table or column"):
            import_tables(engine, tables, schema)


def test_a_type_that_has_no_column_is_refused(engine: Engine) -> None:
    with pytest.raises(InputError, match=r"column weight: the type decimal"):
        import_tables(
            engine,
            {"shop": described(pa.table({"id": ["1"], "weight": pa.array([1], pa.decimal128(5))}), "Shops", ["id"])},
        )
