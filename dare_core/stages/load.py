"""Load texts and vectors into the warehouse."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Engine

from dare_core.config.domains import FeatureQuality, load_domain
from dare_core.config.settings import Settings
from dare_core.errors import QualityError
from dare_core.quality import features
from dare_core.schemas import KNOWLEDGE, KNOWLEDGE_EMBEDDING
from dare_core.stages.ownership import owned
from dare_core.stages.pins import release_pools
from dare_core.stages.request import RunRequest
from dare_core.stages.weighing import weigh
from dare_core.storage import run_files
from dare_core.warehouse.features import coverage
from dare_core.warehouse.interactions import register
from dare_core.warehouse.knowledge import load_knowledge
from dare_core.warehouse.runs import feature_profiles, generation_runs, record_run
from dare_core.warehouse.session import open_warehouse


@owned
def run(settings: Settings, request: RunRequest) -> dict[str, Any]:
    """Load texts and vectors in one transaction; the first committed result of a request wins.

    Great Expectations over both before, and over the warehouse after, by the domain's ``[quality.features]``; what it
    warns of is under ``warnings``.

    Raises:
        QualityError: before, and nothing was loaded; or after, and the texts are there.
    """
    run_dir = settings.run_dir(request.run_id)
    knowledge = run_files.read_table(run_dir / "validated.parquet", KNOWLEDGE)
    embeddings = [_read_vectors(path) for path in sorted((run_dir / "embeddings").glob("*.parquet"))]
    served = embeddings[0] if embeddings else KNOWLEDGE_EMBEDDING.empty_table()
    domain = load_domain(settings, request.domain)
    bounds = domain.quality.features
    with open_warehouse(settings) as (_, engine):
        warnings = _check_features(settings, engine, request, knowledge, served, bounds)
        summary = load_knowledge(engine, knowledge, *embeddings)
        register(engine, domain)
        loaded = summary.loaded + summary.already_there
        record_run(engine, request.run_id, state="loaded", finished_at=datetime.now(UTC), loaded=loaded)
        release_pools(settings, engine, request)
        coverage, more = _check_coverage(settings, engine, request, knowledge, bounds)
    kinds = sorted(set(knowledge["kind"].to_pylist()))
    return vars(summary) | {"kinds": kinds, "coverage": coverage, "warnings": warnings + more}


def _read_vectors(path: Path) -> pa.Table:
    """Vectors that a run embedded; before they had forms, all were of the answer alone."""
    table = run_files.read_parquet(path)
    return table if "form" in table.column_names else table.append_column("form", pa.repeat("answer", len(table)))


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
    last = feature_profiles(engine, request.run_id, request.domain, bounds.drift_runs)
    earlier = {
        kind: features.together([features.FeatureProfile(**each) for each in last[kind]])
        for kind in profiles
        if kind in last
    }
    found = features.check_features(knowledge, embeddings, earlier, bounds, settings.data_docs_dir, request.run_id)
    [record] = generation_runs(engine, request.run_id)
    measured = (record["measured"] or {}) | {"features": {kind: vars(each) for kind, each in profiles.items()}}
    record_run(engine, request.run_id, measured=measured)
    try:
        return weigh(settings, request, "features", found, f"the features of run {request.run_id}")
    except QualityError:
        record_run(engine, request.run_id, state="failed", finished_at=datetime.now(UTC))
        release_pools(settings, engine, request)
        raise


def _check_coverage(
    settings: Settings, engine: Engine, request: RunRequest, knowledge: pa.Table, bounds: FeatureQuality
) -> tuple[dict[str, float], list[str]]:
    """The share of entities that have features by now, by kind; and what is to be warned of."""
    rows = []
    for kind in sorted(set(knowledge["kind"].to_pylist())):
        ids = knowledge.filter(pc.equal(knowledge["kind"], kind))["request_id"].to_pylist()
        found = coverage(engine, request.domain, kind, settings.encoder, ids)
        share = found.covered / found.entities if found.entities else 1.0
        rows.append({"kind": kind, "loaded": found.loaded / len(ids), "coverage": round(share, 4)})
    checked = features.check_coverage(rows, bounds, settings.data_docs_dir, request.run_id) if rows else []
    what = f"what run {request.run_id} loaded"
    return {row["kind"]: row["coverage"] for row in rows}, weigh(settings, request, "coverage", checked, what)
