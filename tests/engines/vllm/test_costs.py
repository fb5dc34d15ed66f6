"""What vLLM's steps are taken to cost."""

import numpy as np
import pytest

from dare_core.engines.vllm.costs import SequenceCosts, StepCosts, is_measured

MEASURED = {0: 1.0, 1: 1.5, 4: 1.8, 8: 2.2}


def test_costs_are_linear_between_what_was_measured_but_for_the_first_draft() -> None:
    costs = SequenceCosts(MEASURED)(np.array([0, 1, 2, 6, 12]))
    assert costs.tolist() == pytest.approx([1.0, 1.5, 1.6, 2.0, 2.6])


def test_a_step_without_drafts_and_one_with_drafts_teach_nothing_about_each_other() -> None:
    costs = SequenceCosts(MEASURED)
    for _ in range(100):
        costs.observe(4, 3.6)
    assert costs(np.array([0])) == 1.0
    assert costs(np.array([4])) == pytest.approx(3.6, rel=0.01)
    for _ in range(100):
        costs.observe(0, 0.5)
    assert costs(np.array([0])) == pytest.approx(0.5, rel=0.01)
    assert costs(np.array([4])) == pytest.approx(3.6, rel=0.01)


def test_an_interrupted_step_teaches_nothing() -> None:
    costs = SequenceCosts(MEASURED)
    costs.observe(0, 50.0)
    costs.observe(4, 50.0)
    assert costs(np.array([0, 4])).tolist() == [1.0, 1.8]


def test_sequences_cost_what_the_most_similar_measured_number_does() -> None:
    costs = StepCosts({1: MEASURED, 4: {0: 2.0, 1: 3.0, 4: 4.0}, 16: {0: 9.0, 1: 9.5, 4: 10.0}})
    plain = [float(costs.of(sequences)(np.array([0]))[0]) for sequences in (1, 2, 3, 4, 7, 9, 40)]
    assert plain == [1.0, 1.0, 2.0, 2.0, 2.0, 9.0, 9.0]


def test_steps_of_which_too_little_is_known_are_not_taken_for_measured() -> None:
    assert is_measured(MEASURED)
    assert not is_measured({1: 1.0, 2: 1.0, 3: 1.0})
    assert not is_measured({0: 1.0, 2: 1.0})
