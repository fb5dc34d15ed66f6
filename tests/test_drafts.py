import numpy as np
import pytest

from dare_core.drafts import DraftTree


def tree(tokens: list[int], parents: list[int]) -> DraftTree:
    return DraftTree(np.array(tokens, np.int32), np.array(parents, np.int32), np.ones(len(tokens), np.float32))


FORK = tree([1, 2, 3, 4], [-1, 0, -1, 1])


def test_depths_and_ancestors_follow_from_parents() -> None:
    assert FORK.depths.tolist() == [1, 2, 1, 3]
    assert np.flatnonzero(FORK.ancestors[3]).tolist() == [0, 1, 3]
    assert np.flatnonzero(FORK.ancestors[2]).tolist() == [2]


def test_a_tree_can_be_cut_at_a_depth() -> None:
    cut = tree([1, 2, 9, 3, 4], [-1, 0, 1, -1, 3]).up_to_depth(2)
    assert cut.tokens.tolist() == [1, 2, 3, 4]
    assert cut.parents.tolist() == [-1, 0, -1, 2]
    assert FORK.up_to_depth(3) is FORK
    assert len(FORK.up_to_depth(0)) == 0


@pytest.mark.parametrize(("tokens", "parents"), [([1, 2], [-1]), ([1, 2], [1, -1]), ([1], [0]), ([1], [-2])])
def test_a_tree_that_is_none_is_refused(tokens: list[int], parents: list[int]) -> None:
    with pytest.raises(ValueError, match="tree"):
        tree(tokens, parents)
