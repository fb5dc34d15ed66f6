"""Runs (table ``generation_run``): how far each has come and what it measured."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Engine, select, text, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import DBAPIError

from dare_core.errors import WarehouseError
from dare_core.warehouse.connection import reason
from dare_core.warehouse.tables import GENERATION_RUN

#: Of how many of the last runs figures are taken.
_RECENT_RUNS: Final = 5


def record_run(engine: Engine, run_id: str, **columns: object) -> None:
    """Set columns of GENERATION_RUN for one run; its first record needs all that are required.

    ``params`` is JSON text, ``plan`` and ``measured`` are dictionaries.

    Raises:
        WarehouseError: a required column is missing in the first record, or a value is not allowed.
    """
    if "params" in columns:
        columns["params"] = json.loads(str(columns["params"]))
    run = GENERATION_RUN
    try:
        with engine.begin() as connection:
            if not connection.execute(update(run).where(run.c.run_id == run_id).values(**columns)).rowcount:
                statement = postgresql.insert(run).values(run_id=run_id, **columns)
                connection.execute(statement.on_conflict_do_update(index_elements=["run_id"], set_=columns))
    except DBAPIError as error:
        raise WarehouseError(f"run {run_id} cannot be recorded: {reason(error)}") from error


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


def generation_runs(engine: Engine, run_id: str | None = None, limit: int = 200) -> list[dict[str, Any]]:
    """Rows of GENERATION_RUN, the latest first; of one run alone where it is named."""
    query = select(GENERATION_RUN).order_by(GENERATION_RUN.c.started_at.desc()).limit(limit)
    if run_id is not None:
        query = query.where(GENERATION_RUN.c.run_id == run_id)
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(query).mappings()]


def run_domains(engine: Engine) -> dict[str, str]:
    """The domain of every run that was planned."""
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT run_id, domain FROM knowledge.generation_run"))
        return {row.run_id: row.domain for row in rows}


def unfinished_runs(engine: Engine, domain: str) -> list[str]:
    """Runs of a domain that were planned and neither loaded nor failed, the latest first."""
    query = text(
        "SELECT run_id FROM knowledge.generation_run WHERE domain = :domain AND state = 'planned' "
        "ORDER BY started_at DESC"
    )
    with engine.connect() as connection:
        return list(connection.execute(query, {"domain": domain}).scalars())


@dataclass(frozen=True)
class Throughput:
    """What earlier runs of a model measured in a precision.

    Attributes:
        runs: how many of them this rests on.
        tokens_per_second: of one engine, loading excluded; None where nothing was measured.
        tokens_per_text: by kind, of the domain's own runs with the same length at most.
    """

    runs: int
    tokens_per_second: float | None
    tokens_per_text: dict[str, float]


def throughput(engine: Engine, domain: str, model: str, precision: str, max_new_tokens: int) -> Throughput:
    """What the last runs measured: of any domain the speed in this precision, of this one the length of texts.

    Runs of releases that recorded no precision count as fp32.
    """
    speed = text("""
        SELECT count(*), sum(tokens) / nullif(sum(seconds), 0) FROM (
            SELECT (measured ->> 'tokens')::float8 AS tokens, (measured ->> 'seconds')::float8 AS seconds
            FROM knowledge.generation_run
            WHERE model = :model AND (measured ->> 'tokens')::bigint > 0
                AND coalesce(plan ->> 'precision', 'fp32') = :precision
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
    bound = {"model": model, "runs": _RECENT_RUNS}
    own = {"domain": domain, "max_new_tokens": max_new_tokens}
    with engine.connect() as connection:
        runs, tokens_per_second = connection.execute(speed, bound | {"precision": precision}).one()
        means = {row.kind: row.mean for row in connection.execute(lengths, bound | own)}
        return Throughput(runs, tokens_per_second, means)


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
