import numpy as np

from dare_core.drafts import Context, Forest


def forest(offsets: list[int], tokens: list[int], parents: list[int], depths: list[int]) -> Forest:
    n = len(tokens)
    integers = (np.array(column, np.int32) for column in (offsets, tokens, parents, depths))
    return Forest(*integers, np.linspace(1, 0.5, n, dtype=np.float32), np.arange(n, dtype=np.int16))


#: A tree of three nodes, one of none, and one of two.
THREE = forest([0, 3, 3, 5], [7, 8, 9, 5, 6], [-1, 0, -1, -1, 3], [1, 2, 1, 1, 2])


def test_a_context_shows_the_output_behind_the_prompt_and_follows_the_engine() -> None:
    context = Context("Drama", np.array([1, 2, 3, 4, 0], np.int32), prompt_length=2, length=4)
    assert context.output.tolist() == [3, 4]
    context.tokens[4], context.length = 5, 5
    assert context.output.tolist() == [3, 4, 5]


def test_sizes_and_trees_follow_from_offsets() -> None:
    assert THREE.sizes.tolist() == [3, 0, 2]
    assert THREE.trees.tolist() == [0, 0, 0, 2, 2]


def test_an_empty_forest_has_a_tree_for_each_sequence() -> None:
    empty = Forest.empty(3)
    assert len(empty) == 0
    assert empty.sizes.tolist() == [0, 0, 0]


def test_a_forest_of_leaves_has_the_sizes_asked_for() -> None:
    leaves = Forest.of_leaves(np.array([2, 0, 1]))
    assert leaves.sizes.tolist() == [2, 0, 1]
    assert leaves.parents.tolist() == [-1, -1, -1]
    assert leaves.depths.tolist() == [1, 1, 1]


def test_kept_nodes_stay_in_their_trees_under_their_parents() -> None:
    kept = THREE.keep(np.array([True, False, True, True, True]))
    assert kept.offsets.tolist() == [0, 2, 2, 4]
    assert kept.tokens.tolist() == [7, 9, 5, 6]
    assert kept.parents.tolist() == [-1, -1, -1, 2]
    assert kept.depths.tolist() == [1, 1, 1, 2]
    assert kept.evidence.tolist() == [0, 2, 3, 4]
    assert kept.shares.tolist() == THREE.shares[[0, 2, 3, 4]].tolist()


def test_keeping_every_node_or_none() -> None:
    assert THREE.keep(np.ones(5, np.bool_)) is THREE
    nothing = THREE.keep(np.zeros(5, np.bool_))
    assert len(nothing) == 0
    assert nothing.sizes.tolist() == [0, 0, 0]


def test_a_forest_spread_out_has_empty_trees_between() -> None:
    spread = THREE.spread(np.array([False, True, True, False, True]))
    assert spread.sizes.tolist() == [0, 3, 0, 0, 2]
    assert spread.tokens.tolist() == THREE.tokens.tolist()
