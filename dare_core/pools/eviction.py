"""Which texts a group's pool gives up: the old ones, and where memory is bounded those that drafts found least in.

How useful a text is, is measured when a pool is built: the newest texts are played against the older ones, and a text
scores the positions at which the longest match, the one that a draft would have begun from, lies in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dare_core.errors import PoolError
from dare_core.pools.index import MAX_MATCH, START, ContextIndex, locate
from dare_core.pools.occurrences import MAX_DEPTH
from dare_core.pools.segments import Segment
from dare_core.storage.machine_code import compiled

#: What a token costs in a segment's file, rows and keys included, at texts of a hundred tokens and more.
BYTES_PER_TOKEN: Final = 9
#: An eviction makes so much room that the next nights need none.
_LEAVE: Final = 0.9
#: Shorter matches are found in any text and say nothing about one.
_LEAST_MATCH: Final = 4
#: Of the newest texts, every so many positions are played.
_EVERY: Final = 4


@dataclass(frozen=True)
class Limits:
    """What a group's pool may hold.

    Attributes:
        group_bytes: bytes of its files at most; None: any number.
        max_age_days: texts written longer ago go; None: none do. Texts whose day is unknown stay.
    """

    group_bytes: int | None = None
    max_age_days: int | None = None

    def __post_init__(self) -> None:
        least = BYTES_PER_TOKEN * (MAX_MATCH + MAX_DEPTH)
        if self.group_bytes is not None and self.group_bytes < least:
            raise PoolError(
                f"a group of {self.group_bytes} bytes cannot hold one context of {MAX_MATCH} tokens and one branch of "
                f"{MAX_DEPTH}; give it {least} at least"
            )
        if self.max_age_days is not None and self.max_age_days < 0:
            raise PoolError(f"max_age_days is {self.max_age_days}; it must not be negative")


def choose(segments: Sequence[Segment], limits: Limits, today: int) -> list[NDArray[np.bool_]]:
    """The texts that a group keeps: ``[texts]`` bool for each of its segments.

    Args:
        segments: the group's, the oldest first.
        limits: what it may hold.
        today: days since 1970.
    """
    rows = np.concatenate([segment.rows for segment in segments])
    keep = np.ones(len(rows), np.bool_)
    if limits.max_age_days is not None:
        keep &= (rows["day"] == 0) | (rows["day"] >= today - limits.max_age_days)
    size = rows["length"] * BYTES_PER_TOKEN
    if limits.group_bytes is not None and size[keep].sum() > limits.group_bytes:
        order = np.lexsort((rows["text"], rows["day"], _usefulness(segments)))[::-1]  # the best first
        order = order[keep[order]]
        fits = np.cumsum(size[order]) <= _LEAVE * limits.group_bytes
        keep[:] = False
        keep[order[fits]] = True
    return np.split(keep, np.cumsum([segment.texts for segment in segments])[:-1])


def _usefulness(segments: Sequence[Segment]) -> NDArray[np.int64]:
    """Hits of each text, those of the newest segment last; these are as useful as the best of the others."""
    *older, newest = segments
    hits = []
    for segment in older:
        starts = np.cumsum(segment.rows["length"] + 1, dtype=np.int64) - segment.rows["length"] - 1
        found = _matched_positions(segment.index, newest.index.tokens)
        hits.append(np.bincount(np.searchsorted(starts, found, "right") - 1, minlength=segment.texts))
    best = max((int(of_one.max(initial=0)) for of_one in hits), default=0)
    return np.concatenate([*hits, np.full(newest.texts, best)])


@compiled
def _matched_positions(index: ContextIndex, tokens: NDArray[np.int32]) -> NDArray[np.int64]:
    """Where the longest matches of some positions of other texts lie, where they are long enough to tell."""
    found, n = np.empty(len(tokens) // _EVERY + 1, np.int64), 0
    for i in range(0, len(tokens), _EVERY):
        begin = i
        while begin > 0 and i - begin < MAX_MATCH - 1 and tokens[begin] != START:
            begin -= 1
        rank, match = locate(index, tokens[begin : i + 1])
        if match >= _LEAST_MATCH:
            for candidate in range(max(0, rank - 1), min(len(index.order), rank + 1)):
                position = index.order[candidate]
                same = 0
                while same < match and position >= same and index.tokens[position - same] == tokens[i - same]:
                    same += 1
                if same == match:
                    found[n] = position
                    n += 1
                    break
    return found[:n]
