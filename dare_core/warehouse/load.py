"""Loading into the warehouse: COPY into an unlogged table, merged from there, in one transaction.

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
from sqlalchemy.exc import DBAPIError, OperationalError

from dare_core import schemas
from dare_core.errors import InputError, WarehouseError
from dare_core.warehouse import tables
from dare_core.warehouse.connection import driver_cursor, reason
from dare_core.warehouse.copy import copy_rows, sql_type

#: By which staged rows are joined.
_KEYS: Final = ("request_id", "domain", "kind", "entity_id")

#: Memory for building the index of vectors: 1.5 million of 384 dimensions fit into it.
_INDEX_MEMORY: Final = "2GB"


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
    """How many entities are new or changed, how many were found gone, and how many left out as forgotten."""

    changed: int
    deleted: int
    forgotten: int = 0


def upsert_entities(engine: Engine, entities: pa.Table, pulled: Pulled | None = None) -> EntityChanges:
    """Insert or update rows of schema ENTITY; with ``pulled``, mark what is gone and move the watermark with them.

    An entity is updated when its group, attributes or events differ, when its ``data_as_of`` moved forward, or when it
    had been gone. Alone, ``data_as_of`` never moves back. A pull that saw less than an earlier one, of an ``as_of`` in
    the past, replaces no entity that is as new as its own, notices no deletion, and leaves the watermark where it is.

    The valid knowledge of what is gone ends now. What was forgotten (:mod:`dare_core.warehouse.forget`) is left out.

    Raises:
        InputError: the rows do not fit the schema, or hold one entity twice.
        WarehouseError: the warehouse has no tables.
    """
    with transaction(engine) as cursor, staged(cursor, "entity", entities, schemas.ENTITY) as rows:
        _refuse_duplicates(cursor, rows)
        lock(cursor, "entity")
        # Under the lock, which whoever forgets takes too.
        cursor.execute(f"""
            DELETE FROM {rows} AS s USING knowledge.forgotten AS f
            WHERE (f.domain, f.kind) = (s.domain, s.kind) AND f.entity = encode(
                sha256(convert_to(s.domain || '/' || s.kind || '/' || s.entity_id, 'UTF8')), 'hex'
            )
        """)  # noqa: S608 - names of ours
        forgotten = cursor.rowcount
        latest = pulled is None or _move_watermark(cursor, pulled)
        cursor.execute(
            f"""
            INSERT INTO knowledge.entity AS present
                (domain, kind, entity_id, group_name, attributes, data_as_of, events)
            SELECT domain, kind, entity_id, group_name, attributes::jsonb, data_as_of, events FROM {rows}
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
        return EntityChanges(changed, deleted, forgotten)


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
    with transaction(engine) as cursor, staged(cursor, "rendering", rows, schemas.RENDERING) as new:
        lock(cursor, "rendering")
        cursor.execute(f"""
            INSERT INTO knowledge.rendering (domain, kind, entity_id, request_id, settings, content, profile, events)
            SELECT domain, kind, entity_id, request_id, settings, content, profile, events FROM {new}
            ON CONFLICT (domain, kind, entity_id) DO UPDATE SET
                request_id = excluded.request_id,
                settings = excluded.settings,
                content = excluded.content,
                profile = excluded.profile,
                events = excluded.events
        """)  # noqa: S608 - names of ours


def load_knowledge(engine: Engine, knowledge: pa.Table, *embeddings: pa.Table) -> LoadSummary:
    """Load texts of schema KNOWLEDGE and their vectors; see :func:`merge_knowledge` and :func:`index_vectors`."""
    with transaction(engine) as cursor:
        summary = merge_knowledge(cursor, knowledge, *embeddings)
    index_vectors(engine)
    return summary


def merge_knowledge(cursor: psycopg.Cursor[Any], knowledge: pa.Table, *embeddings: pa.Table) -> LoadSummary:
    """Within a transaction, load texts and vectors, one table of schema KNOWLEDGE_EMBEDDING for each encoder.

    The first committed text of a request wins. A new text ends the validity of its entity's earlier one at the moment
    its own begins. Vectors of requests that are not among the texts are left out. The first encoder ever is put in
    force. A load of more items than its domain holds takes away the index of vectors: to build it afterwards is quicker
    than to keep it up.

    Raises:
        InputError: the rows do not fit the schemas, the vectors are of an encoder or width that the warehouse does not
            have, or one entity has two new texts.
        WarehouseError: the warehouse has no tables.
    """
    columns = ", ".join(schemas.KNOWLEDGE.names)
    with (
        staged(cursor, "knowledge", knowledge, schemas.KNOWLEDGE) as texts,
        _staged_vectors(cursor, embeddings) as vectors,
    ):
        lock(cursor, "knowledge")
        _admit_encoders(cursor, embeddings)
        # Under the lock nobody else inserts, so what is not there now is new.
        cursor.execute(f"""
            WITH known AS (
                DELETE FROM {texts} AS s USING knowledge.knowledge AS k
                WHERE k.request_id = s.request_id AND k.domain = s.domain
                RETURNING k.request_id, k.domain, k.kind, k.valid_to IS NULL AS is_valid
            ), embedded AS ({_insert_vectors("known", vectors, "ON CONFLICT DO NOTHING")} RETURNING 1)
            SELECT (SELECT count(*) FROM known), (SELECT count(*) FROM embedded)
        """)  # noqa: S608 - names of ours
        already_there, embedded = cursor.fetchone() or (0, 0)
        _refuse_duplicates(cursor, texts)
        cursor.execute(f"""
            SELECT knowledge.prepare_load(domain, count(*) FILTER (WHERE kind = 'item')) FROM {texts} GROUP BY domain
        """)  # noqa: S608 - names of ours
        # The clock, not now(): a transaction that began earlier may get the lock later. Where the clock was set back,
        # validity goes on from where it was: it never ends before it began.
        moment = cursor.execute(f"""
            SELECT greatest(clock_timestamp(), max(greatest(k.valid_from, k.valid_to)))
            FROM {texts} AS s JOIN knowledge.knowledge AS k USING (domain, kind, entity_id)
        """).fetchone()  # noqa: S608 - names of ours
        cursor.execute(
            f"""
            UPDATE knowledge.knowledge AS k SET valid_to = %s FROM {texts} AS s
            WHERE (k.domain, k.kind, k.entity_id) = (s.domain, s.kind, s.entity_id) AND k.valid_to IS NULL
            """,  # noqa: S608 - names of ours
            moment,
        )
        superseded = cursor.rowcount
        cursor.execute(
            f"INSERT INTO knowledge.knowledge ({columns}, valid_from) SELECT {columns}, %s FROM {texts}",  # noqa: S608
            moment,
        )
        loaded = cursor.rowcount
        cursor.execute(_insert_vectors(f"(SELECT *, true AS is_valid FROM {texts})", vectors))  # noqa: S608
        if loaded or embedded:
            cursor.execute("SELECT knowledge.analyse_knowledge()")
    return LoadSummary(loaded=loaded, already_there=already_there, superseded=superseded)


def load_vectors(engine: Engine, embeddings: pa.Table) -> int:
    """Load vectors of texts that are there, of a known encoder; those that are there stay. Returns how many are new.

    Raises:
        InputError: the rows do not fit the schema, or their encoder or its width is not known.
    """
    with transaction(engine) as cursor, _staged_vectors(cursor, [embeddings]) as vectors:
        lock(cursor, "knowledge")
        _admit_encoders(cursor, [embeddings])
        of_texts = "(SELECT *, valid_to IS NULL AS is_valid FROM knowledge.knowledge)"
        cursor.execute(_insert_vectors(of_texts, vectors, "ON CONFLICT DO NOTHING"))
        return cursor.rowcount


def index_vectors(engine: Engine) -> int:
    """Build the indexes of vectors that are not there; returns how many. Vectors can be read meanwhile."""
    with transaction(engine) as cursor:
        lock(cursor, "knowledge")
        cursor.execute("SELECT count(*) FROM knowledge.vector_partition WHERE NOT is_indexed")
        if cursor.fetchone() == (0,):
            return 0
        cursor.execute(f"SET LOCAL maintenance_work_mem = '{_INDEX_MEMORY}'")
        # Workers would need that memory as shared memory, of which containers have little.
        cursor.execute("SET LOCAL max_parallel_maintenance_workers = 0")
        [built] = cursor.execute("SELECT knowledge.index_vectors()").fetchone() or (0,)
        return int(built)


def _insert_vectors(texts: str, vectors: str, otherwise: str = "") -> str:
    return f"""
        INSERT INTO knowledge.knowledge_embedding (request_id, encoder, embedding, domain, kind, is_valid)
        SELECT v.request_id, v.encoder, v.embedding, t.domain, t.kind, t.is_valid
        FROM {vectors} AS v JOIN {texts} AS t USING (request_id)
        {otherwise}
    """  # noqa: S608 - names of ours


def _admit_encoders(cursor: psycopg.Cursor[Any], embeddings: Sequence[pa.Table]) -> None:
    """Refuse vectors of strangers; where there is no encoder yet, the first is put in force."""
    cursor.execute("SELECT name, width FROM knowledge.encoder")
    known = dict(cursor.fetchall())
    for table in embeddings:
        for name in pc.unique(table["encoder"]).to_pylist():
            width = table.schema.field("embedding").type.list_size
            if not known:
                cursor.execute("INSERT INTO knowledge.encoder VALUES (%s, %s, true, 1)", [name, width])
                known = {name: width}
            if name not in known:
                raise InputError(
                    f"the vectors are of encoder {name!r}, and the warehouse has {', '.join(sorted(known))}; "
                    f"run `dare warehouse add-encoder` first"
                )
            if known[name] != width:
                raise InputError(f"the embeddings have {width} dimensions, and those of {name!r} have {known[name]}")


@contextmanager
def _staged_vectors(cursor: psycopg.Cursor[Any], embeddings: Sequence[pa.Table]) -> Iterator[str]:
    """All encoders' vectors in one staging table, whose column takes any width."""
    empty = schemas.KNOWLEDGE_EMBEDDING.empty_table()
    with staged(cursor, "embedding", empty, schemas.KNOWLEDGE_EMBEDDING) as name:
        cursor.execute(f"ALTER TABLE {name} ALTER COLUMN embedding TYPE vector")
        for table in embeddings:
            copy_rows(cursor, sql.SQL(name), _fit(table, schemas.KNOWLEDGE_EMBEDDING, but="embedding"))
        cursor.execute(f"ANALYZE {name} (request_id)")
        yield name


def quarantine(engine: Engine, rows: pa.Table, texts: pa.Table | None = None) -> int:
    """Keep rows of schema QUARANTINE; what is there under the same (request_id, rule) stays.

    NUL characters, which PostgreSQL cannot store and which a text may be quarantined for, become U+FFFD.

    Args:
        engine: the warehouse.
        rows: what was refused, and why.
        texts: those of them that were written, whole, in schema KNOWLEDGE; what is needed to release one.

    Returns:
        The number of rows that are new.

    Raises:
        InputError: the rows do not fit the schema.
        WarehouseError: the warehouse has no tables.
    """
    kept = schemas.KNOWLEDGE.empty_table() if texts is None else texts
    written = _without_nul(kept, schemas.KNOWLEDGE, ("text", "prompt"))
    refused = _without_nul(rows, schemas.QUARANTINE, ("value", "text"))
    with (
        transaction(engine) as cursor,
        staged(cursor, "text", written, schemas.KNOWLEDGE) as new,
        staged(cursor, "quarantine", refused, schemas.QUARANTINE) as why,
    ):
        for target, source, schema in (
            ("quarantined_text", new, schemas.KNOWLEDGE),
            ("quarantine", why, schemas.QUARANTINE),
        ):
            columns = ", ".join(schema.names)
            cursor.execute(
                f"INSERT INTO knowledge.{target} ({columns}) SELECT {columns} FROM {source} ON CONFLICT DO NOTHING"  # noqa: S608 - names of ours
            )
        return cursor.rowcount


def _without_nul(rows: pa.Table, schema: pa.Schema, names: Sequence[str]) -> pa.Table:
    for name in names:
        column = pc.replace_substring(
            rows[name].cast(pa.string()), pattern="\0", replacement="\N{REPLACEMENT CHARACTER}"
        )
        rows = rows.set_column(rows.schema.get_field_index(name), schema.field(name), column)
    return rows


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


@contextmanager
def transaction(engine: Engine) -> Iterator[psycopg.Cursor[Any]]:
    """A psycopg cursor in a transaction that is committed when the block ends well.

    Raises:
        InputError: rows break a rule of the tables.
        WarehouseError: there are no tables, or the connection broke: before the end, and nothing was loaded; or while
            the transaction was committed, and nobody knows.
    """
    try:
        with engine.begin() as connection:
            try:
                with driver_cursor(connection) as cursor:
                    yield cursor
            except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
                raise WarehouseError(f"{reason(error)}; run `dare warehouse upgrade`") from error
            except (psycopg.DataError, psycopg.IntegrityError) as error:
                raise InputError(f"the warehouse does not accept these rows: {reason(error)}") from error
            except psycopg.OperationalError as error:
                connection.invalidate()
                raise WarehouseError(
                    f"the warehouse broke off, and nothing was loaded; load again: {reason(error)}"
                ) from error
    except OperationalError as error:  # of BEGIN or COMMIT
        raise WarehouseError(
            f"the warehouse broke off, perhaps while it committed; load again, which changes nothing that is there: "
            f"{reason(error)}"
        ) from error


@contextmanager
def staged(cursor: psycopg.Cursor[Any], name: str, table: pa.Table, schema: pa.Schema) -> Iterator[str]:
    """COPY a table into an unlogged one that nobody else sees; yields its name. It goes when the block ends.

    Raises:
        InputError: the rows do not fit the schema.
    """
    table = _fit(table, schema)
    columns = sql.SQL(", ").join(
        sql.SQL("{} {} {}").format(
            sql.Identifier(field.name), sql.SQL(sql_type(field.type)), sql.SQL("" if field.nullable else "NOT NULL")
        )
        for field in schema
    )
    target = f"staging.{name}_{cursor.connection.info.backend_pid}"
    cursor.execute(
        sql.SQL("CREATE UNLOGGED TABLE {} ({}) WITH (toast_tuple_target = 8160)").format(sql.SQL(target), columns)
    )
    copy_rows(cursor, sql.SQL(target), table)
    keys = [field.name for field in schema if field.name in _KEYS]
    cursor.execute(f"ANALYZE {target} ({', '.join(keys)})" if keys else f"ANALYZE {target}")
    yield target
    cursor.execute(f"DROP TABLE {target}")  # where the block fails, the transaction leaves nothing


def _fit(table: pa.Table, schema: pa.Schema, but: str | None = None) -> pa.Table:
    """The table's columns of a schema, in its types; column ``but`` keeps the type that it has."""
    try:
        table = table.select(schema.names)
        if but is not None:
            at = schema.get_field_index(but)
            schema = schema.set(at, table.schema.field(at).with_nullable(False))
        return table.cast(schema)
    except (KeyError, ValueError) as error:  # pyarrow's errors derive from these
        raise InputError(f"the rows to load do not fit {', '.join(schema.names)}: {error}") from error


def _refuse_duplicates(cursor: psycopg.Cursor[Any], rows: str) -> None:
    cursor.execute(
        f"SELECT domain, kind, entity_id FROM {rows} GROUP BY 1, 2, 3 HAVING count(*) > 1 ORDER BY 1, 2, 3 LIMIT 1"  # noqa: S608
    )
    if twice := cursor.fetchone():
        raise InputError(f"the rows to load hold {' '.join(twice)} more than once")


def lock(cursor: psycopg.Cursor[Any], what: str) -> None:
    """Loads of one kind take turns; the lock goes with the transaction."""
    cursor.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [f"dare load {what}"])
