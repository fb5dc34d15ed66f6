"""From entities to requests: prompts that fit the context, identified by what they ask (DESIGN.md decision 5)."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dare_core.config.domains import Domain, EntityTable
from dare_core.config.settings import Settings, Verification
from dare_core.engines.precision import ENDPOINT, FP32
from dare_core.errors import InputError, ModelError
from dare_core.knowledge.chat import ChatEncoder
from dare_core.knowledge.prompts import Question, render
from dare_core.knowledge.prompts.templates import template_of
from dare_core.schemas import Kind


@dataclass(frozen=True)
class Decoding:
    """What decides a text beside its prompt. Batch size, drafts and pools do not, and are not here.

    Attributes:
        precision: see :mod:`dare_core.engines.precision`; that of plans and requests that name none is fp32.
    """

    model: str
    tokenizer_hash: str
    verification: Verification
    top_k: int
    min_prob: float
    max_new_tokens: int
    precision: str = FP32

    @property
    def is_remote(self) -> bool:
        """Whether a server writes the text, asked in messages."""
        return self.precision == ENDPOINT


def written_as_planned(settings: Settings, run_id: str, decoding: Decoding) -> Settings:
    """``settings`` with the model that a run was planned for.

    Raises:
        ModelError: it was planned for a server and they name none, or the other way round.
    """
    if decoding.is_remote != (settings.engine == "endpoint"):
        whose = "a server" if decoding.is_remote else "an engine of our own"
        raise ModelError(
            f"run {run_id} was planned for {whose} to write with, not for DARE_ENGINE={settings.engine}; plan again"
        )
    return settings.model_copy(update={"endpoint_model" if decoding.is_remote else "model": decoding.model})


@dataclass(frozen=True)
class Prompt:
    """What is asked, for a reader; its token ids, how many of the oldest history entries it had to leave out, and the
    same in turns."""

    text: str
    token_ids: list[int]
    dropped_history: int
    question: Question


def fit_prompt(
    domain: Domain, kind: Kind, attributes: Mapping[str, Any], encoder: ChatEncoder, max_tokens: int
) -> Prompt:
    """Render an entity's prompt, cut at whole history entries, oldest first, until it has at most ``max_tokens``.

    Raises:
        InputError: it does not fit even without any history.
    """

    def attempt(dropped: int) -> Prompt:
        question = render(domain, kind, attributes, dropped)
        return Prompt(question.text, encoder.encode(**vars(question)), dropped, question)

    prompt = attempt(0)
    fewest, most = 0, len(attributes.get("history", []))
    while len(prompt.token_ids) > max_tokens and fewest < most:  # the fewest entries that must go
        middle = (fewest + most) // 2
        if len(attempt(middle).token_ids) > max_tokens:
            fewest = middle + 1
        else:
            most = middle
    if fewest:
        prompt = attempt(fewest)
    if len(prompt.token_ids) > max_tokens:
        raise InputError(
            f"the prompt has {len(prompt.token_ids)} tokens, of at most {max_tokens} that leave room to answer"
        )
    return prompt


def request_id(
    domain: str, kind: Kind, entity_id: str, prompt_token_ids: list[int], decoding: Decoding, epoch: int
) -> str:
    """32 hex digits that identify a request by what it asks, never by how it is computed."""
    relaxed = decoding.verification == "relaxed"
    asked = [
        domain,
        kind,
        entity_id,
        prompt_token_ids,
        decoding.model,
        decoding.tokenizer_hash,
        decoding.verification,
        decoding.top_k if relaxed else None,
        decoding.min_prob if relaxed else None,
        decoding.max_new_tokens,
        epoch,
        *_unless_fp32(decoding),
    ]
    return hashlib.sha256(json.dumps(asked, separators=(",", ":")).encode()).hexdigest()[:32]


def _unless_fp32(decoding: Decoding) -> list[str]:
    """What ids take in of the precision: nothing where it is fp32, so that an upgrade writes no text again."""
    return [] if decoding.precision == FP32 else [decoding.precision]


def identify_settings(domain: Domain, kind: Kind, decoding: Decoding, prompt_encoding: str, max_tokens: int) -> str:
    """32 hex digits that identify all that shapes a kind's requests beside its entities.

    The wording is taken in as it comes out, from an entity whose attributes are named after themselves; of a template
    that has no older installations, also what it says of other entities.

    Args:
        domain: how knowledge is asked for.
        kind: item or user.
        decoding: what the texts will be written with.
        prompt_encoding: identifies the tokenizer's files, its chat template among them.
        max_tokens: a prompt may have.
    """
    spec: EntityTable = domain.source.items if kind == "item" else domain.source.users
    entry = {name: name for name in (*domain.source.items.attributes, "title", "value")}
    probe = {name: name for name in spec.attributes} | {"title": "title", "history": [entry]}
    wording = render(domain, kind, probe).text
    decided = {name: value for name, value in asdict(decoding).items() if name != "precision"}
    template = template_of(domain, kind)
    shapes = [
        decided,
        prompt_encoding,
        max_tokens,
        domain.knowledge.framework_name,
        wording,
        *_unless_fp32(decoding),
        *([] if template.is_first else [template.hash]),
    ]
    return hashlib.sha256(json.dumps(shapes, separators=(",", ":")).encode()).hexdigest()[:32]
