"""How well probabilities rank and fit, and intervals of paired differences."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Interval(NamedTuple):
    """A mean with its 95% interval."""

    mean: float
    low: float
    high: float


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


def log_loss(labels: NDArray[np.float32], logits: NDArray[np.float32]) -> float:
    """Mean negative log-likelihood, in nats."""
    signed = np.where(labels > 0, logits, -logits).astype(np.float64)
    return float(np.logaddexp(0, -signed).mean())


def paired(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Mean of ``first - second`` over pairs, with Student's 95% interval.

    Raises:
        ValueError: there are fewer than two pairs, or unequally many values.
    """
    from scipy.stats import t

    differences = np.array([a - b for a, b in zip(first, second, strict=True)])
    if len(differences) < 2:
        raise ValueError("an interval needs two pairs at least")
    mean = float(differences.mean())
    half = float(t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / np.sqrt(len(differences)))
    return Interval(mean, mean - half, mean + half)
