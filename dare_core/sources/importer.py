"""Importing Arrow tables into a database as source tables."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import psycopg
import pyarrow as pa
from psycopg import sql
from sqlalchemy import Engine

from dare_core.errors import InputError, SourceError
from dare_core.warehouse.connection import driver_cursor, reason
from dare_core.warehouse.copy import copy_rows, sql_type
from dare_core.warehouse.imported import MARK, is_imported

_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_DESCRIPTION: Final = b"source_table"


def described(table: pa.Table, comment: str, primary_key: Sequence[str], indexes: Sequence[str] = ()) -> pa.Table:
    """The table with what its import needs besides columns, in the Arrow schema's metadata.

    Args:
        table: the rows.
        comment: what they are.
        primary_key: the key's columns.
        indexes: columns that get an index of their own.
    """
    return table.replace_schema_metadata(_description(comment, primary_key, indexes))


def described_stream(
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    comment: str,
    primary_key: Sequence[str],
    indexes: Sequence[str] = (),
) -> pa.RecordBatchReader:
    """As :func:`described`, of rows that are not all in memory; ``batches`` are of ``schema``, and read once."""
    schema = schema.with_metadata(_description(comment, primary_key, indexes))
    described_batches = (batch.replace_schema_metadata(schema.metadata) for batch in batches)
    return pa.RecordBatchReader.from_batches(schema, described_batches)


def _description(comment: str, primary_key: Sequence[str], indexes: Sequence[str]) -> dict[bytes, str]:
    description = {"comment": comment, "primary_key": list(primary_key), "indexes": list(indexes)}
    return {_DESCRIPTION: json.dumps(description)}


def import_tables(
    engine: Engine, tables: Mapping[str, pa.Table | pa.RecordBatchReader], schema: str = "source"
) -> dict[str, int]:
    """Create or replace tables, all in one transaction: rows, primary keys, indexes and comments.

    Args:
        engine: the database.
        tables: rows by table name, each from :func:`described` or :func:`described_stream`; read one after the other,
            in their order.
        schema: the database schema, created when it is missing.

    Returns:
        The number of rows by table name.

    Raises:
        InputError: a name is no plain lower-case identifier, or a column has a type that is not supported.
        SourceError: a table of that name was not imported and is left alone, the role lacks a right, or the rows break
            their key.
    """
    for name in (schema, *tables, *(column for table in tables.values() for column in table.schema.names)):
        if not _NAME.fullmatch(name):
            raise InputError(
                f"{name!r} cannot name a schema, table or column; use a-z, 0-9 and _, at most 63 characters"
            )
    with engine.begin() as connection, driver_cursor(connection) as cursor:
        name = schema
        try:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext('dare source import'))")
            cursor.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
            counts = {}
            for name, table in tables.items():
                counts[name] = _replace(cursor, schema, name, table)
        except psycopg.Error as error:
            raise SourceError(f"{schema}.{name} cannot be imported: {reason(error)}") from error
    return counts


def _replace(cursor: psycopg.Cursor[Any], schema: str, name: str, table: pa.Table | pa.RecordBatchReader) -> int:
    description = json.loads(table.schema.metadata[_DESCRIPTION])
    target = sql.Identifier(schema, name)
    _refuse_foreign(cursor, schema, name)
    cursor.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(target))
    cursor.execute(sql.SQL("CREATE TABLE {} ({})").format(target, sql.SQL(", ").join(map(_column, table.schema))))
    rows = 0
    for batch in table.to_reader() if isinstance(table, pa.Table) else table:
        copy_rows(cursor, target, pa.Table.from_batches([batch]))
        rows += len(batch)
    # Keys after the rows: building an index once is quicker than keeping it up.
    key = sql.SQL(", ").join(map(sql.Identifier, description["primary_key"]))
    cursor.execute(sql.SQL("ALTER TABLE {} ADD PRIMARY KEY ({})").format(target, key))
    for column in description["indexes"]:
        cursor.execute(sql.SQL("CREATE INDEX ON {} ({})").format(target, sql.Identifier(column)))
    comment = sql.Literal(MARK + description["comment"])
    cursor.execute(sql.SQL("COMMENT ON TABLE {} IS {}").format(target, comment))
    cursor.execute(sql.SQL("ANALYZE {}").format(target))
    return rows


def _refuse_foreign(cursor: psycopg.Cursor[Any], schema: str, name: str) -> None:
    if is_imported(cursor, schema, name) is False:
        raise SourceError(
            f"{schema}.{name} exists and was not imported; it is left alone: rename it, or drop it, and import again"
        )


def _column(field: pa.Field) -> sql.Composed:
    try:
        kind = sql_type(field.type)
    except KeyError:
        raise InputError(f"column {field.name}: the type {field.type} is not supported in source tables") from None
    return sql.SQL("{} {} {}").format(
        sql.Identifier(field.name), sql.SQL(kind), sql.SQL("" if field.nullable else "NOT NULL")
    )
