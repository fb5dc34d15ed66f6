"""What the pipeline asks of the warehouse."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

import pyarrow as pa
from sqlalchemy import ColumnElement, Engine, Row, Select, Text, cast, func, select, text

from dare_core import schemas
from dare_core.warehouse.tables import ENTITY, GENERATION_RUN, KNOWLEDGE, POOL_VERSION, QUARANTINE

#: ``valid``: the request's text is its entity's current one. ``closed``: a newer text replaced it. ``quarantined``: its
#: text failed validation.
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
        SELECT request_id, 'quarantined' FROM knowledge.quarantine WHERE request_id = ANY(:ids)
        UNION ALL
        SELECT request_id, CASE WHEN valid_to IS NULL THEN 'valid' ELSE 'closed' END
        FROM knowledge.knowledge WHERE request_id = ANY(:ids)
    """)
    with engine.connect() as connection:
        states = dict[str, RequestState]()
        for request_id, state in connection.execute(query, {"ids": list(request_ids)}):
            if state != "quarantined" or request_id not in states:
                states[request_id] = state
        return states


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


def _pooled(
    domain: str, kind: str, tokenizer_hash: str, since: datetime | None, until: datetime | None
) -> list[ColumnElement[bool]]:
    loaded = KNOWLEDGE.c.valid_from
    conditions = [KNOWLEDGE.c.domain == domain, KNOWLEDGE.c.kind == kind, KNOWLEDGE.c.tokenizer_hash == tokenizer_hash]
    conditions += [loaded > since] if since else []
    return conditions + ([loaded <= until] if until else [])


def current_pool(engine: Engine, domain: str, kind: str) -> dict[str, Any] | None:
    """The row of POOL_VERSION that new runs draft from; None before the first."""
    query = select(POOL_VERSION).where(
        POOL_VERSION.c.domain == domain, POOL_VERSION.c.kind == kind, POOL_VERSION.c.is_current
    )
    with engine.connect() as connection:
        row = connection.execute(query).mappings().one_or_none()
        return dict(row) if row else None


def generation_runs(engine: Engine, run_id: str | None = None, limit: int = 200) -> list[dict[str, Any]]:
    """Rows of GENERATION_RUN, the latest first; of one run alone where it is named."""
    query = select(GENERATION_RUN).order_by(GENERATION_RUN.c.started_at.desc()).limit(limit)
    if run_id is not None:
        query = query.where(GENERATION_RUN.c.run_id == run_id)
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def loaded_by_kind(engine: Engine, run_id: str) -> dict[str, int]:
    """Texts in the warehouse that a run wrote, by kind."""
    query = select(KNOWLEDGE.c.kind, func.count()).where(KNOWLEDGE.c.run_id == run_id).group_by(KNOWLEDGE.c.kind)
    with engine.connect() as connection:
        return {row.kind: row[1] for row in connection.execute(query)}


def quarantined(engine: Engine, run_id: str, samples: int) -> dict[str, tuple[int, list[dict[str, Any]]]]:
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


def pool_versions(engine: Engine, domain: str, versions: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of POOL_VERSION of some of a domain's versions."""
    query = select(POOL_VERSION).where(POOL_VERSION.c.domain == domain, POOL_VERSION.c.version.in_(versions))
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query.order_by(POOL_VERSION.c.kind)).mappings()]


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
