"""What the pipeline asks of the warehouse."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

import pyarrow as pa
from sqlalchemy import ColumnElement, Engine, Executable, Row, Text, cast, false, func, select, text, true

from dare_core import schemas
from dare_core.warehouse.load import differs, staged, transaction
from dare_core.warehouse.tables import (
    ENTITY,
    EVALUATION,
    GENERATION_RUN,
    KNOWLEDGE,
    POOL_VERSION,
    QUARANTINE,
    WATERMARK,
)

#: ``valid``: the request's text is its entity's current one. ``expired``: and older than knowledge may be. ``closed``:
#: it is to be asked again, because a newer text replaced it, its entity was gone, or it was released from quarantine.
#: ``quarantined``: its text failed validation.
RequestState = Literal["valid", "expired", "closed", "quarantined"]

#: ``spread``: by the ids' MD5, so that any part is spread over groups. ``active``: by events, most first.
Order = Literal["spread", "active"]

#: Verdicts of entities that planning has to look at; see :func:`verdicts`.
DUE_VERDICTS: Final = ("new", "changed", "expired", "unanswered")

_ROWS_PER_BATCH: Final = 1000


@dataclass(frozen=True)
class Rules:
    """What decides whether an entity is due.

    Attributes:
        settings: identifies all that shapes a prompt and its answer beside the entity.
        min_new_events: so many events later a user is rendered anew.
        expired_before: knowledge written earlier is; None: none is.
        as_of: entities that show something newer are left alone; None: there are none.
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


def watermark(engine: Engine, domain: str, kind: str) -> datetime | None:
    """Up to when a kind's source tables were pulled; None before the first pull."""
    query = select(WATERMARK.c.pulled_to).where(WATERMARK.c.domain == domain, WATERMARK.c.kind == kind)
    with engine.connect() as connection:
        return connection.execute(query).scalar_one_or_none()


def clock(engine: Engine) -> datetime:
    """The database's time."""
    with engine.connect() as connection:
        now: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
        return now


def differing(engine: Engine, pulled: pa.Table) -> int:
    """How many entities of schema PULLED are not in the warehouse as they are."""
    with transaction(engine) as cursor, staged(cursor, "pulled", pulled, schemas.PULLED) as rows:
        cursor.execute(f"""
            SELECT count(*) FROM {rows} AS pulled LEFT JOIN knowledge.entity AS e USING (domain, kind, entity_id)
            WHERE e.entity_id IS NULL OR {differs("e", "pulled")}
        """)  # noqa: S608 - names of ours
        [count] = cursor.fetchone() or (0,)
        return int(count)


def verdicts(engine: Engine, domain: str, kind: str, rules: Rules) -> dict[str, int]:
    """How many entities there are of each verdict.

    Due are ``new`` ones, never planned; ``changed`` ones, which their last prompt does not show as they are, or which
    were asked with other settings; ``expired`` ones; and ``unanswered`` ones, whose request has no text: cut off by a
    limit, failed, or never loaded. Not due are ``valid`` ones; ``few_new_events``, changed too little yet;
    ``no_events``, users who did nothing so far; ``quarantined`` and ``unfit`` ones, whose text or prompt was refused;
    and ``later_than_as_of``.
    """
    query = text(f"SELECT verdict, count(*) AS entities FROM ({_VERDICTS}) AS v GROUP BY verdict ORDER BY verdict")  # noqa: S608
    with engine.connect() as connection:
        return {row.verdict: row.entities for row in connection.execute(query, _bound(domain, kind, rules))}


def due(engine: Engine, domain: str, kind: str, rules: Rules, order: Order = "spread") -> Iterator[pa.RecordBatch]:
    """Stream what is due, in schema DUE."""
    columns = ", ".join("attributes::text" if name == "attributes" else name for name in schemas.DUE.names)
    query = text(
        f"SELECT {columns} FROM ({_VERDICTS}) AS v WHERE verdict = ANY(:due) ORDER BY {_ORDERS[order]}"  # noqa: S608
    )
    bound = {**_bound(domain, kind, rules), "due": list(DUE_VERDICTS)}
    return _stream(engine, query.bindparams(**bound), schemas.DUE)


def _bound(domain: str, kind: str, rules: Rules) -> dict[str, Any]:
    return {"domain": domain, "kind": kind, **vars(rules)}


def request_states(
    engine: Engine, request_ids: Sequence[str], expired_before: datetime | None = None
) -> dict[str, RequestState]:
    """What became of requests; unknown ones are absent. A loaded text outranks a quarantined one."""
    query = text("""
        SELECT request_id, CASE WHEN bool_and(released_at IS NOT NULL) THEN 'closed' ELSE 'quarantined' END, 1 AS rank
        FROM knowledge.quarantine WHERE request_id = ANY(:ids) GROUP BY request_id
        UNION ALL
        SELECT request_id, CASE
            WHEN valid_to IS NOT NULL THEN 'closed'
            WHEN available_at < CAST(:expired_before AS timestamptz) THEN 'expired'
            ELSE 'valid'
        END, 2
        FROM knowledge.knowledge WHERE request_id = ANY(:ids)
        ORDER BY rank
    """)
    with engine.connect() as connection:
        bound = {"ids": list(request_ids), "expired_before": expired_before}
        return {request_id: state for request_id, state, _ in connection.execute(query, bound)}


@dataclass(frozen=True)
class Throughput:
    """What earlier runs of a model measured.

    Attributes:
        runs: how many of them this rests on.
        tokens_per_second: of one engine, loading excluded; None where nothing was measured.
        tokens_per_text: by kind, of the domain's own runs with the same length at most.
    """

    runs: int
    tokens_per_second: float | None
    tokens_per_text: dict[str, float]


#: Of how many of the last runs figures are taken.
_RECENT_RUNS: Final = 5


def throughput(engine: Engine, domain: str, model: str, max_new_tokens: int) -> Throughput:
    """What the last runs measured: of any domain the speed, of this one the length of texts."""
    speed = text("""
        SELECT count(*), sum(tokens) / nullif(sum(seconds), 0) FROM (
            SELECT (measured ->> 'tokens')::float8 AS tokens, (measured ->> 'seconds')::float8 AS seconds
            FROM knowledge.generation_run
            WHERE model = :model AND (measured ->> 'tokens')::bigint > 0
            ORDER BY started_at DESC LIMIT :runs
        ) AS recent
    """)
    lengths = text("""
        SELECT kind, sum((texts ->> 'tokens')::float8) / sum((texts ->> 'texts')::float8) AS mean FROM (
            SELECT measured FROM knowledge.generation_run
            WHERE model = :model AND domain = :domain AND (measured ->> 'tokens')::bigint > 0
                AND (plan ->> 'max_new_tokens')::bigint = :max_new_tokens
            ORDER BY started_at DESC LIMIT :runs
        ) AS recent, jsonb_each(measured -> 'kinds') AS of_kind (kind, texts)
        GROUP BY kind
    """)
    bound = {"model": model, "domain": domain, "max_new_tokens": max_new_tokens, "runs": _RECENT_RUNS}
    with engine.connect() as connection:
        runs, tokens_per_second = connection.execute(speed, bound).one()
        means = {row.kind: row.mean for row in connection.execute(lengths, bound)}
        return Throughput(runs, tokens_per_second, means)


def attributes(engine: Engine, domain: str, kind: str, entity_ids: Sequence[str]) -> dict[str, str]:
    """The attributes of entities, JSON objects by id; of those that are not known, none."""
    query = select(ENTITY.c.entity_id, cast(ENTITY.c.attributes, Text).label("attributes")).where(
        ENTITY.c.domain == domain, ENTITY.c.kind == kind, ENTITY.c.entity_id == func.any(list(entity_ids))
    )
    with engine.connect() as connection:
        return {row.entity_id: row.attributes for row in connection.execute(query)}


def feature_profiles(engine: Engine, run_id: str, domain: str, runs: int) -> dict[str, list[dict[str, Any]]]:
    """What the last runs of a domain that were loaded before ``run_id`` measured of their features, by kind."""
    query = text("""
        SELECT measured -> 'features' AS features FROM knowledge.generation_run
        WHERE domain = :domain AND state = 'loaded' AND run_id <> :run_id AND jsonb_exists(measured, 'features')
            AND started_at < coalesce(
                (SELECT started_at FROM knowledge.generation_run WHERE run_id = :run_id), 'infinity'
            )
        ORDER BY started_at DESC LIMIT :runs
    """)
    found: dict[str, list[dict[str, Any]]] = {}
    with engine.connect() as connection:
        for of_run in connection.execute(query, {"domain": domain, "run_id": run_id, "runs": runs}).scalars():
            for kind, measured in of_run.items():
                found.setdefault(kind, []).append(measured)
    return found


@dataclass(frozen=True)
class Coverage:
    """What there is of one kind's features.

    Attributes:
        loaded: of some requests, those that are in the warehouse with a vector.
        entities: that are there.
        covered: entities with valid knowledge and a vector.
    """

    loaded: int
    entities: int
    covered: int


def coverage(engine: Engine, domain: str, kind: str, encoder: str, request_ids: Sequence[str]) -> Coverage:
    """Count the features of one kind, and those of some requests."""
    query = text("""
        SELECT
            (SELECT count(*) FROM knowledge.knowledge AS k JOIN knowledge.knowledge_embedding USING (request_id, domain)
                WHERE k.request_id = ANY(:ids) AND encoder = :encoder),
            (SELECT count(*) FROM knowledge.entity
                WHERE domain = :domain AND kind = :kind AND deleted_at IS NULL),
            (SELECT count(*) FROM knowledge.knowledge AS k
                JOIN knowledge.knowledge_embedding AS v USING (request_id, domain)
                JOIN knowledge.entity AS e
                    ON e.domain = :domain AND e.kind = :kind AND e.entity_id = k.entity_id
                WHERE k.domain = :domain AND k.kind = :kind AND encoder = :encoder
                    AND k.valid_to IS NULL AND e.deleted_at IS NULL)
    """)
    bound = {"domain": domain, "kind": kind, "encoder": encoder, "ids": list(request_ids)}
    with engine.connect() as connection:
        return Coverage(*connection.execute(query, bound).one())


#: In the order of POOL_KNOWLEDGE.
_POOLED_COLUMNS: Final = (
    KNOWLEDGE.c.group_name,
    KNOWLEDGE.c.token_ids,
    KNOWLEDGE.c.entity_id,
    KNOWLEDGE.c.available_at,
)


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
    return pa.Table.from_batches(_stream(engine, query, schemas.POOL_KNOWLEDGE), schemas.POOL_KNOWLEDGE)


def newest_texts(engine: Engine, domain: str, kind: str, tokenizer_hash: str, limit: int) -> pa.Table:
    """The valid texts that were written last, in schema POOL_KNOWLEDGE, the newest first."""
    query = (
        select(*_POOLED_COLUMNS)
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


def newest_evaluation(engine: Engine, domain: str, seeds: int, entities: int) -> dict[str, Any] | None:
    """A domain's newest row of EVALUATION among those of so many seeds and entities at least; None: there is none."""
    large = (EVALUATION.c.domain == domain, EVALUATION.c.seeds >= seeds, EVALUATION.c.entities >= entities)
    query = select(EVALUATION).where(*large).order_by(EVALUATION.c.evaluated_at.desc()).limit(1)
    with engine.connect() as connection:
        row = connection.execute(query).mappings().one_or_none()
        return dict(row) if row else None


def _stream(engine: Engine, query: Executable, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Read through a server-side cursor: memory holds a batch, whatever the number of rows."""
    with engine.connect().execution_options(yield_per=_ROWS_PER_BATCH) as connection:
        for rows in connection.execute(query).partitions(_ROWS_PER_BATCH):  # of textual SQL, all rows without
            yield _batch(rows, schema)


def _batch(rows: Sequence[Row[Any]], schema: pa.Schema) -> pa.RecordBatch:
    columns = zip(*rows, strict=True)
    return pa.record_batch(
        [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)], schema=schema
    )
