"""Texts that repeat themselves. Relaxed verification would carry on a loop that the target itself would leave."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from dare_core.storage.machine_code import compiled

#: A text whose last tokens already stand in what it wrote shortly before is looping.
LOOP_TOKENS: Final = 8
LOOP_WINDOW: Final = 256


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
