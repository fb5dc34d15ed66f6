"""The decoding loop: admit, draft, forward, verify, commit, retire.

Continuous batching: a finished sequence's place is taken at the next step. A step feeds every sequence what the model
has not seen of it yet, prompts in chunks, and behind the last token a draft tree, so prefill and decoding are one code
path.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from dare_core.decoding import attention
from dare_core.decoding.batch import PackedBatch
from dare_core.decoding.budget import Acceptance, Budget, StepCost
from dare_core.decoding.kv_cache import CacheShape, KVCache
from dare_core.decoding.layers import compile_layers, fuse_layers
from dare_core.decoding.verification import Judgement, Paths, Rule, judge, longest_paths
from dare_core.decoding.weights import Storage, pack_weights
from dare_core.drafts import Context, Drafter, Forest
from dare_core.errors import ModelError, is_out_of_memory
from dare_core.storage.machine_code import compiled

#: A text whose last tokens already stand in what it wrote shortly before is looping, and held to strict verification.
LOOP_TOKENS: Final = 8
LOOP_WINDOW: Final = 256

#: Rows of the forward passes that are timed when an engine starts.
_MEASURED_ROWS: Final = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)

#: Told a request's id and the tokens that a step emitted for it.
OnTokens = Callable[[str, Sequence[int]], None]


@dataclass(frozen=True)
class Request:
    """A text to write: ``prompt_token_ids`` in, at most ``max_new_tokens`` out, drafting from the pool of ``group``."""

    id: str
    group: str
    prompt_token_ids: Sequence[int]
    max_new_tokens: int


@dataclass
class Statistics:
    """One text's decoding; the fields of ``schemas.STATISTICS``."""

    prompt_tokens: int = 0
    new_tokens: int = 0
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    relaxed: int = 0
    seconds: float = 0.0


@dataclass
class RunStatistics:
    """What all steps of an engine made so far, and where their time went, in seconds.

    Attributes:
        steps: forward passes.
        decode_steps: the sum over sequences of the steps that emitted for them; plain decoding emits one token in each.
        rows: tokens and draft nodes that went through the model.
        prompt_tokens, shared_tokens: tokens of prompts, and how many of them another sequence had in the cache already.
    """

    steps: int = 0
    decode_steps: int = 0
    rows: int = 0
    prompt_tokens: int = 0
    shared_tokens: int = 0
    new_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    relaxed: int = 0
    draft_seconds: float = 0.0
    forward_seconds: float = 0.0
    verify_seconds: float = 0.0
    commit_seconds: float = 0.0

    def add(self, text: Statistics) -> None:
        """Count a text that is finished, or failed."""
        self.decode_steps += text.steps
        self.prompt_tokens += text.prompt_tokens
        self.new_tokens += text.new_tokens
        self.drafted += text.drafted
        self.accepted += text.accepted
        self.relaxed += text.relaxed


@dataclass(frozen=True)
class Result:
    """A written text, or why there is none.

    Attributes:
        token_ids: the new tokens, with the end-of-sequence token if one was written.
        finish_reason: ``stop`` (end of sequence) or ``length``; None when the request failed.
        error: why it failed; None when it did not.
        draft_group: the pool group it drafted from.
    """

    id: str
    token_ids: list[int]
    finish_reason: str | None
    error: str | None
    draft_group: str | None
    statistics: Statistics


@dataclass(frozen=True)
class EngineConfig:
    """How an engine decodes.

    Attributes:
        max_sequences: sequences decoded at once.
        max_length: prompt and new tokens of one sequence at most; what a place in the cache is allocated for.
        rule: strict, relaxed or sampling verification.
        eos_token_ids: tokens that end a text; never relaxed.
        structural_token_ids: further tokens that are never relaxed, since an answer's structure is made of them.
        draft_nodes: nodes of one sequence's draft tree at most (paper: 64).
        budget: ``measured`` verifies the nodes that pay on this machine, ``fixed`` all that are drafted.
        prefill_rows: prompt tokens in one step at most; longer prompts take several steps.
        cache_bytes: memory for keys and values; sequences wait while it is full. None: as ``max_sequences`` needs.
        weights: how linear layers' weights are stored on a CPU, if narrower than the model has them. A model that an
            engine has taken over before keeps what that one chose.
        compile: let torch.compile have the layers instead of our kernels, which are for CPUs.
        seed: of sampling.
    """

    max_sequences: int
    max_length: int
    rule: Rule
    eos_token_ids: frozenset[int]
    structural_token_ids: frozenset[int] = frozenset()
    draft_nodes: int = 64
    budget: Literal["measured", "fixed"] = "measured"
    prefill_rows: int = 256
    cache_bytes: int | None = None
    weights: Storage = "model"
    compile: bool = False
    seed: int = 0


@dataclass
class _Sequence:
    request: Request
    slot: int
    context: Context
    draft_group: str | None
    started: float
    trusted: list[bool] = field(default_factory=list)  # of the output: not by relaxation alone
    statistics: Statistics = field(default_factory=Statistics)

    @property
    def wanted(self) -> int:
        """New tokens that it may still emit."""
        return self.request.max_new_tokens - (self.context.length - self.context.prompt_length)


@dataclass(frozen=True)
class _Step:
    """What goes through the model at once.

    Attributes:
        sequences: by slot.
        slots: ``[s]`` int64.
        chains: ``[s]`` int64: committed tokens, not seen by the model yet, that each sequence feeds.
        emitting: ``[s]`` bool: whether these are all, so that the step tells what comes next.
        forest: draft trees behind the chains.
    """

    sequences: list[_Sequence]
    slots: NDArray[np.int64]
    chains: NDArray[np.int64]
    emitting: NDArray[np.bool_]
    forest: Forest

    @cached_property
    def first_logits(self) -> NDArray[np.int64]:
        """``[s + 1]``: where each sequence's rows of logits begin: one for its chain's end, one for every node."""
        return np.concatenate([[0], np.cumsum(self.emitting + self.forest.sizes)])


class Engine:
    """Writes texts with one model and one source of drafts.

    Args:
        model: any transformers causal LM whose attention goes through the attention interface. The engine takes it
            over: its attention is replaced, and on a CPU its linear layers are.
        drafter: where draft trees come from; None decodes plainly.
        config: sizes and verification.

    Attributes:
        statistics: of all steps so far.
        step_cost: what steps cost here; None where the budget is fixed or nothing is drafted.

    Raises:
        ModelError: the model's attention cannot be replaced, its cache is not one tensor shape per layer, or
            ``cache_bytes`` does not suffice for one sequence.
    """

    def __init__(self, model: PreTrainedModel, drafter: Drafter | None, config: EngineConfig) -> None:
        self._model = model
        self._drafter = drafter
        self._config = config
        self._vocabulary = model.get_input_embeddings().num_embeddings
        shape = _cache_shape(model)
        self._cache = _allocate(model, shape, config)
        model.set_attn_implementation(attention.NAME)
        attention.prepare(model)
        if config.compile:
            compile_layers(model)
        else:
            fuse_layers(model, shape, config.weights)
            pack_weights(model, config.weights)
        self._never_relaxed = torch.zeros(self._vocabulary, dtype=torch.bool)
        self._never_relaxed[sorted(config.eos_token_ids | config.structural_token_ids)] = True
        self._never_relaxed = self._never_relaxed.to(model.device)
        self._generator = torch.Generator(model.device).manual_seed(config.seed)
        self._acceptance = Acceptance(drafter.evidence_kinds) if drafter else None
        self._budget = Budget()
        self._waiting: deque[Request | _Sequence] = deque()
        self._running: list[_Sequence] = []  # by slot
        self._most = config.max_sequences
        self.statistics = RunStatistics()
        self.step_cost = self._measure_cost() if drafter and config.budget == "measured" else None

    def generate(self, requests: Iterable[Request], on_tokens: OnTokens | None = None) -> Iterator[Result]:
        """Write all texts; each result comes as soon as it is finished, in no set order.

        Args:
            requests: ids are the caller's; a request that cannot be served comes back as failed.
            on_tokens: called as tokens come.
        """
        self.add(requests)
        while self.busy:
            yield from self.step(on_tokens)

    def add(self, requests: Iterable[Request]) -> None:
        """Let requests wait for :meth:`step` to take them in."""
        self._waiting.extend(requests)

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether anything waits or is being written."""
        return bool(self._waiting or self._running)

    @torch.inference_mode()
    def step(self, on_tokens: OnTokens | None = None) -> list[Result]:
        """One forward pass over all running sequences; the texts that it finished."""
        finished = self._admit()
        if not self._running:
            return finished
        clock = [time.perf_counter()]
        step = self._draft()
        clock.append(time.perf_counter())
        try:
            logits = self._forward(step)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return finished + self._shrink(error)
        clock.append(time.perf_counter())
        judgement = self._verify(step, logits)
        clock.append(time.perf_counter())
        finished += self._commit(step, judgement, on_tokens)
        clock.append(time.perf_counter())
        draft, forward, verify, commit = np.diff(clock).tolist()
        if self.step_cost is not None:
            self.step_cost.observe(int(step.chains.sum()) + len(step.forest), forward + verify)
        self.statistics.draft_seconds += draft
        self.statistics.forward_seconds += forward
        self.statistics.verify_seconds += verify
        self.statistics.commit_seconds += commit
        return finished

    def _admit(self) -> list[Result]:
        refused = []
        unread = sum(self._unseen(s) - 1 for s in self._running)
        while (
            self._waiting
            and self._cache.free_slots
            and len(self._running) < self._most
            # Prompts that would only wait to be read are admitted later: then they share more with those read before.
            and unread < self._config.prefill_rows
        ):
            entry = self._waiting.popleft()
            if isinstance(entry, _Sequence):  # it was running before memory ran out
                sequence = entry
                sequence.slot = self._cache.admit(sequence.context.tokens[: sequence.context.length])
                sequence.context.tokens = self._cache.tokens[sequence.slot]
            elif problem := unfit(entry, self._vocabulary, self._config.max_length):
                refused.append(Result(entry.id, [], None, problem, None, Statistics()))
                continue
            else:
                sequence = self._start(entry)
            unread += self._unseen(sequence) - 1
            self.statistics.shared_tokens += int(self._cache.lengths[sequence.slot])
            self._running.append(sequence)
        self._running.sort(key=lambda s: s.slot)
        return refused

    def _start(self, request: Request) -> _Sequence:
        prompt = np.asarray(request.prompt_token_ids, np.int32)
        slot = self._cache.admit(prompt)
        return _Sequence(
            request=request,
            slot=slot,
            context=Context(request.group, self._cache.tokens[slot], len(prompt), len(prompt)),
            draft_group=self._drafter.resolve(request.group) if self._drafter else None,
            started=time.perf_counter(),
            statistics=Statistics(prompt_tokens=len(prompt)),
        )

    def _unseen(self, sequence: _Sequence) -> int:
        """Committed tokens that the model has not seen yet: one, unless it is still reading the prompt."""
        return int(sequence.context.length - self._cache.lengths[sequence.slot])

    def _draft(self) -> _Step:
        """Who takes part in the step, with what: tokens, up to so many of prompts, and draft trees."""
        sequences, chains, emitting, room = [], [], [], self._config.prefill_rows
        for sequence in self._running:
            chain = unseen = self._unseen(sequence)
            if unseen > 1:
                chain = min(unseen, room)
                room -= chain
            if chain:
                sequences.append(sequence)
                chains.append(chain)
                emitting.append(chain == unseen)
        slots, lengths, last = np.array([s.slot for s in sequences]), np.array(chains), np.array(emitting)
        return _Step(sequences, slots, lengths, last, self._forest(sequences, lengths, last))

    def _forest(self, sequences: list[_Sequence], chains: NDArray[np.int64], emitting: NDArray[np.bool_]) -> Forest:
        if self._drafter is None or not self._config.draft_nodes or not emitting.any():
            return Forest.empty(len(sequences))
        contexts = [s.context for s, emits in zip(sequences, emitting, strict=True) if emits]
        forest = self._drafter.draft(contexts, self._config.draft_nodes).spread(emitting)
        # A step emits one token of the target's own besides; what lies deeper than the rest could not be emitted.
        wanted = np.array([s.wanted for s in sequences])
        forest = forest.keep(forest.depths < wanted[forest.trees])
        if self.step_cost is not None:
            assert self._acceptance is not None
            probabilities = self._acceptance.path_probabilities(forest)
            kept = self._budget.choose(probabilities, int(emitting.sum()), int(chains.sum()), self.step_cost)
            forest = forest.keep(kept)
        return forest

    def _forward(self, step: _Step) -> torch.Tensor:
        """Logits ``[emitting + nodes, vocabulary]``: per sequence its last token's, then its draft nodes'."""
        batch = PackedBatch(self._cache, step.slots, step.chains, step.emitting, step.forest, self._model.device)
        with attention.serving(batch):
            logits: torch.Tensor = self._model(
                input_ids=batch.tokens[None],
                position_ids=batch.positions[None],
                use_cache=False,
                logits_to_keep=batch.logit_rows,
            ).logits[0]
        self.statistics.steps += 1
        self.statistics.rows += len(batch)
        return logits

    def _verify(self, step: _Step, logits: torch.Tensor) -> Judgement:
        forest, first = step.forest, step.first_logits
        behind = forest.parents - forest.offsets[forest.trees] + 1  # of a node's parent, its row within the tree's
        relaxed = self._config.rule.mode == "relaxed"
        may_relax = np.array([relaxed and not is_looping(s.context.output) for s in step.sequences])[forest.trees]
        if self._drafter is not None:
            may_relax &= ~self._drafter.own_evidence[forest.evidence]
        return judge(
            logits,
            forest.tokens,
            first[forest.trees] + np.where(forest.parents < 0, 0, behind),
            forest.trees,
            may_relax,
            self._config.rule,
            self._never_relaxed,
            self._generator,
        )

    def _commit(self, step: _Step, judgement: Judgement, on_tokens: OnTokens | None) -> list[Result]:
        forest, first = step.forest, step.first_logits
        paths = longest_paths(forest, judgement, self._config.rule.max_run)
        if self._acceptance is not None:
            self._acceptance.observe(forest, paths.tried, judgement.passes)
        self._keep_accepted(step, paths)
        finished = []
        for i, sequence in enumerate(step.sequences):
            if not step.emitting[i]:
                self._cache.lengths[sequence.slot] += step.chains[i]
                continue
            if not judgement.finite[first[i] : first[i + 1]].all():
                finished.append(self._retire(sequence, None, "the model's logits are not finite"))
                continue
            path = paths.nodes[i, : paths.lengths[i]]
            last_row = first[i] + (path[-1] - forest.offsets[i] + 1 if len(path) else 0)
            tokens = [*forest.tokens[path].tolist(), int(judgement.chosen[last_row])]
            emitted = self._emit(sequence, tokens, judgement.is_chosen[path].tolist(), int(step.chains[i]))
            sequence.statistics.drafted += int(forest.sizes[i])
            if on_tokens:
                on_tokens(sequence.request.id, emitted)
            if emitted[-1] in self._config.eos_token_ids:
                finished.append(self._retire(sequence, "stop"))
            elif not sequence.wanted:
                finished.append(self._retire(sequence, "length"))
        return finished

    def _keep_accepted(self, step: _Step, paths: Paths) -> None:
        """Move the accepted nodes' rows in the cache to where their positions are."""
        sequence, depth = np.nonzero(paths.nodes >= 0)
        slots = step.slots[sequence]
        begin = slots * self._cache.capacity + self._cache.lengths[slots] + step.chains[sequence]
        written, due = begin + paths.nodes[sequence, depth] - step.forest.offsets[sequence], begin + depth
        moved = written != due
        self._cache.move(written[moved], due[moved])

    def _emit(self, sequence: _Sequence, tokens: list[int], chosen: list[bool], chain: int) -> list[int]:
        """Append an accepted path and the target's own next token to the text, up to an end-of-sequence."""
        end = next((i for i, token in enumerate(tokens) if token in self._config.eos_token_ids), len(tokens) - 1)
        emitted = tokens[: end + 1]
        accepted = chosen[: len(emitted)]
        context, statistics = sequence.context, sequence.statistics
        context.tokens[context.length : context.length + len(emitted)] = emitted
        context.length += len(emitted)
        self._cache.lengths[sequence.slot] += chain + len(accepted)
        sequence.trusted += [*accepted, True][: len(emitted)]
        statistics.new_tokens += len(emitted)
        statistics.steps += 1
        statistics.accepted += len(accepted)
        statistics.relaxed += accepted.count(False)
        return emitted

    def _retire(self, sequence: _Sequence, reason: str | None, error: str | None = None) -> Result:
        if error:
            self._cache.wipe(sequence.slot)
        elif self._drafter:
            self._drafter.learn(sequence.context, np.array(sequence.trusted))
        statistics = sequence.statistics
        statistics.seconds = time.perf_counter() - sequence.started
        output = sequence.context.output.tolist() if error is None else []
        self._running.remove(sequence)
        self._cache.release(sequence.slot)
        self.statistics.add(statistics)
        return Result(sequence.request.id, output, reason, error, sequence.draft_group, statistics)

    def _shrink(self, error: Exception) -> list[Result]:
        """Memory ran out: the half that was admitted last waits until others have finished; none is lost."""
        if len(self._running) == 1:
            [sequence] = self._running
            return [self._retire(sequence, None, f"out of memory even alone: {str(error).splitlines()[0]}")]
        by_age = sorted(self._running, key=lambda sequence: sequence.started)
        self._most = len(by_age) // 2
        for sequence in reversed(by_age[self._most :]):
            tokens = sequence.context.tokens[: sequence.context.length].copy()
            self._cache.release(sequence.slot)
            sequence.context.tokens = tokens  # the slot's own are overwritten by whoever takes it
            self._waiting.appendleft(sequence)
        self._running = sorted(by_age[: self._most], key=lambda sequence: sequence.slot)
        return []

    @torch.inference_mode()
    def _measure_cost(self) -> StepCost:
        """Seconds of a step by its rows, on an empty cache of which a stretch is taken for committed."""
        cache, slots = self._cache, len(self._cache.lengths)
        committed = cache.capacity // 2
        sizes = [rows for rows in _MEASURED_ROWS if rows <= slots * (cache.capacity - committed)]

        def seconds(rows: int) -> float:
            each = np.full(min(slots, rows), rows // min(slots, rows))
            each[: rows % len(each)] += 1
            step = _Step(
                sequences=[],
                slots=np.arange(len(each)),
                chains=np.ones(len(each), np.int64),
                emitting=np.ones(len(each), np.bool_),
                forest=Forest.of_leaves(each - 1),
            )
            started = time.perf_counter()
            parent_rows = step.first_logits[step.forest.trees]
            strict = np.zeros(len(step.forest), np.bool_)
            logits, forest = self._forward(step), step.forest
            judge(logits, forest.tokens, parent_rows, forest.trees, strict, Rule("strict"), self._never_relaxed)
            return time.perf_counter() - started

        cache.lengths[:] = committed
        seconds(sizes[-1])  # warm-up
        cost = StepCost.measure(seconds, sizes)
        for slot in range(slots):
            cache.wipe(slot)
        self.statistics = RunStatistics()
        return cost


def unfit(request: Request, vocabulary: int, max_length: int) -> str | None:
    """Why a request cannot be served; None if it can.

    Args:
        request: the caller's.
        vocabulary: token ids are below it.
        max_length: of a prompt and its text, in tokens.
    """
    prompt = np.asarray(request.prompt_token_ids, dtype=np.int64)
    if not len(prompt):
        return "the prompt has no tokens"
    if request.max_new_tokens < 1:
        return f"max_new_tokens is {request.max_new_tokens}; at least 1 is needed"
    if prompt.min() < 0 or prompt.max() >= vocabulary:
        return f"the prompt holds a token id outside 0..{vocabulary - 1}"
    if len(prompt) + request.max_new_tokens > max_length:
        return (
            f"{len(prompt)} prompt tokens and {request.max_new_tokens} new ones exceed "
            f"the engine's length of {max_length}"
        )
    return None


def is_looping(output: NDArray[np.int32]) -> bool:
    """Whether the last :data:`LOOP_TOKENS` tokens already stand among the :data:`LOOP_WINDOW` before."""
    return bool(_recurs(output[-LOOP_WINDOW:], LOOP_TOKENS))


@compiled
def _recurs(tokens, length):  # type: ignore[no-untyped-def]
    n = len(tokens)
    for end in range(length, n):
        same = True
        for back in range(1, length + 1):
            if tokens[end - back] != tokens[n - back]:
                same = False
                break
        if same:
            return True
    return False


def _allocate(model: PreTrainedModel, shape: CacheShape, config: EngineConfig) -> KVCache:
    capacity = config.max_length + config.draft_nodes
    slots = config.max_sequences
    if config.cache_bytes is not None:
        each = shape.slot_bytes(capacity, model.dtype)
        slots = min(slots, config.cache_bytes // each)
        if not slots:
            raise ModelError(
                f"a cache of {config.cache_bytes} bytes holds no sequence of {capacity} positions, which takes {each}"
            )
    while True:
        try:
            return KVCache(shape, slots, capacity, model.dtype, model.device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or slots == 1:
                raise
            slots //= 2


def _cache_shape(model: PreTrainedModel) -> CacheShape:
    config = model.config.get_text_config()
    if not getattr(model, "_supports_attention_backend", False):
        raise ModelError(
            f"{type(model).__name__} does not route its attention through transformers' attention interface"
        )
    if set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
        raise ModelError(
            f"{type(model).__name__} has layers other than full and sliding attention: {config.layer_types}"
        )
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return CacheShape(config.num_hidden_layers, kv_heads, head_dim)
