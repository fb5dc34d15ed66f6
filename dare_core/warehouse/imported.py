"""Source tables that the platform imported itself: their comments say so."""

from dataclasses import dataclass
from typing import Any, Final

import psycopg
from sqlalchemy import Engine

from dare_core.config.domains import Source
from dare_core.schemas import Kind
from dare_core.warehouse.connection import driver_cursor

#: How comments of imported tables begin; a table without it is somebody else's and is never changed.
MARK: Final = "Imported: "


def is_imported(cursor: psycopg.Cursor[Any], schema: str, table: str) -> bool | None:
    """Whether a table was imported; None: there is no such table."""
    cursor.execute(
        "SELECT coalesce(obj_description(c.oid, 'pg_class'), '') FROM pg_class AS c "
        "JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = %s AND c.relname = %s",
        [schema, table],
    )
    present = cursor.fetchone()
    return None if present is None else bool(present[0].startswith(MARK))


@dataclass(frozen=True)
class SourceCopy:
    """A source table that the platform imported, and its column that names entities of a kind."""

    schema: str
    table: str
    column: str


def source_copies(engine: Engine, source: Source, kind: Kind) -> list[SourceCopy]:
    """Where the platform keeps source rows of a kind of entity: its imports; a team's own tables are not among them."""
    if not source.in_warehouse:
        return []
    entities, met = (
        (source.items, source.interactions.item) if kind == "item" else (source.users, source.interactions.user)
    )
    named = [(source.interactions.table, met), (entities.table, entities.id)]
    with engine.connect() as connection, driver_cursor(connection) as cursor:
        return [
            SourceCopy(source.db_schema, table, column)
            for table, column in named
            if is_imported(cursor, source.db_schema, table)
        ]
