"""Loading into the warehouse: COPY to a temporary table, then one transaction that merges it.

Loading the same rows again changes nothing, a load that dies leaves nothing, and loads at once wait for each other.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql
from sqlalchemy import Engine, insert, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError

from dare_core import schemas
from dare_core.errors import InputError, WarehouseError
from dare_core.warehouse import tables
from dare_core.warehouse.connection import driver_cursor, reason

_ROWS_PER_BATCH: Final = 1000


@dataclass(frozen=True)
class LoadSummary:
    """What a load of knowledge did.

    Attributes:
        loaded: texts that are new.
        already_there: texts whose request had been answered before; the earlier answer stays.
        superseded: earlier texts whose validity ended because their entity got a new one.
    """

    loaded: int
    already_there: int
    superseded: int


@dataclass(frozen=True)
class Pulled:
    """What a pull of one kind found beside the entities that changed.

    Attributes:
        to: the latest moment that it saw, inclusive.
        gone: ids of entities whose source row is there no longer.
    """

    domain: str
    kind: schemas.Kind
    to: datetime
    gone: Sequence[str] = ()


@dataclass(frozen=True)
class EntityChanges:
    """How many entities are new or changed, and how many were found gone."""

    changed: int
    deleted: int


def upsert_entities(engine: Engine, entities: pa.Table, pulled: Pulled | None = None) -> EntityChanges:
    """Insert or update rows of schema ENTITY; with ``pulled``, mark what is gone and move the watermark with them.

    An entity is updated when its group, attributes or events differ, when its ``data_as_of`` moved forward, or when it
    had been gone. Alone, ``data_as_of`` never moves back. A pull that saw less than an earlier one, of an ``as_of`` in
    the past, replaces no entity that is as new as its own, notices no deletion, and leaves the watermark where it is.

    The valid knowledge of what is gone ends now.

    Raises:
        InputError: the rows do not fit the schema, or hold one entity twice.
        WarehouseError: the warehouse has no tables.
    """
    with transaction(engine) as cursor:
        stage(cursor, "staged_entity", entities, schemas.ENTITY)
        _refuse_duplicates(cursor, "staged_entity")
        _lock(cursor, "entity")
        latest = pulled is None or _move_watermark(cursor, pulled)
        cursor.execute(
            f"""
            INSERT INTO knowledge.entity AS present
                (domain, kind, entity_id, group_name, attributes, data_as_of, events)
            SELECT domain, kind, entity_id, group_name, attributes::jsonb, data_as_of, events FROM staged_entity
            ON CONFLICT (domain, kind, entity_id) DO UPDATE SET
                group_name = excluded.group_name,
                attributes = excluded.attributes,
                data_as_of = excluded.data_as_of,
                events = excluded.events,
                deleted_at = NULL,
                updated_at = now()
            WHERE (present.data_as_of < excluded.data_as_of OR %s)
                AND (present.group_name <> excluded.group_name OR {differs("present", "excluded")})
            """,  # noqa: S608 - names of ours
            [latest],
        )
        changed = cursor.rowcount
        deleted = _mark_gone(cursor, pulled) if pulled is not None and latest else 0
        return EntityChanges(changed, deleted)


def differs(present: str, pulled: str) -> str:
    """SQL: what was pulled of an entity is not what the warehouse holds; both by their tables' names."""
    return (
        f"({present}.attributes <> {pulled}.attributes::jsonb OR {present}.events <> {pulled}.events "
        f"OR {present}.data_as_of < {pulled}.data_as_of OR {present}.deleted_at IS NOT NULL)"
    )


def _move_watermark(cursor: psycopg.Cursor[Any], pulled: Pulled) -> bool:
    """Whether no earlier pull saw more than this one."""
    cursor.execute(
        """
        INSERT INTO knowledge.watermark AS present (domain, kind, pulled_to) VALUES (%s, %s, %s)
        ON CONFLICT (domain, kind) DO UPDATE SET pulled_to = excluded.pulled_to
        WHERE present.pulled_to <= excluded.pulled_to
        """,
        [pulled.domain, pulled.kind, pulled.to],
    )
    return cursor.rowcount == 1


def _mark_gone(cursor: psycopg.Cursor[Any], pulled: Pulled) -> int:
    cursor.execute(
        """
        WITH gone AS (
            UPDATE knowledge.entity SET deleted_at = now(), updated_at = now()
            WHERE domain = %s AND kind = %s AND entity_id = ANY(%s) AND deleted_at IS NULL
            RETURNING domain, kind, entity_id
        ), ended AS (
            UPDATE knowledge.knowledge AS k SET valid_to = greatest(clock_timestamp(), k.valid_from) FROM gone
            WHERE (k.domain, k.kind, k.entity_id) = (gone.domain, gone.kind, gone.entity_id) AND k.valid_to IS NULL
        )
        SELECT count(*) FROM gone
        """,
        [pulled.domain, pulled.kind, list(pulled.gone)],
    )
    [count] = cursor.fetchone() or (0,)
    return int(count)


def record_renderings(engine: Engine, rows: pa.Table) -> None:
    """Keep rows of schema RENDERING, in place of what was kept of the same entities.

    Raises:
        InputError: the rows do not fit the schema, or name an entity that is not there.
        WarehouseError: the warehouse has no tables.
    """
    with transaction(engine) as cursor:
        stage(cursor, "staged_rendering", rows, schemas.RENDERING)
        _lock(cursor, "rendering")
        cursor.execute("""
            INSERT INTO knowledge.rendering (domain, kind, entity_id, request_id, settings, content, profile, events)
            SELECT domain, kind, entity_id, request_id, settings, content, profile, events FROM staged_rendering
            ON CONFLICT (domain, kind, entity_id) DO UPDATE SET
                request_id = excluded.request_id,
                settings = excluded.settings,
                content = excluded.content,
                profile = excluded.profile,
                events = excluded.events
        """)


def load_knowledge(engine: Engine, knowledge: pa.Table, embeddings: pa.Table) -> LoadSummary:
    """Load texts of schema KNOWLEDGE and their vectors of schema KNOWLEDGE_EMBEDDING.

    The first committed text of a request wins. A new text ends the validity of its entity's earlier one at the moment
    its own begins. Vectors of unknown requests are left out.

    Raises:
        InputError: the rows do not fit the schemas, the vectors have another width, or one entity has two new texts.
        WarehouseError: the warehouse has no tables.
    """
    width = embeddings.schema.field("embedding").type
    if pa.types.is_fixed_size_list(width) and width.list_size != schemas.EMBEDDING_WIDTH:
        raise InputError(
            f"the embeddings have {width.list_size} dimensions and the warehouse stores {schemas.EMBEDDING_WIDTH}; "
            "set DARE_ENCODER to an encoder of that width"
        )
    with transaction(engine) as cursor:
        stage(cursor, "staged_knowledge", knowledge, schemas.KNOWLEDGE)
        stage(cursor, "staged_embedding", embeddings, schemas.KNOWLEDGE_EMBEDDING)
        _lock(cursor, "knowledge")
        # Under the lock nobody else inserts, so what is not there now is new.
        cursor.execute(
            "DELETE FROM staged_knowledge AS s USING knowledge.knowledge AS k WHERE k.request_id = s.request_id"
        )
        already_there = cursor.rowcount
        _refuse_duplicates(cursor, "staged_knowledge")
        # The clock, not now(): a transaction that began earlier may get the lock later.
        moment = cursor.execute("SELECT clock_timestamp()").fetchone()
        cursor.execute(
            """
            UPDATE knowledge.knowledge AS k SET valid_to = %s FROM staged_knowledge AS s
            WHERE (k.domain, k.kind, k.entity_id) = (s.domain, s.kind, s.entity_id) AND k.valid_to IS NULL
            """,
            moment,
        )
        superseded = cursor.rowcount
        columns = sql.SQL(", ").join(map(sql.Identifier, schemas.KNOWLEDGE.names))
        cursor.execute(
            sql.SQL("INSERT INTO knowledge.knowledge ({0}, valid_from) SELECT {0}, %s FROM staged_knowledge").format(
                columns
            ),
            moment,
        )
        loaded = cursor.rowcount
        cursor.execute("""
            INSERT INTO knowledge.knowledge_embedding (request_id, encoder, embedding)
            SELECT request_id, encoder, embedding FROM staged_embedding
            WHERE request_id IN (SELECT request_id FROM knowledge.knowledge)
            ON CONFLICT DO NOTHING
        """)
        embedded = cursor.rowcount
    if loaded or embedded:
        with transaction(engine) as cursor:
            cursor.execute("ANALYZE knowledge.knowledge, knowledge.knowledge_embedding")
    return LoadSummary(loaded=loaded, already_there=already_there, superseded=superseded)


def quarantine(engine: Engine, rows: pa.Table) -> int:
    """Keep rows of schema QUARANTINE; what is there under the same (request_id, rule) stays.

    NUL characters, which PostgreSQL cannot store and which a text may be quarantined for, become U+FFFD.

    Returns:
        The number of rows that are new.

    Raises:
        InputError: the rows do not fit the schema.
        WarehouseError: the warehouse has no tables.
    """
    for name in ("value", "text"):
        column = pc.replace_substring(
            rows[name].cast(pa.string()), pattern="\0", replacement="\N{REPLACEMENT CHARACTER}"
        )
        rows = rows.set_column(rows.schema.get_field_index(name), schemas.QUARANTINE.field(name), column)
    with transaction(engine) as cursor:
        stage(cursor, "staged_quarantine", rows, schemas.QUARANTINE)
        columns = sql.SQL(", ").join(map(sql.Identifier, schemas.QUARANTINE.names))
        cursor.execute(
            sql.SQL(
                "INSERT INTO knowledge.quarantine ({0}) SELECT {0} FROM staged_quarantine ON CONFLICT DO NOTHING"
            ).format(columns)
        )
        return cursor.rowcount


def record_run(engine: Engine, run_id: str, **columns: object) -> None:
    """Set columns of GENERATION_RUN for one run; its first record needs all that are required.

    ``params`` is JSON text, ``plan`` and ``measured`` are dictionaries.

    Raises:
        WarehouseError: a required column is missing in the first record, or a value is not allowed.
    """
    if "params" in columns:
        columns["params"] = json.loads(str(columns["params"]))
    run = tables.GENERATION_RUN
    try:
        with engine.begin() as connection:
            if not connection.execute(update(run).where(run.c.run_id == run_id).values(**columns)).rowcount:
                statement = postgresql.insert(run).values(run_id=run_id, **columns)
                connection.execute(statement.on_conflict_do_update(index_elements=["run_id"], set_=columns))
    except DBAPIError as error:
        raise WarehouseError(f"run {run_id} cannot be recorded: {reason(error)}") from error


def record_evaluation(engine: Engine, row: Mapping[str, object]) -> None:
    """Store a row of EVALUATION, whose ``result`` is a dictionary.

    Raises:
        WarehouseError: the warehouse has no such table, or the domain was evaluated at the same moment before.
    """
    try:
        with engine.begin() as connection:
            connection.execute(insert(tables.EVALUATION), [dict(row)])
    except DBAPIError as error:
        raise WarehouseError(f"the evaluation of {row['domain']} cannot be recorded: {reason(error)}") from error


def copy_rows(cursor: psycopg.Cursor[Any], target: sql.Composable, table: pa.Table) -> None:
    """COPY an Arrow table, in binary, into a database table that has columns of its names and types."""
    columns = sql.SQL(", ").join(map(sql.Identifier, table.column_names))
    with cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(target, columns)) as copy:
        copy.set_types([sql_type(field.type).partition("(")[0] for field in table.schema])
        for batch in table.to_batches(max_chunksize=_ROWS_PER_BATCH):
            for row in zip(*map(_values, batch.columns), strict=True):
                copy.write_row(row)


def sql_type(arrow: pa.DataType) -> str:
    """The SQL name of :func:`dare_core.warehouse.tables.column_type`."""
    return tables.column_type(arrow).compile(postgresql.dialect()).lower()  # type: ignore[no-untyped-call]


def _values(column: pa.Array) -> Any:
    if pa.types.is_fixed_size_list(column.type):  # vectors: numpy rows, many times faster than lists of floats
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
    return column.to_pylist()


@contextmanager
def transaction(engine: Engine) -> Iterator[psycopg.Cursor[Any]]:
    """A psycopg cursor in a transaction that is committed when the block ends well."""
    with engine.begin() as connection:
        try:
            with driver_cursor(connection) as cursor:
                yield cursor
        except psycopg.errors.UndefinedTable as error:
            raise WarehouseError(f"{reason(error)}; run `dare warehouse upgrade`") from error
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            raise InputError(f"the warehouse does not accept these rows: {reason(error)}") from error
        except psycopg.OperationalError as error:
            connection.invalidate()
            raise WarehouseError(
                f"the warehouse broke off, and nothing was loaded; load again: {reason(error)}"
            ) from error


def stage(cursor: psycopg.Cursor[Any], name: str, table: pa.Table, schema: pa.Schema) -> None:
    """COPY a table into a temporary one that goes with the transaction."""
    try:
        table = table.select(schema.names).cast(schema)
    except (KeyError, ValueError) as error:  # pyarrow's errors derive from these
        raise InputError(f"the rows to load do not fit {', '.join(schema.names)}: {error}") from error
    columns = sql.SQL(", ").join(
        sql.SQL("{} {} {}").format(
            sql.Identifier(field.name), sql.SQL(sql_type(field.type)), sql.SQL("" if field.nullable else "NOT NULL")
        )
        for field in schema
    )
    target = sql.Identifier(name)
    cursor.execute(sql.SQL("CREATE TEMPORARY TABLE {} ({}) ON COMMIT DROP").format(target, columns))
    copy_rows(cursor, target, table)
    cursor.execute(sql.SQL("ANALYZE {}").format(target))


def _refuse_duplicates(cursor: psycopg.Cursor[Any], staged: str) -> None:
    cursor.execute(
        sql.SQL(
            "SELECT domain, kind, entity_id FROM {} GROUP BY 1, 2, 3 HAVING count(*) > 1 ORDER BY 1, 2, 3 LIMIT 1"
        ).format(sql.Identifier(staged))
    )
    if twice := cursor.fetchone():
        raise InputError(f"the rows to load hold {' '.join(twice)} more than once")


def _lock(cursor: psycopg.Cursor[Any], what: str) -> None:
    """Loads of one kind take turns; the lock goes with the transaction."""
    cursor.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [f"dare load {what}"])
