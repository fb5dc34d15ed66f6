"""Our engine as a contender: precision, drafts and verification as its name says, such as ``int8_relaxed``."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from dare_core import models
from dare_core.config.settings import Settings
from dare_core.engines.plain import Run
from dare_core.pools import Pool, PoolDrafter

if TYPE_CHECKING:
    from dare_core.decoding import Engine, Request
    from dare_core.decoding.engine import StepObserver
    from dare_core.decoding.weights import Storage
    from dare_core.models import LanguageModel

#: How the engine stores its weights, by the precision in a contender's name.
STORAGES: Final[dict[str, "Storage"]] = {"fp32": "model", "bf16": "bfloat16", "int8": "int8"}
#: ``cold`` is relaxed without a pool: it drafts from its own texts alone.
KINDS: Final = ("undrafted", "strict", "relaxed", "cold")


class OurEngines:
    """Opens engines over one model a precision; an engine takes its model over, and the next has the same.

    Args:
        settings: the model, and how it is drafted and verified.
        pool: what is drafted from.
        max_length: prompt and text of a sequence, at most.
    """

    def __init__(self, settings: Settings, pool: Pool | None, max_length: int) -> None:
        self._settings, self._pool, self._max_length = settings, pool, max_length
        self._models: dict[str, LanguageModel] = {}

    def language_model(self, name: str) -> "LanguageModel":
        """The model of a contender's precision."""
        precision = name.split("_")[0]
        if precision not in self._models:
            self._models[precision] = models.load_model(self._settings)
        return self._models[precision]

    def open(self, name: str, size: int, observer: "StepObserver | None" = None, **changes: Any) -> "Engine":
        """An engine for ``size`` sequences.

        Args:
            name: precision and kind.
            size: sequences at once.
            observer: told of every step.
            changes: of its :class:`~dare_core.decoding.EngineConfig`.
        """
        from dare_core.decoding import Engine, EngineConfig, Rule

        precision, kind = name.split("_")
        ours, settings = self.language_model(name), self._settings
        config = EngineConfig(
            max_sequences=size,
            max_length=self._max_length,
            rule=Rule("relaxed" if kind in ("relaxed", "cold") else "strict", settings.top_k, settings.min_prob),
            eos_token_ids=ours.eos_token_ids,
            draft_nodes=settings.draft_nodes,
            weights=STORAGES[precision],
        )
        drafter = PoolDrafter(None if kind == "cold" else self._pool, settings.learned_tokens)
        return Engine(ours.model, None if kind == "undrafted" else drafter, replace(config, **changes), observer)


def timed(engine: "Engine", requests: "Sequence[Request]") -> Run:
    """Write the texts; what it takes to open the engine is not counted."""
    started = time.perf_counter()
    texts = {result.id: result.token_ids for result in engine.generate(requests)}
    return Run([texts[request.id] for request in requests], time.perf_counter() - started)
