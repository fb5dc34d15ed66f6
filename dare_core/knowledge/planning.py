"""Which requests have no valid knowledge yet."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import pyarrow as pa

from dare_core.domains import Domain
from dare_core.errors import InputError
from dare_core.knowledge.chat import ChatEncoder
from dare_core.knowledge.requests import Decoding, fit_prompt, request_id
from dare_core.schemas import Kind
from dare_core.warehouse.read import RequestState

#: What the warehouse knows of requests; one it does not know is absent.
RequestStates = Callable[[list[str]], Mapping[str, RequestState]]

_BATCH: Final = 256
_IDENTITY: Final = ("domain", "kind", "entity_id")


class Planner:
    """Chooses requests and keeps count of the entities that need none.

    Args:
        domain: how knowledge is asked for.
        encoder: prompts to token ids.
        decoding: what the texts will be written with.
        max_prompt_tokens: a prompt must leave room for its answer.
        states: looks requests up in the warehouse.

    Attributes:
        skipped: entities without a request, by ``<kind>_<reason>``.
        unfit: QUARANTINE rows, without ``run_id``, of entities whose prompt cannot be made to fit.
    """

    def __init__(
        self, domain: Domain, encoder: ChatEncoder, decoding: Decoding, max_prompt_tokens: int, states: RequestStates
    ) -> None:
        self._domain = domain
        self._encoder = encoder
        self._decoding = decoding
        self._max_prompt_tokens = max_prompt_tokens
        self._states = states
        self.skipped: Counter[str] = Counter()
        self.unfit: list[dict[str, Any]] = []

    def choose(self, kind: Kind, entities: Iterable[pa.RecordBatch], limit: int | None) -> list[dict[str, Any]]:
        """REQUEST rows for the first ``limit`` entities that need one, sorted by group."""
        chosen: list[dict[str, Any]] = []
        for piece in _pieces(entities):
            chosen += self._missing(kind, piece)
            if limit is not None and len(chosen) >= limit:
                chosen = chosen[:limit]
                break
        return sorted(chosen, key=lambda row: (row["group_name"], row["entity_id"]))

    def _missing(self, kind: Kind, entities: list[dict[str, Any]]) -> list[dict[str, Any]]:
        undecided = [row for entity in entities if (row := self._request(kind, entity)) is not None]
        missing: list[dict[str, Any]] = []
        while undecided:
            states = self._states([row["request_id"] for row in undecided])
            closed = []
            for row in undecided:
                match states.get(row["request_id"]):
                    case None:
                        missing.append(row)
                    case "closed":  # its knowledge expired or was superseded: a new epoch asks again
                        closed.append(self._identified({**row, "epoch": row["epoch"] + 1}))
                    case state:
                        self.skipped[f"{kind}_{state}"] += 1
            undecided = closed
        return missing

    def _request(self, kind: Kind, entity: dict[str, Any]) -> dict[str, Any] | None:
        attributes = json.loads(entity["attributes"])
        try:
            prompt = fit_prompt(self._domain, kind, attributes, self._encoder, self._max_prompt_tokens)
        except InputError as error:
            self._refuse(kind, entity, str(error))
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

    def _refuse(self, kind: Kind, entity: dict[str, Any], reason: str) -> None:
        self.skipped[f"{kind}_unfit"] += 1
        identity = {name: entity[name] for name in _IDENTITY}
        refused = self._identified({**identity, "prompt_token_ids": [], "epoch": 0})
        self.unfit.append(
            {
                **identity,
                "request_id": refused["request_id"],
                "rule": "prompt",
                "value": reason,
                "text": "",
                "quarantined_at": datetime.now(UTC),
            }
        )

    def _identified(self, row: dict[str, Any]) -> dict[str, Any]:
        asked = (row["domain"], row["kind"], row["entity_id"], row["prompt_token_ids"])
        return {**row, "request_id": request_id(*asked, self._decoding, row["epoch"])}


def _pieces(batches: Iterable[pa.RecordBatch]) -> Iterator[list[dict[str, Any]]]:
    """Small pieces, so that a small limit renders few prompts in vain."""
    for batch in batches:
        for start in range(0, len(batch), _BATCH):
            yield batch.slice(start, _BATCH).to_pylist()
