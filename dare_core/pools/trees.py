"""From matches to a draft tree: longest suffix first, most frequent continuations first."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from dare_core.drafts import EMPTY_TREE, DraftTree
from dare_core.pools.index import START, SuffixIndex

#: The longest branch of a draft tree (paper: 12).
MAX_DEPTH: Final = 12
#: What a continuation after a shorter match, or from a further index, is worth beside one from the match before.
DISCOUNT: Final = 0.5

Path = tuple[int, ...]


def cut_tree(indexes: Iterable[SuffixIndex], context: Sequence[int], max_nodes: int) -> DraftTree:
    """The draft tree that continues ``context``.

    Each index is asked for the longest suffix of ``context`` that it holds, and while nodes are left for ever
    shorter ones (half the length each time), before the next index is.

    Args:
        indexes: the group's own first.
        context: the text so far, from :data:`~dare_core.pools.index.START` on if it is all there.
        max_nodes: nodes of the tree at most.
    """
    paths: dict[Path, float] = {}
    weight = 1.0
    for index in indexes:
        length = index.longest_match(context)
        while length and len(paths) < max_nodes:
            for path, share in _frequent_paths(index, context[-length:], max_nodes):
                if len(paths) < max_nodes and (len(path) == 1 or path[:-1] in paths):
                    paths.setdefault(path, weight * share)
            weight *= DISCOUNT
            length //= 2
        if len(paths) >= max_nodes:
            break
    return _as_tree(paths)


def _frequent_paths(index: SuffixIndex, pattern: Sequence[int], max_paths: int) -> list[tuple[Path, float]]:
    """The most frequent continuations as (path, share of occurrences), every path behind its own prefixes."""
    following = index.continuations(pattern, MAX_DEPTH)
    counts: Counter[Path] = Counter()
    for row in following.tolist():
        end = row.index(START) if START in row else len(row)
        for depth in range(1, end + 1):
            counts[tuple(row[:depth])] += 1
    ranked = sorted(counts.items(), key=lambda entry: (-entry[1], len(entry[0]), entry[0]))
    return [(path, count / len(following)) for path, count in ranked[:max_paths]]


def _as_tree(paths: dict[Path, float]) -> DraftTree:
    if not paths:
        return EMPTY_TREE
    numbers = {path: number for number, path in enumerate(paths)}
    return DraftTree(
        tokens=np.fromiter((path[-1] for path in paths), np.int32, len(paths)),
        parents=np.fromiter((numbers.get(path[:-1], -1) for path in paths), np.int32, len(paths)),
        probabilities=np.fromiter(paths.values(), np.float32, len(paths)),
    )
