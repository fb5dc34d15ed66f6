"""Plan a run: who needs a text, in which shards, drafted from which version of the pool."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any, Final, NamedTuple

from sqlalchemy import Engine

from dare_core import models
from dare_core.config.domains import Domain, load_domain
from dare_core.config.settings import Settings
from dare_core.engines.endpoint import require_consent
from dare_core.engines.precision import ENDPOINT, precision_of
from dare_core.errors import SettingError
from dare_core.evaluation.gate import gated
from dare_core.knowledge import costs, shards
from dare_core.knowledge.costs import Funnel
from dare_core.knowledge.requests import Decoding, identify_settings
from dare_core.knowledge.shards import Plan, Shard
from dare_core.schemas import PULLED, Kind
from dare_core.stages.ownership import owned
from dare_core.stages.pins import pin_pool
from dare_core.stages.rendering import prompt_room
from dare_core.stages.request import RunRequest
from dare_core.storage import run_files
from dare_core.storage.locations import exists
from dare_core.warehouse.renderings import (
    DUE_VERDICTS,
    Earlier,
    Rules,
    count_verdicts,
    due_entities,
    earlier_entities,
)
from dare_core.warehouse.runs import Throughput, record_run, throughput
from dare_core.warehouse.session import open_warehouse

log = logging.getLogger(__name__)

_PULLED_AT_ONCE: Final = 1000  # entities of a pull in memory


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
    """Who is due: written down as shards of ids sorted by group, with what their texts are expected to cost.

    Due are entities that changed, whose text expired or that have none. Generation tasks render them, and find that
    some need no text after all: figures are upper bounds until then, and a limit is one of entities that are taken.
    Nobody is due: the run is done.

    Returns:
        ``requests``, ``shards``, ``tasks`` that they are dealt out to, ``precision``, ``funnel`` by kind, ``estimate``.
    """
    run_dir = settings.run_dir(request.run_id)
    if not exists(run_dir / "plan.json"):
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
        of_kind, funnel[kind] = _plan_kind(settings, engine, request, terms, kind)
        parts += of_kind
    requests = {kind: of_kind.requests for kind, of_kind in funnel.items()}
    most = terms.decoding.max_new_tokens
    planned = Plan(
        run_id=request.run_id,
        domain=request.domain,
        framework=terms.domain.knowledge.framework_name,
        decoding=terms.decoding,
        started_at=datetime.now(UTC),
        shards=parts,
        funnel=funnel,
        estimate=costs.estimate(requests, terms.measured, most, settings.cost_per_hour),
        endpoint=settings.endpoint_url if terms.decoding.is_remote else None,
    )
    _record_run(engine, request, planned)
    return planned


def _terms(settings: Settings, engine: Engine, request: RunRequest) -> _Terms:
    domain = load_domain(settings, request.domain)
    require_consent(settings, request.kinds)
    prompts = models.prompt_format(settings)
    decoding = gated(settings, engine, domain.name, _decoding(settings, request, prompts.tokenizer_hash))
    room = prompt_room(settings, prompts, decoding.max_new_tokens)
    measured = throughput(engine, domain.name, decoding.model, decoding.precision, decoding.max_new_tokens)
    return _Terms(domain, decoding, prompts.files, room, measured)


def _decoding(settings: Settings, request: RunRequest, tokenizer_hash: str) -> Decoding:
    precision = precision_of(settings)
    remote = precision == ENDPOINT
    if remote and request.verification == "relaxed":
        raise SettingError("with DARE_ENGINE=endpoint nothing is verified, a server decodes by itself; ask for strict")
    return Decoding(
        model=(settings.endpoint_model or settings.model) if remote else settings.model,
        tokenizer_hash=tokenizer_hash,
        verification="strict" if remote else request.verification or settings.verification,
        top_k=request.top_k or settings.top_k,
        min_prob=settings.min_prob if request.min_prob is None else request.min_prob,
        max_new_tokens=request.max_new_tokens or settings.max_new_tokens,
        precision=precision,
    )


def _plan_kind(
    settings: Settings, engine: Engine, request: RunRequest, terms: _Terms, kind: Kind
) -> tuple[list[Shard], Funnel]:
    """Write one kind's shards, as the warehouse says who is due; and what becomes of the others."""
    domain, limit = terms.domain.name, request.limit(kind)
    identified = identify_settings(terms.domain, kind, terms.decoding, terms.prompt_files, terms.max_prompt_tokens)
    rules = _rules(terms.domain, request, identified)
    verdicts = count_verdicts(engine, domain, kind, rules)
    due = sum(verdicts.get(verdict, 0) for verdict in DUE_VERDICTS)
    left = None if limit is None else max(limit - due, 0)
    with _earlier(settings, engine, request, kind, verdicts.get("later_than_as_of", 0), left) as earlier:
        if earlier.count:
            later = verdicts["later_than_as_of"] - earlier.count
            verdicts |= {"earlier": earlier.count, "later_than_as_of": later}
        parts: list[Shard] = []
        if due := due + earlier.count:
            taken = due if limit is None else min(due, limit)
            version = _pin(settings, engine, request, terms, kind, taken)
            size = costs.shard_size(settings, kind, terms.measured, terms.decoding.max_new_tokens, taken)
            rows = chain(due_entities(engine, domain, kind, rules, request.order, limit), earlier.rows)
            parts = shards.write_shards(settings.run_dir(request.run_id), kind, rows, size, version)
    return parts, Funnel.of(verdicts, sum(shard.requests for shard in parts), limit is not None)


@contextmanager
def _earlier(
    settings: Settings, engine: Engine, request: RunRequest, kind: Kind, later: int, limit: int | None
) -> Iterator[Earlier]:
    """Of a run of the past: those who show something later by now, as they were then, which its pull knows."""
    pulled = settings.run_dir(request.run_id) / "pulled" / kind
    if not later or request.as_of is None or not exists(pulled):
        yield Earlier(0, iter(()))
        return
    then = run_files.read_pieces(pulled, PULLED, _PULLED_AT_ONCE)
    with earlier_entities(engine, then, request.as_of, request.order, limit) as found:
        yield found


def _rules(domain: Domain, request: RunRequest, identified: str) -> Rules:
    days = domain.knowledge.expires_after_days
    return Rules(
        settings=identified,
        min_new_events=domain.knowledge.min_new_events,
        expired_before=None if days is None else datetime.now(UTC) - timedelta(days=days),
        as_of=request.as_of,
    )


def _pin(settings: Settings, engine: Engine, request: RunRequest, terms: _Terms, kind: Kind, due: int) -> str | None:
    """Pin the pool that texts are drafted from; None where there is no pool to use, or nothing is drafted."""
    # First the run, then its pin: `maintain` takes pins away from whoever is no run.
    record_run(engine, request.run_id, **_begun(request, terms.decoding, datetime.now(UTC)), planned=due)
    if terms.decoding.is_remote:
        return None
    return pin_pool(settings, engine, request, kind, terms.decoding.tokenizer_hash)


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
            **({"endpoint": planned.endpoint} if planned.endpoint else {}),
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
