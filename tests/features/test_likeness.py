"""Figures of likeness, against a reference that takes one target at a time."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from dare_core.features import likeness as module
from dare_core.features.likeness import FIGURES, SHRINKAGE, TEMPERATURE, TIERS, likeness

_WIDTH = 6


def _vectors(count: int) -> NDArray[np.float32]:
    vectors = np.random.default_rng(3).normal(size=(count, _WIDTH)) + 0.4
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _reference(vectors: NDArray[np.float32], target: int, met: list[int], liked: list[bool]) -> list[float]:
    pairs = [
        (float(vectors[target] @ vectors[one]), y) for one, y in zip(met, liked, strict=True) if min(target, one) >= 0
    ]
    likes = [cosine for cosine, y in pairs if y]
    weights = [math.exp((cosine - 1) / TEMPERATURE) for cosine, _ in pairs]
    k, leaning = len(pairs), 0.0
    if k:
        alike = sum(weight for weight, (_, y) in zip(weights, pairs, strict=True) if y) / sum(weights)
        leaning = k / (k + SHRINKAGE) * (alike - len(likes) / k)
    tiers = [min(max(math.floor(cosine * TIERS), 0), TIERS - 1) for cosine in likes]
    mean, most = (sum(likes) / len(likes), max(likes)) if likes else (0.0, 0.0)
    return [len(likes), mean, most, leaning, *(tiers.count(tier) for tier in range(TIERS))]


@pytest.mark.parametrize("few", [0, 40])
def test_the_figures_are_what_the_definition_says_whether_or_not_all_cosines_are_kept(
    few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FEW", few)
    random, vectors = np.random.default_rng(few), _vectors(40)
    targets, met = random.integers(-1, 40, 700), random.integers(-1, 40, (700, 9))
    met[random.random(met.shape) < 0.3] = -1
    met[::50] = -1
    liked = random.random(met.shape) < random.random((700, 1))
    found = likeness(vectors, targets, met, liked)
    assert found.dtype == np.float32 and found.shape == (700, FIGURES)
    expected = [_reference(vectors, *row) for row in zip(targets, met.tolist(), liked.tolist(), strict=True)]
    assert found == pytest.approx(np.array(expected), abs=1e-5)


def _leaning(met: list[int], liked: list[bool]) -> float:
    """Of target 0; 0 and 1 are the same, 2 has nothing in common with them."""
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    return float(likeness(vectors, np.array([0]), np.array([met]), np.array([liked]))[0, 3])


def test_the_leaning_is_towards_what_is_like_what_was_liked_and_not_what_was_met() -> None:
    assert _leaning([1, 2], [True, False]) == pytest.approx(2 / 12 * (1 - 1 / 2), abs=1e-4)
    assert _leaning([1, 2], [False, True]) == pytest.approx(2 / 12 * (0 - 1 / 2), abs=1e-4)
    assert _leaning([1, 2] * 100, [True, False] * 100) == pytest.approx(200 / 210 / 2, abs=1e-4)


def test_a_user_who_likes_everything_or_nothing_leans_nowhere() -> None:
    assert _leaning([1, 2, 2], [True] * 3) == pytest.approx(0, abs=1e-6)
    assert _leaning([1, 2, 2], [False] * 3) == 0
    assert _leaning([-1, -1], [True, False]) == 0


def test_without_a_target_or_anything_met_all_figures_are_zero() -> None:
    targets, met = np.array([-1, 1]), np.array([[0, 1], [-1, -1]])
    assert not likeness(_vectors(3), targets, met, np.ones((2, 2), bool)).any()
    assert likeness(_vectors(3), targets[:0], met[:0], np.ones((0, 2), bool)).shape == (0, FIGURES)
