"""Clusters that MLlib finds in factors: as many as there are tastes, found again, given up only for better ones."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pyspark.sql import SparkSession

from dare_core.grouping import UserClusters
from spark_jobs.user_clusters import _whole_users, fit_clusters

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


def found_in(
    spark: SparkSession, factors: Factors, sizes: Sequence[int], *before: Any, margin: float = 0.0
) -> UserClusters:
    """Clusters of ``factors``; ``before`` them were these, with these members."""
    clusters = fit_clusters(spark, factors, sizes, 0, *before, margin=margin)
    assert clusters is not None
    return clusters


def silhouette(factors: Factors, clusters: list[str]) -> float:
    """By its definition (Rousseeuw 1987), of cosine distances."""
    units = factors / np.linalg.norm(factors, axis=1, keepdims=True)
    distances, labels = 1 - units @ units.T, np.array(clusters)
    scores = []
    for user, label in enumerate(labels):
        a = distances[user, (labels == label) & (np.arange(len(labels)) != user)].mean()
        b = min(distances[user, labels == other].mean() for other in {*clusters} - {str(label)})
        scores.append((b - a) / max(a, b))
    return float(np.mean(scores))


def test_as_many_clusters_are_found_as_there_are_tastes(spark: SparkSession) -> None:
    factors, taste = blobs(3)
    clusters = found_in(spark, factors, [2, 3, 4])
    assert clusters.names == ("cluster 1", "cluster 2", "cluster 3")
    assigned = clusters.assign(factors)
    assert len({(own, name) for own, name in zip(taste.tolist(), assigned, strict=True)}) == 3
    assert clusters.silhouette == pytest.approx(silhouette(factors, assigned), abs=1e-5)
    assert clusters.silhouette > 0.6


def test_the_bounds_hold_and_the_same_users_make_the_same_clusters(spark: SparkSession) -> None:
    factors, _ = blobs(2, spread=0.6)
    first, second = (found_in(spark, factors, [4]) for _ in range(2))
    assert first.names == second.names == ("cluster 1", "cluster 2", "cluster 3", "cluster 4")
    assert first.silhouette == second.silhouette
    assert first.centroids.tobytes() == second.centroids.tobytes()


def test_clusters_keep_their_names_and_users_in_another_fits_coordinates(spark: SparkSession) -> None:
    factors, _ = blobs(4, spread=0.3)
    before = found_in(spark, factors, [4])
    members = before.assign(factors)
    more, _ = blobs(4, each=44, spread=0.3)
    more[: len(factors)] = factors
    later = found_in(spark, turned(more, 5), [4, 5], before, members + [None] * (len(more) - len(factors)))
    assert sorted(later.names) == sorted(before.names)
    assert later.assign(turned(factors, 5), members, margin=0.1) == members


def test_the_number_of_clusters_changes_only_for_a_better_silhouette(spark: SparkSession) -> None:
    factors, _ = blobs(3)
    before = found_in(spark, factors, [2])
    members = before.assign(factors)
    stubborn = found_in(spark, factors, [2, 3], before, members, margin=1.0)
    assert stubborn.names == before.names
    better = found_in(spark, factors, [2, 3], before, members, margin=0.02)
    assert len(better.names) == 3
    # The cluster of one taste goes on; of that of two tastes one half does, and the other is new.
    assert set(better.names) == {*before.names, "cluster 3"}
    assert better.named == 3


def test_users_who_are_all_alike_make_one_cluster(spark: SparkSession) -> None:
    alike = np.ones((30, 4), np.float32)
    alike[7] = 0  # has no factors
    clusters = found_in(spark, alike, [2])
    assert (clusters.names, clusters.silhouette) == (("cluster 1",), 0.0)


def test_users_without_factors_make_no_clusters(spark: SparkSession) -> None:
    assert fit_clusters(spark, np.zeros((30, 4), np.float32), [2], seed=0) is None


def test_all_rows_of_a_user_come_together_however_they_were_cut() -> None:
    ids = pa.array([*"aab", *"cccccc", "d"])
    for size in range(1, len(ids) + 1):
        batches = pa.table({"entity_id": ids}).to_batches(max_chunksize=size)
        found = [rows["entity_id"].to_pylist() for rows in _whole_users(iter([ids_of_none(), *batches]))]
        assert [user for rows in found for user in rows] == ids.to_pylist()
        firsts_and_lasts = [rows[0] for rows in found[1:]], [rows[-1] for rows in found[:-1]]
        assert not any(first == last for first, last in zip(*firsts_and_lasts, strict=True))


def ids_of_none() -> pa.RecordBatch:
    return pa.record_batch({"entity_id": pa.array([], pa.string())})
