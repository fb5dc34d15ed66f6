"""A model, its tokenizer and a retrieval pool, put together to write texts."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dare_core import models
from dare_core.knowledge.probe import Probe, probe
from dare_core.pools import Pool, PoolDrafter, PoolStore
from dare_core.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dare_core.decoding import Request, Result


@dataclass
class Throughput:
    """What a run of the engine made (DESIGN.md 13). ``seconds`` excludes loading."""

    texts: int = 0
    failed: int = 0
    tokens: int = 0
    steps: int = 0
    relaxed: int = 0
    seconds: float = 0.0
    global_pool_texts: int = 0

    def add(self, result: "Result", group: str) -> None:
        """Count one result."""
        if result.error is not None:
            self.failed += 1
            return
        self.texts += 1
        self.tokens += result.statistics.new_tokens
        self.steps += result.statistics.steps
        self.relaxed += result.statistics.relaxed
        self.global_pool_texts += result.draft_group not in (None, group)

    def summary(self) -> dict[str, Any]:
        """The figures that ``dare generate`` prints."""
        return {
            "texts": self.texts,
            "failed": self.failed,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.tokens / self.seconds, 2) if self.seconds else 0.0,
            "tokens_per_step": round(self.tokens / self.steps, 3) if self.steps else 0.0,
            "relaxed_token_rate": round(self.relaxed / self.tokens, 4) if self.tokens else 0.0,
            "global_pool_texts": self.global_pool_texts,
        }


@dataclass
class Writer:
    """Loads the model once and writes texts with it.

    Args:
        settings: model, verification, batch and draft sizes.
        tokenizer: the model's.
        pool: what to draft from, beside the texts' own words and those of texts finished before.
    """

    settings: Settings
    tokenizer: "PreTrainedTokenizerBase"
    pool: Pool | None
    throughput: Throughput = field(default_factory=Throughput)

    def __post_init__(self) -> None:
        self._language_model = models.load_model(self.settings)

    def write(self, requests: "Sequence[Request]") -> "Iterator[Result]":
        """Write the texts; results come as they finish. A request that cannot be served comes back as failed."""
        from dare_core.decoding import Engine, EngineConfig, Rule

        if not requests:
            return
        settings, language_model = self.settings, self._language_model
        longest = max(len(request.prompt_token_ids) + request.max_new_tokens for request in requests)
        config = EngineConfig(
            max_sequences=min(settings.batch_size, len(requests)),
            max_length=min(longest, language_model.context_length),
            rule=Rule(settings.verification, settings.top_k, settings.min_prob),
            eos_token_ids=language_model.eos_token_ids,
            draft_nodes=settings.draft_nodes,
            budget=settings.draft_budget,
            weights=settings.weights,
            compile=settings.compile_layers,
            cache_bytes=int(settings.cache_gib * 2**30) if settings.cache_gib else None,
        )
        engine = Engine(language_model.model, PoolDrafter(self.pool, settings.learned_tokens), config)
        groups = {request.id: request.group for request in requests}
        before, started = self.throughput.seconds, time.perf_counter()
        for result in engine.generate(requests):
            self.throughput.seconds = before + time.perf_counter() - started
            self.throughput.add(result, groups[result.id])
            yield result

    def probe(self, requests: "Sequence[Request]", tokens: int, seconds: float) -> Probe | None:
        """See :func:`dare_core.knowledge.probe.probe`."""
        return probe(self.settings, self._language_model, requests, tokens, seconds)

    def text(self, result: "Result") -> str:
        """A result's text, without control tokens."""
        return str(self.tokenizer.decode(result.token_ids, skip_special_tokens=True))


def open_pool(root: Path, tokenizer: "PreTrainedTokenizerBase", version: str | None = None) -> Pool:
    """The pool under ``root``, checked against the tokenizer; see :meth:`PoolStore.open`."""
    return PoolStore(root).open(models.tokenizer_hash(tokenizer), version)
