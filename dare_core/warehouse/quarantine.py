"""The quarantine (tables ``quarantine``, ``quarantined_text``): what was refused and why, and how a text gets out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Engine, func, select, text

from dare_core import schemas
from dare_core.errors import InputError
from dare_core.warehouse.connection import lock_knowledge, transaction
from dare_core.warehouse.knowledge import merge_knowledge
from dare_core.warehouse.staging import staged
from dare_core.warehouse.tables import QUARANTINE, QUARANTINED_TEXT
from dare_core.warehouse.vectors import prepare_load, settle_load, widths_of

#: The prompt itself does not fit: asked again, it would not fit either.
_LASTING_RULES: Final = ("prompt",)


@dataclass(frozen=True)
class Quarantined:
    """A request in quarantine.

    Attributes:
        rules: that its text broke, with what each measured.
        text: empty where none was written.
        released_at: when it was let go; None: it was not.
        released_by: who made its text knowledge; None: nobody did. With ``released_at``: it is asked for again.
    """

    request_id: str
    domain: str
    kind: str
    entity_id: str
    run_id: str
    rules: dict[str, str | None]
    text: str
    quarantined_at: datetime
    released_at: datetime | None
    released_by: str | None

    @property
    def state(self) -> str:
        """``waiting``, ``asked again`` or ``released``."""
        if self.released_by is not None:
            return "released"
        return "waiting" if self.released_at is None else "asked again"


@dataclass(frozen=True)
class Release:
    """What came of releasing texts.

    Attributes:
        released: requests whose texts are knowledge now.
        before: requests that had been released earlier, with when and by whom; nothing was changed of them.
    """

    released: list[str]
    before: dict[str, tuple[datetime, str]]


def record(engine: Engine, rows: pa.Table, texts: pa.Table | None = None) -> int:
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


def find(
    engine: Engine,
    request_ids: Sequence[str] | None = None,
    domain: str | None = None,
    rule: str | None = None,
    run_id: str | None = None,
    limit: int | None = None,
) -> list[Quarantined]:
    """What is in quarantine, the newest first; None: whichever. ``rule`` finds those that broke it among others."""
    query = text("""
        SELECT request_id, min(domain) AS domain, min(kind) AS kind, min(entity_id) AS entity_id,
            min(run_id) AS run_id, jsonb_object_agg(rule, value) AS rules, min(text) AS text,
            min(quarantined_at) AS quarantined_at, max(released_at) AS released_at, max(released_by) AS released_by
        FROM knowledge.quarantine
        WHERE (CAST(:ids AS text[]) IS NULL OR request_id = ANY(:ids))
            AND (CAST(:domain AS text) IS NULL OR domain = :domain)
            AND (CAST(:run_id AS text) IS NULL OR run_id = :run_id)
        GROUP BY request_id
        HAVING CAST(:rule AS text) IS NULL OR bool_or(rule = :rule)
        ORDER BY quarantined_at DESC, request_id
        LIMIT :limit
    """)
    ids = None if request_ids is None else list(request_ids)
    bound = {"ids": ids, "domain": domain, "rule": rule, "run_id": run_id, "limit": limit}
    with engine.connect() as connection:
        return [Quarantined(**row) for row in connection.execute(query, bound).mappings()]


def refused_by_rule(engine: Engine, run_id: str, samples: int) -> dict[str, tuple[int, list[dict[str, Any]]]]:
    """By rule: how many of a run's texts it refused, and some of them (rows of QUARANTINE)."""
    place = func.row_number().over(partition_by=QUARANTINE.c.rule, order_by=QUARANTINE.c.request_id)
    ranked = (
        select(QUARANTINE, place.label("place"), func.count().over(partition_by=QUARANTINE.c.rule).label("refused"))
        .where(QUARANTINE.c.run_id == run_id)
        .subquery()
    )
    query = select(ranked).where(ranked.c.place <= samples).order_by(ranked.c.refused.desc(), ranked.c.rule)
    found: dict[str, tuple[int, list[dict[str, Any]]]] = {}
    with engine.connect() as connection:
        for row in connection.execute(query).mappings():
            found.setdefault(row["rule"], (row["refused"], []))[1].append(dict(row))
    return found


def prompt(engine: Engine, request_id: str) -> str | None:
    """What a quarantined text answers; None where no text was written."""
    with engine.connect() as connection:
        query = select(QUARANTINED_TEXT.c.prompt).where(QUARANTINED_TEXT.c.request_id == request_id)
        return connection.execute(query).scalar_one_or_none()


def release(
    engine: Engine, request_ids: Sequence[str], by: str, embed: Callable[[pa.Table], list[pa.Table]]
) -> Release:
    """Make quarantined texts knowledge, in one transaction, by the rules of a load; all of them or none.

    Releasing a text again changes nothing.

    Args:
        engine: the warehouse.
        request_ids: of the texts.
        by: who reviewed them.
        embed: makes vectors for rows of KNOWLEDGE, a table for each encoder.

    Raises:
        InputError: a request is not in quarantine, has no text, or its entity is gone or has newer knowledge; or two of
            the texts are of one entity.
    """
    asked = list(dict.fromkeys(request_ids))
    found = {row.request_id: row for row in find(engine, asked)}
    if unknown := [request_id for request_id in asked if request_id not in found]:
        raise InputError(f"not in quarantine: {', '.join(unknown)}; `dare quarantine list` shows what is")
    waiting = [request_id for request_id in asked if found[request_id].released_by is None]
    texts = _texts(engine, waiting)
    if without := set(waiting).difference(texts["request_id"].to_pylist()):
        rules = ", ".join(f"{request_id} ({', '.join(found[request_id].rules)})" for request_id in sorted(without))
        raise InputError(f"there is no text to release: {rules}; nothing was released")
    # Takes a while, and needs no lock.
    embeddings = embed(texts) if waiting else []
    domains = {found[request_id].domain for request_id in asked}
    prepare_load(engine, dict.fromkeys(sorted(domains), 0), widths_of(embeddings))
    with transaction(engine) as cursor:
        lock_knowledge(cursor, domains)
        before = _released(cursor, asked)  # someone else may have been quicker
        waiting = [request_id for request_id in waiting if request_id not in before]
        _refuse_outdated(cursor, waiting)
        if waiting:
            chosen = pa.array(waiting, pa.string())
            merge_knowledge(cursor, [_of(texts, chosen)], [_of(vectors, chosen) for vectors in embeddings])
            cursor.execute(
                "UPDATE knowledge.quarantine SET released_at = clock_timestamp(), released_by = %s "
                "WHERE request_id = ANY(%s)",
                [by, waiting],
            )
    if waiting:
        settle_load(engine, changed=True)
    return Release(waiting, before)


def ask_again(engine: Engine, retries: int) -> int:
    """Let texts that failed validation be asked for again, ``retries`` times between two valid ones of an entity.

    Returns:
        How many requests were released.
    """
    release = text("""
        WITH tries AS (
            SELECT q.request_id, (
                SELECT count(DISTINCT earlier.request_id) FROM knowledge.quarantine AS earlier
                WHERE (earlier.domain, earlier.kind, earlier.entity_id) = (q.domain, q.kind, q.entity_id)
                    AND earlier.released_at IS NOT NULL AND earlier.released_by IS NULL
                    AND earlier.quarantined_at > coalesce((
                        SELECT max(available_at) FROM knowledge.knowledge AS k
                        WHERE (k.domain, k.kind, k.entity_id) = (q.domain, q.kind, q.entity_id)
                    ), '-infinity')
            ) AS released
            FROM knowledge.quarantine AS q WHERE q.released_at IS NULL
        )
        UPDATE knowledge.quarantine AS q SET released_at = now() FROM tries
        WHERE q.request_id = tries.request_id AND q.released_at IS NULL AND tries.released < :retries
            AND q.request_id NOT IN (SELECT request_id FROM knowledge.quarantine WHERE rule = ANY(:lasting))
        RETURNING q.request_id
    """)
    with engine.begin() as connection:
        return len(set(connection.execute(release, {"retries": retries, "lasting": list(_LASTING_RULES)}).scalars()))


def _of(table: pa.Table, request_ids: pa.Array) -> pa.Table:
    return table.filter(pc.is_in(table["request_id"], request_ids))


def _texts(engine: Engine, request_ids: Sequence[str]) -> pa.Table:
    query = select(QUARANTINED_TEXT).where(QUARANTINED_TEXT.c.request_id.in_(request_ids))
    with engine.connect() as connection:
        rows = [dict(row) for row in connection.execute(query).mappings()]
    return pa.Table.from_pylist(rows, schemas.KNOWLEDGE)


def _released(cursor: psycopg.Cursor[Any], request_ids: Sequence[str]) -> dict[str, tuple[datetime, str]]:
    cursor.execute(
        "SELECT request_id, max(released_at), max(released_by) FROM knowledge.quarantine "
        "WHERE request_id = ANY(%s) AND released_by IS NOT NULL GROUP BY request_id",
        [list(request_ids)],
    )
    return {request_id: (at, by) for request_id, at, by in cursor}


def _refuse_outdated(cursor: psycopg.Cursor[Any], request_ids: Sequence[str]) -> None:
    """Knowledge that was written later, or saw later events, is not replaced by an older text."""
    cursor.execute(
        """
        SELECT q.request_id, q.kind, q.entity_id, newer.available_at, e.deleted_at
        FROM knowledge.quarantined_text AS q
        LEFT JOIN knowledge.entity AS e USING (domain, kind, entity_id)
        LEFT JOIN LATERAL (
            SELECT max(k.available_at) AS available_at FROM knowledge.knowledge AS k
            WHERE (k.domain, k.kind, k.entity_id) = (q.domain, q.kind, q.entity_id)
                AND (k.available_at > q.available_at OR k.data_as_of > q.data_as_of)
        ) AS newer ON true
        WHERE q.request_id = ANY(%s) AND (newer.available_at IS NOT NULL OR e.deleted_at IS NOT NULL)
        ORDER BY q.request_id
        """,
        [list(request_ids)],
    )
    reasons = [
        f"{request_id}: {kind} {entity_id} "
        + (
            f"is gone from the source since {gone:%Y-%m-%d %H:%M} UTC"
            if gone is not None
            else f"has newer knowledge, written {newer:%Y-%m-%d %H:%M} UTC"
        )
        for request_id, kind, entity_id, newer, gone in cursor
    ]
    if reasons:
        raise InputError(f"nothing was released; {'; '.join(reasons)}")
