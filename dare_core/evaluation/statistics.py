"""How well scores rank and fit, and intervals of differences that hold for other users and other seeds.

Two models are compared in pairs: the same split, the same seed, the same test examples. The interval is a bootstrap's
(Efron, 1979) over both that could have been others: the users of the tests, and the seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

_DRAWS: Final = 1000
#: Of a difference so many standard errors large, 80% of the 95% intervals would lie on one side of zero.
_DETECTED: Final = 1.96 + 0.84

#: Cells of a matrix of examples and users, up to which draws are products of matrices: 400 MB.
_CELLS: Final = 100_000_000

_Logits = NDArray[np.float32]
_Likes = NDArray[np.bool_]
_Places = NDArray[np.int64]
_Weights = NDArray[np.float64]


class Interval(NamedTuple):
    """A mean with its 95% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Tested:
    """The test examples of one split.

    Attributes:
        labels: ``[n]``, 1 for a like.
        users: ``[n]``, a number for each user.
    """

    labels: NDArray[np.float32]
    users: NDArray[np.int64]


def auc(labels: NDArray[np.float32], scores: NDArray[np.float32]) -> float:
    """The probability that a like is scored above another example; ties count half.

    Args:
        labels: ``[n]``, 1 or 0, both among them.
        scores: ``[n]``, in any monotone scale.
    """
    from scipy.stats import rankdata

    likes = labels > 0
    positive, negative = int(likes.sum()), int((~likes).sum())
    ranks = rankdata(scores)[likes].sum()
    return float((ranks - positive * (positive + 1) / 2) / (positive * negative))


def log_loss(labels: NDArray[np.float32], logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """``[n]``, negative log-likelihood of each example, in nats."""
    signed = np.where(labels > 0, logits, -logits).astype(np.float64)
    return np.logaddexp(0, -signed)


class Bootstrap:
    """Draws of test users and seeds, the same for all that is compared.

    Attributes:
        splits: what was tested.
        seeds: ``[draws, seeds]``, which seeds were drawn; the first draw is what there is.
    """

    def __init__(self, splits: Sequence[Tested], seeds: int, draws: int = _DRAWS) -> None:
        """Draw. A user who tests several splits is drawn for each of them alike."""
        random = np.random.default_rng(0)
        users = np.unique(np.concatenate([split.users for split in splits]))
        drawn = random.multinomial(len(users), np.full(len(users), 1 / len(users)), size=draws).astype(np.float64)
        drawn[0] = 1
        self.splits = splits
        self.seeds = random.integers(seeds, size=(draws, seeds))
        self.seeds[0] = np.arange(seeds)
        self._codes = []  # by split [n], users from 0
        self._weights = []  # by split [draws, users], how often each was drawn
        for split in splits:
            own, codes = np.unique(split.users, return_inverse=True)
            self._codes.append(codes)
            self._weights.append(drawn[:, np.searchsorted(users, own)])

    def aucs(self, logits: Sequence[_Logits], rows: Sequence[NDArray[np.bool_]] | None = None) -> NDArray[np.float64]:
        """AUC of each draw, the mean over its seeds and the splits.

        Args:
            logits: by split ``[seeds, n]``.
            rows: by split ``[n]``, the examples that count; default: all. A split whose rows have one label alone is
                left out.

        Returns:
            ``[draws]``.
        """
        of_splits = []
        for number, split in enumerate(self.splits):
            counted = np.ones(len(split.labels), bool) if rows is None else rows[number]
            labels, users, weights = split.labels[counted], self._codes[number][counted], self._weights[number]
            if len(set(labels.tolist())) == 2:
                found = [_weighted_auc(labels, of_seed[counted], users, weights) for of_seed in logits[number]]
                of_splits.append(self._over_seeds(np.stack(found, axis=1)))
        return np.mean(of_splits, axis=0) if of_splits else np.full(len(self.seeds), np.nan)

    def log_losses(self, logits: Sequence[_Logits]) -> NDArray[np.float64]:
        """``[draws]``, likewise, of the mean negative log-likelihood."""
        of_splits = []
        for split, codes, weights, scores in zip(self.splits, self._codes, self._weights, logits, strict=True):
            users = weights.shape[1]
            losses = [np.bincount(codes, log_loss(split.labels, of_seed), users) for of_seed in scores]
            counts = weights @ np.bincount(codes, minlength=users)
            with np.errstate(invalid="ignore"):  # nobody was drawn
                of_splits.append(self._over_seeds(weights @ np.stack(losses, axis=1) / counts[:, None]))
        return np.asarray(np.mean(of_splits, axis=0))

    def _over_seeds(self, found: NDArray[np.float64]) -> NDArray[np.float64]:
        """``[draws, seeds]`` to ``[draws]``, the mean over the seeds of each draw."""
        return np.asarray(np.take_along_axis(found, self.seeds, axis=1).mean(1))


def interval(draws: NDArray[np.float64]) -> Interval:
    """What there is (the first draw), and between which values 95% of the draws lie."""
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Interval(float(draws[0]), float(low), float(high))


def smallest_effect(draws: NDArray[np.float64]) -> float:
    """The smallest difference that such an evaluation would tell from zero four times in five."""
    return float(_DETECTED * np.nanstd(draws))


def _weighted_auc(
    labels: NDArray[np.float32], scores: _Logits, users: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """``[draws]``, AUC where each example counts as often as its user was drawn.

    Ties count half.
    """
    order = np.argsort(scores)
    likes, users, scores = labels[order] > 0, users[order], scores[order]
    lower, up_to = (np.searchsorted(scores, scores[likes], side=side) for side in ("left", "right"))
    count = _pairs if len(order) * weights.shape[1] <= _CELLS else _pairs_by_draw
    won, pairs = count(likes, users, lower, up_to, weights)
    with np.errstate(invalid="ignore", divide="ignore"):  # nobody of one label was drawn
        return np.asarray(won / pairs)


def _pairs(
    likes: _Likes, users: _Places, lower: _Places, up_to: _Places, weights: _Weights
) -> tuple[_Weights, _Weights]:
    """Of each draw ``[draws]``, how many pairs are in the right order, and how many there are.

    Of each pair of users is counted once how often a like of the one is scored above another example of the other; a
    draw is then a product of matrices.

    Args:
        likes: ``[n]``, by score.
        users: ``[n]``, likewise.
        lower: ``[likes]``, how many examples are scored lower than each like.
        up_to: ``[likes]``, how many are scored lower or the same.
        weights: ``[draws, users]``, how often each was drawn.
    """
    each = np.zeros((len(likes), weights.shape[1]), np.float32)
    each[np.arange(len(likes)), users] = 1
    below = np.zeros((len(likes) + 1, weights.shape[1]), np.float32)  # other examples before each place
    np.cumsum(np.where(likes[:, None], 0, each), axis=0, out=below[1:])
    wins = each[likes].T @ ((below[lower] + below[up_to]) / 2)  # [users, users]
    return ((weights @ wins) * weights).sum(1), (weights @ each[likes].sum(0)) * (weights @ below[-1])


def _pairs_by_draw(
    likes: _Likes, users: _Places, lower: _Places, up_to: _Places, weights: _Weights
) -> tuple[_Weights, _Weights]:
    """The same in the memory of one draw, where the users are many."""
    won, pairs = np.empty(len(weights)), np.empty(len(weights))
    for draw, of_user in enumerate(weights):
        drawn = of_user[users]
        below = np.append(0, np.cumsum(np.where(likes, 0, drawn)))
        won[draw] = drawn[likes] @ (below[lower] + below[up_to]) / 2
        pairs[draw] = drawn[likes].sum() * below[-1]
    return won, pairs
