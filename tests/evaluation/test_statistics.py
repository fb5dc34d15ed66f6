from itertools import product
from math import log

import numpy as np
import pytest

from dare_core.evaluation import statistics
from dare_core.evaluation.statistics import Bootstrap, auc, interval, log_loss, smallest_effect

SEEDS = 3


def test_auc_is_the_share_of_pairs_in_the_right_order_with_ties_as_halves() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(2, size=60).astype(np.float32)
    scores = random.integers(8, size=60).astype(np.float32)
    pairs = list(product(scores[labels > 0], scores[labels == 0]))
    assert auc(labels, scores) == pytest.approx(sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs))


def test_log_loss_is_that_of_the_probabilities_and_stays_finite() -> None:
    labels = np.array([1, 0], np.float32)
    assert log_loss(labels, np.array([log(3), log(3)], np.float32)) == pytest.approx([-log(0.75), -log(0.25)])
    assert log_loss(labels, np.array([-1000, 1000], np.float32)) == pytest.approx([1000, 1000])


def made_split(users: int, each: int, seed: int, first: int = 0) -> statistics.Tested:
    """So many users, about so many examples of each, half of them likes."""
    random = np.random.default_rng(seed)
    of = first + random.integers(users, size=users * each)
    return statistics.Tested(random.integers(2, size=len(of)).astype(np.float32), of)


def scored(
    splits: list[statistics.Tested], seed: int, signal: float = 0.5, distinct: int | None = None
) -> list[np.ndarray]:
    """Logits of each seed; with so many distinct ones, ties."""
    random = np.random.default_rng(seed)
    logits = [signal * split.labels + random.normal(size=(SEEDS, len(split.labels))) for split in splits]
    if distinct is not None:
        logits = [np.round(of_split * distinct / 6) for of_split in logits]
    return [of_split.astype(np.float32) for of_split in logits]


@pytest.fixture
def splits() -> list[statistics.Tested]:
    """Of two splits; some users are in both."""
    return [made_split(20, 15, seed=0), made_split(20, 10, seed=1, first=10)]


def multiplicities(bootstrap: Bootstrap, draw: int) -> list[np.ndarray]:
    """How often each example of each split was drawn."""
    pairs = zip(bootstrap._weights, bootstrap._codes, strict=True)
    return [weights[draw][codes].astype(int) for weights, codes in pairs]


@pytest.mark.parametrize("cells", [0, 1_000_000])
@pytest.mark.parametrize("distinct", [None, 6])
def test_a_draw_is_the_figure_of_its_seeds_and_of_rows_repeated_as_often_as_their_user(
    splits: list[statistics.Tested], distinct: int | None, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of few users, whose pairs are counted once, and of many."""
    monkeypatch.setattr(statistics, "_CELLS", cells)
    logits = scored(splits, 2, distinct=distinct)
    bootstrap = Bootstrap(splits, SEEDS, draws=20)
    aucs, losses = bootstrap.aucs(logits), bootstrap.log_losses(logits)
    for draw in range(20):
        expected_auc, expected_loss = [], []
        for split, of_split, times in zip(splits, logits, multiplicities(bootstrap, draw), strict=True):
            labels = np.repeat(split.labels, times)
            for seed in bootstrap.seeds[draw]:
                scores = np.repeat(of_split[seed], times)
                expected_auc.append(auc(labels, scores))
                expected_loss.append(log_loss(labels, scores).mean())
        assert aucs[draw] == pytest.approx(np.mean(expected_auc), abs=1e-6)
        assert losses[draw] == pytest.approx(np.mean(expected_loss), abs=1e-6)
    assert np.ptp(aucs) > 0


def test_a_user_who_tests_several_splits_is_drawn_for_each_alike(splits: list[statistics.Tested]) -> None:
    bootstrap = Bootstrap(splits, SEEDS, draws=5)
    for draw in range(5):
        times = multiplicities(bootstrap, draw)
        of_user = [dict(zip(split.users, of, strict=True)) for split, of in zip(splits, times, strict=True)]
        both = of_user[0].keys() & of_user[1].keys()
        assert {user: of_user[0][user] for user in both} == {user: of_user[1][user] for user in both}
    assert len(both) >= 5


@pytest.mark.parametrize("distinct", [None, 6])
def test_the_first_draw_is_what_there_is(splits: list[statistics.Tested], distinct: int | None) -> None:
    logits = scored(splits, 3, distinct=distinct)
    bootstrap = Bootstrap(splits, SEEDS)
    pairs = [(split.labels, one) for split, ones in zip(splits, logits, strict=True) for one in ones]
    assert bootstrap.aucs(logits)[0] == pytest.approx(np.mean([auc(*pair) for pair in pairs]), abs=1e-6)
    assert bootstrap.log_losses(logits)[0] == pytest.approx(np.mean([log_loss(*pair).mean() for pair in pairs]))
    found = interval(bootstrap.aucs(logits))
    assert found.low < found.mean < found.high
    assert found.mean == bootstrap.aucs(logits)[0]


def test_scores_that_are_all_the_same_have_half_the_pairs_in_every_draw(splits: list[statistics.Tested]) -> None:
    logits = [np.zeros_like(of_split) for of_split in scored(splits, 0)]
    assert Bootstrap(splits, SEEDS).aucs(logits) == pytest.approx(0.5)


def test_two_arms_with_the_same_logits_differ_by_nothing_for_certain(splits: list[statistics.Tested]) -> None:
    bootstrap, logits = Bootstrap(splits, SEEDS), scored(splits, 4)
    monotone = [3 * of_split - 1 for of_split in logits]
    difference = bootstrap.aucs(monotone) - bootstrap.aucs(logits)
    assert interval(difference) == pytest.approx((0, 0, 0), abs=1e-7)
    assert interval(bootstrap.log_losses(logits) - bootstrap.log_losses(logits)) == (0, 0, 0)
    assert smallest_effect(difference) == pytest.approx(0, abs=1e-6)


def test_what_helps_some_users_and_harms_others_is_less_certain_than_what_does_a_little_for_all() -> None:
    """So the interval holds for other users, and not only for other seeds."""
    split = made_split(40, 30, seed=5)
    random = np.random.default_rng(6)
    base = random.normal(size=(SEEDS, len(split.labels))).astype(np.float32)
    signed = (2 * split.labels - 1).astype(np.float32)
    by_user = np.where(np.arange(40) % 2, 0.9, -0.7)[split.users].astype(np.float32)
    bootstrap = Bootstrap([split], SEEDS)
    none = bootstrap.aucs([base])

    def width(effect: np.ndarray | float) -> float:
        found = interval(bootstrap.aucs([base + effect * signed]) - none)
        return found.high - found.low

    # A noise of the same size that has nothing to do with users: each one's examples are harmed and helped alike.
    by_example = random.permutation(by_user)
    assert width(by_user) > 1.4 * width(by_example)
    assert width(by_user) > 2 * width(0.1)


def test_seeds_that_disagree_widen_the_interval() -> None:
    split = made_split(200, 20, seed=7)
    logits = scored([split], 8)
    bootstrap = Bootstrap([split], SEEDS)
    signed = (2 * split.labels - 1).astype(np.float32)
    none = bootstrap.aucs(logits)
    agreed = interval(bootstrap.aucs([logits[0] + 0.3 * signed]) - none)
    torn = np.array([-0.3, 0.3, 0.9], np.float32)[:, None]
    disagreed = interval(bootstrap.aucs([logits[0] + torn * signed]) - none)
    assert disagreed.high - disagreed.low > 3 * (agreed.high - agreed.low)


def test_the_interval_covers_the_true_auc_about_95_times_in_a_hundred() -> None:
    """Of one seed: scores of the same normal distribution, moved by 1 for likes, have an AUC of 0.7602."""
    covered = 0
    for seed in range(200):
        split = made_split(50, 8, seed=seed)
        random = np.random.default_rng(1000 + seed)
        logits = (split.labels + random.normal(size=(1, len(split.labels)))).astype(np.float32)
        found = interval(Bootstrap([split], 1, draws=200).aucs([logits]))
        covered += found.low <= 0.7602 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_the_smallest_effect_is_what_four_of_five_intervals_would_tell_from_zero() -> None:
    random = np.random.default_rng(9)
    error = 0.01
    effect = smallest_effect(error * random.normal(size=100_000))
    estimates = effect + error * random.normal(size=20_000)
    assert (estimates - 1.96 * error > 0).mean() == pytest.approx(0.8, abs=0.01)


def test_only_the_rows_of_a_slice_count_and_a_split_of_one_label_is_left_out(splits: list[statistics.Tested]) -> None:
    logits = scored(splits, 10)
    bootstrap = Bootstrap(splits, SEEDS, draws=30)
    rows = [np.arange(len(split.labels)) % 3 == 0 for split in splits]
    parts = zip(splits, logits, rows, strict=True)
    expected = [auc(split.labels[of], one[of]) for split, ones, of in parts for one in ones]
    assert bootstrap.aucs(logits, rows)[0] == pytest.approx(np.mean(expected), abs=1e-6)
    likes_alone = [rows[0], splits[1].labels > 0]
    assert bootstrap.aucs(logits, likes_alone)[0] == pytest.approx(np.mean(expected[:SEEDS]), abs=1e-6)
    nothing = [np.zeros(len(split.labels), bool) for split in splits]
    assert np.isnan(bootstrap.aucs(logits, nothing)).all()


def test_a_draw_without_one_of_the_labels_says_nothing_and_takes_nothing_away() -> None:
    split = statistics.Tested(np.array([1, 1, 0, 0], np.float32), np.array([0, 0, 1, 1]))
    draws = Bootstrap([split], 1).aucs([np.array([[3, 2, 1, 0]], np.float32)])
    assert np.isnan(draws).any()
    assert interval(draws) == (1, 1, 1)
