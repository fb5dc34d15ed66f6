"""The decoding loop: admit, draft, forward, verify, commit, retire.

Continuous batching: a finished sequence's place is taken at the next step. A step feeds every sequence what the model
has not seen of it yet, prompts in chunks, and behind the last token a draft tree, so prefill and decoding are one code
path.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from dare_core.decoding import attention, kernels
from dare_core.decoding.batch import PackedBatch
from dare_core.decoding.config import EngineConfig
from dare_core.decoding.kv_cache import CacheShape, KVCache
from dare_core.decoding.layers import FusedLayer, compile_layers, fuse_layers
from dare_core.decoding.proof import prove
from dare_core.decoding.requests import OnTokens, Request, Result
from dare_core.decoding.rotary import rotary_limit
from dare_core.decoding.speculation import Outcome, Speculation, Step, Text
from dare_core.decoding.step_cost import StepCost, measure_step_cost
from dare_core.decoding.text_engine import TextEngine
from dare_core.decoding.verification import Judgement, Paths, Rule
from dare_core.decoding.weights import pack_weights
from dare_core.drafts import Context, Drafter, Forest
from dare_core.errors import is_out_of_memory
from dare_core.storage.processors import Threads, torch_threads

#: Steps without a shortage of memory after which one more sequence is let in, where a shortage had sent some away.
_CALM_STEPS: Final = 32
#: Why texts may not be longer, where :func:`rotary_limit` has a say.
_BEYOND: Final = ", beyond which this model's rotary scaling depends on the other texts of a batch"


@dataclass(eq=False, kw_only=True)
class PlacedText(Text):
    """A text with a place in the cache.

    Attributes:
        slot: the place.
        suspected: its last step's logits were not finite, which a draft may have caused: it drafts nothing in the next.
    """

    slot: int
    suspected: bool = False


@dataclass(frozen=True, eq=False)
class PackedStep(Step):
    """What goes through the model at once.

    Attributes:
        texts: by slot.
        slots: ``[s]`` int64.
        seen: ``[s]`` int64: tokens of each that the model has seen in steps before.
        chains: ``[s]`` int64: committed tokens, not seen by the model yet, that each feeds.
        emitting: ``[s]`` bool: whether these are all, so that the step tells what comes next.
    """

    texts: Sequence[PlacedText]
    slots: NDArray[np.int64]
    seen: NDArray[np.int64]
    chains: NDArray[np.int64]
    emitting: NDArray[np.bool_]

    @property
    def rows(self) -> int:
        """Tokens and nodes."""
        return int(self.chains.sum()) + len(self.forest)


class StepObserver(Protocol):
    """Told what every step drafted and judged."""

    def __call__(
        self, step: PackedStep, probabilities: NDArray[np.float64], judgement: Judgement, seconds: float
    ) -> None:
        """Look at a step before its texts are written on.

        Args:
            step: what was drafted.
            probabilities: ``[n]`` that each node and all its ancestors be accepted, as it was estimated.
            judgement: what the target makes of it.
            seconds: of the forward pass.
        """
        ...


class Engine(TextEngine):
    """Writes texts with one model and one source of drafts.

    Args:
        model: any transformers causal LM whose attention goes through the attention interface. The engine takes it
            over: its attention is replaced, and on a CPU its linear layers are.
        drafter: where draft trees come from; None decodes plainly.
        config: sizes and verification.
        observer: told of every step.

    Attributes:
        step_cost: what steps cost here; None where the budget is fixed or nothing is drafted.

    Raises:
        ModelError: the model's attention cannot be replaced (:func:`~dare_core.decoding.proof.prove`), its cache is not
            one tensor shape per layer, or ``cache_bytes`` does not suffice for one sequence.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        drafter: Drafter | None,
        config: EngineConfig,
        observer: StepObserver | None = None,
    ) -> None:
        super().__init__()
        self._model, self._config, self._observer = model, config, observer
        self._vocabulary = model.get_input_embeddings().num_embeddings
        shape = CacheShape.of(model)
        limit = rotary_limit(model.config)
        self._max_length = config.max_length if limit is None else min(config.max_length, limit)
        self._reason = _BEYOND if self._max_length == limit else ""
        capacity = self._max_length + config.draft_nodes
        holds_prefixes = attention.holds_prefixes(model.device, model.dtype, shape.head_dim)
        self._cache = KVCache.allocate(model, shape, config.max_sequences, capacity, config.cache_bytes, holds_prefixes)
        prove(model, shape)
        if config.compile:
            compile_layers(model)
        else:
            fuse_layers(model, shape, config.weights)
            pack_weights(model, config.weights)
        self._speculation = Speculation(
            drafter,
            config.rule,
            config.draft_nodes,
            config.eos_token_ids | config.structural_token_ids,
            self._vocabulary,
            model.device,
        )
        self._running: list[PlacedText] = []  # by slot
        self._paused: deque[PlacedText] = deque()  # were running before memory ran out; their slots are others' now
        self._most = config.max_sequences  # fewer after memory ran out
        self._calm = 0  # steps since then, or since one more was let in
        self._threads = Threads(kernels.set_threads)
        self._is_fused = all(isinstance(layer, FusedLayer) for layer in getattr(model.get_decoder(), "layers", [None]))
        drafts = drafter is not None and config.draft_nodes > 0
        self.step_cost = self._measure_cost() if drafts and config.budget == "measured" else None

    @property
    def _torch_threads(self) -> int:
        """One where our kernels do all the work: others would only stand in their threads' way."""
        return 1 if self._is_fused else self._threads.count

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return len(self._waiting) + len(self._paused)

    @property
    def busy(self) -> bool:
        """Whether anything waits or is being written."""
        return bool(self._waiting or self._paused or self._running)

    @torch.inference_mode()
    def step(self, on_tokens: OnTokens | None = None) -> list[Result]:
        """One forward pass over all running sequences; the texts that it finished."""
        self._threads.follow()
        with torch_threads(self._torch_threads):
            return self._step(on_tokens)

    def _step(self, on_tokens: OnTokens | None) -> list[Result]:
        finished = self._admit()
        if not self._running:
            return finished
        clock = [time.perf_counter()]
        try:
            step = self._draft()
            clock.append(time.perf_counter())
            logits = self._forward(step)
            clock.append(time.perf_counter())
            judgement = self._speculation.verify(step, logits)
            clock.append(time.perf_counter())
            probabilities = self._speculation.probabilities(step.forest) if self._observer else None
            outcome = self._speculation.settle(step, judgement)
            self._keep_accepted(step, outcome.paths)
        except (RuntimeError, MemoryError) as error:  # nothing is emitted yet, so the step can be made again
            if not is_out_of_memory(error):
                raise
            return finished + self._shrink(error)
        if self._observer is not None and probabilities is not None:
            self._observer(step, probabilities, judgement, clock[2] - clock[1])
        finished += self._emit(step, outcome, on_tokens)
        clock.append(time.perf_counter())
        self._count(step, *np.diff(clock).tolist())
        self._grow()
        return finished

    def _admit(self) -> list[Result]:
        refused = []
        unread = sum(self._unseen(text) - 1 for text in self._running)
        while (
            (self._paused or self._waiting)
            and self._cache.free_slots
            and len(self._running) < self._most
            # Prompts that would only wait to be read are admitted later: then they share more with those read before.
            and unread < self._config.prefill_rows
        ):
            if self._paused:
                text = self._resume(self._paused[0])
                queue: deque[PlacedText] | deque[Request] = self._paused
            else:
                request, queue = self._waiting[0], self._waiting
                if problem := request.problem(self._vocabulary, self._max_length, self._reason):
                    refused.append(Result.refused(request, problem))
                    queue.popleft()
                    continue
                text = self._start(request)
            if text is None:  # another one reads what it begins with
                break
            queue.popleft()
            unread += self._unseen(text) - 1
            self.statistics.shared_tokens += int(self._cache.lengths[text.slot])
            self._running.append(text)
        self._running.sort(key=lambda text: text.slot)
        return refused

    def _start(self, request: Request) -> PlacedText | None:
        prompt = np.asarray(request.prompt_token_ids, np.int32)
        others = (np.asarray(other.prompt_token_ids, np.int32) for other in islice(self._waiting, 1, None))
        if (slot := self._cache.admit(prompt, others)) is None:
            return None
        context = Context(request.group, self._cache.tokens[slot], len(prompt), len(prompt))
        group = self._speculation.draft_group(request.group)
        return PlacedText(request=request, context=context, draft_group=group, slot=slot)

    def _resume(self, text: PlacedText) -> PlacedText | None:
        if (slot := self._cache.admit(text.context.tokens[: text.context.length])) is None:
            return None
        text.slot = slot
        text.context.tokens = self._cache.tokens[slot]
        return text

    def _unseen(self, text: PlacedText) -> int:
        """Committed tokens that the model has not seen yet: one, unless it is still reading the prompt."""
        return int(text.context.length - self._cache.lengths[text.slot])

    def _draft(self) -> PackedStep:
        """Who takes part in the step, with what: tokens, up to so many of prompts, and draft trees."""
        texts, chains, emitting, room = [], [], [], self._config.prefill_rows
        for text in self._running:
            chain = unseen = self._unseen(text)
            if unseen > 1:
                chain = min(unseen, room)
                room -= chain
            if chain:
                texts.append(text)
                chains.append(chain)
                emitting.append(chain == unseen)
        drafting = [text for text, emits in zip(texts, emitting, strict=True) if emits]
        forest = self._speculation.draft(drafting, sum(chains), self.step_cost)
        if any(text.suspected for text in drafting):
            forest = forest.keep(~np.array([text.suspected for text in drafting])[forest.trees])
        slots, is_emitting = np.array([text.slot for text in texts]), np.array(emitting)
        if len(drafting) < len(texts):
            forest = forest.spread(is_emitting)
        return self._packed(texts, forest, slots, np.array(chains), is_emitting)

    def _packed(
        self,
        texts: list[PlacedText],
        forest: Forest,
        slots: NDArray[np.int64],
        chains: NDArray[np.int64],
        emitting: NDArray[np.bool_],
    ) -> PackedStep:
        first_rows = np.concatenate([[0], np.cumsum(emitting + forest.sizes)])
        return PackedStep(texts, forest, first_rows, slots, self._cache.lengths[slots], chains, emitting)

    def _forward(self, step: PackedStep) -> torch.Tensor:
        """Logits ``[emitting + nodes, vocabulary]``: per sequence its last token's, then its draft nodes'."""
        batch = PackedBatch(self._cache, step.slots, step.chains, step.emitting, step.forest, self._model.device)
        return attention.forward(self._model, batch)

    def _emit(self, step: PackedStep, outcome: Outcome, on_tokens: OnTokens | None) -> list[Result]:
        finished = []
        for i, text in enumerate(step.texts):
            if not step.emitting[i]:
                self._cache.commit(text.slot, int(step.seen[i] + step.chains[i]))
                continue
            problem = outcome.problem(i)
            if problem is None:
                emitted = text.emit(outcome.continuation(i), self._config.eos_token_ids)
                self._cache.commit(text.slot, text.context.length - 1)  # the last token goes through the model next
            if not outcome.is_finite(i):  # masked rows of the cache are multiplied by zero, which NaN survives
                self._cache.wipe(text.slot, int(self._cache.lengths[text.slot]))
            text.suspected = problem is not None and step.forest.sizes[i] > 0
            text.error = None if text.suspected else problem
            if problem is None and on_tokens:
                on_tokens(text.request.id, emitted)
            if text.error or text.finish_reason:
                finished.append(self._retire(text))
        return finished

    def _keep_accepted(self, step: PackedStep, paths: Paths) -> None:
        """Move the accepted nodes' rows in the cache to where their positions are."""
        text, depth = np.nonzero(paths.nodes >= 0)
        begin = step.slots[text] * self._cache.capacity + step.seen[text] + step.chains[text]
        written, due = begin + paths.nodes[text, depth] - step.forest.offsets[text], begin + depth
        moved = written != due
        self._cache.move(written[moved], due[moved])

    def _retire(self, text: PlacedText) -> Result:
        if text.error:
            self._cache.wipe(text.slot)
        self._speculation.finish(text)
        self._running.remove(text)
        self._cache.release(text.slot)
        self.statistics.add(text.statistics)
        return text.result()

    def _shrink(self, error: Exception) -> list[Result]:
        """Memory ran out: the half that was admitted last waits until others have finished; none is lost."""
        self._calm = 0
        if len(self._running) == 1:
            [text] = self._running
            text.error = f"out of memory even alone: {(str(error) or repr(error)).splitlines()[0]}"
            return [self._retire(text)]
        by_age = sorted(self._running, key=lambda text: text.started)
        self._most = len(by_age) // 2
        for text in reversed(by_age[self._most :]):
            tokens = text.context.tokens[: text.context.length].copy()
            self._cache.release(text.slot)
            text.context.tokens = tokens  # the slot's own are overwritten by whoever takes it
            self._paused.appendleft(text)
        self._running = sorted(by_age[: self._most], key=lambda text: text.slot)
        return []

    def _grow(self) -> None:
        """One more sequence at once after every so many steps without a shortage, until it is as many as before."""
        if self._most == self._config.max_sequences:
            return
        self._calm += 1
        if self._calm == _CALM_STEPS:
            self._most, self._calm = self._most + 1, 0

    def _count(self, step: PackedStep, draft: float, forward: float, verify: float, commit: float) -> None:
        """Count a step and the seconds of its parts."""
        if self.step_cost is not None:
            self.step_cost.observe(step.rows, forward + verify)
        self.statistics.steps += 1
        self.statistics.rows += step.rows
        self.statistics.draft_seconds += draft
        self.statistics.forward_seconds += forward
        self.statistics.verify_seconds += verify
        self.statistics.commit_seconds += commit

    @torch.inference_mode()
    def _measure_cost(self) -> StepCost:
        strict = Speculation(None, Rule("strict"), 0, frozenset(), self._vocabulary, self._model.device)

        def seconds(rows: NDArray[np.int64]) -> float:
            """Of a step that feeds each of the first slots one token, and drafts the rest of its rows."""
            ones = np.ones(len(rows), np.int64)
            step = self._packed([], Forest.of_leaves(rows - 1), np.arange(len(rows)), ones, ones.astype(np.bool_))
            started = time.perf_counter()
            strict.verify(step, self._forward(step))
            return time.perf_counter() - started

        with torch_threads(self._torch_threads):
            return measure_step_cost(self._cache, seconds)
