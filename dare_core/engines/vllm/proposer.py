"""vLLM's proposer over our pools, in vLLM's worker: has :mod:`dare_core.decoding.speculation` draft, and decide.

A step calls :meth:`PoolProposer.verify` with the target's logits, through :mod:`~dare_core.engines.vllm.plugin`, and
:meth:`PoolProposer.propose` with the tokens that came of it. vLLM verifies paths, not trees: of each text's draft tree
the path is taken of which most tokens are expected to be accepted, and of all paths as much as pays. What is here is
vLLM's own: how it schedules drafts, in which arrays its texts lie, and what its steps take.

vLLM imports this module after its worker has started, and Numba with it (see :mod:`dare_core.engines.vllm`).
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from dare_core.decoding import Request, Rule
from dare_core.decoding.budget import Acceptance, best_paths
from dare_core.decoding.looping import is_looping
from dare_core.decoding.speculation import Continuation, Speculation, Step, Text
from dare_core.drafts import Context, Forest
from dare_core.engines.vllm import plugin
from dare_core.engines.vllm.costs import StepCosts, is_measured
from dare_core.errors import ModelError
from dare_core.pools import Pool, PoolDrafter, PoolStore

#: Under this name requests carry what concerns us in vLLM's sampling parameters.
ARGUMENT: Final = "dare"


@dataclass(eq=False, kw_only=True)
class _DraftedText(Text):
    """A text, and the path that it was last drafted: its ``shares`` and ``evidence``, as of a ``Forest``."""

    shares: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    evidence: NDArray[np.int16] = field(default_factory=lambda: np.empty(0, np.int16))


class PoolProposer:
    """vLLM's ``custom_class`` proposer.

    Args:
        vllm_config: vLLM's own.

    Raises:
        ModelError: vLLM has not loaded our plugin.
    """

    def __init__(self, vllm_config: Any) -> None:
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner  # type: ignore[import-not-found]

        if not plugin.is_registered(GPUModelRunner):
            raise ModelError("vLLM has not loaded our plugin: dare-platform is not installed there; run make vllm-env")
        self._longest = vllm_config.speculative_config.num_speculative_tokens
        self._device = torch.device("cpu")
        self._vocabulary = vllm_config.model_config.get_vocab_size()
        self._most = vllm_config.scheduler_config.max_num_seqs
        self._costs: StepCosts | None = None
        # When the step began that is being made, its sequences, and the tokens drafted for them.
        self._timed: tuple[float, int, int] | None = None
        self._forced: int | None = None  # while steps are measured: how many tokens each is to draft
        self._timings: dict[int, dict[int, float]] = {}  # least seconds, by sequences and drafted tokens
        self._step: list[tuple[_DraftedText, Continuation]] = []  # the texts of the step that is made, by row
        self._texts: dict[str, _DraftedText] = {}  # by vLLM's request id
        self._finished: dict[str, _DraftedText] = {}  # by ours
        self.begin({"pool": None, "rule": {}, "ends": [], "structural": [], "nodes": 0, "budget": "fixed"})

    def load_model(self, *_: Any) -> None:
        """There is no draft model."""

    def begin(self, job: dict[str, Any]) -> None:
        """Set out for a run: what to draft from, and what passes.

        Args:
            job: ``pool`` (``root``, ``cache``, ``cache_bytes``, ``version``, ``tokenizer_hash``; or None), ``rule``
                (fields of :class:`~dare_core.decoding.verification.Rule`), ``ends``, ``structural`` (token ids),
                ``nodes`` of a draft tree, ``budget``, and arguments of :class:`PoolDrafter` as ``drafter``; None drafts
                nothing.

        Raises:
            PoolError: the version cannot be opened.
        """
        pool = None
        if asked := job["pool"]:
            store = PoolStore(asked["root"], cache=Path(asked["cache"]), cache_bytes=asked["cache_bytes"])
            pool = Pool.open(store, asked["tokenizer_hash"], asked["version"])
        options = job.get("drafter")
        self._ends = frozenset(job["ends"])
        self._measured_budget = job["budget"] == "measured"
        self._speculation = Speculation(
            PoolDrafter(pool, **options) if options is not None else None,
            Rule(**job["rule"]),
            job["nodes"],
            self._ends | frozenset(job["structural"]),
            self._vocabulary,
            self._device,
        )
        self._texts.clear()
        self._finished.clear()

    def take(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """What became of finished requests: ``draft_group``, ``finish_reason``, ``error``, and their ``statistics``.

        Args:
            ids: ours.
        """
        texts = [self._finished.pop(each) for each in ids]
        facts = ("draft_group", "finish_reason", "error")
        return [{name: getattr(t, name) for name in facts} | {"statistics": asdict(t.statistics)} for t in texts]

    def measure(self, drafted: int) -> None:
        """From now on have every step verify so many tokens, of nothing in particular, and time it."""
        self._forced = drafted

    def measured(self) -> dict[int, dict[int, float]]:
        """Steps' costs are what the steps since the first :meth:`measure` took.

        Returns:
            Seconds, by sequences and drafted tokens.
        """
        self._timings = {n: of_n for n, of_n in self._timings.items() if is_measured(of_n)}
        self._costs = StepCosts(self._timings) if self._timings else None
        self._forced, self._timed = None, None
        _compile()
        return self._timings

    # A step

    def verify(self, runner: Any, logits: torch.Tensor, metadata: Any) -> NDArray[np.int32]:
        """Judge the step's drafts, in place of vLLM's sampler.

        Args:
            runner: vLLM's model runner.
            logits: ``[drafted + s, vocabulary]``: of each row of the batch, after its last token and each drafted one.
            metadata: vLLM's description of the drafts; None where there are none.

        Returns:
            ``[s, longest]``: what each row emits: the drafted tokens of its path, one of the target's own, then -1.
        """
        batch = runner.input_batch
        self._observe_time(len(batch.req_ids))
        texts = [self._text(runner, row) for row in range(len(batch.req_ids))]
        step = _scheduled(texts, metadata)
        outcome = self._speculation.settle(step, self._speculation.verify(step, logits))
        emitted = np.full((len(texts), 1 + outcome.paths.nodes.shape[1]), -1, np.int32)
        self._step = []
        for row, text in enumerate(texts):
            made = outcome.continuation(row)
            text.error = text.error or outcome.problem(row)
            if text.error and self._ends:  # so that vLLM ends it
                made = Continuation([min(self._ends)], [], made.drafted)
            emitted[row, : len(made.tokens)] = made.tokens
            self._step.append((text, made))
        return emitted

    def propose(
        self,
        sampled_token_ids: list[list[int]],
        num_tokens_no_spec: NDArray[np.int32],
        token_ids_cpu: NDArray[np.int32],
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        """Take in what the step emitted, and draft for the next one.

        Args:
            sampled_token_ids: by row of the batch, what :meth:`verify` said; none where a prompt is still being read.
            num_tokens_no_spec, token_ids_cpu, slot_mappings: not needed; texts know where their tokens are.
        """
        going: list[int] = []
        for row, sampled in enumerate(sampled_token_ids):
            if not sampled:
                continue
            text, made = self._step[row]
            text.emit(made, self._ends)
            if text.finish_reason:
                self._retire(text)
            else:
                going.append(row)
        texts = [self._step[row][0] for row in going]
        drafts: list[list[int]] = [[] for _ in sampled_token_ids]
        forest = self._draft(texts)
        for row, text, begin, end in zip(going, texts, forest.offsets, forest.offsets[1:], strict=False):
            text.shares, text.evidence = forest.shares[begin:end], forest.evidence[begin:end]
            drafts[row] = forest.tokens[begin:end].tolist()
        is_whole = going and len(going) == len(sampled_token_ids)  # no prompt is being read besides
        self._timed = (time.perf_counter(), len(going), len(forest)) if is_whole else None
        return drafts

    def _text(self, runner: Any, row: int) -> _DraftedText:
        """The text in a row of the batch."""
        request_id, tokens = runner.input_batch.req_ids[row], runner.input_batch.token_ids_cpu[row]
        text = self._texts.get(request_id)
        if text is None:
            asked = runner.requests[request_id]
            ours, length = asked.sampling_params.extra_args[ARGUMENT], asked.num_prompt_tokens
            text = self._texts[request_id] = _DraftedText(
                request=Request(ours["id"], ours["group"], asked.prompt_token_ids, asked.sampling_params.max_tokens),
                context=Context(ours["group"], tokens, length, length),
                draft_group=self._speculation.draft_group(ours["group"]),
            )
        text.context.tokens = tokens  # vLLM moves texts to other rows
        return text

    def _retire(self, text: _DraftedText) -> None:
        self._speculation.finish(text)
        self._finished[text.request.id] = text
        self._texts = {request_id: other for request_id, other in self._texts.items() if other is not text}

    def _draft(self, texts: Sequence[_DraftedText]) -> Forest:
        sequences = len(texts)
        if self._forced is not None:
            return self._forced_paths(sequences)
        if not self._measured_budget or self._costs is None or not texts:
            return self._speculation.draft(texts, sequences, None, self._longest)
        cost = self._costs.of(sequences)
        return self._speculation.draft(texts, sequences, lambda rows: cost(rows - sequences), self._longest)

    def _forced_paths(self, sequences: int) -> Forest:
        """Paths of token 0, of :attr:`_forced` tokens together, as equal as can be."""
        assert self._forced is not None
        sizes = np.full(sequences, self._forced // max(1, sequences))
        sizes[: self._forced - int(sizes.sum())] += 1
        return _paths(np.minimum(sizes, self._longest))

    def _observe_time(self, taking_part: int) -> None:
        """Learn how long the step took, unless others than those drafted for take part: these are reading prompts."""
        if self._timed is None or self._timed[1] != taking_part:
            return
        (began, sequences, drafted), now = self._timed, time.perf_counter()
        if self._forced is not None:
            timings = self._timings.setdefault(sequences, {})
            timings[drafted] = min(now - began, timings.get(drafted, np.inf))
        elif self._costs is not None:
            self._costs.of(sequences).observe(drafted, now - began)


def _compile() -> None:
    """Have Numba compile now what the first text would wait for."""
    text = np.arange(64, dtype=np.int32) % 8
    is_looping(text)
    forest = PoolDrafter(None).draft([Context("", text, 1, len(text))], 8)
    best_paths(forest, Acceptance(PoolDrafter.evidence_kinds).path_probabilities(forest))


def _paths(sizes: NDArray[np.int64]) -> Forest:
    """Trees of ``sizes`` nodes that are paths of token 0."""
    leaves = Forest.of_leaves(sizes)
    places = np.arange(len(leaves), dtype=np.int32)
    depths = places - leaves.offsets[leaves.trees] + 1
    return Forest(
        leaves.offsets,
        leaves.tokens,
        np.where(depths == 1, -1, places - 1).astype(np.int32),
        depths.astype(np.int32),
        leaves.shares,
        leaves.evidence,
    )


def _scheduled(texts: Sequence[_DraftedText], metadata: Any) -> Step:
    """The drafts that vLLM scheduled: of each text's last one the beginning; it may have less room than was drafted.

    Where a prompt's last token is all that is left to read, vLLM adds drafts of no token: these have rows of logits.

    Args:
        texts: by row of the batch.
        metadata: vLLM's description of the drafts; None where there are none.
    """
    rows = np.arange(len(texts) + 1)
    if metadata is None:
        return Step(texts, Forest.empty(len(texts)), rows)
    sizes, tokens = np.array(metadata.num_draft_tokens), metadata.draft_token_ids.cpu().numpy()
    first_rows = rows + np.concatenate([[0], np.cumsum(sizes)])
    is_drafted = tokens >= 0
    if not is_drafted.all():
        sizes = np.bincount(np.repeat(rows[:-1], sizes)[is_drafted], minlength=len(texts))
        tokens = tokens[is_drafted]
    paths = _paths(sizes)
    for begin, size, text in zip(paths.offsets, sizes, texts, strict=False):
        if size <= len(text.shares):
            paths.shares[begin : begin + size] = text.shares[:size]
            paths.evidence[begin : begin + size] = text.evidence[:size]
    return Step(texts, replace(paths, tokens=tokens.astype(np.int32)), first_rows)
