"""Entities (tables ``entity``, ``watermark``, ``forgotten``): what pulls found, how far they saw, who is forgotten."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Final

import psycopg
import pyarrow as pa
from sqlalchemy import Engine, Text, cast, func, select, text

from dare_core import schemas
from dare_core.errors import WarehouseError
from dare_core.schemas import Kind
from dare_core.warehouse.connection import lock, transaction
from dare_core.warehouse.entity_staging import EntityStaging, stretches
from dare_core.warehouse.staging import refuse_duplicates, staged
from dare_core.warehouse.tables import ENTITY, FORGOTTEN, WATERMARK

#: Ids that one transaction marks as gone.
_GONE_AT_ONCE: Final = 10_000


@dataclass(frozen=True)
class Pulled:
    """What a pull of one kind found beside the entities that changed.

    Attributes:
        to: the latest moment that it saw, inclusive.
        gone: ids of entities whose source row is there no longer; read once, a few at a time.
        complete: whether a later pull needs nothing of what this one saw; else the watermark stays where it is.
    """

    domain: str
    kind: schemas.Kind
    to: datetime
    gone: Iterable[str] = ()
    complete: bool = True


@dataclass(frozen=True)
class EntityChanges:
    """How many entities are new or changed, how many were found gone, and how many left out as forgotten."""

    changed: int = 0
    deleted: int = 0
    forgotten: int = 0

    def __add__(self, other: "EntityChanges") -> "EntityChanges":
        return EntityChanges(
            self.changed + other.changed, self.deleted + other.deleted, self.forgotten + other.forgotten
        )


def upsert_entities(engine: Engine, entities: pa.Table, pulled: Pulled | None = None) -> EntityChanges:
    """Insert or update rows of schema ENTITY; with ``pulled``, mark what is gone, and move the watermark last.

    An entity is updated when its group, attributes or events differ, when its ``data_as_of`` moved forward, or when it
    had been gone. Alone, ``data_as_of`` never moves back. A pull that saw less than an earlier one, of an ``as_of`` in
    the past, or that is not complete, replaces no entity that is as new as its own, notices no deletion, and leaves the
    watermark where it is.

    The valid knowledge of what is gone ends now. What was forgotten is left out.

    Raises:
        InputError: the rows do not fit the schema, or hold one entity twice.
        WarehouseError: the warehouse has no tables.
    """

    def merge(latest: bool) -> EntityChanges:
        with transaction(engine) as cursor, staged(cursor, "entity", entities, schemas.ENTITY) as rows:
            refuse_duplicates(cursor, rows)
            return _merge(cursor, rows, latest)

    if pulled is None:
        return merge(latest=True)
    with _turn(engine, pulled) as latest:
        return merge(latest) + (_conclude(engine, pulled) if latest else EntityChanges())


def merge_entities(engine: Engine, staging: EntityStaging, rows: int, pulled: Pulled) -> EntityChanges:
    """As :func:`upsert_entities`, of entities that were copied into a run's staging tables, each there once.

    Each transaction merges a bounded stretch of them, or marks so many as gone, and leaves the warehouse right; the
    watermark moves with the end of the last. Whoever is stopped meanwhile begins again.

    Args:
        engine: the warehouse.
        staging: of the run; its tables are gone afterwards.
        rows: how many were copied.
        pulled: what was found beside them.

    Raises:
        InputError: attributes are no JSON.
        WarehouseError: fewer rows are staged than were copied, as after a crash of the server; the watermark stays.
    """
    changes, merged = EntityChanges(), 0
    with _turn(engine, pulled) as latest:
        for table in staging.there(engine):
            with transaction(engine) as cursor:
                parts = list(stretches(cursor, table))
            for part in parts:
                with transaction(engine) as cursor:
                    found = cursor.execute(f"SELECT count(*) FROM {table} AS s WHERE {part}").fetchone()  # noqa: S608
                    merged += found[0] if found else 0
                    changes += _merge(cursor, table, latest, part)
        if merged != rows:
            raise WarehouseError(
                f"{merged} of {rows} {pulled.kind}s are staged: the warehouse's server lost the others in a crash; "
                "run the stage again"
            )
        if latest:
            changes += _conclude(engine, pulled)
    staging.drop(engine)
    return changes


@contextmanager
def _turn(engine: Engine, pulled: Pulled) -> Iterator[bool]:
    """Pulls of a domain's kind are merged one after the other; yields whether no earlier one saw more than this one.

    The lock is that of a transaction which does nothing else, so that it also holds through a pool of connections.
    """
    with transaction(engine) as cursor:
        cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        lock(cursor, f"pull of {pulled.domain}/{pulled.kind}")
        seen = watermark(engine, pulled.domain, pulled.kind)
        yield pulled.complete and (seen is None or seen <= pulled.to)


def _merge(cursor: psycopg.Cursor[Any], rows: str, latest: bool, part: str = "true") -> EntityChanges:
    """Merge the rows, called ``s``, that meet the condition ``part``; forgotten ones are removed from there."""
    lock(cursor, "entity")  # which whoever forgets takes too
    cursor.execute(f"""
        DELETE FROM {rows} AS s USING knowledge.forgotten AS f
        WHERE {part} AND (f.domain, f.kind) = (s.domain, s.kind) AND f.entity = encode(
            sha256(convert_to(s.domain || '/' || s.kind || '/' || s.entity_id, 'UTF8')), 'hex'
        )
    """)  # noqa: S608 - names of ours
    forgotten = cursor.rowcount
    cursor.execute(
        f"""
        INSERT INTO knowledge.entity AS present
            (domain, kind, entity_id, group_name, attributes, data_as_of, events)
        SELECT domain, kind, entity_id, group_name, attributes::jsonb, data_as_of, events FROM {rows} AS s WHERE {part}
        ON CONFLICT (domain, kind, entity_id) DO UPDATE SET
            group_name = excluded.group_name,
            attributes = excluded.attributes,
            data_as_of = excluded.data_as_of,
            events = excluded.events,
            deleted_at = NULL,
            updated_at = now()
        WHERE (present.data_as_of < excluded.data_as_of OR %s)
            AND (present.group_name <> excluded.group_name OR {_differs("present", "excluded")})
        """,  # noqa: S608 - names of ours
        [latest],
    )
    return EntityChanges(changed=cursor.rowcount, forgotten=forgotten)


def _conclude(engine: Engine, pulled: Pulled) -> EntityChanges:
    """Mark what is gone; then move the watermark."""
    deleted, gone = 0, iter(pulled.gone)
    while ids := list(islice(gone, _GONE_AT_ONCE)):
        with transaction(engine) as cursor:
            deleted += _mark_gone(cursor, pulled, ids)
    with transaction(engine) as cursor:
        cursor.execute(
            """
            INSERT INTO knowledge.watermark (domain, kind, pulled_to) VALUES (%s, %s, %s)
            ON CONFLICT (domain, kind) DO UPDATE SET pulled_to = excluded.pulled_to
            """,
            [pulled.domain, pulled.kind, pulled.to],
        )
    return EntityChanges(deleted=deleted)


def _differs(present: str, pulled: str) -> str:
    """SQL: what was pulled of an entity is not what the warehouse holds; both by their tables' names."""
    return (
        f"({present}.attributes <> {pulled}.attributes::jsonb OR {present}.events <> {pulled}.events "
        f"OR {present}.data_as_of < {pulled}.data_as_of OR {present}.deleted_at IS NOT NULL)"
    )


def _mark_gone(cursor: psycopg.Cursor[Any], pulled: Pulled, ids: list[str]) -> int:
    lock(cursor, "entity")
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
        [pulled.domain, pulled.kind, ids],
    )
    [count] = cursor.fetchone() or (0,)
    return int(count)


def watermark(engine: Engine, domain: str, kind: str) -> datetime | None:
    """Up to when a kind's source tables were pulled; None before the first pull."""
    query = select(WATERMARK.c.pulled_to).where(WATERMARK.c.domain == domain, WATERMARK.c.kind == kind)
    with engine.connect() as connection:
        return connection.execute(query).scalar_one_or_none()


def count_differing(engine: Engine, pulled: pa.Table, of_the_past: bool = False) -> int:
    """How many entities of schema PULLED are not in the warehouse as they are; ``of_the_past``: nor newer."""
    differs = "e.data_as_of < pulled.data_as_of" if of_the_past else _differs("e", "pulled")
    with transaction(engine) as cursor, staged(cursor, "pulled", pulled, schemas.PULLED) as rows:
        cursor.execute(f"""
            SELECT count(*) FROM {rows} AS pulled LEFT JOIN knowledge.entity AS e USING (domain, kind, entity_id)
            WHERE e.entity_id IS NULL OR {differs}
        """)  # noqa: S608 - names of ours
        [count] = cursor.fetchone() or (0,)
        return int(count)


def attributes(engine: Engine, domain: str, kind: str, entity_ids: Sequence[str]) -> dict[str, str]:
    """The attributes of entities, JSON objects by id; of those that are not known, none."""
    query = select(ENTITY.c.entity_id, cast(ENTITY.c.attributes, Text).label("attributes")).where(
        ENTITY.c.domain == domain, ENTITY.c.kind == kind, ENTITY.c.entity_id == func.any(list(entity_ids))
    )
    with engine.connect() as connection:
        return {row.entity_id: row.attributes for row in connection.execute(query)}


def sample(engine: Engine, domain: str, kind: str, count: int) -> dict[str, str]:
    """The attributes of some entities, JSON objects by id: the longest one's first, then ``count`` of all groups."""
    query = text("""
        (SELECT entity_id, attributes::text FROM knowledge.entity
            WHERE domain = :domain AND kind = :kind AND deleted_at IS NULL
            ORDER BY pg_column_size(attributes) DESC, entity_id LIMIT 1)
        UNION ALL
        (SELECT entity_id, attributes::text FROM knowledge.entity
            WHERE domain = :domain AND kind = :kind AND deleted_at IS NULL
            ORDER BY md5(entity_id), entity_id LIMIT :count)
    """)
    with engine.connect() as connection:
        bound = {"domain": domain, "kind": kind, "count": count}
        return {row.entity_id: row.attributes for row in connection.execute(query, bound)}


def count_entities(engine: Engine, domain: str, kind: str) -> int:
    """How many entities of a kind are there."""
    query = select(func.count()).where(ENTITY.c.domain == domain, ENTITY.c.kind == kind, ENTITY.c.deleted_at.is_(None))
    with engine.connect() as connection:
        return connection.execute(query).scalar_one()


def tombstone(domain: str, kind: str, entity_id: str) -> str:
    """What stands for a forgotten entity, 64 hex digits. PostgreSQL and Spark hash the same string."""
    return hashlib.sha256(f"{domain}/{kind}/{entity_id}".encode()).hexdigest()


def count_forgotten(engine: Engine, domain: str, kind: Kind) -> int:
    """How many of a domain's kind were forgotten."""
    query = select(func.count()).where(FORGOTTEN.c.domain == domain, FORGOTTEN.c.kind == kind)
    with engine.connect() as connection:
        return connection.execute(query).scalar_one()


def leave_tombstones(cursor: psycopg.Cursor[Any], domain: str, kind: Kind, entity_ids: Sequence[str]) -> None:
    """Within a transaction: no later pull takes these entities in."""
    cursor.execute(
        """
        INSERT INTO knowledge.forgotten (domain, kind, entity, forgotten_at)
        SELECT %s, %s, unnest(%s::text[]), now() ON CONFLICT DO NOTHING
        """,
        [domain, kind, [tombstone(domain, kind, entity_id) for entity_id in entity_ids]],
    )


def remove_from_histories(cursor: psycopg.Cursor[Any], domain: str, item_ids: Sequence[str]) -> int:
    """Within a transaction: users' histories show these items no more. Returns how many histories changed.

    A history's entry is the item's attributes, a value and a time, so the items must still be there.
    """
    cursor.execute(
        """
        WITH described AS (
            SELECT DISTINCT attributes AS item FROM knowledge.entity
            WHERE domain = %(domain)s AND kind = 'item' AND entity_id = ANY(%(ids)s::text[])
        ), kept AS (
            SELECT entity_id, coalesce(jsonb_agg(entry ORDER BY place) FILTER (WHERE item IS NULL), '[]') AS history
            FROM knowledge.entity
            CROSS JOIN jsonb_array_elements(
                CASE jsonb_typeof(attributes -> 'history') WHEN 'array' THEN attributes -> 'history' END
            ) WITH ORDINALITY AS met (entry, place)
            LEFT JOIN described ON item = entry - 'value' - 'time'
            WHERE domain = %(domain)s AND kind = 'user'
            GROUP BY entity_id HAVING count(item) > 0
        )
        UPDATE knowledge.entity AS e
        SET attributes = jsonb_set(attributes, '{history}', kept.history), updated_at = now()
        FROM kept
        WHERE e.domain = %(domain)s AND e.kind = 'user' AND e.entity_id = kept.entity_id
        """,
        {"domain": domain, "ids": list(item_ids)},
    )
    return cursor.rowcount
