"""Draft trees: what a drafter proposes and the engine verifies. The only ground that decoding and pools share.

A draft tree continues one sequence. Node *i* holds a token; its parent is an earlier node, or the sequence's last
committed token (``-1``). Children of one parent hold distinct tokens. One forward pass scores every node (paper
section 4.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class DraftTree:
    """Candidate continuations of one sequence, as a forest rooted at its last committed token.

    Attributes:
        tokens: ``[n]`` int32, the token of each node.
        parents: ``[n]`` int32, the index of each node's parent, less than the node's own; -1 for the root's children.
        probabilities: ``[n]`` float32, the drafter's estimate that the path down to the node is what follows.

    Raises:
        ValueError: the arrays differ in length, or a parent does not come before its child.
    """

    tokens: NDArray[np.int32]
    parents: NDArray[np.int32]
    probabilities: NDArray[np.float32]

    def __post_init__(self) -> None:
        n = len(self.tokens)
        if len(self.parents) != n or len(self.probabilities) != n:
            raise ValueError(
                f"a tree of {n} tokens has {len(self.parents)} parents and {len(self.probabilities)} probabilities"
            )
        if n and not ((self.parents >= -1) & (self.parents < np.arange(n))).all():
            raise ValueError("in a draft tree every parent comes before its child")

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def depths(self) -> NDArray[np.int32]:
        """``[n]`` int32: 1 for the root's children, one more for each generation."""
        depths = np.zeros(len(self), np.int32)
        for node, parent in enumerate(self.parents):
            depths[node] = 1 if parent < 0 else depths[parent] + 1
        return depths

    @cached_property
    def ancestors(self) -> NDArray[np.bool_]:
        """``[n, n]`` bool: row *i* marks node *i* and every node on its path to the root."""
        ancestors = np.eye(len(self), dtype=np.bool_)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                ancestors[node] |= ancestors[parent]
        return ancestors

    def up_to_depth(self, depth: int) -> "DraftTree":
        """The tree without the nodes that lie deeper."""
        kept = self.depths <= depth
        if kept.all():
            return self
        moved_to = np.cumsum(kept) - 1
        parents = np.where(self.parents < 0, -1, moved_to[self.parents])
        return DraftTree(self.tokens[kept], parents[kept].astype(np.int32), self.probabilities[kept])


EMPTY_TREE = DraftTree(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32))


class Drafter(Protocol):
    """Where draft trees come from."""

    def resolve(self, group: str) -> str | None:
        """The group that texts of ``group`` are drafted from: itself, the global pool ``*``, or None for nothing."""
        ...

    def draft(self, group: str, tokens: Sequence[int], max_nodes: int) -> DraftTree:
        """Continue the text that begins with ``tokens`` (its generated part alone) by at most ``max_nodes`` nodes."""
        ...
