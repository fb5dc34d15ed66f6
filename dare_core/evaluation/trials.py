"""All arms' click models, on all splits and seeds, as many at once as there are cores."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from itertools import repeat
from multiprocessing import get_context

import numpy as np
from numpy.typing import NDArray

from dare_core.config.domains import ClickModelName, ClickTraining
from dare_core.evaluation.inputs import Inputs
from dare_core.evaluation.training import Trial, run_trial

#: Logits of the test examples by arm, and of each split: ``[seeds, n]``.
Logits = Mapping[str, Sequence[NDArray[np.float32]]]

OnTrial = Callable[[int, int], None]


def run_trials(
    inputs: Mapping[str, Sequence[Inputs]],
    model_name: ClickModelName,
    seeds: int,
    how: ClickTraining,
    on_trial: OnTrial = lambda done, wanted: None,
) -> dict[str, list[list[Trial]]]:
    """Train every arm's model on every split from every seed.

    Args:
        inputs: of each arm, by split.
        model_name: which click model.
        seeds: how many.
        how: the same for all.
        on_trial: told how many are done, of how many.

    Returns:
        By arm and split, a trial a seed.
    """
    jobs = [
        (arm, split, seed) for seed in range(seeds) for arm, of_arm in inputs.items() for split in range(len(of_arm))
    ]
    found: dict[str, list[list[Trial]]] = {arm: [[] for _ in of_arm] for arm, of_arm in inputs.items()}
    made = (inputs[arm][split] for arm, split, _ in jobs)
    drawn = (seed for _, _, seed in jobs)
    at_once = min(len(os.sched_getaffinity(0)), len(jobs))
    with ExitStack() as stack:
        mapped: Callable[..., Iterable[Trial]] = map
        if at_once > 1:  # spawned, since a fork of a process whose threads hold locks may wait for them for ever
            mapped = stack.enter_context(ProcessPoolExecutor(at_once, get_context("spawn"))).map
        trials = mapped(run_trial, made, repeat(model_name), drawn, repeat(how))
        for done, ((arm, split, _), trial) in enumerate(zip(jobs, trials, strict=True), 1):
            found[arm][split].append(trial)
            on_trial(done, len(jobs))
    return found


def of_tests(trials: Mapping[str, Sequence[Sequence[Trial]]]) -> Logits:
    """Of each arm and split ``[seeds, n]``."""
    return {
        arm: [np.stack([trial.test for trial in of_split]) for of_split in splits] for arm, splits in trials.items()
    }
