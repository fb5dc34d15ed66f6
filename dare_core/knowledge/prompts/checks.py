"""What can be said of a domain's prompts once the tokenizer is there, before any entity is."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from dare_core.config.domains import Domain
from dare_core.errors import SettingError
from dare_core.knowledge.chat import ChatEncoder
from dare_core.knowledge.prompts import Question, render
from dare_core.knowledge.prompts.templates import template_of
from dare_core.schemas import Kind


@dataclass(frozen=True)
class PromptFacts:
    """What a template's prompts have in common.

    Attributes:
        least_tokens: of a prompt about an entity of which next to nothing is known.
        shared_tokens: at the front of the prompts of any two entities; an engine reads these once.
    """

    least_tokens: int
    shared_tokens: int


def check_prompts(domain: Domain, kind: Kind, encoder: ChatEncoder, max_tokens: int) -> PromptFacts:
    """Check what a domain asks of a kind against a model.

    Args:
        domain: gives the template.
        kind: item or user.
        encoder: of the model.
        max_tokens: a prompt may have.

    Raises:
        SettingError: a template of the domain's own writes a control token, or leaves no room for any entity.
    """
    template = template_of(domain, kind)
    question = render(domain, kind, _made_up(domain, kind, "a"))
    written = "\0".join((*question.system.template, *question.message.template))
    forged = next((control for control in encoder.control_texts if control in written), None)
    # What the platform ships has none; a model may make one of an ordinary word, which is spelt out then.
    if template.own and forged is not None:
        line = template.line_of(forged)
        where = f"{template.origin}:{line}" if line else template.origin
        raise SettingError(
            f"{where}: {forged!r} is a control token of the model; remove it, the model's chat template marks the turns"
        )
    least = len(tokens(encoder, render(domain, kind, {"title": "a"} if kind == "item" else {})))
    if template.own and least > max_tokens:  # of the shipped ones, entities that do not fit are quarantined
        raise SettingError(
            f"{template.origin}: the template alone has {least} tokens, of at most {max_tokens} that leave room to "
            "answer; write it shorter, or set a lower max_new_tokens"
        )
    other = render(domain, kind, _made_up(domain, kind, "Z"))
    return PromptFacts(least, shared_tokens([tokens(encoder, question), tokens(encoder, other)]))


def tokens(encoder: ChatEncoder, question: Question) -> list[int]:
    """Token ids of a prompt."""
    return encoder.encode(**vars(question))


def shared_tokens(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False)))


def _made_up(domain: Domain, kind: Kind, letter: str) -> dict[str, Any]:
    """An entity whose values are all one letter."""
    item = dict.fromkeys(("title", *domain.source.items.attributes), letter)
    if kind == "item":
        return item
    return dict.fromkeys(domain.source.users.attributes, letter) | {"history": [item | {"value": letter}]}
