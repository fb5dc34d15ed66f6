"""How many draft nodes a step is worth, and which (DESIGN.md 8).

A step over ``r`` rows takes ``cost(r)`` seconds, measured when the engine starts. A draft node adds its probability of
being accepted to the expected tokens and its row to the cost. Nodes are taken best first over all sequences, as far as
expected tokens per second rise; where none pays, nothing is drafted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dare_core.drafts import Forest

#: A drafter's shares are calibrated apart in so many equal bins.
_SHARE_BINS: Final = 10
#: Observations that a drafter's own estimate is worth.
_PRIOR: Final = 6.0
#: Old observations count for less: a count is halved when it reaches this.
_MEMORY: Final = 20_000.0


@dataclass(frozen=True, eq=False)
class StepCost:
    """Seconds of a forward pass by its number of rows, linear between measurements.

    Attributes:
        rows: ``[m]`` ascending.
        seconds: ``[m]`` never falling.
    """

    rows: NDArray[np.float64]
    seconds: NDArray[np.float64]

    @classmethod
    def measure(cls, step: Callable[[int], float], rows: Sequence[int], repeats: int = 4) -> "StepCost":
        """Time ``step(rows)``, which returns seconds, at several sizes in turn; the least of ``repeats`` counts.

        Whatever else the machine does only adds to a time.
        """
        least = np.min([[step(n) for n in rows] for _ in range(repeats)], axis=0)
        return cls(np.array(rows, np.float64), np.maximum.accumulate(least))

    def __call__(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Seconds of steps of ``rows`` rows; beyond the last measurement the last slope goes on."""
        slope = (self.seconds[-1] - self.seconds[-2]) / (self.rows[-1] - self.rows[-2])
        beyond = np.maximum(rows - self.rows[-1], 0) * slope
        seconds: NDArray[np.float64] = np.interp(rows, self.rows, self.seconds) + beyond
        return seconds


class Acceptance:
    """How often nodes are accepted once their parent is, by kind of evidence and the drafter's own estimate."""

    def __init__(self, evidence_kinds: int) -> None:
        centres = (np.arange(_SHARE_BINS) + 0.5) / _SHARE_BINS
        self._tried = np.full((evidence_kinds, _SHARE_BINS), _PRIOR)
        self._accepted = np.tile(_PRIOR * centres, (evidence_kinds, 1))

    def path_probabilities(self, forest: Forest) -> NDArray[np.float64]:
        """``[n]``: the probability that a node and all its ancestors are accepted."""
        rates = self._accepted / self._tried
        return _multiply_down(forest.parents, rates[forest.evidence, _bins(forest)])  # type: ignore[no-any-return]

    def observe(self, forest: Forest, tried: NDArray[np.bool_], passed: NDArray[np.bool_]) -> None:
        """Learn from a step: the nodes whose parents were accepted, and which of them passed."""
        cells = (forest.evidence[tried], _bins(forest)[tried])
        np.add.at(self._tried, cells, 1)
        np.add.at(self._accepted, cells, passed[tried])
        old = self._tried > _MEMORY
        self._tried[old] /= 2
        self._accepted[old] /= 2


def worthwhile(
    probabilities: NDArray[np.float64],
    emitting: int,
    rows: int,
    cost: Callable[[NDArray[np.int64]], NDArray[np.float64]],
) -> NDArray[np.bool_]:
    """The nodes that a step should verify.

    Args:
        probabilities: ``[n]`` of being accepted with all ancestors; a node's is at most its parent's.
        emitting: sequences that emit a token in this step whatever is drafted.
        rows: rows of the step without draft nodes: a token for each of those, and chunks of prompts.
        cost: seconds of steps, by rows.

    Returns:
        ``[n]`` bool, closed under parents.
    """
    order = np.argsort(-probabilities, kind="stable")  # stable: a parent stays before its equally probable child
    expected = emitting + np.concatenate([[0.0], np.cumsum(probabilities[order])])
    counts = np.arange(len(order) + 1)
    # Tokens per second as if no prompt were read besides: what a second is worth.
    rate = (expected / cost(emitting + counts)).max()
    gain = expected - rate * cost(rows + counts)
    kept = np.zeros(len(probabilities), np.bool_)
    kept[order[: int(gain.argmax())]] = True
    return kept


def _bins(forest: Forest) -> NDArray[np.int64]:
    return np.minimum((forest.shares * _SHARE_BINS).astype(np.int64), _SHARE_BINS - 1)


@njit(cache=True, nogil=True)
def _multiply_down(parents, rates):  # type: ignore[no-untyped-def]
    product = rates.copy()
    for node in range(len(parents)):
        if parents[node] >= 0:
            product[node] *= product[parents[node]]
    return product
