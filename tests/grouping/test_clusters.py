"""Clusters of users in factor space: found again, named after those before, left only for a reason."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from dare_core.grouping import CLUSTER_ASSIGNMENT, ItemFactors, UserClusters, moves, reassigned
from dare_core.grouping.clusters import match_clusters
from dare_core.grouping.kmeans import silhouette, unit

Factors = NDArray[np.float32]


def blobs(tastes: int, each: int = 40, seed: int = 0, spread: float = 0.15) -> tuple[Factors, NDArray[np.int64]]:
    """Users around so many orthogonal tastes: factors and each one's taste."""
    random = np.random.default_rng(seed)
    taste = np.arange(tastes * each) % tastes
    factors = np.eye(8)[taste] + random.normal(scale=spread, size=(len(taste), 8))
    return (factors * random.uniform(0.5, 2, (len(taste), 1))).astype(np.float32), taste


def turned(factors: Factors, seed: int) -> Factors:
    """The same users in another fit's coordinates."""
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(8, 8)))
    return (factors @ rotation).astype(np.float32)


@pytest.mark.parametrize("tastes", [2, 3, 5])
def test_as_many_clusters_are_found_as_there_are_tastes(tastes: int) -> None:
    factors, taste = blobs(tastes)
    clusters = UserClusters.fit(factors, range(2, 8), seed=0)
    assert clusters.names == tuple(f"cluster {number + 1}" for number in range(tastes))
    found = clusters.assign(factors)
    assert len({(own, name) for own, name in zip(taste.tolist(), found, strict=True)}) == tastes
    assert clusters.silhouette > 0.6


def test_the_bounds_hold_whatever_the_silhouette_says() -> None:
    factors, _ = blobs(2)
    assert len(UserClusters.fit(factors, range(4, 6), seed=0).names) in (4, 5)


def test_the_same_users_make_the_same_clusters() -> None:
    factors, _ = blobs(4, spread=0.6)
    first, second = (UserClusters.fit(factors, range(2, 9), seed=3) for _ in range(2))
    assert first.names == second.names
    assert first.centroids.tobytes() == second.centroids.tobytes()


def test_clusters_keep_their_names_and_users_in_another_fits_coordinates() -> None:
    factors, _ = blobs(4, spread=0.3)
    before = UserClusters.fit(factors, range(3, 7), seed=0)
    members = before.assign(factors)
    more, _ = blobs(4, each=44, spread=0.3)
    more[: len(factors)] = factors
    later = UserClusters.fit(turned(more, 5), range(3, 7), 1, before, members + [None] * (len(more) - len(factors)))
    assert sorted(later.names) == sorted(before.names)
    assert later.assign(turned(factors, 5), members, margin=0.1) == members


def test_the_number_of_clusters_changes_only_for_a_better_silhouette() -> None:
    factors, _ = blobs(3)
    before = UserClusters.fit(factors, [2], seed=0)
    members = before.assign(factors)
    stubborn = UserClusters.fit(factors, range(2, 6), 0, before, members, margin=1.0)
    assert stubborn.names == before.names
    better = UserClusters.fit(factors, range(2, 6), 0, before, members, margin=0.02)
    assert len(better.names) == 3
    # The cluster of one taste goes on; of that of two tastes one half does, and the other is new.
    assert set(better.names) == {*before.names, "cluster 3"}
    assert better.named == 3


def test_a_name_is_not_given_twice() -> None:
    factors, _ = blobs(3)
    before = UserClusters(("cluster 1", "cluster 7"), np.eye(2, 8, dtype=np.float32), 0.1, named=9)
    later = UserClusters.fit(factors, [3], 0, before, [None] * len(factors))
    assert later.names == ("cluster 10", "cluster 11", "cluster 12")


def test_a_user_moves_when_another_cluster_is_clearly_nearer() -> None:
    clusters = UserClusters(("a", "b"), np.array([[1, 0], [0, 1]], np.float32), 0.5, named=2)
    angles = np.radians([40, 44, 46, 50, 80])
    users = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    assert clusters.assign(users) == ["a", "a", "b", "b", "b"]
    assert clusters.assign(users, ["b"] * 5, margin=0.1) == ["a", "b", "b", "b", "b"]
    assert clusters.assign(users, ["a"] * 5, margin=0.1) == ["a", "a", "a", "b", "b"]
    assert clusters.assign(users, ["gone"] * 5, margin=0.9) == clusters.assign(users)


def test_clusters_are_matched_by_the_users_they_share() -> None:
    assert match_clusters(np.array([[0, 90, 10], [80, 0, 0]])) == [(0, 1), (1, 0)]
    assert match_clusters(np.array([[25, 25, 25, 25]])) == []  # scattered: none is the old one
    assert match_clusters(np.zeros((2, 3), np.int64)) == []


def test_the_silhouette_is_that_of_its_definition() -> None:
    units = unit(np.random.default_rng(1).normal(size=(30, 4)))
    labels = np.arange(30) % 3
    labels[labels == 2] = 1
    labels[0] = 2  # alone
    distances = 1 - units @ units.T
    expected = []
    for i in range(30):
        own = (labels == labels[i]) & (np.arange(30) != i)
        a = distances[i, own].mean() if own.any() else np.nan
        b = min(distances[i, labels == other].mean() for other in {0, 1, 2} - {int(labels[i])})
        expected.append((b - a) / max(a, b) if own.any() else 0.0)
    assert silhouette(units, labels, 3) == pytest.approx(np.mean(expected))


def test_folding_in_solves_the_weighted_least_squares_of_implicit_feedback() -> None:
    random = np.random.default_rng(2)
    items = ItemFactors(tuple("abcdef"), random.normal(size=(6, 3)).astype(np.float32), 2.0, 0.1)
    met, values = ["b", "e", "not there"], [4.0, 0.5, 3.0]
    confidence = np.ones(6)
    confidence[[1, 4]] += 2.0 * np.array([4.0, 0.5])
    preferred = np.isin(np.arange(6), [1, 4]).astype(float)
    y = items.factors.astype(float)
    expected = np.linalg.solve(y.T @ np.diag(confidence) @ y + 0.1 * 2 * np.eye(3), y.T @ (confidence * preferred))
    folded = items.fold_in(met, values)
    assert folded is not None
    np.testing.assert_allclose(folded, expected, rtol=1e-5)
    assert items.fold_in(["not there"], [1.0]) is None


def test_moves_are_counted_among_users_who_had_a_cluster() -> None:
    def assignments(**clusters: str) -> pa.Table:
        rows: list[dict[str, Any]] = [{"entity_id": user, "cluster": cluster} for user, cluster in clusters.items()]
        return pa.Table.from_pylist(rows, CLUSTER_ASSIGNMENT)

    earlier, now = assignments(a="1", b="1", c="2"), assignments(b="2", c="2", d="1")
    assert moves(earlier, now) == {"moved": 1, "moved_share": 0.5}
    assert moves(assignments(), now) == {"moved": 0, "moved_share": 0.0}
    assert reassigned(earlier, now) == assignments(a="1", b="2", c="2", d="1")
    assert reassigned(earlier, assignments()) == earlier
