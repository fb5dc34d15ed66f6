"""The stages of a run, one function each, in their order. What a DAG task or ``dare pipeline run`` calls.

A stage reads what the stage before left under the run's folder and leaves its own there, whole or not at all; running a
stage again changes nothing that was right. Stages return small JSON-able summaries; data never goes through them.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator
from sqlalchemy import Engine

from dare_core import models
from dare_core.domains import load_domain
from dare_core.embedding.encoder import Encoder
from dare_core.errors import InputError, QualityError
from dare_core.knowledge import shards
from dare_core.knowledge.chat import ChatEncoder
from dare_core.knowledge.planning import Planner
from dare_core.knowledge.pooling import Build, refresh_pool
from dare_core.knowledge.requests import Decoding
from dare_core.knowledge.shards import Plan, Shard
from dare_core.knowledge.worker import work_off
from dare_core.pools import PoolStore
from dare_core.quality.validation import validate as check
from dare_core.reports.facts import gather
from dare_core.reports.page import figures, write_report
from dare_core.schemas import ENTITY, KINDS, KNOWLEDGE, KNOWLEDGE_EMBEDDING, QUARANTINE, Kind
from dare_core.settings import Settings, Share, Verification
from dare_core.spark_submit import submit
from dare_core.warehouse import load as warehouse_load
from dare_core.warehouse import read as warehouse_read
from dare_core.warehouse.connection import connect
from dare_core.warehouse.migrate import require_current
from dare_core.warehouse.pool_register import WarehouseRegister
from dare_core.warehouse.server import serving

#: Airflow maps a task over 1024 items at most, and there are two kinds.
MAX_SHARDS_PER_KIND: Final = 512

_RUN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class RunRequest(BaseModel):
    """What a run is asked to do. Decoding values left out are taken from the settings when the run is planned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    domain: str = "movies"
    kinds: tuple[Kind, ...] = Field(KINDS, min_length=1)
    item_limit: int | None = Field(None, ge=1, description="items to write at most")
    user_limit: int | None = Field(None, ge=1, description="users to write at most")
    verification: Verification | None = None
    top_k: int | None = Field(None, ge=1)
    min_prob: Share | None = None
    max_new_tokens: int | None = Field(None, ge=1)
    as_of: AwareDatetime | None = Field(None, description="nothing that happened later is seen; default: now")

    @field_validator("run_id")
    @classmethod
    def _names_a_folder(cls, run_id: str) -> str:
        if not _RUN_ID.fullmatch(run_id):
            raise ValueError("a run id has letters, digits, '.', '_' and '-', and begins with a letter or digit")
        return run_id

    def limit(self, kind: Kind) -> int | None:
        """Texts of one kind to write at most."""
        return self.item_limit if kind == "item" else self.user_limit


def pull(settings: Settings, request: RunRequest) -> dict[str, Any]:
    """Spark: what changed in the source tables since the newest entity in the warehouse, up to ``as_of``."""
    load_domain(settings, request.domain)
    with _warehouse(settings) as (url, engine):
        marks = {kind: warehouse_read.watermark(engine, request.domain, kind) for kind in request.kinds}
        since = [f"{kind}={mark.isoformat()}" for kind, mark in marks.items() if mark is not None]
        arguments = [
            *("--domain-file", str(settings.config_dir / f"{request.domain}.toml")),
            *("--kinds", *request.kinds),
            *(part for mark in since for part in ("--since", mark)),
            *("--as-of", (request.as_of or datetime.now(UTC)).isoformat()),
            *("--out", str(settings.run_dir(request.run_id) / "pulled")),
        ]
        return submit(settings, "pull", arguments, url)


def group(settings: Settings, request: RunRequest) -> dict[str, Any]:
    """Spark: give every pulled entity its retrieval-pool group; then write them to the warehouse."""
    run_dir = settings.run_dir(request.run_id)
    arguments = [
        *("--domain-file", str(settings.config_dir / f"{request.domain}.toml")),
        *("--as-of", (request.as_of or datetime.now(UTC)).isoformat()),
        *("--pools", str(settings.pool_dir(request.domain, "item").parent)),
        *("--in", str(run_dir / "pulled")),
        *("--out", str(run_dir / "grouped")),
    ]
    with _warehouse(settings) as (url, engine):
        summary = submit(settings, "group", arguments, url)
        for kind in request.kinds:
            entities = pq.read_table(run_dir / "grouped" / kind, schema=ENTITY)
            summary[f"{kind}_changed"] = warehouse_load.upsert_entities(engine, entities)
    return summary


def plan(settings: Settings, request: RunRequest) -> list[dict[str, Any]]:
    """Which requests have no valid knowledge yet: shards of them, sorted by group.

    Returns:
        One ``{"name", "kind", "requests", "pool_version"}`` per shard.
    """
    run_dir = settings.run_dir(request.run_id)
    if not (run_dir / "plan.json").exists():
        domain = load_domain(settings, request.domain)
        tokenizer = models.load_tokenizer(settings)
        decoding = _decoding(settings, request, models.tokenizer_hash(tokenizer))
        room = models.context_length(settings) - decoding.max_new_tokens
        if room < 1:
            raise InputError(
                f"max_new_tokens {decoding.max_new_tokens} leaves no room for a prompt in {settings.model}"
            )
        with _warehouse(settings) as (_, engine):
            states = partial(warehouse_read.request_states, engine)
            planner = Planner(domain, ChatEncoder(tokenizer), decoding, room, states)
            parts: list[Shard] = []
            for kind in request.kinds:
                rows = planner.choose(kind, warehouse_read.entities(engine, domain.name, kind), request.limit(kind))
                pool = warehouse_read.current_pool(engine, domain.name, kind)
                usable = pool is not None and pool["tokenizer_hash"] == decoding.tokenizer_hash
                size = max(settings.shard_size, -(-len(rows) // MAX_SHARDS_PER_KIND))
                version = pool["version"] if pool and usable else None
                if version:  # the run's shards draft from it until they are loaded
                    _pool_store(settings, engine, domain.name, kind).pin(version, request.run_id)
                parts += shards.write_shards(run_dir, kind, rows, size, version)
            planned = Plan(
                run_id=request.run_id,
                domain=domain.name,
                framework=domain.knowledge.framework,
                decoding=decoding,
                started_at=datetime.now(UTC),
                shards=parts,
                skipped=dict(planner.skipped),
            )
            unfit = [{**row, "run_id": request.run_id} for row in planner.unfit]
            warehouse_load.quarantine(engine, pa.Table.from_pylist(unfit, QUARANTINE))
            warehouse_load.record_run(
                engine,
                request.run_id,
                domain=domain.name,
                state="planned",
                params=request.model_dump_json(exclude={"run_id"}),
                model=decoding.model,
                started_at=planned.started_at,
                planned=planned.requests,
            )
        shards.write_json(run_dir / "plan.json", planned.model_dump_json(indent=1))
    return [shard.model_dump() for shard in shards.read_plan(run_dir).shards]


def _decoding(settings: Settings, request: RunRequest, tokenizer_hash: str) -> Decoding:
    return Decoding(
        model=settings.model,
        tokenizer_hash=tokenizer_hash,
        verification=request.verification or settings.verification,
        top_k=request.top_k or settings.top_k,
        min_prob=settings.min_prob if request.min_prob is None else request.min_prob,
        max_new_tokens=request.max_new_tokens or settings.max_new_tokens,
    )


def generate(settings: Settings, request: RunRequest, shard: dict[str, Any]) -> dict[str, Any]:
    """Write one shard's texts against its pinned pool version; see :func:`dare_core.knowledge.worker.work_off`."""
    planned = shards.read_plan(settings.run_dir(request.run_id))
    return work_off(settings, planned, Shard.model_validate(shard))


def validate(settings: Settings, request: RunRequest) -> dict[str, Any]:
    """Great Expectations over the staged texts; failing rows go to quarantine, the others on to embedding.

    Raises:
        QualityError: rows are missing or doubled, or more texts failed than ``settings.max_failing_share`` allows.
    """
    run_dir = settings.run_dir(request.run_id)
    planned = shards.read_plan(run_dir)
    names = [shard.name for shard in planned.shards]
    staged, failed = shards.read_staged(run_dir, names)
    wanted = {row for name in names for row in shards.read_shard(run_dir, name)["request_id"].to_pylist()}
    wanted -= set(failed["request_id"].to_pylist())
    outcome = check(staged, sorted(wanted), settings.data_docs_dir, request.run_id)
    refused = pa.concat_tables([outcome.quarantine, failed])
    counts = {
        "generated": len(staged),
        "failed": len(failed),
        "quarantined": len(pc.unique(outcome.quarantine["request_id"])),
        "new_tokens": pc.sum(staged["new_tokens"]).as_py() or 0,
        "steps": pc.sum(staged["steps"]).as_py() or 0,
        "seconds": shards.engine_seconds(run_dir, names),
    }
    lost = 1 - len(outcome.passed) / planned.requests if planned.requests else 0.0
    with _warehouse(settings) as (_, engine):
        warehouse_load.quarantine(engine, refused)
        if lost > settings.max_failing_share:
            warehouse_load.record_run(engine, request.run_id, state="failed", finished_at=datetime.now(UTC), **counts)
            _release_pools(settings, engine, request)
            raise QualityError(
                f"{lost:.0%} of the {planned.requests} texts of run {request.run_id} failed, more than "
                f"max_failing_share {settings.max_failing_share:.0%}; they are in quarantine, see {outcome.docs_index}"
            )
        warehouse_load.record_run(engine, request.run_id, **counts)
    shards.write_table(run_dir / "validated.parquet", outcome.passed)
    return {**counts, "passed": len(outcome.passed), "data_docs": str(outcome.docs_index)}


def embed(settings: Settings, request: RunRequest) -> dict[str, Any]:
    """Embed the texts that passed."""
    run_dir = settings.run_dir(request.run_id)
    passed = pq.read_table(run_dir / "validated.parquet", schema=KNOWLEDGE)
    embeddings = KNOWLEDGE_EMBEDDING.empty_table()
    if len(passed):
        encoder = Encoder.load(settings)
        columns = [
            passed["request_id"],
            pa.repeat(encoder.name, len(passed)),
            encoder.encode(passed["text"].to_pylist()),
        ]
        embeddings = pa.table(columns, schema=KNOWLEDGE_EMBEDDING)
    shards.write_table(run_dir / "embeddings.parquet", embeddings)
    return {"embedded": len(embeddings)}


def load(settings: Settings, request: RunRequest) -> dict[str, Any]:
    """Load texts and vectors in one transaction; the first committed result of a request wins."""
    run_dir = settings.run_dir(request.run_id)
    knowledge = pq.read_table(run_dir / "validated.parquet", schema=KNOWLEDGE)
    embeddings = pq.read_table(run_dir / "embeddings.parquet", schema=KNOWLEDGE_EMBEDDING)
    with _warehouse(settings) as (_, engine):
        summary = warehouse_load.load_knowledge(engine, knowledge, embeddings)
        loaded = summary.loaded + summary.already_there
        warehouse_load.record_run(engine, request.run_id, state="loaded", finished_at=datetime.now(UTC), loaded=loaded)
        _release_pools(settings, engine, request)
    return vars(summary) | {"kinds": sorted(set(knowledge["kind"].to_pylist()))}


def report(settings: Settings, request: RunRequest) -> dict[str, Any]:
    """Write the report of a run, however far it came.

    Returns:
        The report's path under ``report``, and the run's figures; see :func:`dare_core.reports.page.figures`.
    """
    with _warehouse(settings) as (_, engine):
        facts = gather(settings, engine, request.run_id, request.domain)
        path = write_report(settings, facts)
        if facts.record and "report" in facts.record:
            warehouse_load.record_run(engine, request.run_id, report=str(path))
    return {"report": str(path), **figures(facts)}


def rebuild_pools(settings: Settings, domain: str, kinds: tuple[Kind, ...] = KINDS) -> dict[str, Any]:
    """Add what was loaded since to each kind's retrieval pool, and make that version the current one."""
    load_domain(settings, domain)
    tokenizer = models.load_tokenizer(settings)
    build = Build(domain, models.tokenizer_hash(tokenizer), len(tokenizer))
    summary: dict[str, Any] = {}
    with _warehouse(settings) as (url, engine):
        for kind in kinds:
            manifest = refresh_pool(settings, url, engine, _pool_store(settings, engine, domain, kind), build, kind)
            if manifest is not None:
                summary[kind] = {
                    "version": manifest.version,
                    "groups": len(manifest.groups) - 1,
                    "texts": manifest.texts,
                    "tokens": manifest.tokens,
                }
    return summary


def run(
    settings: Settings, request: RunRequest, on_stage: Callable[[str, Any], None] = lambda stage, result: None
) -> dict[str, Any]:
    """All stages in their order, without Airflow; then the pools are rebuilt.

    Args:
        settings: in force.
        request: what to do; the same run id goes on where an earlier try stopped.
        on_stage: told each stage's name and summary.
    """
    with serving(settings):  # one server for all stages
        on_stage("pull", pull(settings, request))
        on_stage("group", group(settings, request))
        planned = plan(settings, request)
        on_stage("plan", planned)
        for shard in planned:
            on_stage("generate", generate(settings, request, shard))
        summary: dict[str, Any] = {"run_id": request.run_id, "planned": sum(shard["requests"] for shard in planned)}
        for stage in (validate, embed, load):
            result = stage(settings, request)
            on_stage(stage.__name__, result)
            summary |= result
        on_stage("rebuild_pools", rebuild_pools(settings, request.domain, request.kinds))
        summary["report"] = report(settings, request)["report"]
    return summary


def _pool_store(settings: Settings, engine: Engine, domain: str, kind: Kind) -> PoolStore:
    """The pool of one kind; which version is in force and which are in use, the warehouse says."""
    root = settings.pool_dir(domain, kind)
    return PoolStore(root, WarehouseRegister(engine, domain, kind, str(root)), settings.pool_cache_dir)


def _release_pools(settings: Settings, engine: Engine, request: RunRequest) -> None:
    """The run needs its pool versions no longer."""
    for kind in request.kinds:
        _pool_store(settings, engine, request.domain, kind).unpin(request.run_id)


class _Warehouse(NamedTuple):
    url: str
    engine: Engine


@contextmanager
def _warehouse(settings: Settings) -> Iterator[_Warehouse]:
    """The warehouse, served and at the current schema, for the length of a stage."""
    with serving(settings) as url:
        engine = connect(url)
        try:
            require_current(engine)
            yield _Warehouse(url, engine)
        finally:
            engine.dispose()
