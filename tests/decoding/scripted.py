"""Draft trees made by hand, and a drafter that grows them by a script."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dare_core.drafts import Context, Forest


def tree(nodes: Sequence[int], parents: Sequence[int]) -> Forest:
    """One tree, as certain of every node as can be."""
    depths: list[int] = []
    for parent in parents:
        depths.append(1 if parent < 0 else depths[parent] + 1)
    n = len(nodes)
    return Forest(
        np.array([0, n], np.int32),
        np.array(nodes, np.int32),
        np.array(parents, np.int32),
        np.array(depths, np.int32),
        np.ones(n, np.float32),
        np.zeros(n, np.int16),
    )


class Scripted:
    """A drafter whose trees come from ``grow``: nodes and parents, from the group and the output so far."""

    evidence_kinds = 1
    own_evidence = np.zeros(1, np.bool_)

    def __init__(self, grow: Callable[[str, list[int], int], tuple[list[int], list[int]]]) -> None:
        self._grow = grow
        self.learned: list[tuple[list[int], list[bool]]] = []

    def resolve(self, group: str) -> str | None:
        return group

    def draft(self, contexts: Sequence[Context], max_nodes: int) -> Forest:
        return joined([tree(*self._grow(c.group, c.output.tolist(), max_nodes)) for c in contexts])

    def learn(self, context: Context, trusted: NDArray[np.bool_]) -> None:
        self.learned.append((context.output.tolist(), trusted.tolist()))


def joined(forests: Sequence[Forest]) -> Forest:
    offsets = np.cumsum([0, *(len(forest) for forest in forests)])
    parents = [
        np.where(forest.parents < 0, -1, forest.parents + offset)
        for forest, offset in zip(forests, offsets, strict=False)
    ]
    return Forest(
        offsets.astype(np.int32),
        np.concatenate([forest.tokens for forest in forests]),
        np.concatenate(parents).astype(np.int32),
        np.concatenate([forest.depths for forest in forests]),
        np.concatenate([forest.shares for forest in forests]),
        np.concatenate([forest.evidence for forest in forests]),
    )


def noisy(continuations: dict[str, list[int]], vocabulary: int, seed: int = 3) -> Scripted:
    """Trees that hold the right continuation among wrong branches, so that every kind of path is walked."""
    random = np.random.default_rng(seed)

    def grow(group: str, output: list[int], max_nodes: int) -> tuple[list[int], list[int]]:
        right = continuations[group][len(output) :]
        nodes: list[int] = []
        parents: list[int] = []
        spine = -1
        for depth in range(random.integers(0, 6)):
            if depth >= len(right) or len(nodes) + 3 > max_nodes:
                break
            siblings = [int(token) for token in random.choice(vocabulary, 2, replace=False)]
            children = [token for token in siblings if token != right[depth]]
            children.insert(int(random.integers(0, len(children) + 1)), right[depth])
            first = len(nodes)
            nodes += children
            parents += [spine] * len(children)
            spine = first + children.index(right[depth])
            if random.random() < 0.2:  # a tree whose right branch breaks off
                nodes[spine] = (nodes[spine] + 1) % vocabulary
        return nodes, parents

    return Scripted(grow)
