from dataclasses import replace

import numpy as np
import pytest
import torch

from dare_core.config.domains import ClickModelName, ClickTraining
from dare_core.evaluation import training
from dare_core.evaluation.examples import HISTORY, Split
from dare_core.evaluation.inputs import Inputs
from dare_core.evaluation.models import MODELS, Batch, ClickModel
from dare_core.evaluation.statistics import auc
from dare_core.evaluation.training import run_trial

from .conftest import unit_vectors

USERS, ITEMS, TEXT_WIDTH = 30, 40, 16
QUICK = ClickTraining(epochs=3)


def made(count: int, seed: int = 0, in_numbers: float = 0.0, in_texts: bool = False) -> Inputs:
    """Random ones, where a like shows in the third number, or in the item's text alone."""
    random = np.random.default_rng(seed)
    users, items = random.integers(USERS, size=count), random.integers(ITEMS, size=count)
    vectors = {"item": 4 * unit_vectors(ITEMS, TEXT_WIDTH), "user": 4 * unit_vectors(USERS, TEXT_WIDTH, seed=1)}
    direction = unit_vectors(1, TEXT_WIDTH, seed=2)[0]
    likes = vectors["item"][items] @ direction > 0 if in_texts else random.integers(2, size=count) > 0
    labels = likes.astype(np.float32)
    numbers = random.normal(size=(count, 5)).astype(np.float32)
    numbers[:, 2] += in_numbers * (2 * labels - 1)
    ends = round(0.6 * count), round(0.8 * count)
    return Inputs(
        split=Split(slice(ends[0]), slice(ends[0], ends[1]), slice(ends[1], count)),
        codes=1 + USERS + ITEMS,
        vectors=vectors,
        # An item is known by its text alone: there is one code for all of them.
        fields=np.stack([1 + users, np.full(count, USERS + 1)], axis=1),
        history=random.integers(0, USERS, size=(count, HISTORY)),
        item_texts=1 + items,
        user_texts=1 + users,
        history_texts=random.integers(0, ITEMS + 1, size=(count, HISTORY)),
        numbers=numbers,
        labels=labels,
    )


def score(inputs: Inputs, name: ClickModelName = "din", seed: int = 0, how: ClickTraining = QUICK) -> float:
    return auc(inputs.labels[inputs.split.test], run_trial(inputs, name, seed, how).test)


@pytest.mark.parametrize("name", list(MODELS))
def test_a_signal_in_the_texts_is_learned_and_without_them_there_is_none(name: ClickModelName) -> None:
    inputs = made(12_000, in_texts=True)
    assert score(inputs, name, how=ClickTraining(epochs=6)) > 0.9
    assert score(inputs.without_knowledge(2), name, how=ClickTraining(epochs=6)) < 0.6


@pytest.mark.parametrize("name", list(MODELS))
def test_a_signal_in_the_numbers_is_learned_and_without_them_there_is_none(name: ClickModelName) -> None:
    inputs = made(6000, in_numbers=1.0)
    assert score(inputs, name) > 0.85
    assert score(inputs.without_knowledge(2), name) < 0.6
    assert score(inputs.without_knowledge(3), name) > 0.85  # the first three stay


def test_a_seed_gives_the_same_logits_whatever_happened_between_and_another_seed_others() -> None:
    inputs = made(3000, in_numbers=0.5)
    first = run_trial(inputs, "din", 3, QUICK)
    assert len(first.validation) == len(first.test) == 600
    torch.rand(7)
    again = run_trial(inputs, "din", 3, QUICK)
    np.testing.assert_array_equal(first.test, again.test)
    np.testing.assert_array_equal(first.validation, again.validation)
    assert not np.allclose(first.test, run_trial(inputs, "din", 4, QUICK).test, atol=1e-3)


def test_training_leaves_the_random_numbers_of_others_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    run_trial(made(500), "din", 0, ClickTraining(epochs=1, dropout=0.2))
    torch.testing.assert_close(torch.rand(3), expected)


def test_what_is_tested_is_not_trained_on() -> None:
    inputs = made(3000, in_numbers=0.5)
    test = inputs.split.test
    labels, numbers = inputs.labels.copy(), inputs.numbers.copy()
    labels[test], numbers[test.start :: 2] = 1 - labels[test], 9
    changed = replace(inputs, labels=labels, numbers=numbers)
    honest, planted = run_trial(inputs, "din", 0, QUICK), run_trial(changed, "din", 0, QUICK)
    np.testing.assert_array_equal(honest.validation, planted.validation)
    np.testing.assert_array_equal(honest.test[1::2], planted.test[1::2])
    assert not np.allclose(honest.test[::2], planted.test[::2])


@pytest.mark.parametrize(
    ("found", "patience", "best"),
    [([0.6, 0.7, 0.65], 1, 2), ([0.6, 0.7, 0.65, 0.66], 2, 2), ([0.6, 0.5, 0.7, 0.6, 0.6], 2, 3), ([0.6] * 2, 1, 1)],
)
def test_training_ends_when_the_validation_no_longer_rises_and_the_best_epoch_is_kept(
    monkeypatch: pytest.MonkeyPatch, found: list[float], patience: int, best: int
) -> None:
    inputs = made(200)
    epochs: list[Batch] = []
    scripted = iter(found)  # an epoch too many would find none

    def epoch(model: ClickModel, examples: Batch, *_: object) -> None:
        epochs.append(examples)
        for parameter in model.parameters():
            parameter.data.fill_(0.01 * len(epochs))

    monkeypatch.setattr(training, "_epoch", epoch)
    monkeypatch.setattr(training, "auc", lambda labels, scores: next(scripted))
    stopped = run_trial(inputs, "din", 0, ClickTraining(epochs=9, patience=patience))
    assert len(epochs) == len(found)
    epochs.clear()
    scripted = iter([0.1 * n for n in range(1, 10)])
    kept = run_trial(inputs, "din", 0, ClickTraining(epochs=best, patience=9))
    np.testing.assert_array_equal(stopped.test, kept.test)


def test_training_never_takes_more_epochs_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    epochs: list[int] = []
    monkeypatch.setattr(training, "_epoch", lambda *_: epochs.append(1))
    monkeypatch.setattr(training, "auc", lambda labels, scores: len(epochs) / 10)
    run_trial(made(200), "din", 0, ClickTraining(epochs=4))
    assert len(epochs) == 4
