"""vLLM's proposer over our pools, in vLLM's worker: drafts a path for every text, and judges it by our rule.

A step calls :meth:`PoolProposer.verify` with the target's logits, through :mod:`~dare_core.engines.vllm.plugin`, and
:meth:`PoolProposer.propose` with the tokens that came of it. vLLM verifies paths, not trees: of each text's draft tree
the path is taken of which most tokens are expected to be accepted, and of all paths as much as pays.

vLLM imports this module after its worker has started, and Numba with it (see :mod:`dare_core.engines.vllm`).
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from dare_core.decoding.budget import Acceptance, Budget
from dare_core.decoding.engine import Statistics, is_looping
from dare_core.decoding.verification import Rule, judge, longest_paths
from dare_core.drafts import Context, Forest
from dare_core.engines.vllm import plugin
from dare_core.engines.vllm.costs import StepCosts, is_measured
from dare_core.errors import ModelError
from dare_core.pools import Pool, PoolDrafter, PoolStore
from dare_core.storage.machine_code import compiled

#: Under this name requests carry what concerns us in vLLM's sampling parameters.
ARGUMENT: Final = "dare"


@dataclass
class _Text:
    """A request that is being written.

    Attributes:
        wanted: new tokens it may still emit.
        shares, evidence: of the path that it was last drafted, as of a :class:`~dare_core.drafts.Forest`.
        trusted: of the output: not by relaxation alone.
    """

    id: str
    group: str
    wanted: int
    draft_group: str | None
    started: float
    shares: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    evidence: NDArray[np.int16] = field(default_factory=lambda: np.empty(0, np.int16))
    trusted: list[bool] = field(default_factory=list)
    statistics: Statistics = field(default_factory=Statistics)
    error: str | None = None


@dataclass(frozen=True)
class _Step:
    """What :meth:`PoolProposer.verify` found out.

    Attributes:
        texts: by row of the batch.
        drafted: ``[s]`` tokens drafted for each.
        accepted: for each, of its accepted draft tokens, whether they are the target's own.
    """

    texts: list[_Text]
    drafted: list[int]
    accepted: list[list[bool]]


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
        self._step = _Step([], [], [])
        self._texts: dict[str, _Text] = {}  # by vLLM's request id
        self._finished: dict[str, _Text] = {}  # by ours
        self.begin({"pool": None, "rule": {}, "ends": [], "structural": [], "nodes": 0, "budget": "fixed"})

    def load_model(self, *_: Any) -> None:
        """There is no draft model."""

    def begin(self, job: dict[str, Any]) -> None:
        """Set out for a run: what to draft from, and what passes.

        Args:
            job: ``pool`` (``root``, ``version``, ``tokenizer_hash``; or None), ``rule`` (fields of
                :class:`~dare_core.decoding.verification.Rule`), ``ends``, ``structural`` (token ids), ``nodes`` of a
                draft tree, ``budget``, and arguments of :class:`PoolDrafter` as ``drafter``; None drafts nothing.

        Raises:
            PoolError: the version cannot be opened.
        """
        pool = job["pool"] and Pool.open(
            PoolStore(job["pool"]["root"]), job["pool"]["tokenizer_hash"], job["pool"]["version"]
        )
        options = job.get("drafter")
        self._drafter = PoolDrafter(pool, **options) if options is not None else None
        self._rule = Rule(**job["rule"])
        self._ends = frozenset(job["ends"])
        self._nodes = job["nodes"]
        self._measured_budget = job["budget"] == "measured"
        self._acceptance, self._budget = Acceptance(PoolDrafter.evidence_kinds), Budget()
        self._never_relaxed = torch.zeros(self._vocabulary, dtype=torch.bool)
        self._never_relaxed[sorted(self._ends | set(job["structural"]))] = True
        self._never_relaxed = self._never_relaxed.to(self._device)
        self._texts.clear()
        self._finished.clear()

    def take(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """What became of finished requests: ``draft_group``, ``error``, and the fields of their statistics.

        Args:
            ids: ours.
        """
        texts = [self._finished.pop(each) for each in ids]
        return [{"draft_group": t.draft_group, "error": t.error, "statistics": asdict(t.statistics)} for t in texts]

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
        texts = [self._text(runner, request_id) for request_id in batch.req_ids]
        if metadata is None:
            forest = Forest.empty(len(texts))
        else:
            forest = _scheduled(texts, metadata.num_draft_tokens, metadata.draft_token_ids.cpu().numpy())
        # Where a prompt's last token is all that is left to read, vLLM adds drafts of no token.
        is_drafted = forest.tokens >= 0
        first = forest.offsets + np.arange(len(forest.offsets))
        may_relax = np.array(
            [
                self._rule.mode == "relaxed"
                and not is_looping(batch.token_ids_cpu[i, batch.num_prompt_tokens[i] : batch.num_tokens_no_spec[i]])
                for i in range(len(texts))
            ]
        )
        judgement = judge(
            logits,
            forest.tokens,
            (first[forest.trees] + forest.depths - 1).astype(np.int64),
            forest.trees,
            may_relax[forest.trees] & is_drafted & ~PoolDrafter.own_evidence[forest.evidence],
            self._rule,
            self._never_relaxed,
        )
        paths = longest_paths(forest, judgement, self._rule.max_run)
        self._acceptance.observe(forest, paths.tried & is_drafted, judgement.passes)
        emitted = np.full((len(texts), 1 + paths.nodes.shape[1]), -1, np.int32)
        accepted: list[list[bool]] = []
        for i, text in enumerate(texts):
            path = paths.nodes[i, : paths.lengths[i]]
            if text.error is None and not judgement.finite[first[i] : first[i + 1]].all():
                text.error = "the model's logits are not finite"
            if text.error and self._ends:  # so that vLLM ends it
                path, last = path[:0], min(self._ends)
            else:
                last = judgement.chosen[first[i] + len(path)]
            emitted[i, : len(path) + 1] = *forest.tokens[path], last
            accepted.append(judgement.is_chosen[path].tolist())
        drafted = np.bincount(forest.trees, is_drafted, len(texts)).astype(int).tolist()
        self._step = _Step(texts, drafted, accepted)
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
            sampled_token_ids: by row of the batch; none where a prompt is still being read.
            num_tokens_no_spec: ``[rows]``: tokens of prompt and output.
            token_ids_cpu: ``[rows, length]`` int32: these tokens.
            slot_mappings: not needed.
        """
        going: list[int] = []
        contexts: list[Context] = []
        step = self._step
        for i, sampled in enumerate(sampled_token_ids):
            text = step.texts[i]
            if not sampled:
                continue
            emitted = self._emit(text, sampled, step.drafted[i], step.accepted[i])
            length = int(num_tokens_no_spec[i]) - len(sampled) + emitted
            context = Context(text.group, token_ids_cpu[i], length - len(text.trusted), length)
            if sampled[emitted - 1] in self._ends or not text.wanted:
                self._retire(text, context)
            else:
                going.append(i)
                contexts.append(context)
        drafts: list[list[int]] = [[] for _ in sampled_token_ids]
        forest = self._draft(contexts, [step.texts[i] for i in going])
        for k, i in enumerate(going):
            text = step.texts[i]
            begin, end = forest.offsets[k : k + 2]
            text.shares, text.evidence = forest.shares[begin:end], forest.evidence[begin:end]
            drafts[i] = forest.tokens[begin:end].tolist()
        is_whole = going and len(going) == len(sampled_token_ids)  # no prompt is being read besides
        self._timed = (time.perf_counter(), len(going), len(forest)) if is_whole else None
        return drafts

    def _text(self, runner: Any, request_id: str) -> _Text:
        if request_id in self._texts:
            return self._texts[request_id]
        request = runner.requests[request_id]
        ours = request.sampling_params.extra_args[ARGUMENT]
        text = self._texts[request_id] = _Text(
            id=ours["id"],
            group=ours["group"],
            wanted=request.sampling_params.max_tokens,
            draft_group=self._drafter.resolve(ours["group"]) if self._drafter else None,
            started=time.perf_counter(),
            statistics=Statistics(prompt_tokens=request.num_prompt_tokens),
        )
        return text

    def _emit(self, text: _Text, sampled: list[int], drafted: int, accepted: list[bool]) -> int:
        """Count the tokens that a step emitted, up to an end of sequence; how many they are."""
        emitted = next((i + 1 for i, token in enumerate(sampled) if token in self._ends), len(sampled))
        passed, statistics = accepted[:emitted], text.statistics
        text.trusted += [*passed, True][:emitted]
        text.wanted -= emitted
        statistics.new_tokens += emitted
        statistics.steps += 1
        statistics.drafted += drafted
        statistics.accepted += len(passed)
        statistics.relaxed += passed.count(False)
        return emitted

    def _retire(self, text: _Text, context: Context) -> None:
        if self._drafter and text.error is None:
            self._drafter.learn(context, np.array(text.trusted))
        text.statistics.seconds = time.perf_counter() - text.started
        self._finished[text.id] = text
        self._texts = {request_id: other for request_id, other in self._texts.items() if other is not text}

    def _draft(self, contexts: list[Context], texts: Sequence[_Text]) -> Forest:
        if self._forced is not None:
            return self._forced_paths(len(contexts))
        if self._drafter is None or not self._nodes or not contexts:
            return Forest.empty(len(contexts))
        forest = self._drafter.draft(contexts, self._nodes)
        # A step emits one token of the target's own besides; what lies deeper than the rest could not be emitted.
        room = np.array([min(text.wanted - 1, self._longest) for text in texts])
        forest = forest.keep(forest.depths <= room[forest.trees])
        probabilities = self._acceptance.path_probabilities(forest)
        kept = _best_paths(forest.offsets, forest.parents, probabilities)
        forest, probabilities = forest.keep(kept), probabilities[kept]
        if self._measured_budget and self._costs is not None:
            sequences, cost = len(contexts), self._costs.of(len(contexts))
            kept = self._budget.choose(probabilities, sequences, sequences, lambda rows: cost(rows - sequences))
            forest = forest.keep(kept)
        return forest

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
    _best_paths(forest.offsets, forest.parents, Acceptance(PoolDrafter.evidence_kinds).path_probabilities(forest))


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


def _scheduled(texts: Sequence[_Text], sizes: Sequence[int], tokens: NDArray[np.int32]) -> Forest:
    """The drafts that vLLM scheduled: of each text's last one the beginning; it may have less room than was drafted."""
    paths = _paths(np.array(sizes))
    shares, evidence = paths.shares, paths.evidence
    for begin, size, text in zip(paths.offsets, sizes, texts, strict=False):
        if size <= len(text.shares):
            shares[begin : begin + size] = text.shares[:size]
            evidence[begin : begin + size] = text.evidence[:size]
    return Forest(paths.offsets, tokens.astype(np.int32), paths.parents, paths.depths, shares, evidence)


@compiled
def _best_paths(offsets, parents, probabilities):  # type: ignore[no-untyped-def]
    """``[n]`` bool: of each tree the path of which most nodes are expected to be accepted."""
    kept = np.zeros(len(parents), np.bool_)
    expected = probabilities.copy()
    for tree in range(len(offsets) - 1):
        best = -1
        for node in range(offsets[tree], offsets[tree + 1]):
            if parents[node] >= 0:
                expected[node] += expected[parents[node]]
            if best < 0 or expected[node] > expected[best]:
                best = node
        while best >= 0:
            kept[best] = True
            best = parents[best]
    return kept
