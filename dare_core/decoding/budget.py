"""How many draft nodes a step is worth, and which (DESIGN.md 8).

A step over ``r`` rows takes ``cost(r)`` seconds, measured when the engine starts. A draft node adds its probability of
being accepted to the expected tokens and its row to the cost. Nodes are taken best first over all sequences, as long as
they bring more tokens than their seconds bring on average; where none does, nothing is drafted.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dare_core.drafts import Forest
from dare_core.storage.machine_code import compiled

#: A drafter's shares are calibrated apart in so many equal bins.
_SHARE_BINS: Final = 10
#: Observations that a drafter's own estimate is worth.
_PRIOR: Final = 6.0
#: How much a step's tokens and seconds count at the next one, where it is asked what a second brings on average.
_FADING: Final = 0.97
#: Old observations count for less: a count is halved when it reaches this.
_MEMORY: Final = 20_000.0
#: A step moves the costs of its size by this share of what they are off by, and those of a size e to the power of
#: :data:`_LIKENESS` times as large by a third of that. One that is off by more than :data:`_OUTLIER` counts as that.
_RATE: Final = 0.1
_LIKENESS: Final = 1.0
_OUTLIER: Final = 1.5


class StepCost:
    """Seconds of a forward pass by its number of rows, linear between the sizes that were measured.

    Measured on an idle engine and corrected by every step that is really made, so that a disturbed measurement, longer
    texts or a busier machine do not mislead for long.

    Attributes:
        rows: ``[m]`` ascending.
        seconds: ``[m]`` never falling.
    """

    def __init__(self, rows: NDArray[np.float64], seconds: NDArray[np.float64]) -> None:
        self.rows, self.seconds = rows, seconds

    @classmethod
    def measure(cls, step: Callable[[int], float], rows: Sequence[int], repeats: int = 4) -> "StepCost":
        """Time ``step(rows)``, which returns seconds, at several sizes in turn; the least of ``repeats`` counts.

        Whatever else the machine does only adds to a time.
        """
        least = np.min([[step(n) for n in rows] for _ in range(repeats)], axis=0)
        return cls(np.array(rows, np.float64), np.maximum.accumulate(least))

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from a step: sizes like it the most, all others a little."""
        expected = float(self(np.array([rows]))[0])
        error = np.log(np.clip(seconds / expected, 1 / _OUTLIER, _OUTLIER))
        likeness = np.exp(-np.abs(np.log(self.rows / rows)) / _LIKENESS)
        corrected: NDArray[np.float64] = self.seconds * np.exp(_RATE * error * likeness)
        # Where costs would fall with size, those nearest to what was seen are right.
        nearest = int(likeness.argmax())
        corrected[: nearest + 1] = np.minimum.accumulate(corrected[nearest::-1])[::-1]
        corrected[nearest:] = np.maximum.accumulate(corrected[nearest:])
        self.seconds = corrected

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


class Budget:
    """Which nodes steps should verify, one step after another.

    A second is worth what it brought in the steps of late, rather than the most that the step at hand can make of it:
    tokens per second are highest where all steps are held to the one rate that they come to (renewal-reward theorem).
    Hard guesses then leave their rows to easy ones, of this text's later steps too.
    """

    def __init__(self) -> None:
        self._tokens, self._seconds = 0.0, 0.0

    def choose(
        self,
        probabilities: NDArray[np.float64],
        emitting: int,
        rows: int,
        cost: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    ) -> NDArray[np.bool_]:
        """See :func:`worthwhile`, of a step that is then made."""
        rate = self._tokens / self._seconds if self._seconds else None
        kept = worthwhile(probabilities, emitting, rows, cost, rate)
        self._tokens = _FADING * self._tokens + emitting + float(probabilities[kept].sum())
        self._seconds = _FADING * self._seconds + float(cost(np.array([emitting + int(kept.sum())]))[0])
        return kept


def worthwhile(
    probabilities: NDArray[np.float64],
    emitting: int,
    rows: int,
    cost: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    rate: float | None = None,
) -> NDArray[np.bool_]:
    """The nodes that a step should verify.

    Args:
        probabilities: ``[n]`` of being accepted with all ancestors; a node's is at most its parent's.
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


def _bins(forest: Forest) -> NDArray[np.int64]:
    return np.minimum((forest.shares * _SHARE_BINS).astype(np.int64), _SHARE_BINS - 1)


@compiled
def _multiply_down(parents, rates):  # type: ignore[no-untyped-def]
    product = rates.copy()
    for node in range(len(parents)):
        if parents[node] >= 0:
            product[node] *= product[parents[node]]
    return product
