"""The decoding loop: admit, draft, forward, verify, commit, retire.

Continuous batching: a finished sequence's place is taken at the next step. A sequence's first step feeds its prompt
with a draft tree behind it, every later one its last token with a draft tree behind it, so prefill and decoding are
one code path.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedModel

from dare_core.decoding import attention
from dare_core.decoding.attention import PackedBatch, Segment
from dare_core.decoding.kv_cache import CacheShape, KVCache
from dare_core.decoding.verification import Judgement, Rule, judge, longest_path
from dare_core.drafts import EMPTY_TREE, Drafter, DraftTree
from dare_core.errors import ModelError

#: A text whose last tokens already stand in what it wrote shortly before is looping, and held to strict verification.
LOOP_TOKENS = 8
LOOP_WINDOW = 256


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
        max_length: prompt and new tokens of one sequence at most; what the cache is allocated for.
        draft_nodes: nodes of one sequence's draft tree at most (paper: 64).
        step_nodes: nodes of a step's draft trees together at most, shared evenly by its sequences.
        rule: strict or relaxed verification.
        eos_token_ids: tokens that end a text.
    """

    max_sequences: int
    max_length: int
    draft_nodes: int
    step_nodes: int
    rule: Rule
    eos_token_ids: frozenset[int]


@dataclass
class _Sequence:
    request: Request
    slot: int
    draft_group: str | None
    started: float
    uncached: list[int]  # committed tokens that the model has not seen yet
    output: list[int] = field(default_factory=list)
    tree: DraftTree = EMPTY_TREE
    statistics: Statistics = field(default_factory=Statistics)


class Engine:
    """Writes texts with one model and one source of drafts.

    Args:
        model: any transformers causal LM whose attention goes through the attention interface; its attention is
        replaced.
        drafter: where draft trees come from; None decodes plainly.
        config: sizes and verification.

    Raises:
        ModelError: the model's attention cannot be replaced, or its cache is not one tensor shape per layer.
    """

    def __init__(self, model: PreTrainedModel, drafter: Drafter | None, config: EngineConfig) -> None:
        self._model = model
        self._drafter = drafter
        self._config = config
        self._vocabulary = model.get_input_embeddings().num_embeddings
        self._cache = KVCache(
            _cache_shape(model),
            config.max_sequences,
            config.max_length + config.draft_nodes,
            model.dtype,
            model.device,
        )
        model.set_attn_implementation(attention.NAME)
        self._waiting: deque[Request] = deque()
        self._running: list[_Sequence] = []
        self.steps = 0

    def generate(self, requests: Iterable[Request]) -> Iterator[Result]:
        """Write all texts; each result comes as soon as it is finished, in no set order."""
        self._waiting.extend(requests)
        while self._waiting or self._running:
            yield from self.step()

    @torch.inference_mode()
    def step(self) -> list[Result]:
        """One forward pass over all running sequences; the texts that it finished."""
        finished = self._admit()
        if not self._running:
            return finished
        self._draft()
        logits = self._forward()
        return finished + self._commit(self._verify(logits))

    def _admit(self) -> list[Result]:
        refused = []
        while self._waiting and self._cache.free_slots:
            request = self._waiting.popleft()
            if problem := self._unfit(request):
                refused.append(Result(request.id, [], None, problem, None, Statistics()))
                continue
            self._running.append(
                _Sequence(
                    request=request,
                    slot=self._cache.admit(),
                    draft_group=self._drafter.resolve(request.group) if self._drafter else None,
                    started=time.perf_counter(),
                    uncached=list(request.prompt_token_ids),
                    statistics=Statistics(prompt_tokens=len(request.prompt_token_ids)),
                )
            )
        return refused

    def _unfit(self, request: Request) -> str | None:
        prompt = np.asarray(request.prompt_token_ids, dtype=np.int64)
        if not len(prompt):
            return "the prompt has no tokens"
        if request.max_new_tokens < 1:
            return f"max_new_tokens is {request.max_new_tokens}; at least 1 is needed"
        if prompt.min() < 0 or prompt.max() >= self._vocabulary:
            return f"the prompt holds a token id outside 0..{self._vocabulary - 1}"
        if len(prompt) + request.max_new_tokens > self._config.max_length:
            return (
                f"{len(prompt)} prompt tokens and {request.max_new_tokens} new ones exceed "
                f"the engine's length of {self._config.max_length}"
            )
        return None

    def _draft(self) -> None:
        share = min(self._config.draft_nodes, self._config.step_nodes // len(self._running))
        for sequence in self._running:
            # A step emits one token of the target's own besides; what lies deeper than the rest could not be emitted.
            wanted = sequence.request.max_new_tokens - len(sequence.output) - 1
            if self._drafter and sequence.draft_group is not None and share and wanted:
                tree = self._drafter.draft(sequence.request.group, sequence.output, share)
                sequence.tree = tree.up_to_depth(wanted)
            else:
                sequence.tree = EMPTY_TREE

    def _forward(self) -> torch.Tensor:
        """Logits ``[rows, vocabulary]``: per sequence its last committed token's, then its draft nodes'."""
        device = self._model.device
        tokens: list[int] = []
        needed: list[int] = []
        segments: list[Segment] = []
        for sequence in self._running:
            chain, nodes = len(sequence.uncached), len(sequence.tree)
            visible = np.zeros((chain + nodes, chain + nodes), np.bool_)
            visible[:chain, :chain] = np.tri(chain, dtype=np.bool_)
            visible[chain:, :chain] = True
            visible[chain:, chain:] = sequence.tree.ancestors
            depths = np.concatenate([np.arange(chain), chain - 1 + sequence.tree.depths])
            cached = self._cache.lengths[sequence.slot]
            segments.append(Segment(sequence.slot, len(tokens), cached, depths, visible))
            needed.extend(range(len(tokens) + chain - 1, len(tokens) + chain + nodes))
            tokens.extend(sequence.uncached)
            tokens.extend(sequence.tree.tokens.tolist())
        self.steps += 1
        batch = PackedBatch(self._cache, segments, device)
        logits: torch.Tensor = self._model(
            input_ids=torch.tensor([tokens], device=device),
            position_ids=batch.positions[None],
            use_cache=False,
            logits_to_keep=torch.tensor(needed, device=device),
            packed_batch=batch,
        ).logits[0]
        return logits

    def _verify(self, logits: torch.Tensor) -> Judgement:
        tokens, parents, may_relax, row = [], [], [], 0
        for sequence in self._running:
            tree = sequence.tree
            tokens.append(tree.tokens)
            parents.append(tree.parents + (row + 1))
            may_relax.append(np.full(len(tree), not is_looping(sequence.output)))
            row += 1 + len(tree)
        return judge(
            logits,
            np.concatenate(tokens).astype(np.int64),
            np.concatenate(parents).astype(np.int64),
            np.concatenate(may_relax),
            self._config.rule,
            self._config.eos_token_ids,
        )

    def _commit(self, judgement: Judgement) -> list[Result]:
        finished: list[Result] = []
        running: list[_Sequence] = []
        row = node = 0
        for sequence in self._running:
            nodes = len(sequence.tree)
            rows = slice(row, row + 1 + nodes)
            error = None if judgement.finite[rows].all() else "the model's logits are not finite"
            if error is None:
                self._emit(sequence, judgement, rows, slice(node, node + nodes))
            reason = self._finish_reason(sequence)
            if error or reason:
                finished.append(self._retire(sequence, reason, error))
            else:
                running.append(sequence)
            row, node = rows.stop, node + nodes
        self._running = running
        return finished

    def _emit(self, sequence: _Sequence, judgement: Judgement, rows: slice, nodes: slice) -> None:
        tree = sequence.tree
        path = longest_path(tree, judgement.passes[nodes], judgement.log_probs[nodes])
        last_row = path[-1] + 1 if path else 0
        emitted = [*tree.tokens[path].tolist(), int(judgement.argmax[rows][last_row])]
        emitted = emitted[: sequence.request.max_new_tokens - len(sequence.output)]
        end = next((i for i, token in enumerate(emitted) if token in self._config.eos_token_ids), len(emitted) - 1)
        emitted = emitted[: end + 1]
        accepted = path[: len(emitted)]

        chain = len(sequence.uncached)
        self._cache.keep(sequence.slot, [*range(chain), *(chain + node for node in path)])
        sequence.uncached = emitted[-1:]
        sequence.output.extend(emitted)
        statistics = sequence.statistics
        statistics.new_tokens += len(emitted)
        statistics.steps += 1
        statistics.drafted += len(tree)
        statistics.accepted += len(accepted)
        statistics.relaxed += int((~judgement.is_argmax[nodes][accepted]).sum())

    def _finish_reason(self, sequence: _Sequence) -> str | None:
        if sequence.output and sequence.output[-1] in self._config.eos_token_ids:
            return "stop"
        return "length" if len(sequence.output) >= sequence.request.max_new_tokens else None

    def _retire(self, sequence: _Sequence, reason: str | None, error: str | None) -> Result:
        if error:
            self._cache.wipe(sequence.slot)
        self._cache.release(sequence.slot)
        sequence.statistics.seconds = time.perf_counter() - sequence.started
        return Result(
            id=sequence.request.id,
            token_ids=sequence.output if error is None else [],
            finish_reason=reason if error is None else None,
            error=error,
            draft_group=sequence.draft_group,
            statistics=sequence.statistics,
        )


def is_looping(output: Sequence[int]) -> bool:
    """Whether the last :data:`LOOP_TOKENS` tokens already stand among the :data:`LOOP_WINDOW` before."""
    if len(output) <= LOOP_TOKENS:
        return False
    window = np.lib.stride_tricks.sliding_window_view(np.asarray(output[-LOOP_WINDOW:]), LOOP_TOKENS)
    return bool((window[:-1] == window[-1]).all(axis=1).any())


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
