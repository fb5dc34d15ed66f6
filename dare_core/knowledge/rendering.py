"""From entities that are due to requests: rendered, identified, and held against what the warehouse knows of them."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from dare_core.config.domains import Domain
from dare_core.errors import InputError
from dare_core.knowledge.chat import ChatEncoder
from dare_core.knowledge.requests import Decoding, fit_prompt, request_id
from dare_core.schemas import RENDERING, Kind
from dare_core.warehouse.knowledge import RequestState

#: What the warehouse knows of requests; one it does not know is absent.
RequestStates = Callable[[list[str]], Mapping[str, RequestState]]

_IDENTITY: Final = ("domain", "kind", "entity_id")


@dataclass
class Rendered:
    """What came of some entities of one kind.

    Attributes:
        requests: REQUEST rows of those to write for, in their order; CHAT_REQUEST rows where a server is asked.
        renderings: RENDERING rows of all that were rendered as the warehouse has them.
        reopened: requests whose text was closed and is right again.
        earlier: requests whose prompt was the same at an earlier moment than their text says, and that moment.
        settled: those that need no text after all, by reason: ``same_prompt``, ``reopened``, ``quarantined``,
            ``unfit``.
        unfit: QUARANTINE rows, without ``run_id``, of those whose prompt cannot be made to fit.
    """

    requests: list[dict[str, Any]] = field(default_factory=list)
    renderings: list[dict[str, Any]] = field(default_factory=list)
    reopened: list[str] = field(default_factory=list)
    earlier: dict[str, datetime] = field(default_factory=dict)
    settled: Counter[str] = field(default_factory=Counter)
    unfit: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Renderer:
    """Makes requests.

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

    def render(self, kind: Kind, entities: Sequence[Mapping[str, Any]]) -> Rendered:
        """Render entities of one kind, rows of schema DUE.

        What shows an entity as it was earlier than it is known by now keeps no rendering.
        """
        found = Rendered()
        asked: dict[str, dict[str, Any]] = {}
        for entity in entities:
            if (row := self._request(kind, entity, found)) is not None:
                asked[entity["entity_id"]] = row
        earlier = {entity["entity_id"] for entity in entities if entity["earlier"]}
        closed: dict[str, dict[str, Any]] = {}  # the last closed text, by entity
        to_write: set[str] = set()
        undecided = list(asked.values())
        while undecided:
            states = self.states([row["request_id"] for row in undecided])
            again = []
            for row in undecided:
                who, state = row["entity_id"], states.get(row["request_id"])
                if who in earlier and state in ("valid", "closed", "expired"):
                    found.earlier[row["request_id"]] = row["data_as_of"]
                    found.settled["same_prompt"] += 1
                elif state is None and who in closed:
                    asked[who] = closed[who]
                    found.reopened.append(closed[who]["request_id"])
                    found.settled["reopened"] += 1
                elif state is None:
                    to_write.add(who)
                elif state in ("valid", "quarantined"):
                    found.settled["same_prompt" if state == "valid" else state] += 1
                else:  # a new epoch asks again, unless a closed text is the last one
                    if state == "closed":
                        closed[who] = row
                    asked[who] = self._identified({**row, "epoch": row["epoch"] + 1})
                    again.append(asked[who])
            undecided = again
        found.requests = [row for who, row in asked.items() if who in to_write]
        refused = {row["entity_id"]: row for row in found.unfit}
        for entity in entities:
            if entity["entity_id"] in earlier:  # what the last prompt showed is something later
                continue
            row = asked.get(entity["entity_id"]) or refused[entity["entity_id"]]
            rendering = {**entity, "request_id": row["request_id"], "settings": self.settings}
            found.renderings.append({name: rendering[name] for name in RENDERING.names})
        return found

    def _request(self, kind: Kind, entity: Mapping[str, Any], found: Rendered) -> dict[str, Any] | None:
        attributes = json.loads(entity["attributes"])
        try:
            prompt = fit_prompt(self.domain, kind, attributes, self.encoder, self.max_prompt_tokens)
        except InputError as error:
            found.settled["unfit"] += 1
            found.unfit.append(self._refused(entity, str(error)))
            return None
        turns = vars(prompt.question) if self.decoding.is_remote else {}
        return self._identified(
            {
                **turns,
                **{name: entity[name] for name in (*_IDENTITY, "group_name", "data_as_of")},
                "prompt": prompt.text,
                "prompt_token_ids": prompt.token_ids,
                "dropped_history": prompt.dropped_history,
                "epoch": 0,
            }
        )

    def _refused(self, entity: Mapping[str, Any], reason: str) -> dict[str, Any]:
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
