"""Thousands of byte strings, looked for in one pass.

Each string has an anchor, eight, four, two or one bytes of it that few others share. The bytes are looked through for
anchors; where one stands, its strings are compared.
"""

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from dare_core.storage.machine_code import compiled

_WIDTHS: Final = (8, 4, 2, 1)
#: Of longer words every so many windows may become the anchor.
_SHORT: Final = 64
_STRIDE: Final = 16
#: Anchors are looked up where a bit says that their hash may be one; a multiple of the golden ratio mixes it.
_FILTER_BITS: Final = 18
_MIX: Final = 0x9E3779B97F4A7C15


class Words:
    """Byte strings to be found.

    Args:
        words: none is empty; the same one twice counts once.

    Attributes:
        words: in the order by which :meth:`find` numbers them.
    """

    def __init__(self, words: Iterable[bytes]) -> None:
        unordered = sorted(set(words) - {b""})
        width = {word: next(wide for wide in _WIDTHS if len(word) >= wide) for word in unordered}
        anchors, self.words = list[NDArray[np.uint64]](), list[bytes]()
        offsets, ends = list[NDArray[np.int64]](), [0]
        self._widths = np.array([wide for wide in _WIDTHS if wide in width.values()], np.int64)
        self._filter = np.zeros((len(self._widths), 1 << _FILTER_BITS), np.bool_)
        for row, wide in enumerate(self._widths):
            mine = [word for word in unordered if width[word] == wide]
            values, at = _rarest(mine, int(wide))
            order = np.argsort(values, kind="stable")
            anchors.append(values[order])
            offsets.append(at[order])
            self.words += [mine[k] for k in order]
            ends.append(len(self.words))
            self._filter[row, (values * np.uint64(_MIX)) >> np.uint64(64 - _FILTER_BITS)] = True
        self._anchors = np.concatenate([*anchors, np.empty(0, np.uint64)])
        self._offsets = np.concatenate([*offsets, np.empty(0, np.int64)])
        self._ends = np.array(ends, np.int64)
        self._starts = np.cumsum([0, *map(len, self.words)]).astype(np.int64)
        self._bytes = np.frombuffer(b"".join(self.words), np.uint8)

    def find(self, data: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where words begin in some bytes, and which they are, every occurrence of each; by where they are found."""
        if not self.words or not data:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        room = 1024
        while True:
            found = np.empty((2, room), np.int64)
            count = _find(
                np.frombuffer(data, np.uint8), self._widths, self._filter, self._anchors, self._ends, self._offsets,
                self._starts, self._bytes, found,
            )  # fmt: skip
            if count <= room:
                return found[0, :count], found[1, :count]
            room = int(count)


def _rarest(words: list[bytes], wide: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Of each word, the window of so many bytes that the fewest words' windows equal: its value and its offset.

    Of long words only every so many windows are candidates: what they begin with alike is at one offset in all of them.
    """
    strides = [1 if len(word) <= _SHORT else _STRIDE for word in words]
    windows = [_windows(np.frombuffer(word, np.uint8), wide, step) for word, step in zip(words, strides, strict=True)]
    _, which, counts = np.unique(np.concatenate(windows), return_inverse=True, return_counts=True)
    shared = counts[which]
    ends = np.cumsum([len(one) for one in windows])
    best = [int(part.argmin()) for part in np.split(shared, ends[:-1])]
    values = np.array([one[at] for one, at in zip(windows, best, strict=True)], np.uint64)
    return values, np.array(best, np.int64) * np.array(strides, np.int64)


def _windows(data: NDArray[np.uint8], wide: int, step: int) -> NDArray[np.uint64]:
    """The values of every so many runs of ``wide`` bytes, the first byte the highest."""
    runs = sliding_window_view(data, wide)[::step]
    values = np.zeros(len(runs), np.uint64)
    for k in range(wide):
        values = (values << np.uint64(8)) | runs[:, k]
    return values


@compiled
def _find(
    data: NDArray[np.uint8],
    widths: NDArray[np.int64],
    anchored: NDArray[np.bool_],
    anchors: NDArray[np.uint64],
    ends: NDArray[np.int64],
    offsets: NDArray[np.int64],
    starts: NDArray[np.int64],
    words: NDArray[np.uint8],
    found: NDArray[np.int64],
) -> int:
    """Write where words begin, and which, as far as there is room; returns how many there are."""
    count, last = 0, np.uint64(0)
    for i in range(len(data)):
        last = (last << np.uint64(8)) | np.uint64(data[i])
        for row in range(len(widths)):
            wide = widths[row]
            if i + 1 < wide:
                continue
            value = last & (np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(64 - 8 * wide))
            if not anchored[row, (value * np.uint64(_MIX)) >> np.uint64(64 - _FILTER_BITS)]:
                continue
            low, high = ends[row], ends[row + 1]
            while low < high:
                middle = (low + high) // 2
                if anchors[middle] < value:
                    low = middle + 1
                else:
                    high = middle
            while low < ends[row + 1] and anchors[low] == value:
                begin, size = i + 1 - wide - offsets[low], starts[low + 1] - starts[low]
                if begin >= 0 and begin + size <= len(data):
                    k = 0
                    while k < size and data[begin + k] == words[starts[low] + k]:
                        k += 1
                    if k == size:
                        if count < found.shape[1]:
                            found[0, count], found[1, count] = begin, low
                        count += 1
                low += 1
    return count
