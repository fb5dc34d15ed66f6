"""What a domain asks, shown before anything is written: prompts about a sample, and what all of them take."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from sqlalchemy import Engine

from dare_core import models
from dare_core.config.domains import Domain
from dare_core.config.settings import Settings
from dare_core.engines.precision import precision_of
from dare_core.errors import InputError
from dare_core.knowledge import costs
from dare_core.knowledge.chat import ChatEncoder
from dare_core.knowledge.costs import Estimate
from dare_core.knowledge.prompts import render
from dare_core.knowledge.prompts.checks import PromptFacts, check_prompts, shared_tokens
from dare_core.knowledge.prompts.templates import template_of
from dare_core.knowledge.requests import Prompt, fit_prompt
from dare_core.schemas import Kind
from dare_core.warehouse import entities
from dare_core.warehouse.runs import throughput

#: Who is asked about where the warehouse has nobody yet; an id that no source gives.
MADE_UP: Final = "(made up)"


@dataclass(frozen=True)
class Asked:
    """The prompt about one entity.

    Attributes:
        entity_id: of the entity.
        text: of the whole prompt; empty where it is refused.
        source: pieces of the text that come from the source.
        tokens: of the prompt, as the model reads it.
        dropped_history: oldest entries that did not fit.
        refused: why there is no prompt.
    """

    entity_id: str
    text: str = ""
    source: tuple[str, ...] = ()
    tokens: int = 0
    dropped_history: int = 0
    refused: str | None = None


@dataclass(frozen=True)
class Preview:
    """What a domain asks of a kind.

    Attributes:
        version: of the template, and ``hash`` of what it says.
        origin: its file.
        room: tokens that a prompt may have.
        asked: the prompts, the longest entity's first where nobody was named.
        facts: what the template's prompts have in common.
        shared_tokens: that all of ``asked`` begin with; None: there are fewer than two.
        mean_tokens: of a prompt.
        entities: of the kind that the warehouse has.
        prompt_tokens: of prompts about all of them, as many as the mean says.
        estimate: of their texts.
    """

    domain: str
    kind: Kind
    version: str
    hash: str
    origin: str
    room: int
    asked: tuple[Asked, ...]
    facts: PromptFacts
    shared_tokens: int | None
    mean_tokens: float | None
    entities: int
    prompt_tokens: int | None
    estimate: Estimate

    def figures(self) -> dict[str, Any]:
        """All of it, as JSON values."""
        return asdict(self) | {"estimate": self.estimate.model_dump()}


def preview(
    settings: Settings, engine: Engine, domain: Domain, kind: Kind, count: int, ids: Sequence[str] = ()
) -> Preview:
    """Render prompts as a run would, by the tokenizer alone.

    Args:
        settings: name the model.
        engine: the warehouse.
        domain: what is asked.
        kind: item or user.
        count: entities of the sample; beside them comes the one with the longest attributes.
        ids: instead: entities by name.

    Raises:
        InputError: a named entity is not there.
        ModelError: the model's tokenizer is not there.
        SettingError: the template is not what it must be.
    """
    template = template_of(domain, kind)  # before the tokenizer, which takes seconds
    chosen = _chosen(engine, domain, kind, count, ids)
    encoder = ChatEncoder(models.load_tokenizer(settings))
    room = models.prompt_format(settings).context_length - settings.max_new_tokens
    facts = check_prompts(domain, kind, encoder, room)
    asked, rendered = [], []
    for entity_id, attributes in chosen.items():
        try:
            prompt = fit_prompt(domain, kind, attributes, encoder, room)
        except InputError as error:
            asked.append(Asked(entity_id, refused=str(error)))
            continue
        rendered.append(prompt.token_ids)
        asked.append(_asked(domain, kind, entity_id, attributes, prompt))
    there = entities.count_entities(engine, domain.name, kind)
    mean = sum(map(len, rendered)) / len(rendered) if rendered else None
    measured = throughput(engine, domain.name, settings.model, precision_of(settings), settings.max_new_tokens)
    return Preview(
        domain=domain.name,
        kind=kind,
        version=template.version,
        hash=template.hash,
        origin=template.origin,
        room=room,
        asked=tuple(asked),
        facts=facts,
        shared_tokens=shared_tokens(rendered) if len(rendered) > 1 else None,
        mean_tokens=mean,
        entities=there,
        prompt_tokens=None if mean is None else round(mean * there),
        estimate=costs.estimate({kind: there}, measured, settings.max_new_tokens, settings.cost_per_hour),
    )


def _chosen(engine: Engine, domain: Domain, kind: Kind, count: int, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The attributes of those who are asked about."""
    if ids:
        known = entities.attributes(engine, domain.name, kind, ids)
        if missing := [each for each in ids if each not in known]:
            raise InputError(f"the warehouse has no {kind} {missing[0]!r} of domain {domain.name}; pull first")
        return {each: json.loads(known[each]) for each in dict.fromkeys(ids)}
    found = entities.sample(engine, domain.name, kind, count)
    return {each: json.loads(attributes) for each, attributes in found.items()} or {MADE_UP: _made_up(domain, kind)}


def _made_up(domain: Domain, kind: Kind) -> dict[str, Any]:
    """An entity that shows where its columns come to stand."""
    item = {name: f"<{name}>" for name in (*domain.source.items.attributes, "title")}
    if kind == "item":
        return item
    user = {name: f"<{name}>" for name in domain.source.users.attributes}
    return {**user, "history": [{**item, "value": "<value>"}]}


def _asked(domain: Domain, kind: Kind, entity_id: str, attributes: dict[str, Any], prompt: Prompt) -> Asked:
    question = render(domain, kind, attributes, prompt.dropped_history)
    source = tuple(part[begin:end] for part in (question.system, question.message) for begin, end in part.spans)
    return Asked(entity_id, prompt.text, source, len(prompt.token_ids), prompt.dropped_history)
