"""A model, its tokenizer and a retrieval pool, put together to write texts."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from dare_core import models
from dare_core.config.settings import Settings
from dare_core.engines import load_engines
from dare_core.engines.precision import storage_of
from dare_core.errors import OutOfMemoryError, is_out_of_memory
from dare_core.knowledge.probe import Probe, probe
from dare_core.pools import Pool, PoolStore
from dare_core.storage.locations import Location

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dare_core.decoding import Request, Result, TextEngine


@dataclass
class Throughput:
    """What a run of the engine made (DESIGN.md 13). ``seconds`` excludes ``load_seconds``: loading and compiling."""

    texts: int = 0
    failed: int = 0
    tokens: int = 0
    steps: int = 0
    relaxed: int = 0
    seconds: float = 0.0
    load_seconds: float = 0.0
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
            "load_seconds": round(self.load_seconds, 3),
            "tokens_per_second": round(self.tokens / self.seconds, 2) if self.seconds else 0.0,
            "tokens_per_step": round(self.tokens / self.steps, 3) if self.steps else 0.0,
            "relaxed_token_rate": round(self.relaxed / self.tokens, 4) if self.tokens else 0.0,
            "global_pool_texts": self.global_pool_texts,
        }


class Writer:
    """Loads the model once and writes texts with it.

    Args:
        settings: model, verification, batch and draft sizes.
        tokenizer: the model's.

    Attributes:
        seconds: that the engine has worked.
        load_seconds: that loading the model and setting up engines (compiling, measuring step costs) took.

    Raises:
        ModelError, SettingError: see :func:`dare_core.engines.load_engines`.
        OutOfMemoryError: the model does not fit into memory.
    """

    def __init__(self, settings: Settings, tokenizer: "PreTrainedTokenizerBase") -> None:
        started = time.perf_counter()
        self._settings = settings
        self._tokenizer = tokenizer
        self._at_once = settings.endpoint_concurrency if settings.engine == "endpoint" else settings.batch_size
        with _full_memory_worded(settings):
            self._engines = load_engines(settings)
        self.seconds = 0.0
        self.load_seconds = time.perf_counter() - started

    def write(
        self,
        requests: "Iterable[Request]",
        pool: Pool | None,
        longest: int,
        sequences: int,
        structural_token_ids: frozenset[int] = frozenset(),
    ) -> "Iterator[Result]":
        """Write texts; results come as they finish. A request that cannot be served comes back as failed.

        Args:
            requests: read as the engine gets to them.
            pool: what to draft from, beside the texts' own words and those of texts finished before.
            longest: positions of a request's prompt and text at most.
            sequences: requests there are.
            structural_token_ids: never relaxed.

        Raises:
            OutOfMemoryError: they do not fit into memory beside the model.
            EndpointError, SettingError, ModelError: see :meth:`dare_core.engines.endpoint.client.ChatClient.write`.
        """
        with _full_memory_worded(self._settings):
            engine = self._prepare(pool, longest, sequences, structural_token_ids)
            coming = iter(requests)
            while True:
                if (room := self._at_once - engine.waiting) > 0:
                    engine.add(islice(coming, room))
                if not engine.busy:
                    return
                started = time.perf_counter()
                finished = engine.step()
                self.seconds += time.perf_counter() - started
                yield from finished

    def text(self, result: "Result") -> str:
        """A result's text, without control tokens; of a server's as it wrote it."""
        if self._settings.engine == "endpoint":
            from dare_core.engines.endpoint.engine import ChatResult

            return result.text if isinstance(result, ChatResult) else ""
        return str(self._tokenizer.decode(result.token_ids, skip_special_tokens=True))

    def _prepare(self, pool: Pool | None, longest: int, sequences: int, structural: frozenset[int]) -> "TextEngine":
        from dare_core.decoding import EngineConfig, Rule

        settings, facts = self._settings, self._engines.facts
        started = time.perf_counter()
        config = EngineConfig(
            max_sequences=min(self._at_once, sequences),
            max_length=min(longest, facts.context_length),
            rule=Rule(settings.verification, settings.top_k, settings.min_prob),
            eos_token_ids=facts.eos_token_ids,
            structural_token_ids=structural,
            draft_nodes=settings.draft_nodes,
            budget="fixed" if settings.deterministic else settings.draft_budget,
            weights=storage_of(settings),
            compile=settings.compile_layers,
            cache_bytes=int(settings.cache_gib * 2**30) if settings.cache_gib else None,
        )
        engine = self._engines.open(config, pool)
        self.load_seconds += time.perf_counter() - started
        return engine

    def probe(self, requests: "Sequence[Request]", tokens: int, seconds: float) -> Probe | None:
        """See :func:`dare_core.knowledge.probe.probe`. A server decodes as it does, and is paid for it."""
        if self._settings.engine == "endpoint":
            return None
        with _full_memory_worded(self._settings):
            return probe(self._settings, self._engines, requests, tokens, seconds)


def open_pool(
    settings: Settings,
    root: Location | str,
    tokenizer: "PreTrainedTokenizerBase",
    version: str | None = None,
    no_other: bool = False,
) -> Pool:
    """The pool under ``root``, checked against the tokenizer; see :meth:`Pool.open`.

    Where it is on object storage, the cache of ``settings`` keeps what is read of it.
    """
    store = PoolStore(root, cache=settings.pool_cache_dir, cache_bytes=settings.pool_cache_bytes)
    return Pool.open(store, models.tokenizer_hash(tokenizer), version, no_other)


@contextmanager
def _full_memory_worded(settings: Settings) -> Iterator[None]:
    """Say what to do where torch finds memory full."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"memory of device {settings.device} is full while {settings.model} writes {settings.batch_size} texts at "
            "once; lower DARE_BATCH_SIZE or DARE_CACHE_GIB if it happens again"
        ) from error
