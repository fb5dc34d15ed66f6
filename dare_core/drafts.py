"""Draft trees: what a drafter proposes and the engine verifies. The only ground that decoding and pools share.

A draft tree continues one sequence. Each node holds a token; its parent is an earlier node, or the sequence's last
committed token, the root, which is no node itself. Children of one parent hold distinct tokens. One forward pass scores
every node (paper section 4.2). The trees of all sequences of a step stand side by side in one :class:`Forest`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(eq=False)
class Context:
    """A text so far, as a drafter sees it. The engine appends to it in place.

    Attributes:
        group: the group of users or items that the text belongs to.
        tokens: ``[capacity]`` int32: prompt, then output; valid up to ``length``.
        prompt_length: tokens of the prompt.
        length: tokens of prompt and output together.
    """

    group: str
    tokens: NDArray[np.int32]
    prompt_length: int
    length: int

    @property
    def output(self) -> NDArray[np.int32]:
        """``[length - prompt_length]`` int32: the new tokens, a view."""
        return self.tokens[self.prompt_length : self.length]


@dataclass(frozen=True, eq=False)
class Forest:
    """The draft trees of ``s`` sequences, ``n`` nodes together.

    Attributes:
        offsets: ``[s + 1]`` int32: tree *i* is the nodes ``offsets[i]`` up to ``offsets[i + 1]``.
        tokens: ``[n]`` int32: the token of each node.
        parents: ``[n]`` int32: the parent's place in the forest, before the node's own and in the same tree; -1 for the
            root's children.
        depths: ``[n]`` int32: 1 for the root's children, one more for each generation.
        shares: ``[n]`` float32 in (0, 1]: the drafter's estimate that the node follows once its parent has.
        evidence: ``[n]`` int16: what kind of evidence the estimate rests on, below the drafter's ``evidence_kinds``.
            Estimates of one kind are equally trustworthy; the engine learns how much.
    """

    offsets: NDArray[np.int32]
    tokens: NDArray[np.int32]
    parents: NDArray[np.int32]
    depths: NDArray[np.int32]
    shares: NDArray[np.float32]
    evidence: NDArray[np.int16]

    @classmethod
    def empty(cls, sequences: int) -> "Forest":
        """``sequences`` trees without nodes."""
        return cls.of_leaves(np.zeros(sequences, np.int64))

    @classmethod
    def of_leaves(cls, sizes: NDArray[np.int64]) -> "Forest":
        """Trees of ``sizes`` nodes, all of them children of their root and of token 0: rows to measure with."""
        n = int(sizes.sum())
        return cls(
            np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32),
            np.zeros(n, np.int32),
            np.full(n, -1, np.int32),
            np.ones(n, np.int32),
            np.ones(n, np.float32),
            np.zeros(n, np.int16),
        )

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def sizes(self) -> NDArray[np.int32]:
        """``[s]`` int32: nodes of each tree."""
        return np.diff(self.offsets)

    @cached_property
    def trees(self) -> NDArray[np.int32]:
        """``[n]`` int32: which tree each node belongs to."""
        return np.repeat(np.arange(len(self.offsets) - 1, dtype=np.int32), self.sizes)

    def spread(self, places: NDArray[np.bool_]) -> "Forest":
        """The same trees as the True ones of ``places``, with empty trees between them."""
        sizes = np.zeros(len(places), np.int32)
        sizes[places] = self.sizes
        return replace(self, offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32))

    def keep(self, kept: NDArray[np.bool_]) -> "Forest":
        """The forest of the nodes ``kept`` (``[n]`` bool), among which is the parent of each of them."""
        if kept.all():
            return self
        moved_to = np.cumsum(kept, dtype=np.int32) - 1
        parents = self.parents[kept]
        return Forest(
            np.concatenate([[0], np.cumsum(kept, dtype=np.int32)]).astype(np.int32)[self.offsets],
            self.tokens[kept],
            np.where(parents < 0, -1, moved_to[parents]).astype(np.int32),
            self.depths[kept],
            self.shares[kept],
            self.evidence[kept],
        )


class Drafter(Protocol):
    """Where draft trees come from.

    Attributes:
        evidence_kinds: how many kinds of evidence there are.
        own_evidence: ``[evidence_kinds]`` bool: the kinds that rest on the text itself, its prompt or its output. What
            is drafted on these never passes by relaxation: a text relaxed towards itself repeats itself, or its prompt.
    """

    evidence_kinds: int
    own_evidence: NDArray[np.bool_]

    def resolve(self, group: str) -> str | None:
        """The group that texts of ``group`` are drafted from: itself, the global pool ``*``, or None for no pool."""
        ...

    def draft(self, contexts: Sequence[Context], max_nodes: int) -> Forest:
        """Continue each text by a tree of at most ``max_nodes`` nodes."""
        ...

    def learn(self, context: Context, trusted: NDArray[np.bool_]) -> None:
        """Take in a finished text, for drafts to come.

        Args:
            context: the finished text.
            trusted: ``[length - prompt_length]`` bool, False where an output token passed by relaxation alone.
        """
        ...
