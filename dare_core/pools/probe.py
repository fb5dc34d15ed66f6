"""How well the drafts of a pool version would be accepted: texts are replayed against it, without a model.

At each position of a text the drafter drafts a tree, the longest path of it that the text goes on with is accepted, and
one token more is emitted, as strict verification would have it (DESIGN.md decision 9).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dare_core.drafts import Context, Drafter, Forest
from dare_core.pools.drafter import PoolDrafter
from dare_core.pools.manifest import PoolManifest
from dare_core.pools.reader import Pool
from dare_core.pools.segments import Segment, entity_hash
from dare_core.pools.store import PoolStore

#: Texts that are replayed at once.
_BATCH: Final = 256


@dataclass(frozen=True)
class Probe:
    """Texts to replay.

    Attributes:
        texts: ``[t]`` int32 each.
        groups: the texts' groups.
        entities: whom the texts are about. Nothing that a pool holds about these is drafted from, since it may be the
            very texts.
    """

    texts: Sequence[NDArray[np.int32]]
    groups: Sequence[str]
    entities: Sequence[str]


def tokens_per_step(store: PoolStore, manifest: PoolManifest, probe: Probe, nodes: int) -> float:
    """Tokens per step of the probe's texts with draft trees of ``nodes`` nodes from a version (1: no draft helps).

    Raises:
        PoolError: a group's files are missing or damaged.
    """
    pool = _PoolWithout(store, manifest, np.array([entity_hash(entity) for entity in probe.entities], np.uint64))
    steps = sum(replay_steps(PoolDrafter(pool, learned_tokens=0), probe.texts, probe.groups, nodes))
    return sum(map(len, probe.texts)) / steps if steps else 1.0


class _PoolWithout(Pool):
    """An opened version without the texts about some entities, whose hashes are given."""

    def __init__(self, store: PoolStore, manifest: PoolManifest, entities: NDArray[np.uint64]) -> None:
        super().__init__(store, manifest)
        self._entities = entities
        self._kept: dict[str, list[Segment]] = {}

    def group(self, group: str) -> list[Segment]:
        """See :meth:`Pool.group`."""
        if group not in self._kept:
            kept = []
            for segment in super().group(group):
                keep = segment.without(self._entities)
                if keep.all():
                    kept.append(segment)
                elif keep.any():
                    kept.append(Segment.merge([segment], [keep]))
            self._kept[group] = kept
        return self._kept[group]


def replay_steps(drafter: Drafter, texts: Sequence[NDArray[np.int32]], groups: Sequence[str], nodes: int) -> list[int]:
    """The decode steps that each text takes when ``drafter`` drafts ``nodes`` nodes at every one.

    Args:
        drafter: learns nothing here.
        texts: ``[t]`` int32 each; they begin at an empty output, without a prompt.
        groups: the texts' groups.
    """
    steps = [0] * len(texts)
    for begin in range(0, len(texts), _BATCH):
        contexts = {
            i: Context(groups[i], texts[i], 0, 0)
            for i in range(begin, min(begin + _BATCH, len(texts)))
            if len(texts[i])
        }
        while contexts:
            forest = drafter.draft(list(contexts.values()), nodes)
            for (i, context), accepted in zip(list(contexts.items()), _accepted(forest, contexts), strict=True):
                context.length = min(context.length + accepted + 1, len(texts[i]))
                steps[i] += 1
                if context.length == len(texts[i]):
                    del contexts[i]
    return steps


def _accepted(forest: Forest, contexts: dict[int, Context]) -> list[int]:
    """How many nodes of each tree lie on the path that the text goes on with; children of a node differ."""
    deepest = int(forest.depths.max(initial=0))
    follows = np.full((len(contexts), deepest + 1), -1, np.int32)  # a token's column is its depth
    for row, context in zip(follows, contexts.values(), strict=True):
        coming = context.tokens[context.length : context.length + deepest]
        row[1 : len(coming) + 1] = coming
    on_path = np.zeros(len(forest) + 1, np.bool_)
    on_path[-1] = True  # the roots, whose children's parent is -1
    agrees = forest.tokens == follows[forest.trees, forest.depths]
    for depth in range(1, deepest + 1):
        level = np.flatnonzero(forest.depths == depth)
        on_path[level] = agrees[level] & on_path[forest.parents[level]]
    accepted: list[int] = np.bincount(forest.trees[on_path[:-1]], minlength=len(contexts)).tolist()
    return accepted
