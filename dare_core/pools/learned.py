"""Texts finished in this run: a bounded memory that costs microseconds to add to and to search."""

from typing import Final, NamedTuple

import numpy as np
from numba import carray  # type: ignore[attr-defined]
from numpy.typing import NDArray

from dare_core.pools.addresses import pointer
from dare_core.pools.index import START
from dare_core.storage.machine_code import compiled

#: Pairs of tokens are hashed to one of so many places.
_PLACES: Final = 1 << 15


class LinkedTexts(NamedTuple):
    """Texts as one token array, in which equal pairs of neighbouring tokens are linked.

    Attributes:
        tokens: ``[n]`` int32, every text preceded by :data:`~dare_core.pools.index.START`.
        previous: ``[n]`` int32: where a pair of the same hash ends before, -1 for nowhere.
        latest: ``[places]`` int32: where the last pair of each hash ends, -1 for nowhere.
    """

    tokens: NDArray[np.int32]
    previous: NDArray[np.int32]
    latest: NDArray[np.int32]


#: A memory by address, as compiled code gets it: the arrays of :class:`LinkedTexts`, and how far they are valid.
LEARNED_ROW: Final = np.dtype(
    [
        ("tokens", np.uint64),
        ("previous", np.uint64),
        ("latest", np.uint64),
        ("capacity", np.int64),
        ("end", np.int64),
    ],
    align=True,
)


class LearnedTexts:
    """The latest texts of a run.

    Attributes:
        row: ``[1]`` :data:`LEARNED_ROW`, kept up to date in place.

    Args:
        capacity: tokens to remember. When they are full, the older half is forgotten.
    """

    def __init__(self, capacity: int) -> None:
        self._linked = LinkedTexts(
            np.empty(capacity, np.int32), np.empty(capacity, np.int32), np.empty(_PLACES, np.int32)
        )
        self._linked.latest.fill(-1)
        self._end = 0
        addresses = (array.ctypes.data for array in self._linked)
        self.row = np.array([(*addresses, capacity, 0)], LEARNED_ROW)

    def add(self, text: NDArray[np.int32]) -> None:
        """Remember ``text`` (``[t]`` int32), or as much as fits."""
        tokens = self._linked.tokens
        half = len(tokens) // 2
        text = np.concatenate([[START], text])[:half]
        if self._end + len(text) > len(tokens):
            tokens[:half] = tokens[self._end - half : self._end].copy()
            self._linked.latest.fill(-1)
            self._end = half
            _link(self._linked, 0, half)
        tokens[self._end : self._end + len(text)] = text
        _link(self._linked, self._end, self._end + len(text))
        self._end += len(text)
        self.row["end"] = self._end


@compiled
def linked_texts(row: NDArray[np.void]) -> tuple[LinkedTexts, int]:
    """The memory of a row (``[1]`` :data:`LEARNED_ROW`), and how far it is valid."""
    one = row[0]
    return LinkedTexts(
        carray(pointer(one.tokens), (one.capacity,), np.int32),
        carray(pointer(one.previous), (one.capacity,), np.int32),
        carray(pointer(one.latest), (_PLACES,), np.int32),
    ), one.end


@compiled
def find_linked(texts: LinkedTexts, end: int, context: NDArray[np.int32], most: int) -> NDArray[np.int32]:
    """Where the last tokens of a context occur, at least two of them or a text's beginning, the latest first.

    Args:
        texts: valid up to ``end``.
        context: ``[c]`` int32.
        most: occurrences to look at.

    Returns:
        ``[n, 2]`` int32: where what follows begins, and how many tokens match before.
    """
    found = np.empty((most, 2), np.int32)
    n, last = 0, len(context) - 1
    i = texts.latest[_hash(context[last - 1] if last else START, context[last])] if end else -1
    for _ in range(most):  # those of another pair with the same hash included
        if i < 0:
            break
        match = 0
        while match <= min(last, i) and texts.tokens[i - match] == context[last - match]:
            match += 1
        if match >= min(2, len(context)):
            found[n, 0], found[n, 1] = i + 1, match
            n += 1
        i = texts.previous[i]
    return found[:n]


@compiled
def _link(texts: LinkedTexts, begin: int, end: int) -> None:
    """Link the pairs that end in ``tokens[begin:end]``; all before are linked."""
    for i in range(begin, end):
        place = _hash(texts.tokens[i - 1] if i else START, texts.tokens[i])
        texts.previous[i] = texts.latest[place]
        texts.latest[place] = i


@compiled
def _hash(before: int, token: int) -> int:
    if token == START:  # what stood before a text is not part of it
        before = START
    return (before * 40503 + token * 30011) & (_PLACES - 1)
