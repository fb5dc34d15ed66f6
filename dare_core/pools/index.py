"""The immutable index of one group's texts: longest-suffix match, then the tree of what followed.

A truncated suffix array over the texts' tokens: suffixes are ordered by their first :data:`MAX_MATCH` tokens, which
is as far as any search looks. Every text is preceded by :data:`START`, so that a search can also ask how texts begin.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

#: Stands before every text; never a token id.
START: Final = -1
#: The longest suffix of a sequence that is searched for.
MAX_MATCH: Final = 16
#: Occurrences of a match that a draft tree is counted from, evenly spread over all of them.
MAX_OCCURRENCES: Final = 64


@dataclass(frozen=True, eq=False)
class SuffixIndex:
    """Texts as one token array, and the order of its suffixes.

    Attributes:
        tokens: ``[n]`` int32, every text preceded by :data:`START`.
        suffixes: ``[n]`` int32, positions in ``tokens``, ordered by the :data:`MAX_MATCH` tokens that begin there.
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
        return cls(tokens, _sort_suffixes(tokens))

    def find(self, pattern: Sequence[int]) -> tuple[int, int]:
        """The range of ``suffixes`` that begin with ``pattern``, which has at most :data:`MAX_MATCH` tokens."""
        return self._bound(pattern, after=False), self._bound(pattern, after=True)

    def _bound(self, pattern: Sequence[int], after: bool) -> int:
        wanted, n = tuple(pattern), len(pattern)
        low, high = 0, len(self.suffixes)
        while low < high:
            middle = (low + high) // 2
            position = self.suffixes[middle]
            found = tuple(self.tokens[position : position + n].tolist())
            if found < wanted or (after and found == wanted):
                low = middle + 1
            else:
                high = middle
        return low

    def longest_match(self, tokens: Sequence[int]) -> int:
        """How many of the last :data:`MAX_MATCH` ``tokens`` occur here in a row, as a suffix."""
        # When a suffix occurs every shorter one does, so the length can be bisected.
        low, high = 0, min(MAX_MATCH, len(tokens))
        while low < high:
            middle = (low + high + 1) // 2
            first, last = self.find(tokens[-middle:])
            low, high = (middle, high) if last > first else (low, middle - 1)
        return low

    def continuations(self, pattern: Sequence[int], depth: int) -> NDArray[np.int32]:
        """What followed ``pattern``: ``[occurrences, depth]`` tokens, :data:`START` from where a text ends."""
        first, last = self.find(pattern)
        rows = np.linspace(first, last - 1, min(last - first, MAX_OCCURRENCES)).round().astype(np.int64)
        positions = self.suffixes[rows][:, None] + len(pattern) + np.arange(depth)
        inside = positions < len(self.tokens)
        following = np.where(inside, self.tokens[np.where(inside, positions, 0)], START)
        ended = np.maximum.accumulate(following == START, axis=1)
        return np.where(ended, START, following).astype(np.int32)


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
