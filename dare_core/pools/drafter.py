"""Draft trees from a pool, from the text itself, and from texts finished in the same run (paper section 4.1)."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dare_core.drafts import Context, Forest
from dare_core.pools.addresses import MAPPED
from dare_core.pools.learned import LearnedTexts
from dare_core.pools.manifest import GLOBAL_GROUP
from dare_core.pools.occurrences import EVIDENCE_KINDS, OWN_EVIDENCE
from dare_core.pools.reader import Pool
from dare_core.pools.segments import MOST_SEGMENTS
from dare_core.pools.trees import Workspace, addresses_of, grow_trees

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
    """

    evidence_kinds = EVIDENCE_KINDS
    own_evidence = OWN_EVIDENCE

    def __init__(
        self,
        pool: Pool | None,
        learned_tokens: int = 65_536,
        use_own_text: bool = True,
        use_global: bool = True,
        grouped: bool = True,
    ) -> None:
        self._pool = pool
        self._use_own_text = use_own_text
        self._use_global = use_global
        self._grouped = grouped
        self._learned = LearnedTexts(learned_tokens)
        self._segments = _NO_SEGMENTS
        self._known = addresses_of(self._learned, self._segments)
        self._areas: dict[str, tuple[int, int, int, int]] = {}
        self._workspace = Workspace(2 * MOST_SEGMENTS)

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
        jobs = np.array(
            [(context.length, context.prompt_length, *self._area(context.group)) for context in contexts], np.int64
        ).reshape(-1, 6)
        texts = [context.tokens[: context.length] for context in contexts]
        most = len(texts) * max_nodes
        nodes, shares, evidence = np.empty((3, most), np.int32), np.empty(most, np.float32), np.empty(most, np.int16)
        offsets = np.zeros(len(texts) + 1, np.int32)
        grow_trees(
            texts[0] if len(texts) == 1 else np.concatenate([*texts, _NO_TOKENS]),
            jobs,
            self._use_own_text,
            self._known,
            self._workspace.addresses,
            nodes,
            shares,
            evidence,
            offsets[1:],
            max_nodes,
        )
        end = int(offsets[-1])
        tokens, parents, depths = nodes[:, :end]
        return Forest(offsets, tokens, parents, depths, shares[:end], evidence[:end])

    def learn(self, context: Context, trusted: NDArray[np.bool_]) -> None:
        """Remember a finished text, tokens that passed by relaxation included."""
        self._learned.add(context.output)

    def _area(self, group: str) -> tuple[int, int, int, int]:
        """Where the segments of the group, and of all groups, stand among the pool's; 0, 0 where none is searched."""
        if group not in self._areas:
            first, end, first_of_all, end_of_all = self._areas[group] = self._find_area(group)
            if self._pool is not None:
                self._segments = self._pool.segments  # those mapped since are behind those known before
                self._known = addresses_of(self._learned, self._segments)
            searched = end - first + end_of_all - first_of_all
            if searched > self._workspace.segments:
                self._workspace = Workspace(searched)
        return self._areas[group]

    def _find_area(self, group: str) -> tuple[int, int, int, int]:
        found = self.resolve(group)
        if self._pool is None or found is None:
            return 0, 0, 0, 0
        everything = self._pool.area(GLOBAL_GROUP)
        if found == GLOBAL_GROUP:
            return 0, 0, *everything
        return *self._pool.area(found), *(everything if self._use_global else (0, 0))
