"""k-means by direction (spherical k-means: Dhillon and Modha 2001), and how well its clusters part (Rousseeuw 1987)."""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

_ITERATIONS: Final = 50
#: Starts from which the best end is taken.
_STARTS: Final = 5


class Partition(NamedTuple):
    """Vectors in clusters.

    Attributes:
        centroids: ``[k, rank]`` float64, of length 1.
        labels: ``[n]`` int64: each vector's cluster.
        distance: the mean cosine distance to the own centroid.
    """

    centroids: NDArray[np.float64]
    labels: NDArray[np.int64]
    distance: float


def unit(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """``[n, rank]`` vectors at length 1; zero ones stay."""
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(lengths > 0, lengths, 1)


def kmeans(units: NDArray[np.float64], k: int, seed: int) -> Partition:
    """The best of a few partitions of ``units`` (``[n, rank]``, ``n >= k``) from k-means++ starts."""
    random = np.random.default_rng((seed, k))
    return min((refine(units, _spread(units, k, random)) for _ in range(_STARTS)), key=lambda part: part.distance)


def refine(units: NDArray[np.float64], centroids: NDArray[np.float64]) -> Partition:
    """Assign to the nearest centroid and move the centroids until nothing changes; an empty cluster's stays."""
    k = len(centroids)
    labels = np.full(len(units), -1)
    for _ in range(_ITERATIONS):
        before, labels = labels, (units @ centroids.T).argmax(1)
        if np.array_equal(before, labels):
            break
        sums = _sums(units, labels, k)
        filled = np.linalg.norm(sums, axis=1) > 0
        centroids = np.where(filled[:, None], unit(sums), centroids)
    return Partition(centroids, labels, float(1 - (units * centroids[labels]).sum(1).mean()))


def silhouette(units: NDArray[np.float64], labels: NDArray[np.int64], k: int) -> float:
    """The mean over all vectors of ``(b - a) / max(a, b)``, in -1..1.

    *a* is the mean cosine distance to the others of the own cluster, *b* that to the nearest other cluster; who is
    alone in a cluster counts 0. Needs two clusters that are not empty.
    """
    sizes = np.bincount(labels, minlength=k)
    totals = sizes - units @ _sums(units, labels, k).T  # [n, k] distances to all of a cluster
    mean = totals / np.maximum(sizes, 1)
    mean[:, sizes == 0] = np.inf
    rows = np.arange(len(units))
    own = sizes[labels]
    a = totals[rows, labels] / np.maximum(own - 1, 1)
    mean[rows, labels] = np.inf
    b = mean.min(1)
    return float(np.where(own > 1, (b - a) / np.maximum(np.maximum(a, b), 1e-12), 0).mean())


def _spread(units: NDArray[np.float64], k: int, random: np.random.Generator) -> NDArray[np.float64]:
    """k of the vectors, each drawn with a chance that grows with its distance from those drawn before (k-means++)."""
    chosen = [int(random.integers(len(units)))]
    distance = np.full(len(units), np.inf)
    for _ in range(k - 1):
        distance = np.minimum(distance, np.maximum(1 - units @ units[chosen[-1]], 0))
        total = distance.sum()
        chosen.append(int(random.choice(len(units), p=distance / total) if total > 0 else random.integers(len(units))))
    return units[chosen]


def _sums(units: NDArray[np.float64], labels: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    sums = np.zeros((k, units.shape[1]))
    np.add.at(sums, labels, units)
    return sums
