"""Entities (tables ``entity``, ``watermark``, ``forgotten``): what pulls found, how far they saw, who is forgotten."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
import pyarrow as pa
from sqlalchemy import Engine, Text, cast, func, select

from dare_core import schemas
from dare_core.schemas import Kind
from dare_core.warehouse.connection import lock, transaction
from dare_core.warehouse.staging import refuse_duplicates, staged
from dare_core.warehouse.tables import ENTITY, FORGOTTEN, WATERMARK


@dataclass(frozen=True)
class Pulled:
    """What a pull of one kind found beside the entities that changed.

    Attributes:
        to: the latest moment that it saw, inclusive.
        gone: ids of entities whose source row is there no longer.
        complete: whether a later pull needs nothing of what this one saw; else the watermark stays where it is.
    """

    domain: str
    kind: schemas.Kind
    to: datetime
    gone: Sequence[str] = ()
    complete: bool = True


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
    the past, or that is not complete, replaces no entity that is as new as its own, notices no deletion, and leaves the
    watermark where it is.

    The valid knowledge of what is gone ends now. What was forgotten (:func:`forgotten`) is left out.

    Raises:
        InputError: the rows do not fit the schema, or hold one entity twice.
        WarehouseError: the warehouse has no tables.
    """
    with transaction(engine) as cursor, staged(cursor, "entity", entities, schemas.ENTITY) as rows:
        refuse_duplicates(cursor, rows)
        lock(cursor, "entity")
        # Under the lock, which whoever forgets takes too.
        cursor.execute(f"""
            DELETE FROM {rows} AS s USING knowledge.forgotten AS f
            WHERE (f.domain, f.kind) = (s.domain, s.kind) AND f.entity = encode(
                sha256(convert_to(s.domain || '/' || s.kind || '/' || s.entity_id, 'UTF8')), 'hex'
            )
        """)  # noqa: S608 - names of ours
        forgotten = cursor.rowcount
        latest = pulled is None or (pulled.complete and _move_watermark(cursor, pulled))
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
                AND (present.group_name <> excluded.group_name OR {_differs("present", "excluded")})
            """,  # noqa: S608 - names of ours
            [latest],
        )
        changed = cursor.rowcount
        deleted = _mark_gone(cursor, pulled) if pulled is not None and latest else 0
        return EntityChanges(changed, deleted, forgotten)


def _differs(present: str, pulled: str) -> str:
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


def tombstone(domain: str, kind: str, entity_id: str) -> str:
    """What stands for a forgotten entity, 64 hex digits. PostgreSQL and Spark hash the same string."""
    return hashlib.sha256(f"{domain}/{kind}/{entity_id}".encode()).hexdigest()


def forgotten(engine: Engine, domain: str, kind: Kind) -> list[str]:
    """The tombstones of a domain's kind."""
    mark = FORGOTTEN.c.entity
    query = select(mark).where(FORGOTTEN.c.domain == domain, FORGOTTEN.c.kind == kind).order_by(mark)
    with engine.connect() as connection:
        return list(connection.execute(query).scalars())


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
