"""Judge the texts that were written: on with those that pass, into quarantine with the others."""

from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Engine

from dare_core.config.domains import load_domain
from dare_core.config.settings import Settings
from dare_core.errors import QualityError
from dare_core.knowledge import costs, shards
from dare_core.knowledge.answers import read_answers
from dare_core.quality.texts import validate
from dare_core.schemas import KINDS
from dare_core.stages.ownership import owned
from dare_core.stages.pins import release_pools
from dare_core.stages.request import RunRequest
from dare_core.storage import run_files
from dare_core.warehouse import quarantine
from dare_core.warehouse.entities import attributes
from dare_core.warehouse.runs import record_run
from dare_core.warehouse.session import open_warehouse


@owned
def run(settings: Settings, request: RunRequest) -> dict[str, Any]:
    """Read the staged answers, Great Expectations over what they say; failing rows go to quarantine, the others on.

    The rules are the domain's ``[quality.texts]``.

    Raises:
        QualityError: rows are missing or doubled, or more texts failed than ``settings.max_failing_share`` allows.
    """
    run_dir = settings.run_dir(request.run_id)
    planned = shards.read_plan(run_dir)
    names = [shard.name for shard in planned.shards]
    staged, failed = shards.read_staged(run_dir, names)
    wanted = {
        row for name in names for piece in shards.requests(run_dir, name) for row in piece["request_id"].to_pylist()
    }
    planned_texts = len(wanted)
    wanted -= set(failed["request_id"].to_pylist())
    answers = read_answers(planned.framework, staged)
    wanted -= set(answers.refused["request_id"].to_pylist())
    rules = load_domain(settings, request.domain).quality.texts
    with open_warehouse(settings) as (_, engine):
        attributes = _attributes(engine, answers.read, request.domain)
    docs = settings.data_docs_dir
    outcome = validate(answers.read, sorted(wanted), attributes, rules, docs, request.run_id)
    refused = pa.concat_tables([answers.refused, outcome.quarantine, failed])
    counts = {
        "planned": planned_texts,
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
    lost = 1 - len(outcome.passed) / planned_texts if planned_texts else 0.0
    with open_warehouse(settings) as (_, engine):
        quarantine.record(engine, refused, outcome.refused)
        if lost > settings.max_failing_share:
            record_run(
                engine, request.run_id, state="failed", finished_at=datetime.now(UTC), measured=measured, **counts
            )
            release_pools(settings, engine, request)
            raise QualityError(
                f"{lost:.0%} of the {planned_texts} texts of run {request.run_id} failed, more than "
                f"max_failing_share {settings.max_failing_share:.0%}; they are in quarantine, see {outcome.docs_index}"
            )
        record_run(engine, request.run_id, measured=measured, **counts)
    run_files.write_table(run_dir / "validated.parquet", outcome.passed)
    return {**counts, "passed": len(outcome.passed), "data_docs": str(outcome.docs_index)}


def _attributes(engine: Engine, staged: pa.Table, domain: str) -> dict[tuple[str, str], str]:
    """The attributes of the entities that texts are about, by kind and id."""
    return {
        (kind, entity_id): found
        for kind in KINDS
        for entity_id, found in attributes(
            engine, domain, kind, staged.filter(pc.equal(staged["kind"], kind))["entity_id"].to_pylist()
        ).items()
    }


def _texts_by_kind(staged: pa.Table) -> dict[str, dict[str, int]]:
    kinds: dict[str, dict[str, int]] = defaultdict(lambda: {"texts": 0, "tokens": 0})
    for kind, tokens in zip(staged["kind"].to_pylist(), staged["new_tokens"].to_pylist(), strict=True):
        kinds[kind]["texts"] += 1
        kinds[kind]["tokens"] += tokens
    return kinds
