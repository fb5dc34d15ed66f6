"""What the pipeline asks of the warehouse."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

import pyarrow as pa
from sqlalchemy import ColumnElement, Engine, Row, Select, Text, cast, func, select, text

from dare_core import schemas
from dare_core.warehouse.tables import ENTITY, GENERATION_RUN, KNOWLEDGE, POOL_VERSION

#: ``valid``: the request's text is its entity's current one. ``closed``: it is to be asked again, because a newer text
#: replaced it or it was released from quarantine. ``quarantined``: its text failed validation.
RequestState = Literal["valid", "closed", "quarantined"]

_ROWS_PER_BATCH: Final = 1000


def watermark(engine: Engine, domain: str, kind: str) -> datetime | None:
    """The newest ``data_as_of`` among the entities; None when there are none."""
    query = select(func.max(ENTITY.c.data_as_of)).where(ENTITY.c.domain == domain, ENTITY.c.kind == kind)
    with engine.connect() as connection:
        newest: datetime | None = connection.execute(query).scalar_one()
        return newest


def entities(engine: Engine, domain: str, kind: str) -> Iterator[pa.RecordBatch]:
    """Stream the entities in schema ENTITY, in a fixed order that is spread over groups: of the ids' MD5.

    ``attributes`` comes as PostgreSQL keeps JSON: with the same content, but with its own spacing and order of keys.
    """
    columns = [cast(ENTITY.c[name], Text) if name == "attributes" else ENTITY.c[name] for name in schemas.ENTITY.names]
    query = (
        select(*columns)
        .where(ENTITY.c.domain == domain, ENTITY.c.kind == kind)
        .order_by(func.md5(ENTITY.c.entity_id), ENTITY.c.entity_id)
    )
    return _stream(engine, query, schemas.ENTITY)


def request_states(engine: Engine, request_ids: Sequence[str]) -> dict[str, RequestState]:
    """What became of requests; unknown ones are absent. A loaded text outranks a quarantined one."""
    query = text("""
        SELECT request_id, CASE WHEN bool_and(released_at IS NOT NULL) THEN 'closed' ELSE 'quarantined' END, 1 AS rank
        FROM knowledge.quarantine WHERE request_id = ANY(:ids) GROUP BY request_id
        UNION ALL
        SELECT request_id, CASE WHEN valid_to IS NULL THEN 'valid' ELSE 'closed' END, 2
        FROM knowledge.knowledge WHERE request_id = ANY(:ids)
        ORDER BY rank
    """)
    with engine.connect() as connection:
        return {request_id: state for request_id, state, _ in connection.execute(query, {"ids": list(request_ids)})}


@dataclass(frozen=True)
class PoolLoads:
    """Texts that were loaded since a moment.

    Attributes:
        texts: how many.
        newest: when the last of them was loaded; None when there are none. Loads take turns, so whatever is committed
            later is newer.
    """

    texts: int
    newest: datetime | None


def pool_loads(engine: Engine, domain: str, kind: str, tokenizer_hash: str, since: datetime | None = None) -> PoolLoads:
    """What was loaded after ``since`` (None: ever), closed texts too."""
    query = select(func.count(), func.max(KNOWLEDGE.c.valid_from)).where(
        *_pooled(domain, kind, tokenizer_hash, since, None)
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
    columns = (KNOWLEDGE.c.group_name, KNOWLEDGE.c.token_ids, KNOWLEDGE.c.entity_id, KNOWLEDGE.c.available_at)
    query = (
        select(*columns)
        .where(*_pooled(domain, kind, tokenizer_hash, since, until))
        .order_by(KNOWLEDGE.c.available_at, KNOWLEDGE.c.request_id)
    )
    return pa.Table.from_batches(_stream(engine, query, schemas.POOL_KNOWLEDGE), schemas.POOL_KNOWLEDGE)


def newest_texts(engine: Engine, domain: str, kind: str, tokenizer_hash: str, limit: int) -> pa.Table:
    """The valid texts that were written last, in schema POOL_KNOWLEDGE, the newest first."""
    columns = (KNOWLEDGE.c.group_name, KNOWLEDGE.c.token_ids, KNOWLEDGE.c.entity_id, KNOWLEDGE.c.available_at)
    query = (
        select(*columns)
        .where(*_pooled(domain, kind, tokenizer_hash, None, None), KNOWLEDGE.c.valid_to.is_(None))
        .order_by(KNOWLEDGE.c.available_at.desc(), KNOWLEDGE.c.request_id)
        .limit(limit)
    )
    return pa.Table.from_batches(_stream(engine, query, schemas.POOL_KNOWLEDGE), schemas.POOL_KNOWLEDGE)


def _pooled(
    domain: str, kind: str, tokenizer_hash: str, since: datetime | None, until: datetime | None
) -> list[ColumnElement[bool]]:
    loaded = KNOWLEDGE.c.valid_from
    conditions = [KNOWLEDGE.c.domain == domain, KNOWLEDGE.c.kind == kind, KNOWLEDGE.c.tokenizer_hash == tokenizer_hash]
    conditions += [loaded > since] if since else []
    return conditions + ([loaded <= until] if until else [])


@dataclass(frozen=True)
class RunState:
    """How far a run has come; see GENERATION_RUN."""

    state: str
    planned: int
    started_at: datetime


def run_state(engine: Engine, run_id: str) -> RunState | None:
    """What is recorded of a run; None before it is planned."""
    run = GENERATION_RUN
    query = select(run.c.state, run.c.planned, run.c.started_at).where(run.c.run_id == run_id)
    with engine.connect() as connection:
        row = connection.execute(query).one_or_none()
        return RunState(*row) if row else None


def current_pool(engine: Engine, domain: str, kind: str) -> dict[str, Any] | None:
    """The row of POOL_VERSION that new runs draft from; None before the first."""
    query = select(POOL_VERSION).where(
        POOL_VERSION.c.domain == domain, POOL_VERSION.c.kind == kind, POOL_VERSION.c.is_current
    )
    with engine.connect() as connection:
        row = connection.execute(query).mappings().one_or_none()
        return dict(row) if row else None


def _stream(engine: Engine, query: Select[Any], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Read through a server-side cursor: memory holds a batch, whatever the number of rows."""
    with engine.connect().execution_options(yield_per=_ROWS_PER_BATCH) as connection:
        for rows in connection.execute(query).partitions():
            yield _batch(rows, schema)


def _batch(rows: Sequence[Row[Any]], schema: pa.Schema) -> pa.RecordBatch:
    columns = zip(*rows, strict=True)
    return pa.record_batch(
        [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)], schema=schema
    )
