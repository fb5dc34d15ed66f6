"""Proving: the entities are looked for in every table and every file after they were removed."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from psycopg import sql
from sqlalchemy import Engine, text

from dare_core.operations.forgetting.columns import SEPARATOR, columns_of
from dare_core.operations.forgetting.files import DataFiles
from dare_core.operations.forgetting.traces import Sought, Traces
from dare_core.pools import retention
from dare_core.warehouse.connection import transaction
from dare_core.warehouse.imported import SourceCopy
from dare_core.warehouse.tables import PARTITIONS, SCHEMA

#: Types of columns that may say anything.
_TEXTS: Final = ("text", "character varying", "character", "json", "jsonb", "text[]", "character varying[]")
_SEARCHED_SCHEMAS: Final = (SCHEMA, PARTITIONS, "staging", "features")


@dataclass(frozen=True)
class SearchedTables:
    """What was looked through, and where something was found.

    Attributes:
        tables: how many tables.
        columns: of them, how many columns.
        rows: of them.
        found: ``schema.table.column`` and how many of its rows, in words.
    """

    tables: int
    columns: int
    rows: int
    found: list[str]


def search_tables(engine: Engine, sought: Sought, copies: Sequence[SourceCopy]) -> SearchedTables:
    """Look for the entities in every column of every table of the warehouse, and of the source's copies.

    Ids are looked for in the columns that hold ids, and in text and JSON where they are named as such; requests, texts
    and titles everywhere.
    """
    columns = _columns(engine, copies)
    id_columns = {(copy.schema, copy.table): copy.column for copy in copies}
    rows_seen, columns_seen, found = 0, 0, list[str]()
    with transaction(engine) as cursor:
        for (schema, table), of_table in columns.items():
            id_column = id_columns.get((schema, table))
            rows, hits = _count_ids(cursor, sought, (schema, table), of_table, id_column)
            texts = [name for name, kind in of_table.items() if kind in _TEXTS and name not in hits]
            if rows and texts:
                hits |= _search_texts(cursor, sought, (schema, table), texts, of_table, id_column is None)
            rows_seen, columns_seen = rows_seen + rows, columns_seen + len({*hits, *texts})
            for column in (name for name in of_table if hits.get(name)):
                found.append(f"{schema}.{table}.{column}: {hits[column]} row" + ("s" if hits[column] > 1 else ""))
    return SearchedTables(len(columns), columns_seen, rows_seen, found)


def _count_ids(
    cursor: psycopg.Cursor[Any],
    sought: Sought,
    table: tuple[str, str],
    columns: Mapping[str, str],
    id_column: str | None,
) -> tuple[int, dict[str, int]]:
    """How many rows a table has, and in how many the columns of ids hold some of the entities or their requests."""
    conditions: dict[str, sql.Composable] = {}
    if "entity_id" in columns and "kind" in columns:
        of_domain = "domain = %(domain)s AND " if "domain" in columns else ""
        conditions["entity_id"] = sql.SQL(f"{of_domain}kind = %(kind)s AND entity_id = ANY(%(ids)s::text[])")
    if "request_id" in columns:
        conditions["request_id"] = sql.SQL("request_id = ANY(%(requests)s::text[])")
    if id_column is not None:
        conditions[id_column] = sql.SQL("{}::text = ANY(%(ids)s::text[])").format(sql.Identifier(id_column))
    counted = [sql.SQL("count(*) FILTER (WHERE {})").format(one) for one in conditions.values()]
    cursor.execute(
        sql.SQL("SELECT {} FROM {}").format(
            sql.SQL(", ").join([sql.SQL("count(*)"), *counted]), sql.Identifier(*table)
        ),
        {**sought.who.bound, "requests": list(sought.traces.request_ids)},
    )
    rows, *hits = cursor.fetchone() or (0,)
    return rows, dict(zip(conditions, hits, strict=False))


def _search_texts(
    cursor: psycopg.Cursor[Any],
    sought: Sought,
    table: tuple[str, str],
    names: Sequence[str],
    columns: Mapping[str, str],
    ids_count: bool,
) -> dict[str, int]:
    """In how many rows a table's columns of text say something of the entities; of other domains' rows ids are not."""
    quoted = {sql.Identifier(name).as_string(cursor): name for name in names}
    parts = [("", sought.named if ids_count else None)]
    if ids_count and "domain" in columns:
        parts = [("WHERE domain = %(domain)s", sought.named), ("WHERE domain IS DISTINCT FROM %(domain)s", None)]
    hits: dict[str, int] = {}
    for where, ids in parts:
        for column in columns_of(
            cursor, sql.Identifier(*table).as_string(cursor), list(quoted), where, sought.who.bound
        ):
            if places := [at for at, _ in sought.places(column.content, ids)]:
                name = quoted[column.name]
                hits[name] = hits.get(name, 0) + column.rows(places)
    return hits


def _columns(engine: Engine, copies: Iterable[SourceCopy]) -> dict[tuple[str, str], dict[str, str]]:
    """Types of the columns of every table that is searched, by schema and table."""
    query = text("""
        SELECT n.nspname AS schema, c.relname AS name, a.attname AS column, format_type(a.atttypid, NULL) AS type
        FROM pg_class AS c
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        WHERE c.relkind IN ('r', 'm')
            AND (n.nspname = ANY(:schemas) OR (n.nspname || '.' || c.relname) = ANY(:copies))
        ORDER BY 1, 2, a.attnum
    """)
    bound = {"schemas": list(_SEARCHED_SCHEMAS), "copies": [f"{copy.schema}.{copy.table}" for copy in copies]}
    found: dict[tuple[str, str], dict[str, str]] = {}
    with engine.connect() as connection:
        for row in connection.execute(query, bound):
            found.setdefault((row.schema, row.name), {})[row.column] = row.type
    return found


#: Types of columns that may say anything.


@dataclass(frozen=True)
class SearchedFiles:
    """Likewise of files.

    Attributes:
        files: how many.
        size: of them all, in bytes as they are on disk.
        segments: how many of them are segments of retrieval pools.
        found: paths, see :attr:`~dare_core.operations.forgetting.files.DataFile.name`; what they hold, in a word.
    """

    files: int
    size: int
    segments: int
    found: list[str]


def search_files(files: DataFiles, traces: Traces) -> SearchedFiles:
    """Look for the entities in every file: decoded where it is Parquet or a pool's segment, else in its bytes."""
    sought = files.sought(traces)
    texts = sorted(traces.token_ids)
    everybody, of_the_pool = retention.Whose.of((), texts), retention.Whose.of(files.who.ids, texts)
    count = size = segments = 0
    found = list[str]()
    for file, path in files.walk():
        count, size = count + 1, size + file.size
        if file.is_segment:
            segments += 1
            ours = file.parts[0] == "pool_cache" or file.parts[:3] == ("pools", files.who.domain, files.who.kind)
            what = "text" if (of_the_pool if ours else everybody).are_in(path) else None
        else:
            what = _found_in_file(files, path, file.parts, sought)
        if what:
            found.append(f"{file.name}: {what}")
    return SearchedFiles(count, size, segments, found)


#: Bytes of a file that are looked at at once, and how many of them again with the next.
_CHUNK: Final = 64 << 20
_AGAIN: Final = 1 << 20


def search_cluster(engine: Engine, folder: Path, sought: Sought) -> SearchedFiles:
    """Look for texts and requests in the bytes of the embedded server's own files: those of the warehouse, and the log.

    A long text is stored compressed or in pieces; the ids of its request stand in the row and its indexes all the same.

    Args:
        engine: the warehouse.
        folder: of :func:`dare_core.warehouse.server.cluster`.
        sought: the traces.
    """
    with engine.connect() as connection:
        database = connection.exec_driver_sql("SELECT oid FROM pg_database WHERE datname = current_database()").scalar()
    size, found = 0, list[str]()
    paths = [path for part in (f"base/{database}", "pg_wal") for path in sorted((folder / part).glob("*"))]
    for path in paths:
        with suppress(FileNotFoundError), path.open("rb") if path.is_file() else nullcontext() as file:
            rest = b""
            while file is not None and (read := file.read(_CHUNK)):
                size += len(read)
                if what := sought.found_in(rest + read, None):
                    found.append(f"postgres/data/{path.relative_to(folder)}: {what}")
                    break
                rest = read[-_AGAIN:]
    return SearchedFiles(len(paths), size, 0, found)


def _found_in_file(files: DataFiles, path: Path, parts: Sequence[str], sought: Sought) -> str | None:
    if path.suffix != ".parquet":
        return sought.found_in(path.read_bytes(), files.id_pattern(parts, sought))
    try:
        if pc.any(files.own_rows(path, parts)).as_py():
            return "id"
        with pq.ParquetFile(path) as file:
            for field in file.schema_arrow:
                if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
                    ids = None if field.name == "entity_id" else files.id_pattern(parts, sought)
                    column = file.read([field.name], use_threads=False)[field.name]
                    if what := _found_in_column(field.name, column, sought, ids):
                        return what
    except (OSError, pa.ArrowException) as error:
        return f"cannot be read, so nobody can say: {error}" if files.may_be_ours(parts) else None
    return None


def _found_in_column(name: str, column: pa.ChunkedArray, sought: Sought, ids: "re.Pattern[bytes] | None") -> str | None:
    values = pc.unique(column).drop_null().cast(pa.large_binary())
    # An id counts where it follows the name of its column, and so do those that the column is of.
    before = f"{name}: ".encode() if name in sought.columns else b""
    return sought.found_in(before + (SEPARATOR + before).join(values.to_pylist()), ids)
