"""Migrations, on real databases."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from dare_core.errors import WarehouseError
from dare_core.warehouse import tables
from dare_core.warehouse.connection import connect
from dare_core.warehouse.migrate import explain, require_current, upgrade


def test_the_migrated_database_is_what_the_schemas_say(engine: Engine) -> None:
    options = {
        "include_schemas": True,
        "include_name": lambda name, kind, parents: kind != "schema" or name == "knowledge",
        "version_table": "schema_version",
        "version_table_schema": "knowledge",
    }
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection, opts=options), tables.metadata)
        keys = {
            (table, column)
            for table, column in connection.exec_driver_sql("""
                SELECT c.conrelid::regclass::text, a.attname FROM pg_constraint AS c
                JOIN pg_attribute AS a ON a.attrelid = c.conrelid AND a.attnum = ANY(c.conkey)
                WHERE c.contype = 'p' AND c.connamespace = 'knowledge'::regnamespace
            """)
        }
    assert [change for change in _flat(differences) if "comment" not in change[0]] == []
    expected = {
        (f"knowledge.{table.name}", column.name)
        for table in tables.metadata.sorted_tables
        for column in table.primary_key
    }
    assert keys - {("knowledge.schema_version", "version_num")} == expected


def _flat(differences: list[Any]) -> list[tuple[Any, ...]]:
    return [change for entry in differences for change in (entry if isinstance(entry, list) else [entry])]


def test_every_table_and_view_is_described(engine: Engine) -> None:
    with engine.connect() as connection:
        bare = connection.exec_driver_sql("""
            SELECT oid::regclass FROM pg_class
            WHERE relnamespace IN ('knowledge'::regnamespace, 'features'::regnamespace) AND relkind IN ('r', 'v')
                AND obj_description(oid, 'pg_class') IS NULL AND relname <> 'schema_version'
        """).all()
    assert bare == []


def test_an_empty_database_asks_for_the_upgrade_and_takes_it_twice(empty_database_url: str) -> None:
    engine = connect(empty_database_url)
    with pytest.raises(WarehouseError, match="run `dare warehouse upgrade`"):
        require_current(engine)
    upgrade(engine)
    upgrade(engine)
    require_current(engine)
    engine.dispose()


def test_upgrades_at_once_wait_for_each_other(empty_database_url: str) -> None:
    engines = [connect(empty_database_url) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(upgrade, engines))
    require_current(engines[0])
    for engine in engines:
        engine.dispose()


def test_a_newer_database_says_so(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE knowledge.schema_version SET version_num = '9999'"))
    for act in (upgrade, require_current):
        with pytest.raises(WarehouseError, match="9999, which is newer than this code"):
            act(engine)


@pytest.mark.usefixtures("template_url")  # whose migration created the roles of the server
def test_a_role_without_rights_is_told_what_to_ask_for(empty_database_url: str) -> None:
    administrator = connect(empty_database_url)
    with administrator.begin() as connection:
        connection.exec_driver_sql("DROP ROLE IF EXISTS plain_role")
        connection.exec_driver_sql("CREATE ROLE plain_role LOGIN")
    engine = connect(empty_database_url.replace("postgres@", "plain_role@"))
    with pytest.raises(WarehouseError, match="ask an administrator to run `CREATE EXTENSION vector`"):
        upgrade(engine)
    with administrator.begin() as connection:
        connection.exec_driver_sql("CREATE EXTENSION vector")
    with pytest.raises(WarehouseError, match="ask for CREATE on the database"):
        upgrade(engine)
    with administrator.begin() as connection:
        connection.exec_driver_sql(
            "DO $$ BEGIN EXECUTE 'GRANT CREATE ON DATABASE ' || current_database() || ' TO plain_role'; END $$"
        )
    upgrade(engine)
    require_current(engine)
    with pytest.raises(DBAPIError) as raised, engine.begin() as connection:
        connection.exec_driver_sql("CREATE ROLE another_role")
    assert "ask an administrator to run `CREATE ROLE dare_loader" in str(explain(raised.value))
    engine.dispose()
    administrator.dispose()


def test_a_server_without_pgvector_is_told_what_to_install(empty_database_url: str) -> None:
    engine = connect(empty_database_url)
    with pytest.raises(DBAPIError) as raised, engine.begin() as connection:
        connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS no_such_extension")
    engine.dispose()
    assert "lacks pgvector" in str(explain(raised.value))
    assert "install it on the server" in str(explain(raised.value))


def test_a_failed_upgrade_leaves_nothing(empty_database_url: str) -> None:
    engine = connect(empty_database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA features; CREATE TABLE features.item (x int)")
    with pytest.raises(WarehouseError, match="cannot be upgraded"):
        upgrade(engine)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT to_regnamespace('knowledge') IS NULL").scalar_one()
    engine.dispose()
