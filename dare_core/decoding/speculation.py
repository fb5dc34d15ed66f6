"""One text's state and one step's decisions: what is drafted, what may pass, what is emitted, what is counted.

Every engine decides these here; it adds how its model runs. A step goes :meth:`Speculation.draft`, the engine's own
forward pass, :meth:`Speculation.verify`, :meth:`Speculation.settle`, and then :meth:`Text.emit` for each text.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dare_core.decoding.budget import Acceptance, Budget, Cost, best_paths
from dare_core.decoding.looping import is_looping
from dare_core.decoding.requests import Request, Result, Statistics
from dare_core.decoding.verification import Judgement, Paths, Rule, judge, longest_paths, token_mask
from dare_core.drafts import Context, Drafter, Forest

if TYPE_CHECKING:
    import torch

#: Why a text ends whose logits hold NaN or positive infinity.
NOT_FINITE: Final = "the model's logits are not finite"


class Continuation(NamedTuple):
    """What a step adds to a text.

    Attributes:
        tokens: the accepted path, and one token of the target's own behind it.
        chosen: of the path: whether each is the target's own choice; False passed by relaxation alone.
        drafted: nodes that were verified for it.
    """

    tokens: list[int]
    chosen: list[bool]
    drafted: int


@dataclass(eq=False, kw_only=True)
class Text:
    """A text that is being written.

    Attributes:
        request: what was asked for.
        context: its tokens so far, as drafters see them.
        draft_group: the pool group it drafts from.
        started: when, by :func:`time.perf_counter`.
        trusted: of the output: not by relaxation alone.
        finish_reason: ``stop`` or ``length``, once it is at its end.
        error: why it failed.
        statistics: of its steps.
    """

    request: Request
    context: Context
    draft_group: str | None
    started: float = field(default_factory=time.perf_counter)
    trusted: list[bool] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None
    statistics: Statistics = field(init=False)

    def __post_init__(self) -> None:
        self.statistics = Statistics(prompt_tokens=self.context.prompt_length)

    @property
    def wanted(self) -> int:
        """New tokens that it may still emit."""
        return self.request.max_new_tokens - (self.context.length - self.context.prompt_length)

    def emit(self, step: Continuation, ends: frozenset[int]) -> list[int]:
        """Append what a step adds, up to an end of sequence, and count it.

        Args:
            step: made for this text.
            ends: tokens that end a text.

        Returns:
            The tokens appended.
        """
        end = next((i for i, token in enumerate(step.tokens) if token in ends), None)
        emitted = step.tokens if end is None else step.tokens[: end + 1]
        accepted = step.chosen[: len(emitted)]
        context, statistics = self.context, self.statistics
        context.tokens[context.length : context.length + len(emitted)] = emitted
        context.length += len(emitted)
        self.trusted += [*accepted, True][: len(emitted)]
        statistics.new_tokens += len(emitted)
        statistics.steps += 1
        statistics.drafted += step.drafted
        statistics.accepted += len(accepted)
        statistics.relaxed += accepted.count(False)
        if end is not None:
            self.finish_reason = "stop"
        elif self.wanted <= 0:
            self.finish_reason = "length"
        return emitted

    def result(self) -> Result:
        """Of a text that is at its end, or failed."""
        tokens, reason = ([], None) if self.error else (self.context.output.tolist(), self.finish_reason)
        return Result(self.request.id, tokens, reason, self.error, self.draft_group, self.statistics)


@dataclass(frozen=True, eq=False)
class Step:
    """What a step verifies.

    Attributes:
        texts: that take part.
        forest: their draft trees.
        first_rows: ``[s + 1]`` int64: where each text's rows of logits begin: one for its last token, unless the step
            does not get so far, and one for every node.
    """

    texts: Sequence[Text]
    forest: Forest
    first_rows: NDArray[np.int64]

    @cached_property
    def parent_rows(self) -> NDArray[np.int64]:
        """``[n]`` int64: the row of logits of each node's parent, which tells what is thought of the node."""
        forest = self.forest
        behind = forest.parents - forest.offsets[forest.trees] + 1  # of a parent, its row within the text's
        return self.first_rows[forest.trees] + np.where(forest.parents < 0, 0, behind)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a step.

    Attributes:
        step: the one.
        judgement: of its rows and nodes.
        paths: the accepted ones.
    """

    step: Step
    judgement: Judgement
    paths: Paths

    def problem(self, i: int) -> str | None:
        """Why text ``i`` of the step cannot go on; None if it can. Rejected drafts do not matter."""
        first, finite = self.step.first_rows, self.judgement.finite
        if first[i] == first[i + 1]:  # the step does not get as far as its last token
            return None
        taken = first[i] + 1 + self._path(i) - self.step.forest.offsets[i]
        return None if finite[first[i]] and finite[taken].all() else NOT_FINITE

    def is_finite(self, i: int) -> bool:
        """Whether all of text ``i``'s rows are, those of rejected drafts too."""
        first = self.step.first_rows
        return bool(self.judgement.finite[first[i] : first[i + 1]].all())

    def _path(self, i: int) -> NDArray[np.int64]:
        return self.paths.nodes[i, : self.paths.lengths[i]]

    def continuation(self, i: int) -> Continuation:
        """What the step adds to text ``i``, where it gets as far as the text's last token."""
        step, forest = self.step, self.step.forest
        path = self._path(i)
        last_row = step.first_rows[i] + (path[-1] - forest.offsets[i] + 1 if len(path) else 0)
        return Continuation(
            [*forest.tokens[path].tolist(), int(self.judgement.chosen[last_row])],
            self.judgement.is_chosen[path].tolist(),
            int(forest.sizes[i]),
        )


class Speculation:
    """Drafts for texts, decides what of the drafts passes, and learns from what did.

    Args:
        drafter: where draft trees come from; None decodes plainly.
        rule: how drafts are verified.
        nodes: of a draft tree at most.
        strict_tokens: that are never relaxed: those that end a text, or make up its structure.
        vocabulary: token ids are below it.
        device: where the logits are.
    """

    def __init__(
        self,
        drafter: Drafter | None,
        rule: Rule,
        nodes: int,
        strict_tokens: frozenset[int],
        vocabulary: int,
        device: "torch.device",
    ) -> None:
        self._drafter, self._rule, self._nodes = drafter, rule, nodes
        self._never_relaxed = token_mask(strict_tokens, vocabulary, device)
        self._acceptance = Acceptance(drafter.evidence_kinds if drafter else 1)
        self._budget = Budget()

    def draft_group(self, group: str) -> str | None:
        """The pool group that texts of ``group`` draft from."""
        return self._drafter.resolve(group) if self._drafter else None

    def draft(self, texts: Sequence[Text], rows: int, cost: Cost | None, longest: int | None = None) -> Forest:
        """What a step is to verify.

        Args:
            texts: that emit a token in it whatever is drafted.
            rows: of the step without drafts: a token for each of these, and chunks of prompts.
            cost: seconds of steps, by rows; None has all verified that is drafted.
            longest: nodes that a path may have, where the engine verifies a path of each tree; None where it verifies
                trees.
        """
        if self._drafter is None or not self._nodes or not texts:
            return Forest.empty(len(texts))
        forest = self._drafter.draft([text.context for text in texts], self._nodes)
        # A step emits one token of the target's own besides; what lies deeper than the rest could not be emitted.
        room = np.array([text.wanted - 1 for text in texts])
        if longest is not None:
            room = np.minimum(room, longest)
        forest = forest.keep(forest.depths <= room[forest.trees])
        if longest is None and cost is None:
            return forest
        probabilities = self._acceptance.path_probabilities(forest, whole_trees=longest is None)
        if longest is not None:
            kept = best_paths(forest, probabilities)
            forest, probabilities = forest.keep(kept), probabilities[kept]
        if cost is not None:
            forest = forest.keep(self._budget.choose(probabilities, len(texts), rows, cost))
        return forest

    def probabilities(self, forest: Forest) -> NDArray[np.float64]:
        """``[n]``: that each node is accepted with all its ancestors, and no sibling before any of these, by what was
        accepted so far."""
        return self._acceptance.path_probabilities(forest)

    def verify(self, step: Step, logits: "torch.Tensor") -> Judgement:
        """What the target makes of a step; its ``logits`` are ``[rows, vocabulary]``, see :attr:`Step.first_rows`."""
        forest = step.forest
        return judge(
            logits,
            forest.tokens,
            step.parent_rows,
            forest.trees,
            self.may_relax(step),
            self._rule,
            self._never_relaxed,
        )

    def may_relax(self, step: Step) -> NDArray[np.bool_]:
        """``[n]``: the nodes that may pass by relaxation, if their tokens may: none of a looping text, and none that is
        drafted from the text's own words."""
        forest = step.forest
        if self._rule.mode == "strict" or self._drafter is None:
            return np.zeros(len(forest), np.bool_)
        steady = np.array([not is_looping(text.context.output) for text in step.texts], np.bool_)
        return steady[forest.trees] & ~self._drafter.own_evidence[forest.evidence]

    def settle(self, step: Step, judgement: Judgement) -> Outcome:
        """The path of each tree that is accepted; drafts to come are chosen by what was."""
        paths = longest_paths(step.forest, judgement)
        if self._drafter:
            self._acceptance.observe(step.forest, paths.tried, judgement.passes)
            self._budget.settle(int(paths.lengths.sum()))
        return Outcome(step, judgement, paths)

    def finish(self, text: Text) -> None:
        """Have a text's time counted, and the drafter learn it, unless it failed."""
        if self._drafter and not text.error:
            self._drafter.learn(text.context, np.array(text.trusted))
        text.statistics.seconds = time.perf_counter() - text.started
