"""The immutable index of one group's texts: where does a sequence of tokens occur?

A truncated suffix array over the texts' tokens: suffixes are ordered by their first :data:`MAX_MATCH` tokens, which
is as far as any search looks. Every text is preceded by :data:`START`, so that a search can also ask how texts begin.
Searches are compiled: a step of the engine has microseconds for each sequence.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

#: Stands before every text; never a token id.
START: Final = -1
#: The longest suffix of a sequence that is searched for.
MAX_MATCH: Final = 16


#: Compile a function at its first call. The machine code is kept in ``__pycache__`` and holds that of the functions it
#: calls: who edits one of these deletes what is kept of its callers in other files. It runs without Python's lock.
compiled: Final = njit(cache=True, nogil=True)


class SuffixIndex(NamedTuple):
    """Texts as one token array, and the order of its suffixes. Compiled functions take it as it is.

    Attributes:
        tokens: ``[n]`` int32, read-only, every text preceded by :data:`START`.
        suffixes: ``[n]`` int32, read-only, positions in ``tokens``, ordered by the :data:`MAX_MATCH` tokens that begin
            there.
    """

    tokens: NDArray[np.int32]
    suffixes: NDArray[np.int32]

    @classmethod
    def build(cls, texts: Iterable[Sequence[int] | NDArray[np.int32]]) -> "SuffixIndex":
        """Index token id sequences; empty ones are left out."""
        parts: list[NDArray[np.int32]] = []
        start = np.array([START], np.int32)
        for text in texts:
            if len(text):
                parts += [start, np.asarray(text, np.int32)]
        tokens = np.concatenate(parts) if parts else np.empty(0, np.int32)
        suffixes = _sort_suffixes(tokens)
        # As memory-mapped ones are: an array that may be written to is another type, to be compiled for again.
        tokens.flags.writeable = suffixes.flags.writeable = False
        return cls(tokens, suffixes)


@compiled
def find(index: SuffixIndex, pattern: NDArray[np.int32]) -> tuple[int, int]:
    """The range of ``suffixes`` that begin with ``pattern`` (``[m]`` int32, at most :data:`MAX_MATCH` tokens)."""
    first = _bound(index, pattern, 0, False)
    return first, _bound(index, pattern, first, True)


@compiled
def longest_match(index: SuffixIndex, context: NDArray[np.int32]) -> int:
    """How many of the last tokens of ``context`` (``[c]`` int32, ``c`` <= :data:`MAX_MATCH`) occur in a row."""
    # When a suffix occurs every shorter one does, so the length can be bisected.
    low, high = 0, len(context)
    while low < high:
        middle = (low + high + 1) // 2
        first, last = find(index, context[len(context) - middle :])
        low, high = (middle, high) if last > first else (low, middle - 1)
    return low


@compiled
def _bound(index: SuffixIndex, pattern: NDArray[np.int32], low: int, after: bool) -> int:
    """The first of the suffixes from ``low`` on that is not below ``pattern``, or that is beyond all that match it."""
    high = len(index.suffixes)
    while low < high:
        middle = (low + high) // 2
        order = _compare(index.tokens[index.suffixes[middle] :], pattern)
        if order < 0 or (after and order == 0):
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def _compare(tokens: NDArray[np.int32], pattern: NDArray[np.int32]) -> int:
    """-1, 0, or 1: ``tokens`` stand before ``pattern``, begin with it, or stand behind it."""
    for i in range(len(pattern)):
        if i == len(tokens) or tokens[i] < pattern[i]:
            return -1
        if tokens[i] > pattern[i]:
            return 1
    return 0


def _sort_suffixes(tokens: NDArray[np.int32]) -> NDArray[np.int32]:
    """Positions ordered by the MAX_MATCH tokens from there on (prefix doubling); equal ones by position."""
    n = len(tokens)
    order = np.argsort(tokens, kind="stable")
    length = 1
    rank = _ranks(tokens[order], order)
    while length < MAX_MATCH and n and rank[order[-1]] < n - 1:
        following = np.full(n, -1, np.int64)
        following[: n - length] = rank[length:] if length < n else []
        key = rank * (n + 1) + following + 1
        order = np.argsort(key, kind="stable")
        rank = _ranks(key[order], order)
        length *= 2
    return order.astype(np.int32)


def _ranks(keys: NDArray[np.integer], order: NDArray[np.int64]) -> NDArray[np.int64]:
    ranks = np.zeros(len(keys), np.int64)
    ranks[order[1:]] = np.cumsum(keys[1:] != keys[:-1])
    return ranks
