from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dare_core.decoding.budget import Acceptance, Budget, worthwhile
from dare_core.decoding.step_cost import StepCost
from tests.decoding.scripted import joined, tree

FLAT = StepCost(np.array([1.0, 1000.0]), np.array([1.0, 1.0]))
STEEP = StepCost(np.array([1.0, 1000.0]), np.array([1.0, 1000.0]))


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


def test_steps_held_to_the_rate_of_all_make_more_tokens_per_second_than_each_looked_at_alone() -> None:
    cost = StepCost(np.array([1.0, 1001.0]), np.array([20.0, 520.0]))  # half a second for each further row
    easy, hard = 0.95 ** np.arange(1, 33), 0.3 * 0.8 ** np.arange(32)

    def rate(choose: Callable[[NDArray[np.float64]], NDArray[np.bool_]]) -> float:
        kept = [(step, choose(step)) for step in [easy, hard, hard, hard] * 50]
        tokens = sum(1 + step[chosen].sum() for step, chosen in kept)
        return float(tokens / sum(cost(np.array([1 + chosen.sum()]))[0] for _, chosen in kept))

    budget = Budget()
    together = rate(lambda step: budget.choose(step, 1, 1, cost))
    assert together > 1.02 * rate(lambda step: worthwhile(step, 1, 1, cost))
    assert together > 0.995 * max(
        rate(lambda step, at=at: worthwhile(step, 1, 1, cost, at)) for at in np.linspace(0.05, 0.5, 50)
    )


@settings(deadline=None)  # the first example compiles
@given(data=st.data())
def test_what_is_kept_is_closed_under_parents(data: st.DataObject) -> None:
    trees = []
    for _ in range(data.draw(st.integers(1, 4))):
        n = data.draw(st.integers(0, 8))
        trees.append(tree([0] * n, [data.draw(st.integers(-1, i - 1)) for i in range(n)]))
    forest = joined(trees)
    acceptance = Acceptance(1)
    probabilities = acceptance.path_probabilities(forest)
    slope = data.draw(st.floats(0.001, 2))
    kept = worthwhile(probabilities, len(trees), len(trees), StepCost(np.array([1.0, 2.0]), np.array([1.0, 1 + slope])))
    assert all(kept[parent] for node, parent in enumerate(forest.parents) if kept[node] and parent >= 0)
    smaller = forest.keep(kept)
    assert smaller.tokens.tolist() == forest.tokens[kept].tolist()
    assert smaller.offsets[-1] == kept.sum()


def test_acceptance_learns_how_much_an_estimate_is_worth() -> None:
    acceptance, sure = Acceptance(2), tree([5, 6], [-1, 0])
    before = acceptance.path_probabilities(sure)
    assert before[0] > 0.9
    for _ in range(200):  # the first node passes one time in two, the second, when tried, never
        acceptance.observe(sure, np.array([True, True]), np.array([True, False]))
        acceptance.observe(sure, np.array([True, False]), np.array([False, False]))
    after = acceptance.path_probabilities(sure)
    assert abs(after[0] - 1 / 3) < 0.05  # both nodes' estimates are of one kind: 200 of 600 passed
    assert abs(after[1] - after[0] ** 2) < 1e-6
