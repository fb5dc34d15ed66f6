"""Which of the entities that are due are asked about, and as which requests."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa

from dare_core.config.domains import Domain
from dare_core.errors import InputError
from dare_core.knowledge.chat import ChatEncoder
from dare_core.knowledge.requests import Decoding, fit_prompt, request_id
from dare_core.schemas import RENDERING, Kind
from dare_core.warehouse.knowledge import RequestState

#: What the warehouse knows of requests; one it does not know is absent.
RequestStates = Callable[[list[str]], Mapping[str, RequestState]]

_BATCH: Final = 256
_IDENTITY: Final = ("domain", "kind", "entity_id")


@dataclass
class Choice:
    """What came of the due entities of one kind.

    Attributes:
        requests: REQUEST rows of those to write for.
        rendered: RENDERING rows of all that were rendered.
        reopened: requests whose text was closed and is right again.
        earlier: requests whose prompt was the same at an earlier moment than their text says, and that moment.
        settled: those that need no text after all, by reason: ``same_prompt``, ``reopened``, ``quarantined``,
            ``unfit``.
        unfit: QUARANTINE rows, without ``run_id``, of those whose prompt cannot be made to fit.
    """

    requests: list[dict[str, Any]] = field(default_factory=list)
    rendered: list[dict[str, Any]] = field(default_factory=list)
    reopened: list[str] = field(default_factory=list)
    earlier: dict[str, datetime] = field(default_factory=dict)
    settled: Counter[str] = field(default_factory=Counter)
    unfit: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Planner:
    """Chooses requests.

    Attributes:
        domain: how knowledge is asked for.
        encoder: prompts to token ids.
        decoding: what the texts will be written with.
        max_prompt_tokens: a prompt must leave room for its answer.
        settings: identifies all of these; see :func:`dare_core.knowledge.requests.identify_settings`.
        states: looks requests up in the warehouse.
    """

    domain: Domain
    encoder: ChatEncoder
    decoding: Decoding
    max_prompt_tokens: int
    settings: str
    states: RequestStates

    def choose(self, kind: Kind, due: Iterable[pa.RecordBatch], limit: int | None) -> Choice:
        """Render entities of schema DUE until ``limit`` need a text; requests come sorted by group.

        What shows an entity as it was earlier than it is known by now (verdict ``earlier``) keeps no rendering.

        What the limit leaves out keeps no rendering, or one whose request stays without an answer: it is due again.
        """
        choice = Choice()
        for piece in _pieces(due):
            self._look_at(kind, piece, choice)
            if limit is not None and len(choice.requests) >= limit:
                del choice.requests[limit:]
                break
        choice.requests.sort(key=lambda row: (row["group_name"], row["entity_id"]))
        return choice

    def _look_at(self, kind: Kind, entities: list[dict[str, Any]], choice: Choice) -> None:
        asked: dict[str, dict[str, Any]] = {}
        for entity in entities:
            if (row := self._request(kind, entity, choice)) is not None:
                asked[entity["entity_id"]] = row
        earlier = {entity["entity_id"] for entity in entities if entity["verdict"] == "earlier"}
        closed: dict[str, dict[str, Any]] = {}  # the last closed text, by entity
        undecided = list(asked.values())
        while undecided:
            states = self.states([row["request_id"] for row in undecided])
            again = []
            for row in undecided:
                who, state = row["entity_id"], states.get(row["request_id"])
                if who in earlier and state in ("valid", "closed", "expired"):
                    choice.earlier[row["request_id"]] = row["data_as_of"]
                    choice.settled["same_prompt"] += 1
                elif state is None and who in closed:
                    asked[who] = closed[who]
                    choice.reopened.append(closed[who]["request_id"])
                    choice.settled["reopened"] += 1
                elif state is None:
                    choice.requests.append(row)
                elif state in ("valid", "quarantined"):
                    choice.settled["same_prompt" if state == "valid" else state] += 1
                else:  # a new epoch asks again, unless a closed text is the last one
                    if state == "closed":
                        closed[who] = row
                    asked[who] = self._identified({**row, "epoch": row["epoch"] + 1})
                    again.append(asked[who])
            undecided = again
        refused = {row["entity_id"]: row for row in choice.unfit}
        for entity in entities:
            if entity["entity_id"] in earlier:  # what the last prompt showed is something later
                continue
            row = asked.get(entity["entity_id"]) or refused[entity["entity_id"]]
            rendering = {**entity, "request_id": row["request_id"], "settings": self.settings}
            choice.rendered.append({name: rendering[name] for name in RENDERING.names})

    def _request(self, kind: Kind, entity: dict[str, Any], choice: Choice) -> dict[str, Any] | None:
        attributes = json.loads(entity["attributes"])
        try:
            prompt = fit_prompt(self.domain, kind, attributes, self.encoder, self.max_prompt_tokens)
        except InputError as error:
            choice.settled["unfit"] += 1
            choice.unfit.append(self._refused(entity, str(error)))
            return None
        return self._identified(
            {
                **{name: entity[name] for name in (*_IDENTITY, "group_name", "data_as_of")},
                "prompt": prompt.text,
                "prompt_token_ids": prompt.token_ids,
                "dropped_history": prompt.dropped_history,
                "epoch": 0,
            }
        )

    def _refused(self, entity: dict[str, Any], reason: str) -> dict[str, Any]:
        identity = {name: entity[name] for name in _IDENTITY}
        refused = self._identified({**identity, "prompt_token_ids": [], "epoch": 0})
        return {
            **identity,
            "request_id": refused["request_id"],
            "rule": "prompt",
            "value": reason,
            "text": "",
            "quarantined_at": datetime.now(UTC),
        }

    def _identified(self, row: dict[str, Any]) -> dict[str, Any]:
        asked = (row["domain"], row["kind"], row["entity_id"], row["prompt_token_ids"])
        return {**row, "request_id": request_id(*asked, self.decoding, row["epoch"])}


def _pieces(batches: Iterable[pa.RecordBatch]) -> Iterator[list[dict[str, Any]]]:
    """Small pieces, so that a small limit renders few prompts in vain."""
    for batch in batches:
        for start in range(0, len(batch), _BATCH):
            yield batch.slice(start, _BATCH).to_pylist()
