"""Proving: the entities are looked for in every table and every file after they were removed."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from psycopg import sql
from sqlalchemy import Engine, text

from dare_core.operations.forgetting.files import DataFiles
from dare_core.operations.forgetting.traces import (
    Entities,
    Sought,
    Traces,
    bare_pattern,
    id_pattern,
    storable,
    written_forms,
)
from dare_core.pools import PoolStore, retention
from dare_core.warehouse.connection import transaction
from dare_core.warehouse.imported import SourceCopy
from dare_core.warehouse.tables import PARTITIONS, SCHEMA

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


def search_tables(engine: Engine, who: Entities, sought: Traces, copies: Sequence[SourceCopy]) -> SearchedTables:
    """Look for the entities in every column of every table of the warehouse, and of the source's copies.

    Ids are looked for in the columns that hold ids, and in text and JSON where they are named as such; requests, texts
    and titles everywhere.
    """
    columns = _columns(engine, copies)
    id_columns = {(copy.schema, copy.table): copy.column for copy in copies}
    whole = (*map(storable, sought.texts), *sought.request_ids)
    bound = {
        **who.bound,
        "requests": list(sought.request_ids),
        "texts": [f"%{_like(form)}%" for one in whole for form in written_forms(one)],
        "titles": bare_pattern(sought.titles) if sought.titles else None,
        "named": id_pattern(who),
    }
    rows_seen, columns_seen, found = 0, 0, list[str]()
    with transaction(engine) as cursor:
        for (schema, table), of_table in columns.items():
            conditions = _conditions(of_table, id_columns.get((schema, table)))
            counted = [sql.SQL("count(*) FILTER (WHERE {})").format(one) for one in conditions.values()]
            cursor.execute(
                sql.SQL("SELECT count(*), {} FROM {}").format(
                    sql.SQL(", ").join(counted) if counted else sql.SQL("0"), sql.Identifier(schema, table)
                ),
                bound,
            )
            rows, *hits = cursor.fetchone() or (0,)
            rows_seen, columns_seen = rows_seen + rows, columns_seen + len(conditions)
            for column, hit in zip(conditions, hits, strict=False):
                if hit:
                    found.append(f"{schema}.{table}.{column}: {hit} row" + ("s" if hit > 1 else ""))
    return SearchedTables(len(columns), columns_seen, rows_seen, found)


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


_TEXTS: Final = ("text", "character varying", "character", "json", "jsonb", "text[]", "character varying[]")


def _conditions(columns: dict[str, str], id_column: str | None) -> dict[str, sql.Composable]:
    """What is looked for in each column."""
    conditions: dict[str, sql.Composable] = {}
    of_domain = "domain = %(domain)s" if "domain" in columns else "true"
    for column, kind in columns.items():
        name, tests = sql.Identifier(column), list[sql.Composable]()
        if column == "entity_id" and "kind" in columns:
            tests.append(sql.SQL(f"({of_domain} AND kind = %(kind)s AND entity_id = ANY(%(ids)s::text[]))"))
        elif column == id_column:
            tests.append(sql.SQL("{}::text = ANY(%(ids)s::text[])").format(name))
        elif column == "request_id":
            tests.append(sql.SQL("request_id = ANY(%(requests)s::text[])"))
        elif kind in _TEXTS:
            tests.append(sql.SQL("{}::text LIKE ANY(%(texts)s::text[])").format(name))
            tests.append(sql.SQL("{}::text ~ %(titles)s::text").format(name))
            if id_column is None:
                tests.append(sql.SQL(f"({of_domain} AND {{}}::text ~ %(named)s)").format(name))
        if tests:
            conditions[column] = sql.SQL(" OR ").join(tests)
    return conditions


def _like(text: str) -> str:
    """A text as LIKE takes it literally."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


@dataclass(frozen=True)
class SearchedFiles:
    """Likewise of files.

    Attributes:
        files: how many.
        size: of them all, in bytes as they are on disk.
        segments: how many of them are segments of retrieval pools.
        found: paths below ``data_dir``, and what they hold, in a word.
    """

    files: int
    size: int
    segments: int
    found: list[str]


def search_files(files: DataFiles, traces: Traces) -> SearchedFiles:
    """Look for the entities in every file: decoded where it is Parquet or a pool's segment, else in its bytes."""
    sought = files.sought(traces)
    count = size = segments = 0
    found = list[str]()
    for path, parts in files.walk():
        count, size = count + 1, size + path.stat().st_size
        if "segments" in parts[:-1]:
            segments += 1
            continue  # below, a pool at a time
        what = _found_in_file(files, path, parts, sought)
        if what:
            found.append(f"{'/'.join(parts)}: {what}")
    for folder in sorted(path for path in files.root.rglob("segments") if path.is_dir()):
        parts = folder.relative_to(files.root).parts
        ours = parts[0] == "pool_cache" or parts[:-1] == ("pools", files.who.domain, files.who.kind)
        names = retention.holding(PoolStore(folder.parent), files.who.ids if ours else (), sorted(traces.token_ids))
        found += [f"{'/'.join(parts[:-1])}/{name}: text" for name in names]
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
        table = pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        return f"cannot be read, so nobody can say: {error}" if files.may_be_ours(parts) else None
    if pc.any(files.own_rows(table, parts)).as_py():
        return "id"
    for field in table.schema:
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            values = (value for value in pc.unique(table[field.name]).to_pylist() if value is not None)
            ids = None if field.name == "entity_id" else files.id_pattern(parts, sought)
            if what := sought.found_in("\n".join(f"{field.name}: {value}" for value in values).encode(), ids):
                return what
    return None
