from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dare_core.decoding.budget import Acceptance, Budget, worthwhile
from dare_core.decoding.step_cost import StepCost
from dare_core.decoding.verification import Judgement, longest_paths
from dare_core.drafts import Forest
from tests.decoding.scripted import joined, tree

FLAT = StepCost(np.array([1.0, 1000.0]), np.array([1.0, 1.0]))
STEEP = StepCost(np.array([1.0, 1000.0]), np.array([1.0, 1000.0]))

SHARES = st.floats(0.01, 1)
NODES = st.integers(0, 8).flatmap(lambda n: st.tuples(*(st.tuples(st.integers(-1, i - 1), SHARES) for i in range(n))))


def test_where_rows_cost_nothing_all_nodes_are_worth_it_and_where_they_cost_all_none_is() -> None:
    probabilities = np.array([0.9, 0.5, 0.1])
    assert worthwhile(probabilities, 4, 4, FLAT).all()
    assert not worthwhile(probabilities, 4, 4, STEEP).any()


def test_nodes_are_taken_best_first_while_expected_tokens_per_second_rise() -> None:
    cost = StepCost(np.array([1.0, 101.0]), np.array([1.0, 51.0]))  # one row: 1 s, each further one half a second
    kept = worthwhile(np.array([0.3, 0.9, 0.6]), 1, 1, cost)
    # 1/1 for no node, 1.9/1.5 for the best, 2.5/2 for the best two, 2.8/2.5 for all
    assert kept.tolist() == [False, True, False]


def test_a_prompt_that_is_read_besides_does_not_make_poor_drafts_look_cheap() -> None:
    cost = StepCost(np.array([1.0, 1001.0]), np.array([1.0, 501.0]))
    probabilities = np.array([0.3, 0.9, 0.6])
    assert (worthwhile(probabilities, 1, 1, cost) == worthwhile(probabilities, 1, 400, cost)).all()


# What nodes are expected to bring


def shared(parents: list[int], shares: list[float], evidence: int = 0) -> Forest:
    """A tree as the drafter would have estimated it."""
    made = tree([0] * len(parents), parents)
    made.shares[:] = shares
    made.evidence[:] = evidence
    return made


def observe(acceptance: Acceptance, forest: Forest, passes: NDArray[np.bool_]) -> int:
    """Nodes of the accepted paths, once a step is learned in which nodes pass so."""
    paths = longest_paths(forest, Judgement(passes, passes, passes, passes, np.zeros(len(forest), np.float32)))
    acceptance.observe(forest, paths.tried, passes)
    return int(paths.lengths.sum())


def test_where_three_tokens_are_possible_no_more_are_expected_though_all_thirteen_nodes_pass() -> None:
    """Relaxed, several children of a node may pass, and one of them is accepted: a sum over nodes that pass does not
    say how many tokens are emitted."""
    acceptance, forest = Acceptance(1), tree([0] * 13, [-1] * 4 + [0, 1, 2, 3, 0, 1, 2, 3, 0])
    passing, accepted = np.zeros(13), 0
    for _ in range(1000):
        passes = np.random.default_rng(0).random(13) < 0.9985
        accepted = observe(acceptance, forest, passes)
        passing += passes / 1000
    assert 1 + passing.sum() > 13.9  # a sum of probabilities that nodes pass
    expected = 1 + acceptance.path_probabilities(forest).sum()
    assert 1 + accepted == 3
    assert 2.95 < expected <= 3


@settings(deadline=None)  # the first example compiles
@given(nodes=NODES, passing=st.lists(st.booleans(), min_size=8, max_size=8), steps=st.integers(0, 20))
def test_no_more_is_expected_of_a_tree_than_it_is_deep_nor_of_children_than_of_their_parent(
    nodes: list[tuple[int, float]], passing: list[bool], steps: int
) -> None:
    forest = shared([parent for parent, _ in nodes], [share for _, share in nodes])
    acceptance = Acceptance(1)
    for _ in range(steps):
        observe(acceptance, forest, np.array(passing[: len(forest)], np.bool_))
    probabilities = acceptance.path_probabilities(forest)
    assert probabilities.sum() <= forest.depths.max(initial=0) + 1e-9
    for parent in {-1, *range(len(forest))}:
        at_most = 1 if parent < 0 else probabilities[parent]
        assert 0 <= probabilities[forest.parents == parent].sum() <= at_most + 1e-9


def test_of_siblings_that_exclude_each_other_the_estimates_are_kept() -> None:
    """Strict verification: one sibling passes at most, so estimates that are right need no correction."""
    shares = [0.6, 0.3, 0.08]
    acceptance, forest, random = Acceptance(1), shared([-1, -1, -1], shares), np.random.default_rng(1)
    np.testing.assert_allclose(acceptance.path_probabilities(forest), shares, atol=1e-6)
    for _ in range(2000):
        observe(acceptance, forest, np.arange(3) == random.choice(4, p=[*shares, 1 - sum(shares)]))
    np.testing.assert_allclose(acceptance.path_probabilities(forest), shares, atol=0.04)


@pytest.mark.parametrize("evidence", [0, 1])
def test_what_is_expected_is_what_comes_where_siblings_pass_together(evidence: int) -> None:
    """Relaxed: the first child passes in 7 of 10 steps, the second in 6, mostly the same."""
    acceptance, forest, random = Acceptance(2), shared([-1, -1], [0.5, 0.3], evidence), np.random.default_rng(2)
    accepted = 0
    for _ in range(2000):
        drawn = random.random()
        accepted += observe(acceptance, forest, np.array([drawn < 0.7, drawn < 0.5 or drawn > 0.9]))
    probabilities = acceptance.path_probabilities(forest)
    assert abs(probabilities.sum() - accepted / 2000) < 0.1
    assert probabilities[1] < 0.3  # it passes in 6 of 10, and adds 1 of 10 to the first


def test_acceptance_learns_how_much_an_estimate_is_worth() -> None:
    acceptance = Acceptance(2)
    sure, other = shared([-1, 0], [0.9, 0.9]), shared([-1, 0], [0.9, 0.9], evidence=1)
    assert acceptance.path_probabilities(sure)[0] > 0.85
    random = np.random.default_rng(3)
    for _ in range(300):
        observe(acceptance, sure, random.random(2) < 0.3)
        observe(acceptance, other, random.random(2) < 0.9)
    assert abs(acceptance.path_probabilities(sure)[0] - 0.3) < 0.1
    assert abs(acceptance.path_probabilities(other)[0] - 0.9) < 0.1


def test_acceptance_tells_near_certainty_from_certainty() -> None:
    acceptance, random = Acceptance(1), np.random.default_rng(4)
    trees = [shared([-1], [0.93]), shared([-1], [0.99])]
    for _ in range(3000):
        for forest, rate in zip(trees, (0.85, 0.99), strict=True):
            observe(acceptance, forest, random.random(1) < rate)
    likely, certain = (acceptance.path_probabilities(forest)[0] for forest in trees)
    assert abs(likely - 0.85) < 0.05
    assert certain > 0.97


# Which nodes steps verify


def test_a_text_whose_drafts_are_accepted_gets_more_rows_than_one_whose_drafts_are_not() -> None:
    acceptance, budget = Acceptance(2), Budget()
    cost = StepCost(np.array([1.0, 101.0]), np.array([1.0, 31.0]))
    chain = [-1, *range(7)]
    offered = joined([shared(chain, [0.8] * 8, evidence=0), shared(chain, [0.8] * 8, evidence=1)])
    good = offered.trees == 0
    drafted = np.zeros(2)
    for step in range(200):
        kept = budget.choose(acceptance.path_probabilities(offered), 2, 2, cost)
        budget.settle(observe(acceptance, offered.keep(kept), good[kept]))
        if step >= 100:
            drafted += [kept[good].sum(), kept[~good].sum()]
    assert drafted[0] > 700
    assert drafted[1] < 100


def test_steps_held_to_the_rate_of_all_make_more_tokens_per_second_than_each_looked_at_alone() -> None:
    cost = StepCost(np.array([1.0, 1001.0]), np.array([20.0, 520.0]))  # half a second for each further row
    easy, hard = 0.95 ** np.arange(1, 33), 0.3 * 0.8 ** np.arange(32)
    random = np.random.default_rng(5)
    budget = Budget()

    def together_chosen(step: NDArray[np.float64]) -> NDArray[np.bool_]:
        kept = budget.choose(step, 1, 1, cost)
        budget.settle(int((random.random() < step[kept]).sum()))  # a path: as deep as luck goes
        return kept

    def rate(choose: Callable[[NDArray[np.float64]], NDArray[np.bool_]]) -> float:
        kept = [(step, choose(step)) for step in [easy, hard, hard, hard] * 200]
        tokens = sum(1 + step[chosen].sum() for step, chosen in kept)
        return float(tokens / sum(cost(np.array([1 + chosen.sum()]))[0] for _, chosen in kept))

    together = rate(together_chosen)
    assert together > 1.02 * rate(lambda step: worthwhile(step, 1, 1, cost))
    assert together > 0.99 * max(
        rate(lambda step, at=at: worthwhile(step, 1, 1, cost, at)) for at in np.linspace(0.05, 0.5, 50)
    )


def test_a_machine_that_is_slower_in_everything_changes_no_decision() -> None:
    cost = StepCost(np.array([1.0, 101.0]), np.array([1.0, 11.0]))
    slower = StepCost(cost.rows, 2 * cost.seconds)
    step = 0.9 ** np.arange(1, 17)
    quick, slowed = Budget(), Budget()
    for i in range(60):
        kept = quick.choose(step, 1, 1, cost)
        assert (slowed.choose(step, 1, 1, slower if i > 30 else cost) == kept).all()
        quick.settle(int(step[kept].sum()))
        slowed.settle(int(step[kept].sum()))


def test_drafts_that_never_pass_soon_cost_next_to_nothing_and_are_taken_again_when_they_do() -> None:
    acceptance, budget = Acceptance(1), Budget()
    cost = StepCost(np.array([16.0, 1016.0]), np.array([1.0, 29.0]))  # a row costs half of what a sequence does
    forest = joined([shared([-1, 0, 1, 2], [0.95] * 4)] * 16)

    def drafted(steps: int, passing: bool) -> NDArray[np.int64]:
        counts = []
        for _ in range(steps):
            kept = budget.choose(acceptance.path_probabilities(forest), 16, 16, cost)
            budget.settle(observe(acceptance, forest.keep(kept), np.full(kept.sum(), passing)))
            counts.append(kept.sum())
        return np.array(counts)

    useless = drafted(3000, passing=False)
    assert cost(16 + useless).sum() < 1.02 * 3000
    assert useless[1000:].sum() > 0
    assert drafted(1500, passing=True)[-100:].min() == len(forest)


@settings(deadline=None)
@given(trees=st.lists(NODES, min_size=1, max_size=4), slope=st.floats(0.001, 2))
def test_what_is_kept_is_closed_under_parents(trees: list[list[tuple[int, float]]], slope: float) -> None:
    forest = joined([shared([parent for parent, _ in nodes], [share for _, share in nodes]) for nodes in trees])
    probabilities = Acceptance(1).path_probabilities(forest)
    kept = worthwhile(probabilities, len(trees), len(trees), StepCost(np.array([1.0, 2.0]), np.array([1.0, 1 + slope])))
    assert all(kept[parent] for node, parent in enumerate(forest.parents) if kept[node] and parent >= 0)
    smaller = forest.keep(kept)
    assert smaller.tokens.tolist() == forest.tokens[kept].tolist()
    assert smaller.offsets[-1] == kept.sum()
