"""What else one could draft from, as drafters: a trie of Python objects, and transformers' prompt lookup."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dare_core.drafts import Context, Forest
from dare_core.pools.occurrences import MAX_DEPTH

#: The paper's branches.
_BRANCH: Final = 12
#: The longest suffix that the trie is asked for.
_SUFFIX: Final = 4


class PythonTrie:
    """The paper's reference structure: every branch of 12 tokens in nested dictionaries with counts.

    Args:
        texts: ``[t]`` int32 each.
    """

    evidence_kinds = 1
    own_evidence = np.zeros(1, np.bool_)

    def __init__(self, texts: Sequence[NDArray[np.int32]]) -> None:
        self._root: dict[int, list[Any]] = {}
        for text in texts:
            ids = text.tolist()
            for begin in range(len(ids)):
                children = self._root
                for token in ids[begin : begin + _SUFFIX + _BRANCH]:
                    node = children.get(token)
                    if node is None:
                        node = children[token] = [0, {}]
                    node[0] += 1
                    children = node[1]

    def resolve(self, group: str) -> str | None:
        """There are no groups."""
        return group

    def learn(self, context: Context, trusted: NDArray[np.bool_]) -> None:
        """Nothing is learned."""

    def draft(self, contexts: Sequence[Context], max_nodes: int) -> Forest:
        """The likeliest nodes behind the longest suffix that the trie has."""
        trees = [self._tree(context.output.tolist()[-_SUFFIX:], max_nodes) for context in contexts]
        return forest_of(trees)

    def _tree(self, suffix: list[int], max_nodes: int) -> list[tuple[int, int, int, float]]:
        import heapq

        for begin in range(len(suffix)):
            children: dict[int, list[Any]] | None = self._root
            for token in suffix[begin:]:
                node = children.get(token) if children else None
                children = node[1] if node else None
            if children:
                break
        else:
            return []
        tree: list[tuple[int, int, int, float]] = []
        queue = [(-1.0, 0, -1, 0, 0, children)]
        number = 0
        while queue and len(tree) < max_nodes + 1:
            path, _, parent, depth, token, children = heapq.heappop(queue)
            tree.append((token, parent, depth, -path))
            total = sum(count for count, _ in children.values())
            for token, (count, following) in children.items():
                number += 1
                heapq.heappush(queue, (path * count / total, number, len(tree) - 1, depth + 1, token, following))
        return [(token, parent - 1, depth, path) for token, parent, depth, path in tree[1:]]


class PromptLookup:
    """transformers' prompt lookup, which drafts one branch from the text itself."""

    evidence_kinds = 1
    own_evidence = np.ones(1, np.bool_)

    def __init__(self) -> None:
        from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

        self._generator = PromptLookupCandidateGenerator(
            num_output_tokens=MAX_DEPTH, max_matching_ngram_size=3, max_length=1 << 20
        )

    def resolve(self, group: str) -> str | None:
        """There are no groups."""
        return None

    def learn(self, context: Context, trusted: NDArray[np.bool_]) -> None:
        """Nothing is learned."""

    def draft(self, contexts: Sequence[Context], max_nodes: int) -> Forest:
        """The branch that followed the last tokens earlier in the text."""
        import torch

        trees: list[list[tuple[int, int, int, float]]] = []
        for context in contexts:
            if not context.length:
                trees.append([])
                continue
            ids = torch.from_numpy(context.tokens[: context.length].astype(np.int64))[None]
            candidates, _ = self._generator.get_candidates(ids)
            branch = candidates[0, context.length :].tolist()[:max_nodes]
            trees.append([(token, k - 1, k + 1, 0.5) for k, token in enumerate(branch)])
        return forest_of(trees)


def forest_of(trees: Sequence[Sequence[tuple[int, int, int, float]]]) -> Forest:
    """A forest of trees of (token, parent within the tree, depth, probability of the path)."""
    offsets = np.cumsum([0, *map(len, trees)]).astype(np.int32)
    nodes = [(*node, begin) for tree, begin in zip(trees, offsets.tolist(), strict=False) for node in tree]
    return Forest(
        offsets,
        np.array([node[0] for node in nodes], np.int32),
        np.array([node[1] if node[1] < 0 else node[1] + node[4] for node in nodes], np.int32),
        np.array([node[2] for node in nodes], np.int32),
        np.array([node[3] for node in nodes], np.float32),
        np.zeros(len(nodes), np.int16),
    )
