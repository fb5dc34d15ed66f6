"""The stages of a run, one function each, in their order. What a DAG task or ``dare pipeline run`` calls.

A stage reads what the stage before left under the run's folder and leaves its own there, whole or not at all; running a
stage again changes nothing that was right. Stages return small JSON-able summaries; data never goes through them.
"""

import json
import logging
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator
from sqlalchemy import Engine

from dare_core import models
from dare_core.config.domains import Domain, FeatureQuality, load_domain
from dare_core.config.settings import Settings, Share, Verification
from dare_core.embedding.encoder import Encoder
from dare_core.errors import InputError, QualityError
from dare_core.evaluation.gate import gated
from dare_core.knowledge import costs, shards
from dare_core.knowledge.answers import read_answers
from dare_core.knowledge.chat import ChatEncoder
from dare_core.knowledge.costs import Funnel
from dare_core.knowledge.planning import Choice, Planner
from dare_core.knowledge.requests import Decoding, identify_settings
from dare_core.knowledge.shards import Plan, Shard
from dare_core.knowledge.worker import work_off
from dare_core.quality import features, findings
from dare_core.quality.findings import Finding
from dare_core.quality.source import check_source
from dare_core.quality.texts import validate as check_texts
from dare_core.reports.facts import gather
from dare_core.reports.page import figures, write_report
from dare_core.schemas import (
    ENTITY,
    GONE,
    GROUPED,
    KINDS,
    KNOWLEDGE,
    KNOWLEDGE_EMBEDDING,
    PULLED,
    QUARANTINE,
    RENDERING,
    Kind,
    knowledge_embedding,
)
from dare_core.sources.spark_submit import submit
from dare_core.stages import pools as promotion
from dare_core.warehouse import encoders
from dare_core.warehouse import load as warehouse_load
from dare_core.warehouse import read as warehouse_read
from dare_core.warehouse.server import serving
from dare_core.warehouse.stores import open_warehouse, pool_store

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
    """Spark: what changed in the source tables since the watermark, up to ``as_of``, and what is gone from them.

    Great Expectations over what was pulled, where there is any; what it warns of is under ``warnings``.

    Raises:
        QualityError: what was pulled cannot be used.
    """
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
        summary: dict[str, Any] = submit(settings, "pull", arguments, url)
    found: list[Finding] = []
    for kind in window.kinds:
        if summary.get(kind):
            pulled = shards.read_table(run_dir / "pulled" / kind, PULLED)
            found += check_source(pulled, domain, kind, settings.data_docs_dir, request.run_id)
    return summary | {"warnings": _weigh(settings, request, "source", found, f"what was pulled of {domain.name}")}


def _weigh(settings: Settings, request: RunRequest, suite: str, found: Sequence[Finding], what: str) -> list[str]:
    """Log and keep what a suite warns of.

    Raises:
        QualityError: it found more than that.
    """
    sentences = [finding.sentence for finding in found if finding.severity == "warning"]
    for sentence in sentences:
        log.warning("%s, %s: %s", what, suite, sentence)
    shards.write_json(findings.warnings_path(settings.run_dir(request.run_id), suite), json.dumps(sentences))
    findings.require(found, what, settings.data_docs_dir)
    return sentences


def _open_window(engine: Engine, domain: Domain, request: RunRequest) -> PullWindow:
    """From before the watermark, for what came late, up to ``as_of``.

    The end is never later than now, by the clock of this machine and by that of the database: a watermark in the future
    would leave out all that changes until then. Where there is one, since a clock was set back, all is read again.
    """
    now = min(datetime.now(UTC), warehouse_read.clock(engine))
    until = min(request.as_of or now, now)
    overlap = timedelta(minutes=domain.source.overlap_minutes)
    marks = {kind: warehouse_read.watermark(engine, domain.name, kind) for kind in request.kinds}
    since = {kind: mark - overlap for kind, mark in marks.items() if mark is not None and mark <= now}
    kinds = tuple(kind for kind in request.kinds if kind not in since or since[kind] <= until)
    return PullWindow(until=until, since={kind: since[kind] for kind in kinds if kind in since}, kinds=kinds)


def _window_path(run_dir: Path) -> Path:
    return run_dir / "pull.json"


def _read_window(run_dir: Path) -> PullWindow:
    return shards.read_json(_window_path(run_dir), PullWindow, "the run has not been pulled")


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
        pulled = (shards.read_table(run_dir / "pulled" / kind, PULLED) for kind in window.kinds)
        differing = sum([warehouse_read.differing(engine, of_kind) for of_kind in pulled])
        summary: dict[str, Any] = submit(settings, "group", arguments, url) if differing else {}
        for kind in window.kinds:
            grouped = shards.read_table(run_dir / "grouped" / kind, GROUPED) if differing else GROUPED.empty_table()
            entities = grouped.select(ENTITY.names)
            gone = shards.read_table(run_dir / "pulled" / "gone" / kind, GONE)["entity_id"].to_pylist()
            seen = warehouse_load.Pulled(request.domain, kind, window.until, gone)
            changes = warehouse_load.upsert_entities(engine, entities, seen)
            summary |= {f"{kind}_changed": changes.changed, f"{kind}_deleted": changes.deleted}
            summary |= {f"{kind}_forgotten": changes.forgotten} if changes.forgotten else {}
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
    """Read the staged answers, Great Expectations over what they say; failing rows go to quarantine, the others on.

    The rules are the domain's ``[quality.texts]``.

    Raises:
        QualityError: rows are missing or doubled, or more texts failed than ``settings.max_failing_share`` allows.
    """
    run_dir = settings.run_dir(request.run_id)
    planned = shards.read_plan(run_dir)
    names = [shard.name for shard in planned.shards]
    staged, failed = shards.read_staged(run_dir, names)
    wanted = {row for name in names for row in shards.read_shard(run_dir, name)["request_id"].to_pylist()}
    wanted -= set(failed["request_id"].to_pylist())
    answers = read_answers(planned.framework, staged)
    wanted -= set(answers.refused["request_id"].to_pylist())
    rules = load_domain(settings, request.domain).quality.texts
    with open_warehouse(settings) as (_, engine):
        attributes = _attributes(engine, answers.read, request.domain)
    docs = settings.data_docs_dir
    outcome = check_texts(answers.read, sorted(wanted), attributes, rules, docs, request.run_id)
    refused = pa.concat_tables([answers.refused, outcome.quarantine, failed])
    counts = {
        "generated": len(staged),
        "failed": len(failed),
        "quarantined": len(answers.refused) + len(pc.unique(outcome.quarantine["request_id"])),
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
        warehouse_load.quarantine(engine, refused, outcome.refused)
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


def _attributes(engine: Engine, staged: pa.Table, domain: str) -> dict[tuple[str, str], str]:
    """The attributes of the entities that texts are about, by kind and id."""
    return {
        (kind, entity_id): found
        for kind in KINDS
        for entity_id, found in warehouse_read.attributes(
            engine, domain, kind, staged.filter(pc.equal(staged["kind"], kind))["entity_id"].to_pylist()
        ).items()
    }


def _texts_by_kind(staged: pa.Table) -> dict[str, dict[str, int]]:
    kinds: dict[str, dict[str, int]] = defaultdict(lambda: {"texts": 0, "tokens": 0})
    for kind, tokens in zip(staged["kind"].to_pylist(), staged["new_tokens"].to_pylist(), strict=True):
        kinds[kind]["texts"] += 1
        kinds[kind]["tokens"] += tokens
    return kinds


def embed(settings: Settings, request: RunRequest) -> dict[str, Any]:
    """Embed the texts that passed, with each encoder that the warehouse keeps vectors of."""
    run_dir = settings.run_dir(request.run_id)
    passed = shards.read_table(run_dir / "validated.parquet", KNOWLEDGE)
    with open_warehouse(settings) as (_, engine):
        embeddings = embedded(settings, engine, passed) if len(passed) else []
    folder = run_dir / "embeddings"
    shutil.rmtree(folder, ignore_errors=True)
    for number, vectors in enumerate(embeddings):
        shards.write_table(folder / f"{number}.parquet", vectors)
    return {"embedded": sum(map(len, embeddings))}


def embedded(settings: Settings, engine: Engine, knowledge: pa.Table) -> list[pa.Table]:
    """Vectors of texts, a table for each encoder that the warehouse keeps; that of the encoder in force comes first.

    Raises:
        SettingError: see :func:`dare_core.warehouse.encoders.to_embed_with`.
    """
    return [
        _vectors(
            Encoder.load(settings.model_copy(update={"encoder": name})),
            knowledge["request_id"].to_pylist(),
            knowledge["text"].to_pylist(),
        )
        for name in encoders.to_embed_with(engine, settings.encoder)
    ]


def _vectors(encoder: Encoder, request_ids: Sequence[str], texts: Sequence[str]) -> pa.Table:
    columns = [request_ids, pa.repeat(encoder.name, len(texts)), encoder.encode(texts)]
    return pa.table(columns, schema=knowledge_embedding(encoder.width))


def add_encoder(settings: Settings, name: str) -> dict[str, Any]:
    """Have vectors of another encoder beside those in force: of every text now, and of new ones from each run.

    Broken off, it goes on where it was. What is served stays what it was.

    Returns:
        How many vectors were ``embedded``, and the encoder's ``width``.
    """
    encoder = Encoder.load(settings.model_copy(update={"encoder": name}))
    count = 0
    with open_warehouse(settings) as (_, engine):
        encoders.add(engine, name, encoder.width)
        for request_ids, texts in encoders.texts_without(engine, name):
            count += warehouse_load.load_vectors(engine, _vectors(encoder, request_ids, texts))
        warehouse_load.index_vectors(engine)
    return {"encoder": name, "width": encoder.width, "embedded": count}


def load(settings: Settings, request: RunRequest) -> dict[str, Any]:
    """Load texts and vectors in one transaction; the first committed result of a request wins.

    Great Expectations over both before, and over the warehouse after, by the domain's ``[quality.features]``; what it
    warns of is under ``warnings``.

    Raises:
        QualityError: before, and nothing was loaded; or after, and the texts are there.
    """
    run_dir = settings.run_dir(request.run_id)
    knowledge = shards.read_table(run_dir / "validated.parquet", KNOWLEDGE)
    embeddings = [shards.read_parquet(path) for path in sorted((run_dir / "embeddings").glob("*.parquet"))]
    served = embeddings[0] if embeddings else KNOWLEDGE_EMBEDDING.empty_table()
    bounds = load_domain(settings, request.domain).quality.features
    with open_warehouse(settings) as (_, engine):
        warnings = _check_features(settings, engine, request, knowledge, served, bounds)
        summary = warehouse_load.load_knowledge(engine, knowledge, *embeddings)
        loaded = summary.loaded + summary.already_there
        warehouse_load.record_run(engine, request.run_id, state="loaded", finished_at=datetime.now(UTC), loaded=loaded)
        _release_pools(settings, engine, request)
        coverage, more = _check_coverage(settings, engine, request, knowledge, bounds)
    kinds = sorted(set(knowledge["kind"].to_pylist()))
    return vars(summary) | {"kinds": kinds, "coverage": coverage, "warnings": warnings + more}


def _check_features(
    settings: Settings,
    engine: Engine,
    request: RunRequest,
    knowledge: pa.Table,
    embeddings: pa.Table,
    bounds: FeatureQuality,
) -> list[str]:
    """Check what is to be loaded against the last runs, and keep its own profile for the next ones."""
    profiles = features.profile(knowledge, embeddings)
    last = warehouse_read.feature_profiles(engine, request.run_id, request.domain, bounds.drift_runs)
    earlier = {
        kind: features.together([features.FeatureProfile(**each) for each in last[kind]])
        for kind in profiles
        if kind in last
    }
    found = features.check_features(knowledge, embeddings, earlier, bounds, settings.data_docs_dir, request.run_id)
    [record] = warehouse_read.generation_runs(engine, request.run_id)
    measured = (record["measured"] or {}) | {"features": {kind: vars(each) for kind, each in profiles.items()}}
    warehouse_load.record_run(engine, request.run_id, measured=measured)
    try:
        return _weigh(settings, request, "features", found, f"the features of run {request.run_id}")
    except QualityError:
        warehouse_load.record_run(engine, request.run_id, state="failed", finished_at=datetime.now(UTC))
        _release_pools(settings, engine, request)
        raise


def _check_coverage(
    settings: Settings, engine: Engine, request: RunRequest, knowledge: pa.Table, bounds: FeatureQuality
) -> tuple[dict[str, float], list[str]]:
    """The share of entities that have features by now, by kind; and what is to be warned of."""
    rows = []
    for kind in sorted(set(knowledge["kind"].to_pylist())):
        ids = knowledge.filter(pc.equal(knowledge["kind"], kind))["request_id"].to_pylist()
        found = warehouse_read.coverage(engine, request.domain, kind, settings.encoder, ids)
        share = found.covered / found.entities if found.entities else 1.0
        rows.append({"kind": kind, "loaded": found.loaded / len(ids), "coverage": round(share, 4)})
    checked = features.check_coverage(rows, bounds, settings.data_docs_dir, request.run_id) if rows else []
    what = f"what run {request.run_id} loaded"
    return {row["kind"]: row["coverage"] for row in rows}, _weigh(settings, request, "coverage", checked, what)


def rebuild_pools(settings: Settings, domain: str, kinds: Sequence[Kind] = KINDS) -> dict[str, Any]:
    """Add what was loaded since to each kind's retrieval pool, and put that version in force.

    A version whose drafts would be accepted less, by more than ``settings.max_acceptance_loss``, is not put in force:
    see ``falls`` of :func:`dare_core.stages.pools.build_candidates`, whose findings are returned.
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


def report(settings: Settings, request: RunRequest) -> dict[str, Any]:
    """Write the report of a run, however far it came.

    Returns:
        The report's path under ``report``, and the run's figures; see :func:`dare_core.reports.page.figures`.
    """
    with open_warehouse(settings) as (_, engine):
        facts = gather(settings, engine, request.run_id, request.domain)
    return {"report": str(write_report(settings, facts)), **figures(facts)}


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
        summary["report"] = report(settings, request)["report"]
    return summary


def _release_pools(settings: Settings, engine: Engine, request: RunRequest) -> None:
    """The run needs its pool versions no longer."""
    for kind in request.kinds:
        pool_store(settings, engine, request.domain, kind).unpin(request.run_id)
