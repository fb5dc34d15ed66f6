"""Collaborative clusters of a domain's users: MLlib's factors of what they met, and its k-means by direction.

``dare_core.grouping.clusters`` names the clusters and assigns users to them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import accumulate
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark import StorageLevel, TaskContext
from pyspark.ml.clustering import KMeans
from pyspark.ml.evaluation import ClusteringEvaluator
from pyspark.ml.functions import array_to_vector
from pyspark.ml.recommendation import ALS
from pyspark.mllib.clustering import KMeans as KMeansFromCentroids
from pyspark.mllib.clustering import KMeansModel as Centroids
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as sf
from pyspark.sql.pandas.types import to_arrow_schema

from dare_core.config.domains import ClusterGrouping
from dare_core.grouping import CLUSTER_ASSIGNMENT, AttributeGroups, StoredModel, UserClusters
from dare_core.grouping.clusters import fold_in, gram, nearest
from dare_core.grouping.model import PIECE_ROWS, ModelTables, factors_of
from spark_jobs.column_values import column
from spark_jobs.source_tables import SourceTables

#: Blocks of the factorization, so that its results do not depend on how many cores there are.
_BLOCKS: Final = 4
#: Users that clusters are found in at most; the others are assigned.
_SAMPLED_USERS: Final = 200_000
#: Rows of a piece that a task hands to Spark at once.
_ROWS_AT_ONCE: Final = 10_000
#: Bits that Spark's increasing numbers have for a row's place in its partition.
_PLACE_BITS: Final = 33


def cluster_users(
    tables: SourceTables,
    scheme: ClusterGrouping,
    as_of: datetime,
    pulled: DataFrame,
    attributes: AttributeGroups,
    before: StoredModel | None,
    models: str,
) -> tuple[StoredModel, dict[str, Any]]:
    """Assign users to clusters: the pulled ones to those of the last run, or all of them to new ones.

    What it keeps in Spark's cache is the caller's to clear. Executors write the model's tables, and read them again.

    New factors are fitted when there are none yet, when the scheme has changed, or when interactions have grown by the
    scheme's share; until then users are folded in.

    Args:
        as_of: the latest interaction seen, inclusive.
        pulled: column ``entity_id``.
        attributes: this run's groups by attribute.
        before: the last run's model.
        models: location of the models' tables, see :class:`ModelTables`.

    Returns:
        The model to publish, without clusters where there are too few users; and what happened: ``clusters``,
        ``silhouette``, ``fitted`` (whether anew), ``moved`` (users who changed their cluster), ``moved_share`` (of
        those who had one).
    """
    spark = pulled.sparkSession
    described = scheme.model_dump_json(exclude={"refit_growth", "move_margin", "silhouette_margin"})
    warm = _warm(_interactions(tables, as_of), scheme.min_interactions).cache()
    interactions = warm.count()
    earlier = assignments(spark, models, before)
    if (
        before is not None
        and before.clusters is not None
        and before.scheme == described
        and interactions < (1 + scheme.refit_growth) * before.interactions
    ):
        kept, model, clusters = True, replace(before, attributes=attributes), before.clusters
        users = warm.join(pulled, "entity_id", "left_semi")
    else:
        kept, users = False, warm
        fitted = _fit(warm, scheme, before.clusters if before else None, earlier, models)
        if fitted is None:
            return StoredModel(attributes), {"clusters": 0}
        clusters, items = fitted
        model = StoredModel(attributes, clusters, described, interactions, scheme.alpha, scheme.regularization, items)
    now = _assigned(users, model, clusters, earlier, scheme.move_margin, models).persist(StorageLevel.MEMORY_AND_DISK)
    counted = now.agg(
        sf.count("*").alias("users"),
        sf.count("had").alias("known"),
        sf.count_if(sf.col("had") != sf.col("cluster")).alias("moved"),
    ).first()
    assert counted is not None  # of an empty frame too
    pieces = _written(now.select("entity_id", "cluster"), counted["users"], CLUSTER_ASSIGNMENT, models)
    if kept:
        model = model.with_added(pieces)
        if model.is_scattered:
            everybody = assignments(spark, models, model).persist(StorageLevel.MEMORY_AND_DISK)
            pieces = _written(everybody, everybody.count(), CLUSTER_ASSIGNMENT, models)
            model = replace(model, assignments=pieces, whole=len(pieces))
    else:
        model = replace(model, assignments=pieces, whole=len(pieces))
    return model, {
        "clusters": len(clusters.names),
        "silhouette": round(clusters.silhouette, 4),
        "fitted": not kept,
        "moved": counted["moved"],
        "moved_share": round(counted["moved"] / counted["known"], 4) if counted["known"] else 0.0,
    }


def assignments(spark: SparkSession, models: str, model: StoredModel | None) -> DataFrame:
    """Columns ``entity_id`` and ``cluster`` of everybody whom a model has in a cluster."""
    pieces = model.assignments if model else ()
    found = _pieces(spark, models, pieces, "entity_id string, cluster string")
    if model is not None and len(pieces) > model.whole:
        found = found.groupBy("entity_id").agg(sf.max_by("cluster", "piece").alias("cluster"))
    return found.select("entity_id", "cluster")


def _pieces(spark: SparkSession, models: str, pieces: Sequence[str], columns: str) -> DataFrame:
    """The rows of pieces of a model's table, and as ``piece`` the place of each one's."""

    def rows(numbers: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for number in (number for batch in numbers for number in batch["id"].to_pylist()):
            table = ModelTables(models).read(pieces[number])
            plain = [
                (name, pa.list_(pa.float32()) if pa.types.is_fixed_size_list(kind) else kind)
                for name, kind in zip(table.column_names, table.schema.types, strict=True)
            ]
            table = table.cast(pa.schema(plain))
            places = pa.array(np.full(len(table), number, np.int32))
            yield from table.append_column("piece", places).to_batches(max_chunksize=_ROWS_AT_ONCE)

    numbers = spark.range(0, len(pieces), 1, max(1, len(pieces)))
    return numbers.mapInArrow(rows, f"{columns}, piece int")


def _written(rows: DataFrame, count: int, schema: pa.Schema, models: str) -> tuple[str, ...]:
    """Write rows as pieces of a model's table, the same ones however Spark spreads the rows; returns their names."""
    [key, *_] = schema.names

    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        table = pa.Table.from_batches(batches, arrow_schema)
        if len(table):
            context = TaskContext.get()
            assert context is not None
            name = ModelTables(models).write(table.cast(schema).combine_chunks())
            yield pa.record_batch({"part": pa.array([context.partitionId()], pa.int32()), "name": [name]})

    arrow_schema = to_arrow_schema(rows.schema)
    parts = max(1, -(-count // PIECE_ROWS))
    found = rows.repartition(parts, key).sortWithinPartitions(key).mapInArrow(write, "part int, name string").collect()
    return tuple(row["name"] for row in sorted(found, key=lambda row: row["part"]))


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
    warm: DataFrame, scheme: ClusterGrouping, before: UserClusters | None, earlier: DataFrame, models: str
) -> tuple[UserClusters, tuple[str, ...]] | None:
    """Clusters, and the pieces of the items' factors; None where there are too few users."""
    users, user_count = _numbered(warm.select("entity_id"))
    items, item_count = _numbered(warm.select("item_id"))
    most = min(scheme.max_clusters, user_count // scheme.users_per_cluster)
    if most < scheme.min_clusters:
        return None
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
    factors = als.fit(ratings)  # tasks know all iterations: they need the stack that the programs are started with
    sampled = factors.userFactors.where(sf.col("id") % -(-user_count // _SAMPLED_USERS) == 0)
    sampled = sampled.join(users, sf.col("id") == sf.col("number")).join(earlier, "entity_id", "left")
    of_users = sampled.select("id", "features", "cluster").toArrow().sort_by("id")
    clusters = fit_clusters(
        warm.sparkSession,
        factors_of(of_users["features"]),
        range(scheme.min_clusters, most + 1),
        scheme.seed,
        before,
        of_users["cluster"].to_pylist(),
        scheme.silhouette_margin,
    )
    if clusters is None:
        return None
    of_items = factors.itemFactors.join(items, sf.col("id") == sf.col("number"))
    of_items = of_items.select("item_id", sf.col("features").alias("factors"))
    kinds = pa.schema({"item_id": pa.string(), "factors": pa.list_(pa.float32(), scheme.rank)})
    return clusters, _written(of_items, item_count, kinds, models)


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
    users: DataFrame, model: StoredModel, clusters: UserClusters, earlier: DataFrame, margin: float, models: str
) -> DataFrame:
    """Columns ``entity_id`` and ``cluster`` of every user with interactions in ``users``, and ``had``: the one before.

    Factors go to where the interactions with their items are: no process holds those of all items.
    """
    alpha, regularization = model.alpha, model.regularization
    of_all = np.sum([gram(factors_of(ModelTables(models).read(piece)["factors"])) for piece in model.items], axis=0)

    def assign(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for rows in _whole_users(batches):
            users = pc.run_end_encode(rows["entity_id"])
            ends = users.run_ends.to_numpy()
            values = rows["value"].to_numpy()
            met = rows["factors"].flatten().to_numpy().reshape(len(values), -1)
            vectors = [
                fold_in(factors, strengths, of_all, alpha, regularization)
                for factors, strengths in zip(np.split(met, ends[:-1]), np.split(values, ends[:-1]), strict=True)
            ]
            had = rows["had"].take(pa.array(ends - 1))
            chosen = clusters.assign(np.stack(vectors), had.to_pylist(), margin)
            yield pa.record_batch({"entity_id": users.values, "cluster": pa.array(chosen, pa.string()), "had": had})

    items = _pieces(users.sparkSession, models, model.items, "item_id string, factors array<float>")
    before = earlier.withColumnRenamed("cluster", "had")
    met = users.join(items, "item_id").join(before, "entity_id", "left")
    met = met.select("entity_id", "item_id", sf.col("value").cast("double"), "factors", "had")
    # Sorted rows spill where lists of a user who met a million items would not; and in a fixed order, sums come out the
    # same to the last bit.
    met = met.repartition("entity_id").sortWithinPartitions("entity_id", "item_id")
    return met.mapInArrow(assign, "entity_id string, cluster string, had string")


def _whole_users(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Rows that are sorted by ``entity_id``, all of a user's together."""
    rest = list[pa.RecordBatch]()  # of the last user
    for batch in batches:
        if not len(batch):
            continue
        if rest and rest[0]["entity_id"][0] != batch["entity_id"][0]:
            yield pa.concat_batches(rest)
            rest = []
        last = pc.index(batch["entity_id"], batch["entity_id"][-1]).as_py()
        if last:
            yield pa.concat_batches([*rest, batch.slice(0, last)])
            rest = []
        rest.append(batch.slice(last))
    if rest:
        yield pa.concat_batches(rest)
