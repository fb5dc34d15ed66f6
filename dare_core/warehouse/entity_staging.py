"""A run's entities on their way into the warehouse: copied by several writers at once, each into a table of its own.

A writer empties its table before it copies, in the same transaction. So one that is started again, or twice at once, as
Spark does with tasks, leaves its rows once. What is copied goes on from here by
:func:`dare_core.warehouse.entities.merge_entities`.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

import psycopg
import pyarrow as pa
from psycopg import sql
from sqlalchemy import Engine

from dare_core import schemas
from dare_core.schemas import Kind
from dare_core.warehouse.connection import connected, transaction
from dare_core.warehouse.copy import copy_rows
from dare_core.warehouse.staging import create, fit

#: Connections that write at once, at most.
WRITERS: Final = 16
#: Blocks of a staging table that one transaction merges: 32 MiB of rows.
MERGED_BLOCKS: Final = 4096

#: Of the run, the kind, the try and the writer: what is left of an earlier try finds no table to write to.
_NAME: Final = re.compile(r"^entity_([0-9a-f]{16})_(?:item|user)_[0-9a-f]{8}_\d+$")


@dataclass(frozen=True)
class EntityStaging:
    """The staging tables of a run's entities of one kind."""

    run_id: str
    kind: Kind

    def create(self, engine: Engine, writers: int) -> list[str]:
        """Create an empty table for each writer, in place of those of an earlier try; returns their names.

        Those of runs that nobody is at any more go too.

        Raises:
            WarehouseError: the warehouse has no tables.
        """
        this_try = uuid4().hex[:8]
        tables = [f"staging.{self._prefix}{this_try}_{writer}" for writer in range(writers)]
        with transaction(engine) as cursor:
            _drop(cursor, [*self._there(cursor), *_abandoned(cursor, self.run_id)])
            for table in tables:
                create(cursor, table, schemas.ENTITY)
        return tables

    def there(self, engine: Engine) -> list[str]:
        """The tables that are there."""
        with transaction(engine) as cursor:
            return self._there(cursor)

    def drop(self, engine: Engine) -> None:
        with transaction(engine) as cursor:
            _drop(cursor, self._there(cursor))

    @property
    def _prefix(self) -> str:
        return f"entity_{_mark(self.run_id)}_{self.kind}_"

    def _there(self, cursor: psycopg.Cursor[Any]) -> list[str]:
        return [f"staging.{name}" for name in _names(cursor) if name.startswith(self._prefix)]


def copy_entities(url: str, table: str, batches: Iterable[pa.RecordBatch]) -> int:
    """Copy rows of schema ENTITY into a staging table, in place of what is there; returns how many.

    Memory holds a batch. One connection, one transaction: all rows are there afterwards, or those from before.

    Raises:
        InputError: the rows do not fit the schema.
        WarehouseError: the warehouse cannot be reached, or broke off.
    """
    rows, target = 0, sql.SQL(table)
    with connected(url) as engine, transaction(engine) as cursor:
        cursor.execute(sql.SQL("TRUNCATE {}").format(target))
        for batch in batches:
            copy_rows(cursor, target, fit(pa.Table.from_batches([batch]), schemas.ENTITY))
            rows += len(batch)
    return rows


def stretches(cursor: psycopg.Cursor[Any], table: str, blocks: int = MERGED_BLOCKS) -> Iterator[str]:
    """SQL conditions on a table called ``s``, of which each row meets exactly one: stretches of so many blocks."""
    row = cursor.execute(
        "SELECT pg_relation_size(%s::regclass) / current_setting('block_size')::int", [table]
    ).fetchone()
    for start in range(0, int(row[0]) if row else 0, blocks):
        yield f"s.ctid >= '({start},0)'::tid AND s.ctid < '({start + blocks},0)'::tid"


def _names(cursor: psycopg.Cursor[Any]) -> list[str]:
    cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'staging' ORDER BY length(tablename), tablename")
    return [name for (name,) in cursor.fetchall() if _NAME.match(name)]


def _abandoned(cursor: psycopg.Cursor[Any], run_id: str) -> list[str]:
    """Tables of runs that nobody is at, other than this one."""
    cursor.execute("SELECT run_id FROM knowledge.run_lease WHERE expires_at > clock_timestamp()")
    alive = {_mark(run_id), *(_mark(other) for (other,) in cursor.fetchall())}
    found = ((name, _NAME.match(name)) for name in _names(cursor))
    return [f"staging.{name}" for name, parts in found if parts and parts[1] not in alive]


def _drop(cursor: psycopg.Cursor[Any], tables: Iterable[str]) -> None:
    for table in dict.fromkeys(tables):
        cursor.execute(sql.SQL("DROP TABLE {}").format(sql.SQL(table)))


def _mark(run_id: str) -> str:
    return hashlib.sha256(run_id.encode()).hexdigest()[:16]
