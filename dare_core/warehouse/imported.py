"""Which source tables are the platform's own imports: their comments say so."""

from typing import Any, Final

import psycopg

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
