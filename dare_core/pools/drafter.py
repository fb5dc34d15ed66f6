"""Draft trees from a pool, from the text itself, and from texts finished in the same run (paper section 4.1)."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dare_core.drafts import Context, Forest
from dare_core.pools.learned import CUT, LearnedTexts
from dare_core.pools.manifest import GLOBAL_GROUP
from dare_core.pools.mapping import MAPPED
from dare_core.pools.store import MOST_SEGMENTS, Pool
from dare_core.pools.trees import EVIDENCE_KINDS, FOREST_NODE, Workspace, grow_trees

_NO_TOKENS: Final = np.empty(0, np.int32)
_NO_SEGMENTS: Final = np.empty(0, MAPPED)


class PoolDrafter:
    """A :class:`dare_core.drafts.Drafter` that merges what its sources know into one tree for each text.

    All texts of a step are drafted by one compiled call, which does not hold Python's lock. A drafter is not to be
    shared by threads.

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
        self._areas: dict[str, tuple[int, int, int, int]] = {}
        self._work = Workspace.allocate(2 * MOST_SEGMENTS)

    def resolve(self, group: str) -> str | None:
        """The group whose pool is searched first: ``group``, the global pool ``*``, or None where there is none."""
        if self._pool is None:
            return None
        return self._pool.resolve(group if self._grouped else GLOBAL_GROUP)

    def draft(self, contexts: Sequence[Context], max_nodes: int) -> Forest:
        """Continue each text by the likeliest ``max_nodes`` nodes, the likeliest path first.

        Raises:
            PoolError: a group's segments cannot be read.
        """
        areas = [self._area(context.group) for context in contexts]
        texts = [context.tokens[: context.length] for context in contexts]
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum([len(text) for text in texts], out=offsets[1:])
        nodes = np.empty(len(texts) * max_nodes, FOREST_NODE)
        ends = np.zeros(len(texts) + 1, np.int32)
        grow_trees(
            texts[0] if len(texts) == 1 else np.concatenate([*texts, _NO_TOKENS]),
            offsets,
            np.array([context.prompt_length for context in contexts], np.int64),
            self._use_own_text,
            self._learned.linked,
            self._learned.end,
            _NO_SEGMENTS if self._pool is None else self._pool.segments,
            np.array(areas, np.int64).reshape(-1, 4),
            self._work,
            nodes,
            ends[1:],
            max_nodes,
        )
        nodes = nodes[: ends[-1]]
        columns = ("token", "parent", "depth", "share", "evidence")
        return Forest(ends, *(np.ascontiguousarray(nodes[column]) for column in columns))

    def learn(self, context: Context, trusted: NDArray[np.bool_]) -> None:
        """Remember a finished text; ``trusted`` (``[length - prompt_length]`` bool) as the protocol has it."""
        self._learned.add(context.output if self._learn_relaxed else np.where(trusted, context.output, np.int32(CUT)))

    def _area(self, group: str) -> tuple[int, int, int, int]:
        """Where the segments of the group, and of all groups, stand among the pool's; 0, 0 where none is searched."""
        if group not in self._areas:
            self._areas[group] = self._find_area(group)
        return self._areas[group]

    def _find_area(self, group: str) -> tuple[int, int, int, int]:
        found = self.resolve(group)
        if self._pool is None or found is None:
            return 0, 0, 0, 0
        everything = self._pool.area(GLOBAL_GROUP)
        if found == GLOBAL_GROUP:
            return 0, 0, *everything
        return *self._pool.area(found), *(everything if self._use_global else (0, 0))
