"""Users by collaborative cluster: factors of what they met, the nearest of a few centroids, names that last.

Spark finds the clusters (``spark_jobs/user_clusters.py``); here they are named, and users assigned to them.

The factors are those of alternating least squares on implicit feedback (Hu, Koren and Volinsky 2008; the weighting of
the regularization is Zhou et al. 2008), as Spark MLlib fits them. A user's factors are a function of the items' factors
and of the user's own interactions, so a user who acted since the fit is *folded in* without another fit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

#: How alike the members of an old and a new cluster must be (Jaccard index) for the new one to bear the old one's name.
#: Clusters that have nothing to do with each other have less in common, one that was cut in two halves has more.
SAME_CLUSTER: Final = 0.3

_NAME: Final = "cluster {}"


@dataclass(frozen=True, eq=False)
class ItemFactors:
    """What a factorization knows of the items.

    Attributes:
        ids: ``[n]`` the items, in the order of ``factors``.
        factors: ``[n, rank]`` float32.
        alpha: confidence in an interaction of value *r* is ``1 + alpha * r``.
        regularization: for each interaction of a user.
    """

    ids: tuple[str, ...]
    factors: NDArray[np.float32]
    alpha: float
    regularization: float

    @cached_property
    def places(self) -> Mapping[str, int]:
        """Where each item stands in ``factors``."""
        return {item: place for place, item in enumerate(self.ids)}

    @cached_property
    def gram(self) -> NDArray[np.float64]:
        """``[rank, rank]``: see :func:`fold_in`."""
        return gram(self.factors)

    def fold_in(self, items: Sequence[str], values: Sequence[float]) -> NDArray[np.float32] | None:
        """See the function; items that are not known say nothing.

        Returns:
            None when no item is known.
        """
        known = [(self.places[item], value) for item, value in zip(items, values, strict=True) if item in self.places]
        if not known:
            return None
        met = self.factors[[place for place, _ in known]]
        return fold_in(met, np.array([value for _, value in known]), self.gram, self.alpha, self.regularization)


def gram(factors: NDArray[np.float32]) -> NDArray[np.float64]:
    """``[rank, rank]``: the sum of the outer products of factors (``[n, rank]``) with themselves."""
    wide = factors.astype(np.float64)
    product: NDArray[np.float64] = wide.T @ wide
    return product


def fold_in(
    met: NDArray[np.float32],
    values: NDArray[np.float64],
    of_all: NDArray[np.float64],
    alpha: float,
    regularization: float,
) -> NDArray[np.float32]:
    """The factors of one user (``[rank]``): the least-squares step of the fit, for the items as they stand.

    Args:
        met: ``[m, rank]`` the factors of the items that the user met, each once, in an order that is always the same:
            sums come out the same to the last bit.
        values: ``[m]`` how strongly, above 0.
        of_all: the :func:`gram` of all items.
        alpha, regularization: see :class:`ItemFactors`.
    """
    wide, confidence = met.astype(np.float64), alpha * values
    damped = regularization * len(met) * np.eye(met.shape[1])
    solved = np.linalg.solve(of_all + (wide.T * confidence) @ wide + damped, wide.T @ (1 + confidence))
    return solved.astype(np.float32)


@dataclass(frozen=True, eq=False)
class UserClusters:
    """Centroids of users' factors by direction, and their names.

    Attributes:
        names: ``[k]``.
        centroids: ``[k, rank]`` float32, of length 1.
        silhouette: of the users that the clusters were found in, in -1..1.
        named: how many names have ever been given; none is given twice.
    """

    names: tuple[str, ...]
    centroids: NDArray[np.float32]
    silhouette: float
    named: int

    @classmethod
    def name(
        cls,
        centroids: NDArray[np.floating],
        silhouette: float,
        factors: NDArray[np.float32],
        previous: "UserClusters | None" = None,
        members: Sequence[str | None] = (),
    ) -> "UserClusters":
        """Name clusters that were just found: after those that they continue, the others as none was named before.

        Args:
            centroids: ``[k, rank]``; made length 1.
            silhouette: of ``factors`` in these clusters.
            factors: ``[n, rank]``, of the users that the clusters were found in.
            previous: the clusters before; their factors need not be those of the same fit.
            members: ``[n]`` the clusters' names that the users had; None for none.
        """
        given, names = 0, dict[int, str]()
        if previous is not None:
            given = previous.named
            old, new = _places(previous, members), nearest(factors, centroids)
            overlap = np.zeros((len(previous.names), len(centroids)), np.int64)
            np.add.at(overlap, (old[old >= 0], new[old >= 0]), 1)
            names = {place: previous.names[before] for before, place in match_clusters(overlap)}
        for place in range(len(centroids)):
            if place not in names:
                given += 1
                names[place] = _NAME.format(given)
        ordered = tuple(names[place] for place in range(len(centroids)))
        return cls(ordered, unit(centroids).astype(np.float32), silhouette, given)

    def carried_over(self, factors: NDArray[np.float32], members: Sequence[str | None]) -> NDArray[np.float64] | None:
        """Where each cluster's users are in the factors of another fit.

        Args:
            factors: ``[n, rank]``.
            members: ``[n]`` the clusters' names that the users had; None for none.

        Returns:
            ``[k, rank]`` their mean directions; None where a cluster has no users left, or they have none.
        """
        units, old = unit(factors), _places(self, members)
        sums = np.stack([units[old == place].sum(0) for place in range(len(self.names))])
        return unit(sums) if sums.any(1).all() else None

    def assign(
        self, factors: NDArray[np.float32], previous: Sequence[str | None] = (), margin: float = 0.0
    ) -> list[str]:
        """Each user's cluster: the nearest centroid's, unless the cluster the user was in is nearly as near.

        Args:
            factors: ``[n, rank]``.
            previous: ``[n]`` the clusters' names that the users had, None for none; empty for none at all.
            margin: a user moves when the nearest centroid is nearer than the old one by more than this share of the
                cosine distance.
        """
        distances = 1 - unit(factors) @ self.centroids.T.astype(np.float64)  # [n, k]
        closest, old = distances.argmin(1), _places(self, previous or [None] * len(factors))
        rows = np.arange(len(factors))
        stays = (old >= 0) & (distances[rows, closest] >= (1 - margin) * distances[rows, old])
        return [self.names[place] for place in np.where(stays, old, closest)]


def match_clusters(overlap: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Pairs of an old and a new cluster that are the same one, so that they share the most users in all.

    Args:
        overlap: ``[old, new]`` users who were in the one and are in the other.

    Returns:
        Pairs whose Jaccard index is :data:`SAME_CLUSTER` at least; every cluster is in one pair at most.
    """
    from scipy.optimize import linear_sum_assignment  # the Hungarian method

    either = overlap.sum(1, keepdims=True) + overlap.sum(0, keepdims=True) - overlap
    alike = overlap / np.maximum(either, 1)
    pairs = zip(*linear_sum_assignment(overlap, maximize=True), strict=True)
    return [(int(old), int(new)) for old, new in pairs if alike[old, new] >= SAME_CLUSTER]


def unit(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """``[n, rank]`` vectors at length 1; zero ones stay."""
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(lengths > 0, lengths, 1)


def nearest(factors: NDArray[np.float32], centroids: NDArray[np.floating]) -> NDArray[np.int64]:
    """``[n]``: the place of the nearest of ``centroids`` (``[k, rank]``) by direction, for each of ``factors``."""
    places: NDArray[np.int64] = (unit(factors) @ unit(centroids).T).argmax(1)
    return places


def _places(clusters: UserClusters, names: Sequence[str | None]) -> NDArray[np.int64]:
    """``[n]`` int64: the places of the clusters with these names, -1 for none."""
    places = {name: place for place, name in enumerate(clusters.names)}
    return np.array([-1 if name is None else places.get(name, -1) for name in names], np.int64)
