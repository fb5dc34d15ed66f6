"""Renderings (table ``rendering``): what each entity's last prompt showed, and so which entities are due."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

import psycopg
import pyarrow as pa
from sqlalchemy import Engine, text

from dare_core import schemas
from dare_core.warehouse.connection import ROWS_PER_BATCH, as_batch, lock, stream, transaction
from dare_core.warehouse.staging import staged

#: ``spread``: by the ids' MD5, so that any part is spread over groups. ``active``: by events, most first.
Order = Literal["spread", "active"]

#: Verdicts of entities that planning has to look at; see :func:`count_verdicts`.
DUE_VERDICTS: Final = ("new", "changed", "expired", "unanswered", "earlier")


@dataclass(frozen=True)
class Rules:
    """What decides whether an entity is due.

    Attributes:
        settings: identifies all that shapes a prompt and its answer beside the entity.
        min_new_events: so many events later a user is rendered anew.
        expired_before: knowledge written earlier is; None: none is.
        as_of: entities that show something newer are ``later_than_as_of``; None: there are none.
    """

    settings: str
    min_new_events: int
    expired_before: datetime | None = None
    as_of: datetime | None = None


#: Every entity that is there, with why it is or is not due. ``greatest``: where every event counts, so does one that
#: changed in place. A closed request is unanswered: its entity came back, or its text was replaced by one that was
#: asked with other settings. Whatever a request's fate, it is found here anew by each plan, so that none is forgotten.
_VERDICTS: Final = """
    SELECT e.*, CASE
        WHEN e.data_as_of > CAST(:as_of AS timestamptz) THEN 'later_than_as_of'
        WHEN e.kind = 'user' AND e.events = 0 THEN 'no_events'
        WHEN r.request_id IS NULL THEN 'new'
        WHEN r.settings <> :settings THEN 'changed'
        WHEN e.content <> r.content AND NOT waits THEN 'changed'
        WHEN k.request_id IS NOT NULL AND k.valid_to IS NOT NULL THEN 'unanswered'
        WHEN k.available_at < CAST(:expired_before AS timestamptz) THEN 'expired'
        WHEN k.request_id IS NULL AND NOT refused.at_all THEN 'unanswered'
        WHEN e.content <> r.content THEN 'few_new_events'
        WHEN k.request_id IS NOT NULL THEN 'valid'
        WHEN refused.unfit THEN 'unfit'
        ELSE 'quarantined'
    END AS verdict
    FROM knowledge.entity AS e
    LEFT JOIN knowledge.rendering AS r
        ON (r.domain, r.kind, r.entity_id) = (e.domain, e.kind, e.entity_id)
    LEFT JOIN knowledge.knowledge AS k ON (k.request_id, k.domain) = (r.request_id, r.domain)
    LEFT JOIN LATERAL (
        SELECT count(*) > 0 AS at_all, coalesce(bool_or(rule = 'prompt'), false) AS unfit
        FROM knowledge.quarantine WHERE request_id = r.request_id AND k.request_id IS NULL AND released_at IS NULL
    ) AS refused ON k.request_id IS NULL
    CROSS JOIN LATERAL (
        SELECT e.kind = 'user' AND e.profile = r.profile
            AND greatest(abs(e.events - r.events), 1) < :min_new_events AS waits
    ) AS judged
    WHERE e.domain = :domain AND e.kind = :kind AND e.deleted_at IS NULL
"""

_ORDERS: Final[dict[Order, str]] = {
    "spread": "md5(entity_id), entity_id",
    "active": "events DESC, md5(entity_id), entity_id",
}


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


def count_verdicts(engine: Engine, domain: str, kind: str, rules: Rules) -> dict[str, int]:
    """How many entities there are of each verdict.

    Due are ``new`` ones, never planned; ``changed`` ones, which their last prompt does not show as they are, or which
    were asked with other settings; ``expired`` ones; and ``unanswered`` ones, whose request has no text: cut off by a
    limit, failed, or never loaded. Not due are ``valid`` ones; ``few_new_events``, changed too little yet;
    ``no_events``, users who did nothing so far; ``quarantined`` and ``unfit`` ones, whose text or prompt was refused;
    and ``later_than_as_of``, of which :func:`earlier_entities` tells how they were.
    """
    query = text(f"SELECT verdict, count(*) AS entities FROM ({_VERDICTS}) AS v GROUP BY verdict ORDER BY verdict")  # noqa: S608
    with engine.connect() as connection:
        return {row.verdict: row.entities for row in connection.execute(query, _bound(domain, kind, rules))}


def due_entities(
    engine: Engine, domain: str, kind: str, rules: Rules, order: Order = "spread", limit: int | None = None
) -> Iterator[pa.RecordBatch]:
    """Stream who is due, in schema SHARD, sorted by group; under a limit, those who come first by ``order``.

    Ids alone are sorted, whatever the number of rows: attributes are not read.
    """
    first = f"ORDER BY {_ORDERS[order]} LIMIT {limit:d}" if limit is not None else ""
    query = text(f"""
        SELECT domain, kind, entity_id, NULL, NULL FROM (
            SELECT domain, kind, entity_id, group_name FROM ({_VERDICTS}) AS v WHERE verdict = ANY(:due) {first}
        ) AS due ORDER BY group_name COLLATE "C", entity_id COLLATE "C"
    """)  # noqa: S608 - names of ours, and a number
    bound = {**_bound(domain, kind, rules), "due": list(DUE_VERDICTS)}
    return stream(engine, query.bindparams(**bound), schemas.SHARD)


@dataclass(frozen=True)
class Earlier:
    """Entities that show something later than a run may see, as they were.

    Attributes:
        count: how many there are.
        rows: those that a limit takes, in schema SHARD.
    """

    count: int
    rows: Iterator[pa.RecordBatch]


@contextmanager
def earlier_entities(
    engine: Engine, pulled: Iterable[pa.Table], as_of: datetime, order: Order = "spread", limit: int | None = None
) -> Iterator[Earlier]:
    """Entities that show something later than ``as_of``, as they were then: verdict ``earlier``; sorted by group.

    Under a limit, those without a text of that moment come first, so that run after run takes others.

    Args:
        engine: the warehouse.
        pulled: entities of schema PULLED as they were at ``as_of``.
        as_of: a moment of the past.
        order: who comes first under a limit.
        limit: of the rows.
    """
    with transaction(engine) as cursor, staged(cursor, "earlier", pulled, schemas.PULLED) as rows:
        cursor.execute(
            f"""
            DELETE FROM {rows} AS s WHERE s.kind = 'user' AND s.events = 0 OR NOT EXISTS (
                SELECT FROM knowledge.entity AS e
                WHERE (e.domain, e.kind, e.entity_id) = (s.domain, s.kind, s.entity_id)
                    AND e.data_as_of > %s AND e.deleted_at IS NULL
            )
            """,  # noqa: S608 - names of ours
            [as_of],
        )
        [count] = cursor.execute(f"SELECT count(*) FROM {rows}").fetchone() or (0,)  # noqa: S608
        if limit is not None:
            cursor.execute(f"""
                DELETE FROM {rows} WHERE entity_id NOT IN (
                    SELECT entity_id FROM {rows} AS s ORDER BY EXISTS (
                        SELECT FROM knowledge.knowledge AS k
                        WHERE (k.domain, k.kind, k.entity_id, k.data_as_of)
                            = (s.domain, s.kind, s.entity_id, s.data_as_of)
                    ), {_ORDERS[order]} LIMIT {limit:d}
                )
            """)  # noqa: S608 - names of ours, and a number
        with cursor.connection.cursor("earlier") as found:  # on the server: memory holds a batch
            found.execute(f"""
                SELECT domain, kind, entity_id, s.attributes::jsonb::text, s.data_as_of
                FROM {rows} AS s JOIN knowledge.entity AS e USING (domain, kind, entity_id)
                ORDER BY e.group_name COLLATE "C", entity_id COLLATE "C"
            """)  # noqa: S608 - names of ours
            yield Earlier(count, _batches(found))


def _batches(found: psycopg.ServerCursor[Any]) -> Iterator[pa.RecordBatch]:
    while rows := found.fetchmany(ROWS_PER_BATCH):
        yield as_batch(rows, schemas.SHARD)


def shown(engine: Engine, domain: str, kind: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of SHARD as rows of DUE, in their order: as the warehouse has the entities now, or as the rows say.

    Entities that are gone are left out.
    """
    query = text("""
        SELECT domain, kind, entity_id, group_name, attributes::text AS attributes, data_as_of, events, content, profile
        FROM knowledge.entity
        WHERE domain = :domain AND kind = :kind AND entity_id = ANY(:ids) AND deleted_at IS NULL
    """)
    with engine.connect() as connection:
        bound = {"domain": domain, "kind": kind, "ids": [row["entity_id"] for row in rows]}
        known = {row["entity_id"]: dict(row) for row in connection.execute(query, bound).mappings()}
    entities = []
    for row in rows:
        if (entity := known.get(row["entity_id"])) is not None:
            earlier = row["attributes"] is not None
            seen = {name: row[name] for name in ("attributes", "data_as_of")} if earlier else {}
            entities.append(entity | seen | {"earlier": earlier})
    return entities


def _bound(domain: str, kind: str, rules: Rules) -> dict[str, Any]:
    return {"domain": domain, "kind": kind, **vars(rules)}
