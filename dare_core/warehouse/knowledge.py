"""Knowledge (table ``knowledge``): texts loaded and closed, what became of requests, and what pools are built of.

Loading the same rows again changes nothing, a load that dies leaves nothing half, and loads of a domain take turns.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import ColumnElement, Engine, false, func, select, text, true

from dare_core import schemas
from dare_core.warehouse.connection import lock_knowledge, stream, transaction
from dare_core.warehouse.staging import fit, refuse_duplicates, staged
from dare_core.warehouse.tables import KNOWLEDGE
from dare_core.warehouse.vectors import insert_vectors, prepare_load, settle_load, staged_vectors, widths_of

#: ``valid``: the request's text is its entity's current one. ``closed``: it is not, because another replaced it or its
#: entity was gone; :func:`reopen` makes it current again. ``expired``: it is older than knowledge may be.
#: ``quarantined``: it failed validation. ``released``: it did, and is to be asked again.
RequestState = Literal["valid", "closed", "expired", "quarantined", "released"]

#: In the order of POOL_KNOWLEDGE.
_POOLED_COLUMNS: Final = (
    KNOWLEDGE.c.group_name,
    KNOWLEDGE.c.token_ids,
    KNOWLEDGE.c.entity_id,
    KNOWLEDGE.c.available_at,
)


@dataclass(frozen=True)
class LoadSummary:
    """What a load of knowledge did.

    Attributes:
        loaded: texts that are new.
        already_there: texts whose request had been answered before; the earlier answer stays.
        superseded: earlier texts whose validity ended because their entity got a new one.
        outdated: of the new ones, those that were never valid: a text that saw newer data was there, or the entity is
            gone.
    """

    loaded: int
    already_there: int
    superseded: int
    outdated: int = 0

    def plus(self, other: "LoadSummary") -> "LoadSummary":
        """What both loads did."""
        return LoadSummary(**{name: count + getattr(other, name) for name, count in vars(self).items()})


#: Chunks at once: PostgreSQL merges one while Python encodes the next.
_LOADERS: Final = 2

#: Texts and vectors that are merged in one transaction, read as they are copied.
Chunk = tuple[Iterable[pa.Table], Iterable[pa.Table]]


def load_knowledge(engine: Engine, knowledge: pa.Table, *embeddings: pa.Table) -> LoadSummary:
    """Load texts of schema KNOWLEDGE and their vectors, a table for each encoder; see :func:`load_chunks`."""
    knowledge = fit(knowledge, schemas.KNOWLEDGE)
    items = Counter[str](dict.fromkeys(pc.unique(knowledge["domain"]).to_pylist(), 0))
    items.update(knowledge.filter(pc.equal(knowledge["kind"], "item"))["domain"].to_pylist())
    return load_chunks(engine, items, widths_of(embeddings), [([knowledge], embeddings)])


def load_chunks(
    engine: Engine, items: Mapping[str, int], widths: Mapping[str, int], chunks: Iterable[Chunk]
) -> LoadSummary:
    """Load texts and vectors, each chunk in a transaction of its own that leaves the warehouse right.

    One chunk is copied while another is merged, over two connections. Broken off, what was committed stays, and loading
    again adds the rest; see :func:`merge_knowledge`.

    Args:
        engine: the warehouse.
        items: among the texts, by domain; every domain of theirs is named.
        widths: of the vectors, by encoder.
        chunks: of texts and vectors.

    Raises:
        InputError, WarehouseError: see :func:`merge_knowledge`.
    """
    prepare_load(engine, items, widths)
    total = LoadSummary(0, 0, 0)

    def load(chunk: Chunk) -> LoadSummary:
        with transaction(engine) as cursor:
            return merge_knowledge(cursor, *chunk)

    loaders = ThreadPoolExecutor(_LOADERS)
    try:
        for loading in [loaders.submit(load, chunk) for chunk in chunks]:
            total = total.plus(loading.result())
    finally:
        loaders.shutdown(cancel_futures=True)
    settle_load(engine, changed=total.loaded + total.already_there > 0)
    return total


def merge_knowledge(
    cursor: psycopg.Cursor[Any], knowledge: Iterable[pa.Table], embeddings: Iterable[pa.Table]
) -> LoadSummary:
    """Within a transaction, load texts of schema KNOWLEDGE and their vectors, of schema KNOWLEDGE_EMBEDDING.

    The first committed text of a request wins. Of an entity, the text that saw the newest data is valid, whatever the
    order of loads. It ends the validity of the one before at the moment its own begins; a text that saw less is stored
    closed: its ``data_as_of`` is its place in the history, and it closes nothing.

    Vectors of requests that are not among the texts are left out. The first encoder ever is put in force.
    :func:`~dare_core.warehouse.vectors.prepare_load` has made the partitions.

    Raises:
        InputError: the rows do not fit the schemas, the vectors are of an encoder or width that the warehouse does not
            have, or one entity has two new texts.
        WarehouseError: the warehouse has no tables.
    """
    columns = ", ".join(schemas.KNOWLEDGE.names)
    with (
        staged(cursor, "knowledge", knowledge, schemas.KNOWLEDGE) as texts,
        staged_vectors(cursor, embeddings) as vectors,
    ):
        cursor.execute(f"SELECT DISTINCT domain FROM {texts}")  # noqa: S608
        lock_knowledge(cursor, [domain for [domain] in cursor.fetchall()])
        # Under the lock nobody else inserts, so what is not there now is new.
        cursor.execute(f"""
            WITH known AS (
                DELETE FROM {texts} AS s USING knowledge.knowledge AS k
                WHERE k.request_id = s.request_id AND k.domain = s.domain
                RETURNING k.request_id, k.domain, k.kind, k.valid_to IS NULL AS is_valid
            ), embedded AS ({insert_vectors("known", vectors, "ON CONFLICT DO NOTHING")} RETURNING 1)
            SELECT count(*) FROM known
        """)  # noqa: S608 - names of ours
        [already_there] = cursor.fetchone() or (0,)
        refuse_duplicates(cursor, texts)
        outdated = _find_outdated(cursor, texts)
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
                AND s.is_valid
            """,  # noqa: S608 - names of ours
            moment,
        )
        superseded = cursor.rowcount
        cursor.execute(
            f"""
            INSERT INTO knowledge.knowledge ({columns}, valid_from, valid_to)
            SELECT {columns}, moment, CASE WHEN NOT is_valid THEN moment END
            FROM {texts}, CAST(%s AS timestamptz) AS moment
            """,  # noqa: S608 - names of ours
            moment,
        )
        loaded = cursor.rowcount
        cursor.execute(insert_vectors(texts, vectors))
    return LoadSummary(loaded, already_there, superseded, outdated)


def _find_outdated(cursor: psycopg.Cursor[Any], texts: str) -> int:
    """Give staged texts a column ``is_valid``; returns how many are not.

    A valid text is newer than one that saw less, unless the source went back and the new one saw all that its entity
    shows now; and it is newer than any that saw the same or less, where it answers its entity's last prompt.
    """
    cursor.execute(f"ALTER TABLE {texts} ADD COLUMN is_valid boolean NOT NULL DEFAULT true")
    cursor.execute(f"""
        UPDATE {texts} AS s SET is_valid = false FROM (
            SELECT request_id FROM {texts} AS s
            LEFT JOIN knowledge.entity AS e USING (domain, kind, entity_id)
            LEFT JOIN LATERAL (
                SELECT k.data_as_of, r.request_id IS NOT NULL AS is_last
                FROM knowledge.knowledge AS k
                LEFT JOIN knowledge.rendering AS r USING (domain, kind, entity_id, request_id)
                WHERE (k.domain, k.kind, k.entity_id) = (s.domain, s.kind, s.entity_id) AND k.valid_to IS NULL
            ) AS present ON true
            WHERE e.deleted_at IS NOT NULL
                OR s.data_as_of < coalesce(e.data_as_of, 'infinity') AND (s.data_as_of < present.data_as_of OR is_last)
                OR s.data_as_of = present.data_as_of AND is_last
        ) AS outdated
        WHERE s.request_id = outdated.request_id
    """)  # noqa: S608 - names of ours
    return cursor.rowcount


def reopen(engine: Engine, domain: str, request_ids: Sequence[str]) -> None:
    """Make a domain's closed texts their entities' valid ones again, in place of those that are."""
    with transaction(engine) as cursor:
        lock_knowledge(cursor, [domain])
        cursor.execute(
            """
            UPDATE knowledge.knowledge AS k SET valid_to = greatest(clock_timestamp(), k.valid_from)
            FROM knowledge.knowledge AS back
            WHERE back.request_id = ANY(%(ids)s) AND k.valid_to IS NULL AND k.request_id <> ALL(%(ids)s)
                AND (k.domain, k.kind, k.entity_id) = (back.domain, back.kind, back.entity_id)
            """,
            {"ids": list(request_ids)},
        )
        cursor.execute(
            "UPDATE knowledge.knowledge SET valid_to = NULL WHERE request_id = ANY(%s) AND valid_to IS NOT NULL",
            [list(request_ids)],
        )


def seen_earlier(engine: Engine, domain: str, moments: Mapping[str, datetime]) -> None:
    """A domain's texts whose prompts say only what was known at an earlier moment, by request: they take their place
    there.
    """
    with transaction(engine) as cursor:
        lock_knowledge(cursor, [domain])
        cursor.execute(
            """
            UPDATE knowledge.knowledge AS k SET data_as_of = seen.at
            FROM unnest(%s::text[], %s::timestamptz[]) AS seen (request_id, at)
            WHERE k.request_id = seen.request_id AND k.data_as_of > seen.at
            """,
            [list(moments), list(moments.values())],
        )


def request_states(
    engine: Engine, request_ids: Sequence[str], expired_before: datetime | None = None
) -> dict[str, RequestState]:
    """What became of requests; unknown ones are absent. A loaded text outranks a quarantined one."""
    query = text("""
        SELECT request_id, CASE WHEN bool_and(released_at IS NOT NULL) THEN 'released' ELSE 'quarantined' END, 1 AS rank
        FROM knowledge.quarantine WHERE request_id = ANY(:ids) GROUP BY request_id
        UNION ALL
        SELECT request_id, CASE
            WHEN available_at < CAST(:expired_before AS timestamptz) THEN 'expired'
            WHEN valid_to IS NOT NULL THEN 'closed'
            ELSE 'valid'
        END, 2
        FROM knowledge.knowledge WHERE request_id = ANY(:ids)
        ORDER BY rank
    """)
    with engine.connect() as connection:
        bound = {"ids": list(request_ids), "expired_before": expired_before}
        return {request_id: state for request_id, state, _ in connection.execute(query, bound)}


def loaded_by_kind(engine: Engine, run_id: str) -> dict[str, int]:
    """Texts in the warehouse that a run wrote, by kind."""
    query = select(KNOWLEDGE.c.kind, func.count()).where(KNOWLEDGE.c.run_id == run_id).group_by(KNOWLEDGE.c.kind)
    with engine.connect() as connection:
        return {row.kind: row[1] for row in connection.execute(query)}


@dataclass(frozen=True)
class PoolLoads:
    """Texts that were loaded since a moment.

    Attributes:
        texts: how many.
        newest: when the last of them was loaded; None when there are none. Loads take turns, so whatever is committed
            later is newer, unless the database's clock was set back.
        earlier: how many were loaded up to that moment.
    """

    texts: int
    newest: datetime | None
    earlier: int


def pool_loads(engine: Engine, domain: str, kind: str, tokenizer_hash: str, since: datetime | None = None) -> PoolLoads:
    """What was loaded after ``since`` (None: ever), closed texts too."""
    loaded = KNOWLEDGE.c.valid_from
    new, old = (loaded > since, loaded <= since) if since else (true(), false())
    query = select(func.count().filter(new), func.max(loaded).filter(new), func.count().filter(old)).where(
        *_pooled(domain, kind, tokenizer_hash, None, None)
    )
    with engine.connect() as connection:
        return PoolLoads(*connection.execute(query).one())


def pool_texts(
    engine: Engine,
    domain: str,
    kind: str,
    tokenizer_hash: str,
    since: datetime | None = None,
    until: datetime | None = None,
) -> pa.Table:
    """Texts loaded after ``since`` and up to ``until``, closed ones too, in schema POOL_KNOWLEDGE, oldest first."""
    query = (
        select(*_POOLED_COLUMNS)
        .where(*_pooled(domain, kind, tokenizer_hash, since, until))
        .order_by(KNOWLEDGE.c.available_at, KNOWLEDGE.c.request_id)
    )
    return pa.Table.from_batches(stream(engine, query, schemas.POOL_KNOWLEDGE), schemas.POOL_KNOWLEDGE)


def newest_texts(engine: Engine, domain: str, kind: str, tokenizer_hash: str, limit: int) -> pa.Table:
    """The valid texts that were written last, in schema POOL_KNOWLEDGE, the newest first."""
    query = (
        select(*_POOLED_COLUMNS)
        .where(*_pooled(domain, kind, tokenizer_hash, None, None), KNOWLEDGE.c.valid_to.is_(None))
        .order_by(KNOWLEDGE.c.available_at.desc(), KNOWLEDGE.c.request_id)
        .limit(limit)
    )
    return pa.Table.from_batches(stream(engine, query, schemas.POOL_KNOWLEDGE), schemas.POOL_KNOWLEDGE)


def _pooled(
    domain: str, kind: str, tokenizer_hash: str, since: datetime | None, until: datetime | None
) -> list[ColumnElement[bool]]:
    loaded = KNOWLEDGE.c.valid_from
    conditions = [KNOWLEDGE.c.domain == domain, KNOWLEDGE.c.kind == kind, KNOWLEDGE.c.tokenizer_hash == tokenizer_hash]
    conditions += [loaded > since] if since else []
    return conditions + ([loaded <= until] if until else [])
