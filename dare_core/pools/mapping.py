"""Indexes by address, so that one compiled call can search any number of segments.

Compiled code cannot loop over a Python list of arrays without Python's lock, so the arrays of a pool's segments are
handed over as rows of addresses. Whoever makes the rows keeps the arrays alive for as long as the rows are used.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numba import carray  # type: ignore[attr-defined]
from numpy.typing import NDArray

from dare_core.pools.index import STRIDE, ContextIndex
from dare_core.pools.memory import pointer
from dare_core.storage.machine_code import compiled

#: The arrays of one :class:`~dare_core.pools.index.ContextIndex`.
MAPPED: Final = np.dtype(
    [
        ("tokens", np.uint64),
        ("order", np.uint64),
        ("keys", np.uint64),
        ("length", np.int64),
        ("key_tokens", np.int64),
    ],
    align=True,
)


def rows_of(indexes: Sequence[ContextIndex]) -> NDArray[np.void]:
    """A row of :data:`MAPPED` for each index."""
    rows = np.empty(len(indexes), MAPPED)
    for row, index in zip(rows, indexes, strict=True):
        addresses = (array.ctypes.data for array in (index.tokens, index.order, index.keys))
        row["tokens"], row["order"], row["keys"] = addresses
        row["length"], row["key_tokens"] = len(index.order), index.key_tokens
    return rows


@compiled
def mapped(rows: NDArray[np.void], k: int) -> ContextIndex:
    """The index of a row."""
    row = rows[k]
    n = row.length
    return ContextIndex(
        carray(pointer(row.tokens), (n,), np.int32),
        carray(pointer(row.order), (n,), np.int32),
        carray(pointer(row.keys), ((n + STRIDE - 1) // STRIDE,), np.uint64),
        row.key_tokens,
    )
