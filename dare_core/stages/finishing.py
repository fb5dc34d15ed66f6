"""Finish written shards: read their answers, judge them, embed those that pass, and stage what is to be loaded."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Engine

from dare_core.config.domains import Domain, load_domain
from dare_core.config.settings import Settings
from dare_core.knowledge import shards
from dare_core.knowledge.answers import read_answers
from dare_core.knowledge.figures import Figures, folder, read_figures, write_figures
from dare_core.knowledge.shards import Plan, Shard
from dare_core.knowledge.vectors import Embedder
from dare_core.quality import features
from dare_core.quality.texts import Validation, validate
from dare_core.schemas import KNOWLEDGE_EMBEDDING, QUARANTINE
from dare_core.storage import run_files
from dare_core.warehouse.entities import attributes
from dare_core.warehouse.session import open_warehouse
from dare_core.warehouse.vectors import widths_of


def finish(settings: Settings, plan: Plan, assigned: Sequence[Shard], again: bool = True) -> list[Figures]:
    """Finish those of some shards that are not, one after another.

    Args:
        settings: in force.
        plan: the run's.
        assigned: shards of the plan whose texts are written.
        again: shards that were finished by other rules, or embedded otherwise, are finished anew.

    Returns:
        The figures of all of them.

    Raises:
        QualityError: the staged texts of a shard are not those that it asked for.
        SettingError: see :class:`Embedder`.
    """
    run_dir, domain = settings.run_dir(plan.run_id), load_domain(settings, plan.domain)
    figures = {shard.name: read_figures(run_dir, shard.name) for shard in assigned}
    if not again and all(figures.values()):
        return [found for found in figures.values() if found]
    with open_warehouse(settings) as (_, engine):
        embedder = Embedder(settings, engine)
        judged_by = _rules(domain, embedder)
        for shard in assigned:
            found = figures[shard.name]
            if found is None or (again and found.judged_by != judged_by):
                figures[shard.name] = _finish(settings, engine, plan, shard, domain, embedder, judged_by)
    return [found for found in figures.values() if found]


def _rules(domain: Domain, embedder: Embedder) -> str:
    """Identifies all that decides what a shard's texts come to."""
    decided = [domain.quality.texts.model_dump(mode="json"), domain.knowledge.embedded, embedder.names]
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:16]


def _finish(
    settings: Settings,
    engine: Engine,
    plan: Plan,
    shard: Shard,
    domain: Domain,
    embedder: Embedder,
    judged_by: str,
) -> Figures:
    run_dir = settings.run_dir(plan.run_id)
    asked = {row for piece in shards.requests(run_dir, shard.name) for row in piece["request_id"].to_pylist()}
    staged, failed = shards.read_staged(run_dir, [shard.name])
    answers = read_answers(plan.framework, staged)
    wanted = asked.difference(failed["request_id"].to_pylist(), answers.refused["request_id"].to_pylist())
    known = attributes(engine, plan.domain, shard.kind, answers.read["entity_id"].to_pylist())
    about = {(str(shard.kind), entity_id): found for entity_id, found in known.items()}
    outcome = (
        validate(answers.read, sorted(wanted), about, domain.quality.texts, plan.run_id)
        if wanted or len(answers.read)
        else Validation(answers.read, QUARANTINE.empty_table(), answers.read)
    )
    refused = pa.concat_tables([answers.refused, outcome.quarantine, failed])
    vectors = embedder.vectors(outcome.passed) if len(outcome.passed) else []
    to = folder(run_dir, shard.name, attempt := run_files.new_attempt())
    run_files.write_table(to / "knowledge.parquet", outcome.passed)
    for number, table in enumerate(vectors):
        run_files.write_table(to / f"vectors-{number}.parquet", table)
    run_files.write_table(to / "quarantine.parquet", refused)
    run_files.write_table(to / "refused.parquet", outcome.refused)
    figures = Figures(
        shard=shard.name,
        attempt=attempt,
        kind=shard.kind,
        judged_by=judged_by,
        requests=len(asked),
        settled=dict(shards.settled(run_dir, shard.name)),
        texts=len(staged),
        failed=len(failed),
        refused=len(answers.refused) + len(outcome.refused),
        by_rule=dict(Counter(refused["rule"].to_pylist())),
        tokens=pc.sum(staged["new_tokens"]).as_py() or 0,
        steps=pc.sum(staged["steps"]).as_py() or 0,
        seconds=shards.engine_seconds(run_dir, [shard.name]),
        load_seconds=shards.load_seconds(run_dir, [shard.name]),
        vectors=sum(map(len, vectors)),
        widths=widths_of(vectors),
        features=features.measure(outcome.passed, vectors[0] if vectors else KNOWLEDGE_EMBEDDING.empty_table()),
    )
    write_figures(run_dir, figures)
    return figures
