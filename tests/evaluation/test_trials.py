import os

import numpy as np
import pytest

from dare_core.config.domains import ClickTraining
from dare_core.evaluation.training import run_trial
from dare_core.evaluation.trials import of_tests, run_trials

from .test_training import made

HOW = ClickTraining(epochs=1)


@pytest.mark.parametrize("cores", [1, 2])
def test_every_arm_is_trained_on_every_split_from_every_seed_and_the_trials_are_in_their_order(
    monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    """With two cores in other processes, where the same seed gives the same logits."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)))
    inputs = {"none": [made(300, seed=0), made(400, seed=1)], "strict": [made(300, seed=2), made(400, seed=3)]}
    told: list[tuple[int, int]] = []
    trials = run_trials(inputs, "din", 2, HOW, lambda done, wanted: told.append((done, wanted)))
    assert told == [(done, 8) for done in range(1, 9)]
    logits = of_tests(trials)
    for arm, splits in inputs.items():
        assert [of_split.shape for of_split in logits[arm]] == [(2, 60), (2, 80)]
        for number, of_split in enumerate(splits):
            for seed in range(2):
                alone = run_trial(of_split, "din", seed, HOW)
                np.testing.assert_array_equal(logits[arm][number][seed], alone.test)
                np.testing.assert_array_equal(trials[arm][number][seed].validation, alone.validation)
