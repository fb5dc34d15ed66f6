"""All rows of the warehouse as of one moment: out of it in one snapshot, and into an empty one in one transaction.

Tables are made by the migrations of the version that the rows are of, so rows alone travel, as PostgreSQL's binary
COPY. Imported source tables travel with what makes them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from graphlib import TopologicalSorter
from typing import Any, Final

import psycopg
from psycopg import sql
from pydantic import BaseModel
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from dare_core.errors import WarehouseError
from dare_core.schemas import Kind
from dare_core.warehouse.connection import driver_cursor, reason
from dare_core.warehouse.imported import MARK, is_imported
from dare_core.warehouse.migrate import rebuild, schema_version
from dare_core.warehouse.tables import SCHEMA

_LEFT_OUT: Final = ("schema_version",)
#: Rows of an installation that holds nothing yet: ``dare warehouse upgrade`` registers where interactions are.
_OF_EVERY_INSTALLATION: Final = (*_LEFT_OUT, "interaction_source")


class TableRows(BaseModel):
    """A table whose rows are kept.

    Attributes:
        schema_name, name: of the table.
        columns: those whose values are kept.
        create: statements that make it before, and ``finish`` it after the rows; none for the migrations' own tables.
    """

    schema_name: str
    name: str
    columns: tuple[str, ...]
    create: tuple[str, ...] = ()
    finish: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.schema_name}.{self.name}"


class Contents(BaseModel):
    """What the warehouse holds.

    Attributes:
        schema_version: of its tables.
        server: PostgreSQL's version.
        domains: those that have a partition with rows.
        tables: in an order in which what is referred to comes first.
        pools: registered versions of retrieval pools: domain, kind, version.
        group_models: versions in force, likewise.
    """

    schema_version: str
    server: str
    domains: tuple[str, ...]
    tables: tuple[TableRows, ...]
    pools: tuple[tuple[str, Kind, str], ...]
    group_models: tuple[tuple[str, Kind, str], ...]


class Snapshot:
    """The warehouse as of one moment; see :func:`snapshot`."""

    def __init__(self, cursor: psycopg.Cursor[Any], contents: Contents) -> None:
        self._cursor, self.contents = cursor, contents

    def copy_rows(self, table: TableRows, write: Callable[[Any], object]) -> int:
        """Hand a table's rows to ``write``, in PostgreSQL's binary COPY format; returns how many they are."""
        query = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT (FORMAT binary)").format(
            sql.SQL(", ").join(map(sql.Identifier, table.columns)), sql.Identifier(table.schema_name, table.name)
        )
        with self._cursor.copy(query) as copy:
            for part in copy:
                write(part)
        return self._cursor.rowcount


@contextmanager
def snapshot(engine: Engine) -> Iterator[Snapshot]:
    """The warehouse as of now, whatever others write while the block runs.

    Raises:
        WarehouseError: it has no tables, or breaks off.
    """
    version = schema_version(engine)
    if version is None:
        raise WarehouseError("the warehouse has no tables yet, so there is nothing to keep")
    try:
        with (
            engine.connect().execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            ) as connection,
            driver_cursor(connection) as cursor,
        ):
            yield Snapshot(cursor, _contents(cursor, version))
    except (DBAPIError, psycopg.Error) as error:
        raise WarehouseError(f"the warehouse broke off; run the same again: {reason(error)}") from error


def require_empty(engine: Engine, contents: Contents) -> None:
    """Check that :func:`restore` finds room.

    Raises:
        WarehouseError: there are rows, or source tables of the same names.
    """
    with engine.connect() as connection, driver_cursor(connection) as cursor:
        _require_empty(cursor, contents)


def restore(
    engine: Engine,
    contents: Contents,
    rows_of: Callable[[TableRows], Iterable[bytes]],
    locations: Mapping[tuple[str, Kind], str],
) -> None:
    """Fill an empty warehouse, and bring it to the current schema: whole or not at all.

    Args:
        engine: the warehouse, as the owner of its tables.
        contents: what it is to hold.
        rows_of: a table's rows, in parts of any size, as :meth:`Snapshot.copy_rows` gave them.
        locations: where the pool stores are now, by domain and kind.

    Raises:
        WarehouseError: it is not empty, is of a newer release, lacks pgvector or a right, or does not take the rows.
    """

    def make_room(connection: Connection) -> None:
        with driver_cursor(connection) as cursor:
            _require_empty(cursor, contents)

    def fill(connection: Connection) -> None:
        with driver_cursor(connection) as cursor:
            for table in contents.tables:
                if table.name == "knowledge" and contents.domains:
                    # By now the encoders are there, which a domain's partitions are made for.
                    cursor.execute("SELECT knowledge.add_domain(unnest(%s::text[]))", [list(contents.domains)])
                _fill_table(cursor, table, rows_of(table))
            for (domain, kind), location in locations.items():
                for name in ("pool_version", "group_model"):
                    cursor.execute(
                        f"UPDATE knowledge.{name} SET location = %s WHERE domain = %s AND kind = %s",  # noqa: S608
                        [location, domain, kind],
                    )

    try:
        rebuild(engine, contents.schema_version, make_room, fill)
    except psycopg.Error as error:
        raise WarehouseError(
            f"the warehouse does not take the rows, and holds none of them: {reason(error)}"
        ) from error


def _fill_table(cursor: psycopg.Cursor[Any], table: TableRows, rows: Iterable[bytes]) -> None:
    if table.create:
        cursor.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(table.schema_name)))
    for statement in table.create:
        cursor.execute(statement.encode())
    into = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(
        sql.Identifier(table.schema_name, table.name), sql.SQL(", ").join(map(sql.Identifier, table.columns))
    )
    with cursor.copy(into) as copy:
        for part in rows:
            copy.write(part)
    for statement in table.finish:
        cursor.execute(statement.encode())


def _require_empty(cursor: psycopg.Cursor[Any], contents: Contents) -> None:
    cursor.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(%s) AND relkind IN ('r', 'p') "
        "AND relname <> ALL(%s) ORDER BY relname",
        [SCHEMA, list(_OF_EVERY_INSTALLATION)],
    )
    for (name,) in cursor.fetchall():
        held = cursor.execute(sql.SQL("SELECT EXISTS (SELECT FROM {})").format(sql.Identifier(SCHEMA, name)))
        if held.fetchone() == (True,):
            raise WarehouseError(f"the warehouse is not empty ({SCHEMA}.{name} has rows): restore into a new database")
    for table in contents.tables:
        if table.create and is_imported(cursor, table.schema_name, table.name) is not None:
            raise WarehouseError(f"the warehouse is not empty (there is a table {table}): restore into a new database")


def _contents(cursor: psycopg.Cursor[Any], version: str) -> Contents:
    server = str(cursor.execute("SHOW server_version").fetchone()[0])  # type: ignore[index]
    parts = cursor.execute(
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'knowledge.knowledge'::regclass"
    ).fetchall()
    domains = [cursor.execute(f"SELECT domain FROM {part} LIMIT 1".encode()).fetchone() for (part,) in parts]  # noqa: S608
    pools = cursor.execute("SELECT domain, kind, version FROM knowledge.pool_version ORDER BY 1, 2, 3").fetchall()
    models = cursor.execute("SELECT domain, kind, version FROM knowledge.group_model ORDER BY 1, 2").fetchall()
    return Contents(
        schema_version=version,
        server=server,
        domains=tuple(sorted(row[0] for row in domains if row)),
        tables=(*_own_tables(cursor), *_imported_tables(cursor)),
        pools=tuple(pools),
        group_models=tuple(models),
    )


def _own_tables(cursor: psycopg.Cursor[Any]) -> list[TableRows]:
    found = cursor.execute(
        """
        SELECT c.relname, array_agg(a.attname::text ORDER BY a.attnum),
            (SELECT coalesce(array_agg(f.relname::text), '{}') FROM pg_constraint AS k
                JOIN pg_class AS f ON f.oid = k.confrelid WHERE k.conrelid = c.oid AND k.contype = 'f')
        FROM pg_class AS c
        JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
        WHERE c.relnamespace = to_regnamespace(%s) AND c.relkind IN ('r', 'p') AND NOT c.relispartition
            AND c.relname <> ALL(%s)
        GROUP BY c.oid, c.relname ORDER BY c.relname
        """,
        [SCHEMA, list(_LEFT_OUT)],
    ).fetchall()
    columns = {name: tuple(named) for name, named, _ in found}
    order = TopologicalSorter({name: referred for name, _, referred in found})
    if "encoder" in columns:
        order.add("knowledge", "encoder")
        order.add("knowledge_embedding", "knowledge")
    return [TableRows(schema_name=SCHEMA, name=name, columns=columns[name]) for name in order.static_order()]


def _imported_tables(cursor: psycopg.Cursor[Any]) -> list[TableRows]:
    """The source tables that the platform imported itself, with what makes them."""
    found = cursor.execute(
        """
        SELECT n.nspname, c.relname, c.oid::regclass::text, obj_description(c.oid, 'pg_class'), c.oid
        FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE c.relkind = 'r' AND n.nspname <> %s AND obj_description(c.oid, 'pg_class') LIKE %s ORDER BY 1, 2
        """,
        [SCHEMA, f"{MARK}%"],
    ).fetchall()
    tables = []
    for schema, name, quoted, comment, oid in found:
        columns = cursor.execute(
            "SELECT attname::text, format('%%I %%s%%s', attname, format_type(atttypid, atttypmod), "
            "CASE WHEN attnotnull THEN ' NOT NULL' ELSE '' END) FROM pg_attribute "
            "WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            [oid],
        ).fetchall()
        keys = cursor.execute(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = %s AND contype = 'p'", [oid]
        ).fetchall()
        indexes = cursor.execute(
            "SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = %s AND NOT indisprimary", [oid]
        ).fetchall()
        said = cursor.execute("SELECT quote_literal(%s)", [comment]).fetchone()
        tables.append(
            TableRows(
                schema_name=schema,
                name=name,
                columns=tuple(column for column, _ in columns),
                create=(f"CREATE TABLE {quoted} ({', '.join(made for _, made in columns)})",),
                finish=(
                    *(f"ALTER TABLE {quoted} ADD {key}" for (key,) in keys),
                    *(index for (index,) in indexes),
                    f"COMMENT ON TABLE {quoted} IS {said[0] if said else 'NULL'}",
                ),
            )
        )
    return tables
