"""Plan a run: who needs a text, in which shards, drafted from which version of the pool."""

import logging
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import pyarrow as pa
from sqlalchemy import Engine

from dare_core import models
from dare_core.config.domains import Domain, load_domain
from dare_core.config.settings import Settings
from dare_core.engines.precision import precision_of
from dare_core.errors import InputError
from dare_core.evaluation.gate import gated
from dare_core.knowledge import costs, shards
from dare_core.knowledge.chat import ChatEncoder
from dare_core.knowledge.costs import Funnel
from dare_core.knowledge.planning import Choice, Planner
from dare_core.knowledge.requests import Decoding, identify_settings
from dare_core.knowledge.shards import Plan, Shard
from dare_core.schemas import DUE, PULLED, QUARANTINE, RENDERING, Kind
from dare_core.stages.ownership import owned
from dare_core.stages.pins import pin_pool
from dare_core.stages.request import RunRequest
from dare_core.storage import run_files
from dare_core.warehouse import quarantine
from dare_core.warehouse.knowledge import reopen, request_states, seen_earlier
from dare_core.warehouse.renderings import (
    DUE_VERDICTS,
    Rules,
    count_verdicts,
    due_entities,
    earlier_entities,
    record_renderings,
)
from dare_core.warehouse.runs import Throughput, record_run, throughput
from dare_core.warehouse.session import open_warehouse

log = logging.getLogger(__name__)


class _Terms(NamedTuple):
    """What holds for all texts of a run.

    Attributes:
        domain: how knowledge is asked for.
        decoding: what texts are written with.
        prompt_files: identifies the tokenizer's files.
        max_prompt_tokens: that a prompt may have, so that its text has room.
        measured: what texts took in earlier runs.
    """

    domain: Domain
    decoding: Decoding
    prompt_files: str
    max_prompt_tokens: int
    measured: Throughput


@owned
def run(settings: Settings, request: RunRequest) -> dict[str, Any]:
    """Who needs a text: written down as shards of requests sorted by group, with what they are expected to cost.

    Only entities that changed, whose text expired or that have none are rendered. Nobody needs a text: the run is done.

    Returns:
        ``requests``, ``shards``, ``tasks`` that they are dealt out to, ``precision``, ``funnel`` by kind, ``estimate``.
    """
    run_dir = settings.run_dir(request.run_id)
    if not (run_dir / "plan.json").exists():
        with open_warehouse(settings) as (_, engine):
            planned = _make_plan(settings, engine, request)
        run_files.write_json(run_dir / "plan.json", planned.model_dump_json(indent=1))
    planned = shards.read_plan(run_dir)
    summary = {
        "requests": planned.requests,
        "shards": len(planned.shards),
        "tasks": len(planned.assignments(settings.max_generation_tasks)),
        "precision": planned.decoding.precision,
        **planned.model_dump(include={"funnel", "estimate"}),
    }
    log.info("plan of run %s: %s", request.run_id, summary)
    return summary


def assignments(settings: Settings, request: RunRequest) -> list[dict[str, int]]:
    """What generation tasks are mapped over: ``{"first", "end"}``, runs of the plan's shards."""
    planned = shards.read_plan(settings.run_dir(request.run_id))
    return [{"first": part.start, "end": part.stop} for part in planned.assignments(settings.max_generation_tasks)]


def _make_plan(settings: Settings, engine: Engine, request: RunRequest) -> Plan:
    terms = _terms(settings, engine, request)
    parts: list[Shard] = []
    funnel: dict[Kind, Funnel] = {}
    for kind in request.kinds:
        choice, funnel[kind] = _choose(settings, engine, request, terms, kind)
        version = _record_and_pin(settings, engine, request, terms, kind, choice)
        parts += _write(settings, request, terms, kind, choice, version)
    requests = {kind: of_kind.requests for kind, of_kind in funnel.items()}
    most = terms.decoding.max_new_tokens
    planned = Plan(
        run_id=request.run_id,
        domain=request.domain,
        framework=terms.domain.knowledge.framework,
        decoding=terms.decoding,
        started_at=datetime.now(UTC),
        shards=parts,
        funnel=funnel,
        estimate=costs.estimate(requests, terms.measured, most, settings.cost_per_hour),
    )
    _record_run(engine, request, planned)
    return planned


def _terms(settings: Settings, engine: Engine, request: RunRequest) -> _Terms:
    domain = load_domain(settings, request.domain)
    prompts = models.prompt_format(settings)
    decoding = gated(settings, engine, domain.name, _decoding(settings, request, prompts.tokenizer_hash))
    room = prompts.context_length - decoding.max_new_tokens
    if room < 1:
        raise InputError(f"max_new_tokens {decoding.max_new_tokens} leaves no room for a prompt in {settings.model}")
    measured = throughput(engine, domain.name, decoding.model, decoding.precision, decoding.max_new_tokens)
    return _Terms(domain, decoding, prompts.files, room, measured)


def _decoding(settings: Settings, request: RunRequest, tokenizer_hash: str) -> Decoding:
    return Decoding(
        model=settings.model,
        tokenizer_hash=tokenizer_hash,
        verification=request.verification or settings.verification,
        top_k=request.top_k or settings.top_k,
        min_prob=settings.min_prob if request.min_prob is None else request.min_prob,
        max_new_tokens=request.max_new_tokens or settings.max_new_tokens,
        precision=precision_of(settings),
    )


def _choose(
    settings: Settings, engine: Engine, request: RunRequest, terms: _Terms, kind: Kind
) -> tuple[Choice, Funnel]:
    """Of one kind, who is asked about; and what becomes of the others. Nothing is written."""
    domain, room = terms.domain, terms.max_prompt_tokens
    rules = _rules(domain, request, identify_settings(domain, kind, terms.decoding, terms.prompt_files, room))
    verdicts = count_verdicts(engine, domain.name, kind, rules)
    earlier = _earlier(settings, engine, request, kind) if verdicts.get("later_than_as_of") else DUE.empty_table()
    if len(earlier):
        verdicts |= {"earlier": len(earlier), "later_than_as_of": verdicts["later_than_as_of"] - len(earlier)}
    choice = Choice()
    if any(verdicts.get(verdict) for verdict in DUE_VERDICTS):
        states = partial(request_states, engine, expired_before=rules.expired_before)
        encoder = ChatEncoder(models.load_tokenizer(settings))
        planner = Planner(domain, encoder, terms.decoding, room, rules.settings, states)
        due = due_entities(engine, domain.name, kind, rules, request.order)
        choice = planner.choose(kind, chain(due, earlier.to_batches()), request.limit(kind))
    return choice, Funnel.of(verdicts, len(choice.requests), choice.settled)


def _earlier(settings: Settings, engine: Engine, request: RunRequest, kind: Kind) -> pa.Table:
    """Of a run of the past: those who show something later by now, as they were then, which its pull knows."""
    pulled = settings.run_dir(request.run_id) / "pulled" / kind
    if request.as_of is None or not pulled.exists():
        return DUE.empty_table()
    return earlier_entities(engine, run_files.read_table(pulled, PULLED), request.as_of, request.order)


def _rules(domain: Domain, request: RunRequest, identified: str) -> Rules:
    days = domain.knowledge.expires_after_days
    return Rules(
        settings=identified,
        min_new_events=domain.knowledge.min_new_events,
        expired_before=None if days is None else datetime.now(UTC) - timedelta(days=days),
        as_of=request.as_of,
    )


def _record_and_pin(
    settings: Settings, engine: Engine, request: RunRequest, terms: _Terms, kind: Kind, choice: Choice
) -> str | None:
    """Keep in the warehouse what was found, and pin the pool that texts are drafted from.

    That is who was rendered, whose prompt fits never, and which texts that are there are right again, or were earlier.

    Returns:
        The pinned version; None where nobody is asked about, or there is no pool to use.
    """
    unfit = [{**row, "run_id": request.run_id} for row in choice.unfit]
    quarantine.record(engine, pa.Table.from_pylist(unfit, QUARANTINE))
    record_renderings(engine, pa.Table.from_pylist(choice.rendered, RENDERING))
    if choice.reopened:
        reopen(engine, choice.reopened)
    if choice.earlier:
        seen_earlier(engine, choice.earlier)
    if not choice.requests:
        return None
    # First the run, then its pin: `maintain` takes pins away from whoever is no run.
    record_run(
        engine, request.run_id, **_begun(request, terms.decoding, datetime.now(UTC)), planned=len(choice.requests)
    )
    return pin_pool(settings, engine, request, kind, terms.decoding.tokenizer_hash)


def _write(
    settings: Settings, request: RunRequest, terms: _Terms, kind: Kind, choice: Choice, pool_version: str | None
) -> list[Shard]:
    """Write one kind's shards, each what one engine does in a few minutes."""
    size = costs.shard_size(settings, kind, terms.measured, terms.decoding.max_new_tokens)
    return shards.write_shards(settings.run_dir(request.run_id), kind, choice.requests, size, pool_version)


def _record_run(engine: Engine, request: RunRequest, planned: Plan) -> None:
    """Let the warehouse know the run; one that writes nothing is done."""
    done = {} if planned.shards else {"state": "loaded", "finished_at": planned.started_at, "loaded": 0}
    record_run(
        engine,
        request.run_id,
        planned=planned.requests,
        plan={
            "max_new_tokens": planned.decoding.max_new_tokens,
            "precision": planned.decoding.precision,
            **planned.model_dump(mode="json", include={"funnel", "estimate"}),
        },
        **_begun(request, planned.decoding, planned.started_at) | done,
    )


def _begun(request: RunRequest, decoding: Decoding, started_at: datetime) -> dict[str, object]:
    return {
        "domain": request.domain,
        "state": "planned",
        "params": request.model_dump_json(exclude={"run_id"}),
        "model": decoding.model,
        "started_at": started_at,
    }
