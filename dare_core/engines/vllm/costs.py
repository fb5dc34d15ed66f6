"""What vLLM's steps cost, by the sequences in them and the tokens drafted for these.

A step that verifies drafts takes other kernels than one that does not, so rows alone do not tell its cost, and the two
are learned apart: a step without drafts that was not made for long is known as it was last, and not as steps with them.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dare_core.decoding.step_cost import StepCost

#: A step without drafts moves their cost by this share of what it is off by.
_RATE: Final = 0.1
#: A step that took so many times as long as expected was interrupted by something else, and teaches nothing.
_INTERRUPTED: Final = 4.0


def is_measured(seconds: Mapping[int, float]) -> bool:
    """Whether steps of some sequences are known without drafts and with two numbers of drafted tokens at least."""
    return 0 in seconds and len(seconds) > 2


class SequenceCosts:
    """Of steps of about so many sequences.

    Args:
        seconds: of steps, by drafted tokens; see :func:`is_measured`.
    """

    def __init__(self, seconds: Mapping[int, float]) -> None:
        drafted = sorted(set(seconds) - {0})
        self._plain = seconds[0]
        self._drafting = StepCost(
            np.array(drafted, np.float64), np.maximum.accumulate([seconds[count] for count in drafted])
        )

    def __call__(self, drafted: NDArray[np.int64]) -> NDArray[np.float64]:
        """Seconds of steps with so many drafted tokens."""
        return np.where(drafted > 0, self._drafting(np.maximum(drafted, 1)), self._plain)

    def observe(self, drafted: int, seconds: float) -> None:
        """Learn from a step."""
        ratio = seconds / float(self(np.array([drafted]))[0])
        if ratio > _INTERRUPTED:
            return
        if drafted:
            self._drafting.observe(drafted, seconds)
        else:
            self._plain *= ratio**_RATE


class StepCosts:
    """Of steps of any number of sequences: those of the measured number that is most like it.

    Args:
        seconds: of steps, by sequences and drafted tokens.
    """

    def __init__(self, seconds: Mapping[int, Mapping[int, float]]) -> None:
        self._of = {sequences: SequenceCosts(measured) for sequences, measured in seconds.items()}

    def of(self, sequences: int) -> SequenceCosts:
        """Of steps of so many sequences, at least one."""
        return self._of[min(self._of, key=lambda measured: abs(np.log(measured / sequences)))]
