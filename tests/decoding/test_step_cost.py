import numpy as np

from dare_core.decoding.step_cost import StepCost


def test_a_step_cost_is_linear_between_and_beyond_what_was_measured_and_never_falls() -> None:
    seconds = iter([1.0, 3.0, 2.0, 5.0])
    cost = StepCost.measure(lambda rows: next(seconds), (1, 3, 5, 7), repeats=1)
    assert cost(np.array([1, 2, 3, 4, 5, 6, 7, 9])).tolist() == [1, 2, 3, 3, 3, 4, 5, 7]


def test_a_step_cost_that_was_measured_in_a_busy_moment_is_corrected_by_the_steps_made() -> None:
    cost = StepCost(np.array([1.0, 8.0, 64.0]), np.array([3.0, 3.0, 30.0]))  # really 1, 1 and 8
    for _ in range(150):
        cost.observe(8, 1.0)
        cost.observe(64, 8.0)
    np.testing.assert_allclose(cost(np.array([8, 64])), [1, 8], rtol=0.05)
    assert cost(np.array([1]))[0] <= cost(np.array([8]))[0]
    before = cost(np.array([8]))[0]
    cost.observe(8, 1000.0)
    assert cost(np.array([8]))[0] < 1.1 * before  # one step says little
