"""How alike an item is to what a user liked: the mean, the maximum, the histogram of SimTier (arXiv 2407.19467,
section 4.1), and whether the user liked what is alike more often than what is not.

Alike is the cosine of two vectors. SimTier counts the liked items in tiers of likeness; ours divide [0, 1] into
:data:`TIERS` equal ones, since hardly any two texts about items of one domain lie below 0; what does is in the first.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

#: Tiers of the histogram.
TIERS: Final = 10
#: Columns: likes, mean, maximum, leaning, and the tiers.
FIGURES: Final = 4 + TIERS
#: Interactions that are looked at, the newest.
INTERACTIONS: Final = 50
#: An interaction weighs exp(cosine / TEMPERATURE) in the leaning: one that is 0.1 less alike weighs a third. Cosines of
#: one domain's texts differ by some tenths, so the few most alike decide.
TEMPERATURE: Final = 0.1
#: So many interactions halve the leaning: what a user did with two or three items says little.
SHRINKAGE: Final = 10
_FEW: Final = 4096  # vectors of which all cosines are kept: 64 MiB at most
_ROWS_AT_ONCE: Final = 256  # what is made of them stays in a core's cache


class Likeness:
    """Likeness within some vectors. Where these are few, all their cosines are computed once."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        """Keep them.

        Args:
            vectors: ``[m, w]`` of length 1.
        """
        self._vectors = vectors
        self._cosines = vectors @ vectors.T if len(vectors) <= _FEW else None

    def of(self, targets: NDArray[np.int64], met: NDArray[np.int64], liked: NDArray[np.bool_]) -> NDArray[np.float32]:
        """See :func:`likeness`."""
        found = np.empty((len(targets), FIGURES), np.float32)
        for start in range(0, len(targets), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            compared = (met[rows] >= 0) & (targets[rows] >= 0)[:, None]
            found[rows] = _figures(self._between(targets[rows], met[rows]), compared, compared & liked[rows])
        return found

    def _between(self, targets: NDArray[np.int64], met: NDArray[np.int64]) -> NDArray[np.float32]:
        """``[n, h]``, cosines."""
        if self._cosines is not None:
            return self._cosines[targets[:, None], met]
        cosines: NDArray[np.float32] = np.einsum(
            "nhw,nw->nh", self._vectors[met], self._vectors[targets], optimize=True
        )
        return cosines


def likeness(
    vectors: NDArray[np.float32], targets: NDArray[np.int64], met: NDArray[np.int64], liked: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Likeness of targets to what was liked, and to what was met and not liked.

    The leaning is by how much more often the user liked what is like the target than whatever was met: with k compared,
    y 1 for a like and 0 for the others, and w = exp((cosine - 1) / TEMPERATURE), it is
    ``k / (k + SHRINKAGE) * (sum(w * y) / sum(w) - sum(y) / k)``, which lies between -1 and 1.

    Args:
        vectors: ``[m, w]`` of length 1.
        targets: ``[n]``, the row of each target; -1 for none.
        met: ``[n, h]``, the rows of what the user met before; -1 for none.
        liked: ``[n, h]``, which of these the user liked.

    Returns:
        ``[n, FIGURES]``: how many likes were compared, the mean and the maximum of their cosines, the leaning, and the
        histogram in counts; zeros where there is no target, or nothing to compare it with.
    """
    return Likeness(vectors).of(targets, met, liked)


def _figures(
    cosines: NDArray[np.float32], compared: NDArray[np.bool_], liked: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """``[n, FIGURES]`` of cosines ``[n, h]``; what is liked is among what is compared."""
    found = np.empty((len(cosines), FIGURES), np.float32)
    met, likes = compared.sum(1), liked.sum(1)
    found[:, 0] = likes
    found[:, 1] = np.where(liked, cosines, 0).sum(1) / np.maximum(likes, 1)
    found[:, 2] = np.where(likes > 0, np.where(liked, cosines, -np.inf).max(1, initial=-np.inf), 0)
    weights = np.where(compared, np.exp((cosines - 1) / np.float32(TEMPERATURE)), 0)
    alike = np.where(liked, weights, 0).sum(1) / np.where(met > 0, weights.sum(1), 1)
    found[:, 3] = met / (met + SHRINKAGE) * (alike - likes / np.maximum(met, 1))
    tiers = np.clip(np.floor(cosines * TIERS), 0, TIERS - 1).astype(np.int64)
    cells = (tiers + TIERS * np.arange(len(tiers))[:, None])[liked]
    found[:, 4:] = np.bincount(cells, minlength=TIERS * len(tiers)).reshape(-1, TIERS)
    return found
