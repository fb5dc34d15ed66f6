"""Rows on their way into a table: copied into an unlogged one that nobody else sees, merged from there by its owner."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
import pyarrow as pa
from psycopg import sql

from dare_core.errors import InputError
from dare_core.warehouse.copy import copy_rows, sql_type

#: By which staged rows are joined.
_KEYS: Final = ("request_id", "domain", "kind", "entity_id")


@contextmanager
def staged(
    cursor: psycopg.Cursor[Any], name: str, rows: pa.Table | Iterable[pa.Table], schema: pa.Schema
) -> Iterator[str]:
    """COPY a table, or several, into an unlogged one that nobody else sees; yields its name. It goes when the block
    ends.

    Raises:
        InputError: the rows do not fit the schema.
    """
    target = f"staging.{name}_{cursor.connection.info.backend_pid}"
    create(cursor, target, schema)
    for table in [rows] if isinstance(rows, pa.Table) else rows:
        copy_rows(cursor, sql.SQL(target), fit(table, schema))
    keys = [field.name for field in schema if field.name in _KEYS]
    cursor.execute(f"ANALYZE {target} ({', '.join(keys)})" if keys else f"ANALYZE {target}")
    yield target
    cursor.execute(f"DROP TABLE {target}")  # where the block fails, the transaction leaves nothing


def create(cursor: psycopg.Cursor[Any], target: str, schema: pa.Schema) -> None:
    """Create an unlogged table of a schema's columns."""
    columns = sql.SQL(", ").join(
        sql.SQL("{} {} {}").format(
            sql.Identifier(field.name), sql.SQL(sql_type(field.type)), sql.SQL("" if field.nullable else "NOT NULL")
        )
        for field in schema
    )
    cursor.execute(
        sql.SQL("CREATE UNLOGGED TABLE {} ({}) WITH (toast_tuple_target = 8160)").format(sql.SQL(target), columns)
    )


def fit(table: pa.Table, schema: pa.Schema, but: str | None = None) -> pa.Table:
    """The table's columns of a schema, in its types; column ``but`` keeps the type that it has."""
    try:
        table = table.select(schema.names)
        if but is not None:
            at = schema.get_field_index(but)
            schema = schema.set(at, table.schema.field(at).with_nullable(False))
        return table.cast(schema)
    except (KeyError, ValueError) as error:  # pyarrow's errors derive from these
        raise InputError(f"the rows to load do not fit {', '.join(schema.names)}: {error}") from error


def refuse_duplicates(cursor: psycopg.Cursor[Any], rows: str) -> None:
    cursor.execute(
        f"SELECT domain, kind, entity_id FROM {rows} GROUP BY 1, 2, 3 HAVING count(*) > 1 ORDER BY 1, 2, 3 LIMIT 1"  # noqa: S608
    )
    if twice := cursor.fetchone():
        raise InputError(f"the rows to load hold {' '.join(twice)} more than once")
