"""Collaborative clusters of a domain's users: MLlib's factors of what they met, and its k-means by direction.

``dare_core.grouping.clusters`` names the clusters and assigns users to them.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import accumulate
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.ml.clustering import KMeans
from pyspark.ml.evaluation import ClusteringEvaluator
from pyspark.ml.functions import array_to_vector
from pyspark.ml.recommendation import ALS
from pyspark.mllib.clustering import KMeans as KMeansFromCentroids
from pyspark.mllib.clustering import KMeansModel as Centroids
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as sf

from dare_core.config.domains import ClusterGrouping
from dare_core.grouping import CLUSTER_ASSIGNMENT, GroupModel, ItemFactors, UserClusters, moves, reassigned
from dare_core.grouping.clusters import nearest
from spark_jobs.column_values import column
from spark_jobs.source_tables import SourceTables

#: Blocks of the factorization, so that its results do not depend on how many cores there are.
_BLOCKS: Final = 4
#: Users that clusters are found in at most; the others are assigned.
_SAMPLED_USERS: Final = 200_000
#: Bits that Spark's increasing numbers have for a row's place in its partition.
_PLACE_BITS: Final = 33


def cluster_users(
    tables: SourceTables,
    scheme: ClusterGrouping,
    as_of: datetime,
    pulled: DataFrame,
    model: GroupModel,
    before: GroupModel | None,
) -> tuple[GroupModel, dict[str, Any]]:
    """Assign users to clusters: the pulled ones to those of the last run, or all of them to new ones.

    What it keeps in Spark's cache is the caller's to clear.

    New factors are fitted when there are none yet, when the scheme has changed, or when interactions have grown by the
    scheme's share; until then users are folded in.

    Args:
        as_of: the latest interaction seen, inclusive.
        pulled: column ``entity_id``.
        model: this run's, without clusters.
        before: the last run's.

    Returns:
        ``model`` with clusters, without where there are too few users; and what happened: ``clusters``, ``silhouette``,
        ``fitted`` (whether anew), ``moved`` (users who changed their cluster), ``moved_share`` (of those who had one).
    """
    described = scheme.model_dump_json(exclude={"refit_growth", "move_margin", "silhouette_margin"})
    warm = _warm(_interactions(tables, as_of), scheme.min_interactions).cache()
    interactions = warm.count()
    kept = (
        before is not None
        and before.clusters is not None
        and before.scheme == described
        and interactions < (1 + scheme.refit_growth) * before.interactions
    )
    if kept and before is not None:
        clusters, items, fitted_on = before.clusters, before.items, before.interactions
        users = warm.join(pulled, "entity_id", "left_semi")
    else:
        clusters, items = _fit(warm, scheme, before)
        users, fitted_on = warm, interactions
    if clusters is None or items is None:
        return model, {"clusters": 0}
    earlier = before.assignments if before else CLUSTER_ASSIGNMENT.empty_table()
    now = _assigned(users, clusters, items, earlier, scheme.move_margin)
    report = {"clusters": len(clusters.names), "silhouette": round(clusters.silhouette, 4), "fitted": not kept}
    assignments = reassigned(earlier, now) if kept else now
    model = GroupModel(model.attributes, clusters, items, assignments, described, fitted_on)
    return model, report | moves(earlier, now)


def _interactions(tables: SourceTables, as_of: datetime) -> DataFrame:
    """Columns ``entity_id`` (of the user), ``item_id`` and ``value``: the sum of a pair's interactions up to ``as_of``.

    One without value counts 1; one with a value that is not above 0 says nothing.
    """
    spec = tables.domain.source.interactions
    events = tables.read("interactions", [spec.user, spec.item, spec.value, spec.time])
    strengths = events.where(column(spec.time).try_cast("timestamp") <= sf.lit(as_of)).select(
        column(spec.user).cast("string").alias("entity_id"),
        column(spec.item).cast("string").alias("item_id"),
        sf.coalesce(column(spec.value).try_cast("double"), sf.lit(1.0)).alias("value"),
    )
    meant = strengths.dropna().where((sf.col("value") > 0) & (sf.col("value") < float("inf")))
    return meant.groupBy("entity_id", "item_id").agg(sf.sum("value").alias("value"))


def _warm(interactions: DataFrame, least: int) -> DataFrame:
    """The interactions of users who have ``least`` of them."""
    enough = interactions.groupBy("entity_id").count().where(sf.col("count") >= least)
    return interactions.join(enough.select("entity_id"), "entity_id", "left_semi")


def _fit(
    warm: DataFrame, scheme: ClusterGrouping, before: GroupModel | None
) -> tuple[UserClusters, ItemFactors] | tuple[None, None]:
    users, user_count = _numbered(warm.select("entity_id"))
    items, _ = _numbered(warm.select("item_id"))
    most = min(scheme.max_clusters, user_count // scheme.users_per_cluster)
    if most < scheme.min_clusters:
        return None, None
    numbers = [frame.withColumnRenamed("number", name) for frame, name in ((users, "user"), (items, "item"))]
    ratings = warm.join(numbers[0], "entity_id").join(numbers[1], "item_id").select("user", "item", "value")
    als = ALS(
        rank=scheme.rank,
        maxIter=scheme.iterations,
        regParam=scheme.regularization,
        alpha=scheme.alpha,
        implicitPrefs=True,
        userCol="user",
        itemCol="item",
        ratingCol="value",
        seed=scheme.seed,
        numUserBlocks=_BLOCKS,
        numItemBlocks=_BLOCKS,
    )
    earlier = before.assignments if before else CLUSTER_ASSIGNMENT.empty_table()
    factors = als.fit(ratings)  # tasks know all iterations: they need the stack that the programs are started with
    of_items = _rows(factors.itemFactors.join(items, sf.col("id") == sf.col("number")))
    sampled = factors.userFactors.where(sf.col("id") % -(-user_count // _SAMPLED_USERS) == 0)
    sampled = sampled.join(users, sf.col("id") == sf.col("number"))
    of_users = _rows(sampled.join(warm.sparkSession.createDataFrame(earlier), "entity_id", "left"))
    clusters = fit_clusters(
        warm.sparkSession,
        _matrix(of_users),
        range(scheme.min_clusters, most + 1),
        scheme.seed,
        before.clusters if before else None,
        of_users["cluster"].to_pylist(),
        scheme.silhouette_margin,
    )
    if clusters is None:
        return None, None
    ids = tuple(of_items["item_id"].to_pylist())
    return clusters, ItemFactors(ids, _matrix(of_items), scheme.alpha, scheme.regularization)


def _numbered(ids: DataFrame) -> tuple[DataFrame, int]:
    """The values of a column, each once, with a ``number`` from 0 on in their order; and how many there are.

    MLlib asks for numbers. They are given where the values are: the driver only learns how many a partition has.
    """
    [name] = ids.columns
    placed = ids.distinct().orderBy(name).withColumn("at", sf.monotonically_increasing_id())
    part = sf.shiftright("at", _PLACE_BITS).cast("int").alias("part")
    placed = placed.select(name, part, "at").persist()
    sizes = {row["part"]: row["count"] for row in placed.groupBy("part").count().collect()}
    starts = zip(sorted(sizes), accumulate([0, *(sizes[number] for number in sorted(sizes))]), strict=False)
    start = sf.create_map(*[sf.lit(value) for pair in [*starts] or [(0, 0)] for value in pair])[sf.col("part")]
    place = sf.col("at").bitwiseAND(sf.lit((1 << _PLACE_BITS) - 1))
    return placed.select(name, (start + place).cast("int").alias("number")), sum(sizes.values())


def fit_clusters(
    spark: SparkSession,
    factors: NDArray[np.float32],
    sizes: Sequence[int],
    seed: int,
    previous: UserClusters | None = None,
    members: Sequence[str | None] = (),
    margin: float = 0.0,
) -> UserClusters | None:
    """Cluster users: as many clusters as have the best silhouette, named after those that they continue.

    Factors of two fits cannot be compared, but their users can: where there were clusters before, they are also
    carried over by their members, and only clusters with a silhouette better by more than ``margin`` replace them.

    Args:
        factors: ``[n, rank]``, of users. Those that are 0, of users who met only items without factors, have no
            direction and say nothing.
        sizes: numbers of clusters to choose from, ascending.
        seed: of the starts of k-means.
        previous: the clusters before.
        members: ``[n]`` the clusters' names that the users had; None for none.
        margin: a difference in silhouettes that is no reason to regroup everybody.

    Returns:
        None where fewer users than the least number of clusters have a direction.
    """
    directed: NDArray[np.bool_] = np.abs(factors).max(1) > 0
    members = [name for name, has in zip(members, directed.tolist(), strict=False) if has]
    factors = factors[directed]
    if len(factors) < sizes[0]:
        return None
    users = _frame(spark, factors).cache()
    found = []
    for k in sizes:
        kmeans = KMeans(k=k, seed=seed, distanceMeasure="cosine")
        centroids = np.array(kmeans.fit(users).clusterCenters())
        found.append((_silhouette(spark, factors, centroids), centroids))
    users.unpersist()
    score, chosen = max(found, key=lambda candidate: candidate[0])
    carried = previous.carried_over(factors, members) if previous else None
    if carried is not None and len(carried) in sizes:
        # Of MLlib's two APIs, only that on RDDs takes centroids to start from.
        vectors = spark.sparkContext.parallelize(list(factors.astype(np.float64)), 1)
        model = KMeansFromCentroids.train(
            vectors, len(carried), initialModel=Centroids(carried), distanceMeasure="cosine"
        )
        refined = np.array(model.clusterCenters)
        score_carried = _silhouette(spark, factors, refined)
        if score_carried >= score - margin:
            score, chosen = score_carried, refined
    return UserClusters.name(chosen, score, factors, previous, members)


def _silhouette(spark: SparkSession, factors: NDArray[np.float32], centroids: NDArray[np.float64]) -> float:
    """By cosine distance (Rousseeuw 1987), in -1..1; 0 where all users are in one cluster."""
    labels = nearest(factors, centroids)
    if len(set(labels.tolist())) < 2:
        return 0.0
    assigned = _frame(spark, factors, prediction=labels)
    return float(ClusteringEvaluator(distanceMeasure="cosine").evaluate(assigned))


def _frame(spark: SparkSession, factors: NDArray[np.float32], **columns: NDArray[np.int64]) -> DataFrame:
    """``features`` and other columns.

    In one partition, so that sums come out the same to the last bit: of :data:`_SAMPLED_USERS` they are a few MB.
    """
    frame = spark.createDataFrame(pa.table({"features": list(factors), **columns})).coalesce(1)
    return frame.withColumn("features", array_to_vector("features"))


def _assigned(
    users: DataFrame, clusters: UserClusters, items: ItemFactors, earlier: pa.Table, margin: float
) -> pa.Table:
    """The cluster of every user with interactions in ``users``, in schema CLUSTER_ASSIGNMENT."""

    def assign(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            folded = [
                (user, factors, cluster)
                for user, met, values, cluster in zip(*batch.to_pydict().values(), strict=True)
                if (factors := items.fold_in(met, values)) is not None
            ]
            if folded:
                ids, vectors, had = zip(*folded, strict=True)
                chosen = clusters.assign(np.stack(vectors), had, margin)
                yield pa.record_batch([pa.array(ids, pa.string()), pa.array(chosen, pa.string())], CLUSTER_ASSIGNMENT)

    # In a fixed order, so that sums over a user's interactions come out the same to the last bit.
    met = sf.array_sort(sf.collect_list(sf.struct("item_id", "value")))
    histories = users.groupBy("entity_id").agg(met.alias("met")).select("entity_id", "met.item_id", "met.value")
    before = users.sparkSession.createDataFrame(earlier)
    found = histories.join(before, "entity_id", "left").mapInArrow(assign, "entity_id string, cluster string")
    return found.toArrow().cast(CLUSTER_ASSIGNMENT).sort_by("entity_id")


def _rows(factors: DataFrame) -> pa.Table:
    """Factors in the order of their ids."""
    return factors.toArrow().sort_by("id")


def _matrix(factors: pa.Table) -> NDArray[np.float32]:
    """MLlib's factors, ``[n, rank]``."""
    flat: NDArray[np.float32] = factors["features"].combine_chunks().flatten().to_numpy().astype(np.float32)
    return flat.reshape(len(factors), -1)
