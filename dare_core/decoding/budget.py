"""How many draft nodes a step is worth, and which (DESIGN.md 8).

A step over ``r`` rows takes ``cost(r)`` seconds (:mod:`~dare_core.decoding.step_cost`). A draft node adds its row to
the cost, and to the expected tokens the probability that the accepted path grows by it. Nodes are taken best first over
all sequences, as long as they bring more tokens than their seconds bring on average; where none does, nothing is
drafted.

One path of a tree is accepted, so what nodes are worth is not the sum of how often they pass: relaxed, several children
of a node may. Siblings are looked at in their order, the drafter's best first, and a node counts where its parent does,
it passes, and no sibling before it has. At every depth of a tree one node counts at most. Their probabilities add up to
what a path is expected to be long, and never to more than the tree is deep. Under strict verification this is exact;
relaxed, a later sibling that passes too may lead further, which is not counted.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dare_core.drafts import Forest
from dare_core.storage.machine_code import compiled

#: Seconds of steps, by their rows: ``[m]`` int64 to ``[m]`` float64.
Cost = Callable[[NDArray[np.int64]], NDArray[np.float64]]

#: The drafter's estimates are taken to be within this and one minus this.
_LEAST: Final = 0.002
#: How sure :class:`Acceptance` is at first that the drafter's estimates are right: of their slope, their offset, and
#: the offsets of kinds of evidence; in observations, each weighed by its variance (at most 1/4). A third or three times
#: as many made no difference beyond noise where a small model's drafts for 32 texts about films were replayed.
_SURENESS: Final = (20.0, 4.0, 10.0)
#: What a step taught counts by this much less at the next one. Where drafts stop, they are tried again after some time.
_MEMORY: Final = 0.999
#: How much a step's tokens and seconds count at the next one, where it is asked what a second brings on average.
_FADING: Final = 0.97


class Acceptance:
    """How often nodes pass where their parent is accepted and no sibling before them passes.

    The drafter's estimate is corrected on the log-odds scale: by a slope, an offset, and one more for each kind of
    evidence: a logistic regression, learned step by step. So few numbers are known after few steps, and they tell 0.9
    from 0.99 where near certainty is all that pays, in large batches.

    Args:
        evidence_kinds: how many kinds of evidence there are.
    """

    def __init__(self, evidence_kinds: int) -> None:
        first = np.array([1.0, *np.zeros(1 + evidence_kinds)])
        sureness = np.repeat(_SURENESS, [1, 1, evidence_kinds])
        self._first, self._first_sureness = first, sureness
        self._weights, self._sureness = first.copy(), sureness.copy()

    def path_probabilities(self, forest: Forest, whole_trees: bool = True) -> NDArray[np.float64]:
        """``[n]``: the probability that a node is accepted with all its ancestors, and no sibling before any of these.

        A node's is at most its parent's, and so is the sum of all children's.

        Args:
            forest: what may be verified.
            whole_trees: False where a path of each tree will be verified alone, so that there are no siblings.
        """
        return _path_probabilities(  # type: ignore[no-any-return]
            forest.offsets, forest.parents, forest.shares, forest.evidence, self._weights, _LEAST, whole_trees
        )

    def observe(self, forest: Forest, tried: NDArray[np.bool_], passed: NDArray[np.bool_]) -> None:
        """Learn from a step, which may have drafted nothing.

        Args:
            forest: what was verified.
            tried: ``[n]``: the parent was accepted, or is the root.
            passed: ``[n]``: the node passed.
        """
        kept, new = _MEMORY * self._sureness, (1 - _MEMORY) * self._first_sureness
        self._weights = (kept * self._weights + new * self._first) / (kept + new)
        self._sureness = kept + new
        _learn(
            forest.offsets, forest.parents, forest.shares, forest.evidence, tried, passed,
            self._weights, self._sureness, _LEAST,
        )  # fmt: skip


class Budget:
    """Which nodes steps should verify, one step after another.

    A second is worth what it brought in the steps of late, rather than the most that the step at hand can make of it:
    tokens per second are highest where all steps are held to the one rate that they come to (renewal-reward theorem).
    Hard guesses then leave their rows to easy ones, of this text's later steps too.

    The rate is kept as a multiple of what steps without drafts would have brought. So it holds when all steps become
    slower, as on a machine that others begin to use, or when fewer sequences are left.
    """

    def __init__(self) -> None:
        self._tokens, self._undrafted_tokens = 0.0, 0.0
        self._emitting, self._undrafted = 0, 0.0  # of the step that is made

    def choose(
        self,
        probabilities: NDArray[np.float64],
        emitting: int,
        rows: int,
        cost: Cost,
    ) -> NDArray[np.bool_]:
        """See :func:`worthwhile`, of a step that is then made, and told to :meth:`settle`."""
        undrafted_rate = emitting / float(cost(np.array([emitting]))[0])
        rate = undrafted_rate * self._tokens / self._undrafted_tokens if self._undrafted_tokens else None
        kept = worthwhile(probabilities, emitting, rows, cost, rate)
        # As if no prompt were read besides.
        self._undrafted = undrafted_rate * float(cost(np.array([emitting + int(kept.sum())]))[0])
        self._emitting = emitting
        return kept

    def settle(self, accepted: int) -> None:
        """Learn what the step brought that was last chosen for: so many nodes were accepted."""
        if self._emitting:
            self._tokens = _FADING * self._tokens + self._emitting + accepted
            self._undrafted_tokens = _FADING * self._undrafted_tokens + self._undrafted
            self._emitting = 0


def worthwhile(
    probabilities: NDArray[np.float64],
    emitting: int,
    rows: int,
    cost: Cost,
    rate: float | None = None,
) -> NDArray[np.bool_]:
    """The nodes that a step should verify.

    Args:
        probabilities: ``[n]`` by :meth:`Acceptance.path_probabilities`; a node's is at most its parent's.
        emitting: sequences that emit a token in this step whatever is drafted.
        rows: rows of the step without draft nodes: a token for each of those, and chunks of prompts.
        cost: seconds of steps, by rows.
        rate: tokens that a second is worth; None: the most that this step can make of one.

    Returns:
        ``[n]`` bool, closed under parents.
    """
    order = np.argsort(-probabilities, kind="stable")  # stable: a parent stays before its equally probable child
    expected = emitting + np.concatenate([[0.0], np.cumsum(probabilities[order])])
    counts = np.arange(len(order) + 1)
    if rate is None:  # as if no prompt were read besides
        rate = (expected / cost(emitting + counts)).max()
    gain = expected - rate * cost(rows + counts)
    kept = np.zeros(len(probabilities), np.bool_)
    kept[order[: int(gain.argmax())]] = True
    return kept


def best_paths(forest: Forest, probabilities: NDArray[np.float64]) -> NDArray[np.bool_]:
    """``[n]`` bool: of each tree the path of which most nodes are expected to be accepted.

    Args:
        forest: the trees.
        probabilities: ``[n]`` of being accepted with all ancestors.
    """
    return _best_paths(forest.offsets, forest.parents, probabilities)  # type: ignore[no-any-return]


@compiled
def _best_paths(offsets, parents, probabilities):  # type: ignore[no-untyped-def]
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


@compiled
def _path_probabilities(  # type: ignore[no-untyped-def]
    offsets, parents, shares, evidence, weights, least, whole_trees
):
    n = len(parents)
    probabilities = np.empty(n)
    # Of each node, what its children so far have left of the drafter's estimates, and of its own probability.
    shares_left, left = np.ones(n), np.empty(n)
    for tree in range(len(offsets) - 1):
        root_shares_left, root_left = 1.0, 1.0
        for node in range(offsets[tree], offsets[tree + 1]):
            parent = parents[node]
            rest = root_shares_left if parent < 0 else shares_left[parent]
            odds = weights[0] * _log_odds(shares[node], rest, least) + weights[1] + weights[2 + evidence[node]]
            rate = 1 / (1 + np.exp(-odds))
            here = rate * (root_left if parent < 0 else left[parent])
            probabilities[node] = left[node] = here
            if not whole_trees:
                continue
            if parent < 0:
                root_shares_left -= shares[node]
                root_left -= here
            else:
                shares_left[parent] -= shares[node]
                left[parent] -= here
    return probabilities


@compiled
def _learn(  # type: ignore[no-untyped-def]
    offsets, parents, shares, evidence, tried, passed, weights, sureness, least
):
    """A step of Newton's method, with the curvature's diagonal, for each node."""
    n = len(parents)
    shares_left, settled = np.ones(n), np.zeros(n, np.bool_)
    for tree in range(len(offsets) - 1):
        root_shares_left, root_settled = 1.0, False
        for node in range(offsets[tree], offsets[tree + 1]):
            if not tried[node]:
                continue
            parent = parents[node]
            rest = root_shares_left if parent < 0 else shares_left[parent]
            if not (root_settled if parent < 0 else settled[parent]):
                estimate, kind = _log_odds(shares[node], rest, least), 2 + evidence[node]
                odds = weights[0] * estimate + weights[1] + weights[kind]
                rate = 1 / (1 + np.exp(-odds))
                error, variance = (1.0 if passed[node] else 0.0) - rate, rate * (1 - rate)
                sureness[0] += variance * estimate * estimate
                sureness[1] += variance
                sureness[kind] += variance
                weights[0] += error * estimate / sureness[0]
                weights[1] += error / sureness[1]
                weights[kind] += error / sureness[kind]
            if parent < 0:
                root_shares_left -= shares[node]
                root_settled |= passed[node]
            else:
                shares_left[parent] -= shares[node]
                settled[parent] |= passed[node]


@compiled
def _log_odds(share, rest, least):  # type: ignore[no-untyped-def]
    """The drafter's estimate that a node passes where no sibling before it has; these left ``rest`` of 1."""
    estimate = min(max(share / max(rest, least), least), 1 - least)
    return np.log(estimate / (1 - estimate))
