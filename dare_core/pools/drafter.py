"""Draft trees from a pool, from the text itself, and from texts finished in the same run (paper section 4.1)."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dare_core.drafts import Context, Forest
from dare_core.pools.index import SuffixIndex
from dare_core.pools.learned import CUT, LearnedTexts
from dare_core.pools.store import GLOBAL_GROUP, Pool
from dare_core.pools.trees import EVIDENCE_KINDS, FOREST_NODE, TRIE_NODE, TRIE_NODES, grow_tree

_EMPTY: Final = SuffixIndex.build([])


class PoolDrafter:
    """A :class:`dare_core.drafts.Drafter` that merges what its sources know into one tree for each text.

    Not to be shared by threads.

    Args:
        pool: earlier texts by group; None drafts from this run's texts alone.
        learned_tokens: tokens of finished texts to remember, of which the older half is forgotten when they are full;
            0 remembers none.
        use_own_text: draft what followed in the prompt and the output so far.
        use_global: search all groups' texts beside those of the text's group.
        grouped: False searches all groups' texts alone.
        learn_relaxed: remember tokens that passed by relaxation too; False cuts learned texts at them.
    """

    evidence_kinds = EVIDENCE_KINDS

    def __init__(
        self,
        pool: Pool | None,
        learned_tokens: int = 65_536,
        use_own_text: bool = True,
        use_global: bool = True,
        grouped: bool = True,
        learn_relaxed: bool = True,
    ) -> None:
        self._pool = pool
        self._use_own_text = use_own_text
        self._use_global = use_global
        self._grouped = grouped
        self._learn_relaxed = learn_relaxed
        self._learned = LearnedTexts(learned_tokens)
        self._trie = np.empty(TRIE_NODES, TRIE_NODE)

    def resolve(self, group: str) -> str | None:
        """The group whose pool is searched first: ``group``, the global pool ``*``, or None where there is none."""
        if self._pool is None:
            return None
        return self._pool.resolve(group if self._grouped else GLOBAL_GROUP)

    def draft(self, contexts: Sequence[Context], max_nodes: int) -> Forest:
        """Continue each text by the likeliest ``max_nodes`` nodes, the likeliest path first.

        Raises:
            PoolError: a group's index cannot be read.
        """
        nodes = np.empty(len(contexts) * max_nodes, FOREST_NODE)
        offsets = np.zeros(len(contexts) + 1, np.int32)
        end = 0
        for i, context in enumerate(contexts):
            group, everything = self._indexes(context.group)
            end = grow_tree(
                context.tokens[: context.length],
                context.prompt_length,
                self._use_own_text,
                self._learned.linked,
                self._learned.end,
                group,
                everything,
                self._trie,
                nodes,
                end,
                max_nodes,
            )
            offsets[i + 1] = end
        columns = ("token", "parent", "depth", "share", "evidence")
        return Forest(offsets, *(np.ascontiguousarray(nodes[column][:end]) for column in columns))

    def learn(self, context: Context, trusted: NDArray[np.bool_]) -> None:
        """Remember a finished text; ``trusted`` (``[length - prompt_length]`` bool) as the protocol has it."""
        self._learned.add(context.output if self._learn_relaxed else np.where(trusted, context.output, np.int32(CUT)))

    def _indexes(self, group: str) -> tuple[SuffixIndex, SuffixIndex]:
        """The group's own index and that of all groups, empty where it is not to be searched."""
        found = self.resolve(group)
        if self._pool is None or found is None:
            return _EMPTY, _EMPTY
        if found == GLOBAL_GROUP:
            return _EMPTY, self._pool.index(GLOBAL_GROUP)
        return self._pool.index(found), self._pool.index(GLOBAL_GROUP) if self._use_global else _EMPTY
