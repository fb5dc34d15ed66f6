"""The stages of a run, one function each, in their order. What a DAG task or ``dare pipeline run`` calls.

A stage reads what the stage before left under the run's folder and leaves its own there, whole or not at all; running a
stage again changes nothing that was right. Stages return small JSON-able summaries; data never goes through them.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator
from sqlalchemy import Engine

from dare_core import models, promotion
from dare_core.domains import Domain, load_domain
from dare_core.embedding.encoder import Encoder
from dare_core.errors import InputError, QualityError
from dare_core.evaluation.gate import gated
from dare_core.knowledge import costs, shards
from dare_core.knowledge.chat import ChatEncoder
from dare_core.knowledge.costs import Funnel
from dare_core.knowledge.planning import Choice, Planner
from dare_core.knowledge.requests import Decoding, identify_settings
from dare_core.knowledge.shards import Plan, Shard
from dare_core.knowledge.worker import work_off
from dare_core.quality.validation import validate as check
from dare_core.schemas import ENTITY, KINDS, KNOWLEDGE, KNOWLEDGE_EMBEDDING, PULLED, QUARANTINE, RENDERING, Kind
from dare_core.settings import Settings, Share, Verification
from dare_core.spark_submit import submit
from dare_core.stores import open_warehouse, pool_store
from dare_core.warehouse import load as warehouse_load
from dare_core.warehouse import read as warehouse_read
from dare_core.warehouse.server import serving

log = logging.getLogger(__name__)

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
    order: warehouse_read.Order = Field("spread", description="who comes first under a limit; active: by events")

    @field_validator("run_id")
    @classmethod
    def _names_a_folder(cls, run_id: str) -> str:
        if not _RUN_ID.fullmatch(run_id):
            raise ValueError("a run id has letters, digits, '.', '_' and '-', and begins with a letter or digit")
        return run_id

    def limit(self, kind: Kind) -> int | None:
        """Texts of one kind to write at most."""
        return self.item_limit if kind == "item" else self.user_limit


class PullWindow(BaseModel):
    """What a run's pull reads, fixed before it reads anything.

    Attributes:
        until: the latest moment seen, inclusive.
        since: the earliest change read anew, inclusive, by kind; a kind without is read whole.
        kinds: those that are read; of the others, an earlier pull saw everything up to ``until``.
    """

    model_config = ConfigDict(frozen=True)

    until: AwareDatetime
    since: dict[Kind, AwareDatetime]
    kinds: tuple[Kind, ...]


def pull(settings: Settings, request: RunRequest) -> dict[str, Any]:
    """Spark: what changed in the source tables since the watermark, up to ``as_of``, and what is gone from them."""
    domain = load_domain(settings, request.domain)
    run_dir = settings.run_dir(request.run_id)
    with open_warehouse(settings) as (url, engine):
        if not _window_path(run_dir).exists():
            window = _open_window(engine, domain, request)
            shards.write_json(_window_path(run_dir), window.model_dump_json(indent=1))
        window = _read_window(run_dir)
        if not window.kinds:
            log.info("everything up to %s has been pulled before", window.until)
            return dict.fromkeys(request.kinds, 0)
        arguments = [
            *("--domain-file", str(settings.config_dir / f"{domain.name}.toml")),
            *("--kinds", *window.kinds),
            *(part for kind, since in window.since.items() for part in ("--since", f"{kind}={since.isoformat()}")),
            *("--as-of", window.until.isoformat()),
            *("--out", str(run_dir / "pulled")),
        ]
        return submit(settings, "pull", arguments, url)


def _open_window(engine: Engine, domain: Domain, request: RunRequest) -> PullWindow:
    """From before the watermark, for what came late, up to ``as_of``."""
    until = request.as_of or datetime.now(UTC)
    overlap = timedelta(minutes=domain.source.overlap_minutes)
    marks = {kind: warehouse_read.watermark(engine, domain.name, kind) for kind in request.kinds}
    since = {kind: mark - overlap for kind, mark in marks.items() if mark is not None}
    kinds = tuple(kind for kind in request.kinds if kind not in since or since[kind] <= until)
    return PullWindow(until=until, since={kind: since[kind] for kind in kinds if kind in since}, kinds=kinds)


def _window_path(run_dir: Path) -> Path:
    return run_dir / "pull.json"


def _read_window(run_dir: Path) -> PullWindow:
    try:
        return PullWindow.model_validate_json(_window_path(run_dir).read_bytes())
    except FileNotFoundError:
        raise InputError(f"{_window_path(run_dir)} is not there: the run has not been pulled") from None


def group(settings: Settings, request: RunRequest) -> dict[str, Any]:
    """Spark: give every pulled entity its retrieval-pool group; then commit them, what is gone, and the watermark.

    Spark is not started when the warehouse holds everything that was pulled.
    """
    run_dir = settings.run_dir(request.run_id)
    window = _read_window(run_dir)
    arguments = [
        *("--domain-file", str(settings.config_dir / f"{request.domain}.toml")),
        *("--as-of", window.until.isoformat()),
        *("--pools", str(settings.pool_dir(request.domain, "item").parent)),
        *("--in", str(run_dir / "pulled")),
        *("--out", str(run_dir / "grouped")),
    ]
    with open_warehouse(settings) as (url, engine):
        pulled = (pq.read_table(run_dir / "pulled" / kind, schema=PULLED) for kind in window.kinds)
        differing = sum([warehouse_read.differing(engine, of_kind) for of_kind in pulled])
        summary: dict[str, Any] = submit(settings, "group", arguments, url) if differing else {}
        for kind in window.kinds:
            entities = pq.read_table(run_dir / "grouped" / kind, schema=ENTITY) if differing else ENTITY.empty_table()
            gone = pq.read_table(run_dir / "pulled" / "gone" / kind)["entity_id"].to_pylist()
            seen = warehouse_load.Pulled(request.domain, kind, window.until, gone)
            changes = warehouse_load.upsert_entities(engine, entities, seen)
            summary |= {f"{kind}_changed": changes.changed, f"{kind}_deleted": changes.deleted}
    return summary


def plan(settings: Settings, request: RunRequest) -> dict[str, Any]:
    """Who needs a text: written down as shards of requests sorted by group, with what they are expected to cost.

    Only entities that changed, whose text expired or that have none are rendered. Nobody needs a text: the run is done.

    Returns:
        ``requests``, ``shards``, ``tasks`` that they are dealt out to, ``funnel`` by kind and ``estimate``.
    """
    run_dir = settings.run_dir(request.run_id)
    if not (run_dir / "plan.json").exists():
        with open_warehouse(settings) as (_, engine):
            planned = _make_plan(settings, engine, request)
        shards.write_json(run_dir / "plan.json", planned.model_dump_json(indent=1))
    planned = shards.read_plan(run_dir)
    summary = {
        "requests": planned.requests,
        "shards": len(planned.shards),
        "tasks": len(planned.assignments(settings.max_generation_tasks)),
        **planned.model_dump(include={"funnel", "estimate"}),
    }
    log.info("plan of run %s: %s", request.run_id, summary)
    return summary


def _make_plan(settings: Settings, engine: Engine, request: RunRequest) -> Plan:
    domain = load_domain(settings, request.domain)
    prompts = models.prompt_format(settings)
    decoding = gated(settings, engine, domain.name, _decoding(settings, request, prompts.tokenizer_hash))
    room = prompts.context_length - decoding.max_new_tokens
    if room < 1:
        raise InputError(f"max_new_tokens {decoding.max_new_tokens} leaves no room for a prompt in {settings.model}")
    measured = warehouse_read.throughput(engine, domain.name, decoding.model, decoding.max_new_tokens)
    run_dir = settings.run_dir(request.run_id)
    parts: list[Shard] = []
    funnel: dict[Kind, Funnel] = {}
    for kind in request.kinds:
        rules = _rules(domain, request, identify_settings(domain, kind, decoding, prompts.files, room))
        verdicts = warehouse_read.verdicts(engine, domain.name, kind, rules)
        choice = Choice()
        if any(verdicts.get(verdict) for verdict in warehouse_read.DUE_VERDICTS):
            states = partial(warehouse_read.request_states, engine, expired_before=rules.expired_before)
            encoder = ChatEncoder(models.load_tokenizer(settings))
            planner = Planner(domain, encoder, decoding, room, rules.settings, states)
            due = warehouse_read.due(engine, domain.name, kind, rules, request.order)
            choice = planner.choose(kind, due, request.limit(kind))
        unfit = [{**row, "run_id": request.run_id} for row in choice.unfit]
        warehouse_load.quarantine(engine, pa.Table.from_pylist(unfit, QUARANTINE))
        warehouse_load.record_renderings(engine, pa.Table.from_pylist(choice.rendered, RENDERING))
        funnel[kind] = Funnel.of(verdicts, len(choice.requests), choice.settled)
        size = costs.shard_size(settings, kind, measured, decoding.max_new_tokens)
        version = _pin_pool(settings, engine, request, kind, decoding) if choice.requests else None
        parts += shards.write_shards(run_dir, kind, choice.requests, size, version)
    requests = {kind: of_kind.requests for kind, of_kind in funnel.items()}
    planned = Plan(
        run_id=request.run_id,
        domain=domain.name,
        framework=domain.knowledge.framework,
        decoding=decoding,
        started_at=datetime.now(UTC),
        shards=parts,
        funnel=funnel,
        estimate=costs.estimate(requests, measured, decoding.max_new_tokens, settings.cost_per_hour),
    )
    finished = {} if parts else {"finished_at": planned.started_at, "loaded": 0}
    warehouse_load.record_run(
        engine,
        request.run_id,
        domain=domain.name,
        state="planned" if parts else "loaded",
        params=request.model_dump_json(exclude={"run_id"}),
        model=decoding.model,
        started_at=planned.started_at,
        planned=planned.requests,
        plan={
            "max_new_tokens": decoding.max_new_tokens,
            **planned.model_dump(mode="json", include={"funnel", "estimate"}),
        },
        **finished,
    )
    return planned


def _rules(domain: Domain, request: RunRequest, identified: str) -> warehouse_read.Rules:
    days = domain.knowledge.expires_after_days
    return warehouse_read.Rules(
        settings=identified,
        min_new_events=domain.knowledge.min_new_events,
        expired_before=None if days is None else datetime.now(UTC) - timedelta(days=days),
        as_of=request.as_of,
    )


def _pin_pool(settings: Settings, engine: Engine, request: RunRequest, kind: Kind, decoding: Decoding) -> str | None:
    """The version of the pool that a kind's shards draft from until they are loaded, where there is one to use."""
    pool = warehouse_read.current_pool(engine, request.domain, kind)
    if pool is None or pool["tokenizer_hash"] != decoding.tokenizer_hash:
        return None
    version: str = pool["version"]
    pool_store(settings, engine, request.domain, kind).pin(version, request.run_id)
    return version


def _decoding(settings: Settings, request: RunRequest, tokenizer_hash: str) -> Decoding:
    return Decoding(
        model=settings.model,
        tokenizer_hash=tokenizer_hash,
        verification=request.verification or settings.verification,
        top_k=request.top_k or settings.top_k,
        min_prob=settings.min_prob if request.min_prob is None else request.min_prob,
        max_new_tokens=request.max_new_tokens or settings.max_new_tokens,
    )


def assignments(settings: Settings, request: RunRequest) -> list[dict[str, int]]:
    """What generation tasks are mapped over: ``{"first", "end"}``, runs of the plan's shards."""
    planned = shards.read_plan(settings.run_dir(request.run_id))
    return [{"first": part.start, "end": part.stop} for part in planned.assignments(settings.max_generation_tasks)]


def generate(settings: Settings, request: RunRequest, assignment: dict[str, int]) -> dict[str, Any]:
    """Write the texts of an assignment's shards, with one loaded model; see :func:`knowledge.worker.work_off`.

    Returns:
        Sums over the shards; a part of them may have been written by earlier tries.
    """
    planned = shards.read_plan(settings.run_dir(request.run_id))
    manifests = work_off(settings, planned, planned.shards[assignment["first"] : assignment["end"]])
    names = ("requests", "resumed", "texts", "failed", "tokens", "seconds", "load_seconds")
    sums = {name: round(sum(manifest.get(name, 0) for manifest in manifests), 3) for name in names}
    speed = round(sums["tokens"] / sums["seconds"], 2) if sums["seconds"] else None
    return {"shards": len(manifests), **sums, "tokens_per_second": speed}


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
    measured = costs.measurement(
        _texts_by_kind(staged),
        counts["seconds"],
        shards.load_seconds(run_dir, names),
        settings.cost_per_hour,
    )
    lost = 1 - len(outcome.passed) / planned.requests if planned.requests else 0.0
    with open_warehouse(settings) as (_, engine):
        warehouse_load.quarantine(engine, refused)
        if lost > settings.max_failing_share:
            warehouse_load.record_run(
                engine, request.run_id, state="failed", finished_at=datetime.now(UTC), measured=measured, **counts
            )
            _release_pools(settings, engine, request)
            raise QualityError(
                f"{lost:.0%} of the {planned.requests} texts of run {request.run_id} failed, more than "
                f"max_failing_share {settings.max_failing_share:.0%}; they are in quarantine, see {outcome.docs_index}"
            )
        warehouse_load.record_run(engine, request.run_id, measured=measured, **counts)
    shards.write_table(run_dir / "validated.parquet", outcome.passed)
    return {**counts, "passed": len(outcome.passed), "data_docs": str(outcome.docs_index)}


def _texts_by_kind(staged: pa.Table) -> dict[str, dict[str, int]]:
    kinds: dict[str, dict[str, int]] = defaultdict(lambda: {"texts": 0, "tokens": 0})
    for kind, tokens in zip(staged["kind"].to_pylist(), staged["new_tokens"].to_pylist(), strict=True):
        kinds[kind]["texts"] += 1
        kinds[kind]["tokens"] += tokens
    return kinds


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
    with open_warehouse(settings) as (_, engine):
        summary = warehouse_load.load_knowledge(engine, knowledge, embeddings)
        loaded = summary.loaded + summary.already_there
        warehouse_load.record_run(engine, request.run_id, state="loaded", finished_at=datetime.now(UTC), loaded=loaded)
        _release_pools(settings, engine, request)
    return vars(summary) | {"kinds": sorted(set(knowledge["kind"].to_pylist()))}


def rebuild_pools(settings: Settings, domain: str, kinds: Sequence[Kind] = KINDS) -> dict[str, Any]:
    """Add what was loaded since to each kind's retrieval pool, and put that version in force.

    A version whose drafts would be accepted less, by more than ``settings.max_acceptance_loss``, is not put in force:
    see ``falls`` of :func:`dare_core.promotion.build_candidates`, whose findings are returned.
    """
    candidates = promotion.build_candidates(settings, domain, kinds)
    promoted = {kind: found for kind, found in candidates.items() if not found["falls"]}
    promotion.publish_candidates(settings, domain, promoted)
    return candidates


def slice_ended(settings: Settings, request: RunRequest) -> bool:
    """Whether a slice of a backfill came to its end and was not empty, so that another may follow.

    Its texts were loaded, or too many of them failed validation and are in quarantine: either way the next slice has
    others to write.
    """
    with open_warehouse(settings) as (_, engine):
        found = warehouse_read.run_state(engine, request.run_id)
    return found is not None and found.planned > 0 and found.state in ("loaded", "failed")


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
        summary: dict[str, Any] = {"run_id": request.run_id, "planned": planned["requests"]}
        if not planned["requests"]:
            return summary
        for assignment in assignments(settings, request):
            on_stage("generate", generate(settings, request, assignment))
        for stage in (validate, embed, load):
            result = stage(settings, request)
            on_stage(stage.__name__, result)
            summary |= result
        on_stage("rebuild_pools", rebuild_pools(settings, request.domain, request.kinds))
    return summary


def _release_pools(settings: Settings, engine: Engine, request: RunRequest) -> None:
    """The run needs its pool versions no longer."""
    for kind in request.kinds:
        pool_store(settings, engine, request.domain, kind).unpin(request.run_id)
