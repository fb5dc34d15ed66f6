"""Clusters of users in factor space: named after those before, left only for a reason."""

from typing import Any

import numpy as np
import pyarrow as pa

from dare_core.grouping import CLUSTER_ASSIGNMENT, ItemFactors, UserClusters, reassigned
from dare_core.grouping.clusters import match_clusters

EYE = np.eye(3, dtype=np.float32)
#: Six users of three tastes.
USERS = np.repeat(EYE, 2, axis=0)
BEFORE = UserClusters(("cluster 1", "cluster 7"), EYE[:2], 0.1, named=9)


def test_clusters_are_named_after_those_with_the_same_users() -> None:
    turned = USERS[:, [2, 0, 1]]  # another fit's coordinates
    members = ["cluster 7", "cluster 7", "cluster 1", "cluster 1", None, "gone"]
    later = UserClusters.name(2 * EYE, 0.5, turned, BEFORE, members)
    assert later.names == ("cluster 10", "cluster 7", "cluster 1")
    assert later.assign(turned)[:4] == members[:4]
    assert (later.centroids.tolist(), later.silhouette, later.named) == (EYE.tolist(), 0.5, 10)


def test_a_name_is_not_given_twice() -> None:
    assert UserClusters.name(EYE, 0.5, USERS).names == ("cluster 1", "cluster 2", "cluster 3")
    later = UserClusters.name(EYE, 0.5, USERS, BEFORE, [None] * 6)
    assert later.names == ("cluster 10", "cluster 11", "cluster 12")


def test_clusters_are_carried_over_to_where_their_users_are() -> None:
    carried = BEFORE.carried_over(USERS, ["cluster 7", None, "cluster 1", "cluster 1", "cluster 7", None])
    assert carried is not None
    np.testing.assert_allclose(carried, [[0, 1, 0], [0.5**0.5, 0, 0.5**0.5]])
    assert BEFORE.carried_over(USERS, ["cluster 7"] * 6) is None  # nobody is left in cluster 1
    assert BEFORE.carried_over(np.concatenate([USERS, -USERS]), ["cluster 1", "cluster 7"] * 6) is None  # no direction


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


def test_later_assignments_take_the_place_of_earlier_ones() -> None:
    def assignments(**clusters: str) -> pa.Table:
        rows: list[dict[str, Any]] = [{"entity_id": user, "cluster": cluster} for user, cluster in clusters.items()]
        return pa.Table.from_pylist(rows, CLUSTER_ASSIGNMENT)

    earlier, now = assignments(a="1", b="1", c="2"), assignments(b="2", c="2", d="1")
    assert reassigned(earlier, now) == assignments(a="1", b="2", c="2", d="1")
    assert reassigned(earlier, assignments()) == earlier
