from itertools import product
from math import log

import numpy as np
import pytest

from dare_core.evaluation.statistics import auc, log_loss, paired


def test_auc_is_the_share_of_pairs_in_the_right_order_with_ties_as_halves() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(2, size=60).astype(np.float32)
    scores = random.integers(8, size=60).astype(np.float32)
    pairs = list(product(scores[labels > 0], scores[labels == 0]))
    assert auc(labels, scores) == pytest.approx(sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs))


def test_log_loss_is_that_of_the_probabilities_and_stays_finite() -> None:
    labels = np.array([1, 0], np.float32)
    assert log_loss(labels, np.array([log(3), log(3)], np.float32)) == pytest.approx(-(log(0.75) + log(0.25)) / 2)
    assert log_loss(labels, np.array([-1000, 1000], np.float32)) == pytest.approx(1000)


def test_what_pairs_have_in_common_does_not_widen_their_interval() -> None:
    noise = np.random.default_rng(0).normal(size=20)
    found = paired((noise + 0.1).tolist(), noise.tolist())
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))


def test_the_interval_covers_the_true_difference_95_times_in_a_hundred() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(2000):
        found = paired((0.3 + random.normal(size=20)).tolist(), [0.0] * 20)
        covered += found.low <= 0.3 <= found.high
    assert 0.93 <= covered / 2000 <= 0.97


def test_one_pair_has_no_interval() -> None:
    with pytest.raises(ValueError, match="two pairs"):
        paired([1.0], [0.0])
