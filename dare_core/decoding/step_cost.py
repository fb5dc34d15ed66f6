"""What a step costs, by its rows: measured when an engine starts, and corrected by every step made since."""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dare_core.decoding.kv_cache import KVCache

#: Rows of the forward passes that are timed when an engine starts.
_MEASURED_ROWS: Final = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
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


def measure_step_cost(cache: KVCache, step: Callable[[NDArray[np.int64]], float]) -> StepCost:
    """Time steps of several sizes on an empty cache, of which a stretch is taken for committed; empty again afterwards.

    Args:
        cache: the engine's.
        step: makes a step in which so many rows ``[s]`` go to each of the first ``s`` slots, and returns its seconds.
    """
    slots, committed = len(cache.lengths), cache.capacity // 2
    sizes = [rows for rows in _MEASURED_ROWS if rows <= slots * (cache.capacity - committed)]

    def seconds(rows: int) -> float:
        each = np.full(min(slots, rows), rows // min(slots, rows))
        each[: rows % len(each)] += 1
        return step(each)

    cache.lengths[:] = committed
    seconds(sizes[-1])  # warm-up
    cost = StepCost.measure(seconds, sizes)
    for slot in range(slots):
        cache.wipe(slot)
    return cost
