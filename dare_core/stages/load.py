"""Judge a run by the sums over its shards, and load their texts and vectors into the warehouse."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa
from sqlalchemy import Engine

from dare_core.config.domains import FeatureQuality, load_domain
from dare_core.config.settings import Settings
from dare_core.errors import QualityError
from dare_core.knowledge import costs, shards
from dare_core.knowledge.figures import Figures, by_kind, folder
from dare_core.knowledge.shards import Plan
from dare_core.knowledge.vectors import in_another_form
from dare_core.quality import data_docs, features
from dare_core.quality.findings import require
from dare_core.quality.texts import LOST, ShardCounts, judge_run
from dare_core.schemas import KNOWLEDGE, QUARANTINE, Kind
from dare_core.stages.finishing import finish
from dare_core.stages.ownership import owned
from dare_core.stages.pins import release_pools
from dare_core.stages.request import RunRequest
from dare_core.stages.weighing import weigh
from dare_core.storage import run_files
from dare_core.storage.locations import Location, matching
from dare_core.warehouse import quarantine
from dare_core.warehouse.features import count_loaded, coverage
from dare_core.warehouse.interactions import register
from dare_core.warehouse.knowledge import Chunk, LoadSummary, load_chunks
from dare_core.warehouse.runs import feature_profiles, record_run
from dare_core.warehouse.session import open_warehouse

#: That a transaction takes: few enough to begin again after a broken connection.
_TEXTS_AT_ONCE: Final = 20_000


@owned
def run(settings: Settings, request: RunRequest) -> dict[str, Any]:
    """Load texts and vectors in transactions that each leave the warehouse right; the first committed result of a
    request wins.

    Great Expectations over the sums before: how many texts were lost, and the features by the domain's
    ``[quality.features]``; and over the warehouse after. What it warns of is under ``warnings``.

    Raises:
        QualityError: before, and nothing was loaded; or after, and the texts are there.
    """
    run_dir = settings.run_dir(request.run_id)
    planned = shards.read_plan(run_dir)
    domain = load_domain(settings, request.domain)
    bounds = domain.quality.features
    figures = finish(settings, planned, planned.shards, again=False)  # those that an earlier release wrote
    sums = by_kind(figures)
    with open_warehouse(settings) as (_, engine):
        measured = _record(settings, engine, request, figures)
        _quarantine(run_dir, engine, figures)
        _judge_texts(settings, engine, request, figures)
        warnings = _check_features(settings, engine, request, sums, measured, bounds)
        summary = _load(settings, engine, planned, figures)
        register(engine, domain)
        loaded = summary.loaded + summary.already_there
        record_run(engine, request.run_id, state="loaded", finished_at=datetime.now(UTC), loaded=loaded)
        release_pools(settings, engine, request)
        forms = in_another_form(settings, engine, request.domain) if loaded else []
        warnings += weigh(settings, request, "vectors", forms, f"the vectors of {request.domain}")
        covered, more = _check_coverage(settings, engine, request, figures, bounds)
    kinds = sorted(kind for kind, of_kind in sums.items() if of_kind.passed)
    return vars(summary) | {
        "generated": sum(each.texts for each in figures),
        "failed": sum(each.failed for each in figures),
        "quarantined": sum(each.refused for each in figures),
        "kinds": kinds,
        "coverage": covered,
        "warnings": warnings + more,
    }


def _record(settings: Settings, engine: Engine, request: RunRequest, figures: Sequence[Figures]) -> dict[str, Any]:
    """Let the warehouse know what the run made; returns what it measured."""
    written = {kind: {"texts": each.texts, "tokens": each.tokens} for kind, each in by_kind(figures).items()}
    seconds = sum(each.seconds for each in figures)
    measured = costs.measurement(
        {kind: of_kind for kind, of_kind in written.items() if of_kind["texts"]},
        seconds,
        sum(each.load_seconds for each in figures),
        settings.cost_per_hour,
    )
    record_run(
        engine,
        request.run_id,
        planned=sum(each.requests for each in figures),
        generated=sum(each.texts for each in figures),
        failed=sum(each.failed for each in figures),
        quarantined=sum(each.refused for each in figures),
        new_tokens=sum(each.tokens for each in figures),
        steps=sum(each.steps for each in figures),
        seconds=seconds,
        measured=measured,
    )
    return measured


def _quarantine(run_dir: Location, engine: Engine, figures: Sequence[Figures]) -> None:
    for each in figures:
        part = _part(run_dir, each)
        if len(refused := run_files.read_table(part / "quarantine.parquet", QUARANTINE)):
            quarantine.record(engine, refused, run_files.read_table(part / "refused.parquet", KNOWLEDGE))


def _part(run_dir: Location, figures: Figures) -> Location:
    return folder(run_dir, figures.shard, figures.attempt)


def _judge_texts(settings: Settings, engine: Engine, request: RunRequest, figures: Sequence[Figures]) -> None:
    counts = [
        ShardCounts(each.shard, each.requests, each.texts + each.failed, each.requests - each.passed, each.by_rule)
        for each in figures
    ]
    docs, run_id = settings.data_docs_dir, request.run_id
    found = judge_run(counts, settings.max_failing_share, docs, run_id)
    critical = [finding for finding in found if finding.severity == "critical"]
    if not critical:
        return
    _fail(settings, engine, request)
    require([finding for finding in critical if finding.rule != LOST], f"the texts of run {run_id}", docs)
    requests, lost = sum(each.requests for each in counts), sum(each.lost for each in counts)
    raise QualityError(
        f"{lost / requests:.0%} of the {requests} texts of run {run_id} failed, more than "
        f"max_failing_share {settings.max_failing_share:.0%}; they are in quarantine, see {data_docs.index(docs)}"
    )


def _fail(settings: Settings, engine: Engine, request: RunRequest) -> None:
    record_run(engine, request.run_id, state="failed", finished_at=datetime.now(UTC))
    release_pools(settings, engine, request)


def _check_features(
    settings: Settings,
    engine: Engine,
    request: RunRequest,
    sums: Mapping[Kind, Figures],
    measured: dict[str, Any],
    bounds: FeatureQuality,
) -> list[str]:
    """Check what is to be loaded against the last runs, and keep its own profile for the next ones."""
    of_kinds = {str(kind): each.features for kind, each in sums.items() if each.passed}
    profiles = {kind: profile for kind, each in of_kinds.items() if (profile := each.profile) is not None}
    last = feature_profiles(engine, request.run_id, request.domain, bounds.drift_runs)
    earlier = {
        kind: features.together([features.FeatureProfile(**each) for each in last[kind]])
        for kind in profiles
        if kind in last
    }
    found = features.check_features(of_kinds, earlier, bounds, settings.data_docs_dir, request.run_id)
    measured = measured | {"features": {kind: vars(each) for kind, each in profiles.items()}}
    record_run(engine, request.run_id, measured=measured)
    try:
        return weigh(settings, request, "features", found, f"the features of run {request.run_id}")
    except QualityError:
        _fail(settings, engine, request)
        raise


def _load(settings: Settings, engine: Engine, planned: Plan, figures: Sequence[Figures]) -> LoadSummary:
    items = sum(each.passed for each in figures if each.kind == "item")
    widths = {encoder: width for each in figures for encoder, width in each.widths.items()}
    return load_chunks(engine, {planned.domain: items}, widths, _chunks(settings.run_dir(planned.run_id), figures))


def _chunks(run_dir: Location, figures: Sequence[Figures]) -> Iterator[Chunk]:
    """Neighbouring shards, as many as a transaction takes; each file is read when it is copied."""
    parts: list[Location] = []
    texts = 0
    for each in figures:
        if each.passed:
            parts.append(_part(run_dir, each))
            texts += each.passed
        if texts >= _TEXTS_AT_ONCE or (parts and each is figures[-1]):
            yield _knowledge(parts), _vectors(parts)
            parts, texts = [], 0


def _knowledge(parts: Iterable[Location]) -> Iterator[pa.Table]:
    return (run_files.read_table(part / "knowledge.parquet", KNOWLEDGE) for part in parts)


def _vectors(parts: Iterable[Location]) -> Iterator[pa.Table]:
    return (run_files.read_parquet(path) for part in parts for path in matching(part, "vectors-*.parquet"))


def _check_coverage(
    settings: Settings,
    engine: Engine,
    request: RunRequest,
    figures: Sequence[Figures],
    bounds: FeatureQuality,
) -> tuple[dict[str, float], list[str]]:
    """The share of entities that have features by now, by kind; and what is to be warned of."""
    rows: list[dict[str, Any]] = []
    run_dir = settings.run_dir(request.run_id)
    for kind in sorted({each.kind for each in figures if each.passed}):
        texts = there = 0
        for each in figures:
            if each.kind == kind:
                path = _part(run_dir, each) / "knowledge.parquet"
                ids = run_files.read_parquet(path, ["request_id"])["request_id"].to_pylist()
                texts += len(ids)
                there += count_loaded(engine, settings.encoder, ids)
        found = coverage(engine, request.domain, kind, settings.encoder)
        share = found.covered / found.entities if found.entities else 1.0
        rows.append({"kind": kind, "loaded": there / texts if texts else 1.0, "coverage": round(share, 4)})
    checked = features.check_coverage(rows, bounds, settings.data_docs_dir, request.run_id) if rows else []
    what = f"what run {request.run_id} loaded"
    return {row["kind"]: row["coverage"] for row in rows}, weigh(settings, request, "coverage", checked, what)
