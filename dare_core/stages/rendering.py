"""Render a run's shards: what their entities are asked, decided when the generation task that has them begins.

A shard's requests are written down when all its entities are rendered, and the same from then on: whatever changes
afterwards, a later try goes on with them.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import pyarrow as pa
from sqlalchemy import Engine

from dare_core import models
from dare_core.config.domains import load_domain
from dare_core.config.settings import Settings
from dare_core.errors import InputError
from dare_core.knowledge import shards
from dare_core.knowledge.chat import ChatEncoder
from dare_core.knowledge.prompts.checks import check_prompts
from dare_core.knowledge.rendering import Rendered, Renderer
from dare_core.knowledge.requests import identify_settings, written_as_planned
from dare_core.knowledge.shards import Plan, Shard
from dare_core.knowledge.worker import require_tokenizer
from dare_core.models import PromptFormat
from dare_core.schemas import QUARANTINE, RENDERING, Kind
from dare_core.stages.request import RunRequest
from dare_core.warehouse import quarantine
from dare_core.warehouse.knowledge import reopen, request_states, seen_earlier
from dare_core.warehouse.renderings import record_renderings, shown
from dare_core.warehouse.session import open_warehouse


def prompt_room(settings: Settings, prompts: PromptFormat, max_new_tokens: int) -> int:
    """Tokens that a prompt may have, so that its text has room.

    Raises:
        InputError: none.
    """
    room = prompts.context_length - max_new_tokens
    if room < 1:
        raise InputError(f"max_new_tokens {max_new_tokens} leaves no room for a prompt in {settings.model}")
    return room


def render(settings: Settings, request: RunRequest, plan: Plan, assigned: Sequence[Shard]) -> None:
    """Render those of some shards that are not rendered yet.

    The warehouse learns who was rendered, whose prompt fits never, and which texts that are there are right again, or
    were earlier. Entities that are gone by now, or show something later than the run may see, are left out.

    Raises:
        ModelError: the model's tokenizer is not the one that the run was planned for.
        SettingError: the domain's prompts are not what they must be.
    """
    run_dir = settings.run_dir(plan.run_id)
    waiting = [shard for shard in assigned if not shards.is_rendered(run_dir, shard.name)]
    if not waiting:
        return
    of_plan = written_as_planned(settings, plan.run_id, plan.decoding)
    with open_warehouse(settings) as (_, engine):
        renderers = {kind: _renderer(of_plan, engine, plan, kind) for kind in {shard.kind for shard in waiting}}
        for shard in waiting:
            settled = Counter[str]()
            pieces = _pieces(settings, engine, request, shard, renderers[shard.kind], settled)
            shards.write_requests(run_dir, shard.name, pieces, shards.request_schema(plan.decoding), settled)


def _renderer(settings: Settings, engine: Engine, plan: Plan, kind: Kind) -> Renderer:
    domain, decoding = load_domain(settings, plan.domain), plan.decoding
    prompts = models.prompt_format(settings)
    require_tokenizer(plan, prompts.tokenizer_hash)
    room = prompt_room(settings, prompts, decoding.max_new_tokens)
    encoder = ChatEncoder(models.load_tokenizer(settings))
    check_prompts(domain, kind, encoder, room)
    days = domain.knowledge.expires_after_days
    expired_before = None if days is None else plan.started_at - timedelta(days=days)
    return Renderer(
        domain=domain,
        encoder=encoder,
        decoding=decoding,
        max_prompt_tokens=room,
        settings=identify_settings(domain, kind, decoding, prompts.files, room),
        states=partial(request_states, engine, expired_before=expired_before),
    )


def _pieces(
    settings: Settings, engine: Engine, request: RunRequest, shard: Shard, renderer: Renderer, settled: Counter[str]
) -> Iterator[pa.Table]:
    """A shard's requests, a piece at a time, and on the way what the warehouse is to know of it."""
    for rows in shards.entities(settings.run_dir(request.run_id), shard.name):
        entities = shown(engine, request.domain, shard.kind, rows)
        settled["gone"] += len(rows) - len(entities)
        if request.as_of is not None:
            seen = [entity for entity in entities if entity["data_as_of"] <= request.as_of]
            settled["later_than_as_of"] += len(entities) - len(seen)
            entities = seen
        found = renderer.render(shard.kind, entities)
        settled.update(found.settled)
        _record(engine, request.domain, request.run_id, found)
        yield pa.Table.from_pylist(found.requests, shards.request_schema(renderer.decoding))


def _record(engine: Engine, domain: str, run_id: str, found: Rendered) -> None:
    if found.unfit:
        unfit: list[dict[str, Any]] = [{**row, "run_id": run_id} for row in found.unfit]
        quarantine.record(engine, pa.Table.from_pylist(unfit, QUARANTINE))
    if found.renderings:
        record_renderings(engine, pa.Table.from_pylist(found.renderings, RENDERING))
    if found.reopened:
        reopen(engine, domain, found.reopened)
    if found.earlier:
        seen_earlier(engine, domain, found.earlier)
