"""Index knowledge for the retrieval pools: from rows to the segments of each group, in parallel.

    spark-submit spark_jobs/build_pools.py --pool DIR --vocabulary 49152 --out FILE \
        --domain movies --kind item --tokenizer-hash HASH --since 2024-01-31T03:00:00Z --until 2024-02-01T03:00:00Z
    spark-submit spark_jobs/build_pools.py --pool DIR --vocabulary 49152 --out FILE --knowledge FILE.parquet

Only groups with rows in the window get segments. A group of more tokens than one task should sort is split by a hash of
the entity, into as many parts as its tokens call for; so which segments come out, to the byte, depends on the rows
alone, and not on how Spark spreads them. Segments are written where the pool is, which all of Spark's workers must be
able to write; nothing refers to them until a manifest does. ``--out`` gets a JSON list of them for whoever publishes:
``{"group", "sha256", "texts", "tokens", "size"}``, ordered by group and part.

With ``--grow``, what a version is to hold is made here too, a group a task: texts that the pool has already are left
out, segments are merged, and what the limits say is evicted. ``--out`` then gets a JSON object for
:meth:`dare_core.pools.builder.PoolBuilder.publish_grown`.

The warehouse is the URL in ``DARE_WAREHOUSE_URL``, which never stands on a command line.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import pyarrow as pa
from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark import StorageLevel
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as sf
from pyspark.sql.types import ArrayType, IntegralType

from dare_core.errors import InputError, PoolError, SourceError, StorageError
from dare_core.pools import Limits, PoolBuilder
from dare_core.pools.builder import check_group
from dare_core.pools.segments import Segment, SegmentEntry
from dare_core.pools.store import PoolStore
from spark_jobs.postgres_source import Table, TimeWindow, read_rows
from spark_jobs.pull import moment
from spark_jobs.session import run

#: Tokens of one segment at most, roughly: what one task sorts, at some forty bytes of memory for each.
SEGMENT_TOKENS: Final = 8_000_000

#: A task for each group, up to so many groups.
_MOST_TASKS: Final = 1000

_SEGMENT: Final = "group string, part int, segment string, error string"

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Knowledge:
    """The warehouse's texts of one kind that were loaded in a window of time, both ends included; None is no bound."""

    domain: str
    kind: str
    tokenizer_hash: str
    since: datetime | None
    until: datetime | None


def build_segments(
    texts: DataFrame, pool: str, vocabulary: int, segment_tokens: int = SEGMENT_TOKENS
) -> list[tuple[str, SegmentEntry]]:
    """Write the segments of every group in ``texts`` into a pool store.

    Args:
        texts: columns ``group`` and ``token_ids`` (list of whole numbers); where known ``entity_id`` (string) and
            ``available_at`` (timestamp). Empty texts are left out, and so are groups of nothing else.
        pool: root of the store, for all workers.
        vocabulary: token ids are below it.
        segment_tokens: a group of more is split.

    Returns:
        Groups and segments, ordered by group and part.

    Raises:
        InputError: a column is missing or has nulls or another type.
        PoolError: a group has a name that it cannot have, a token id is out of range, or a segment cannot be written.
    """
    texts = _checked_columns(texts).persist(StorageLevel.MEMORY_AND_DISK)
    try:
        sizes = _checked_groups(texts)
        parts = {group: max(1, -(-tokens // segment_tokens)) for group, tokens in sizes.items() if tokens}
        if not parts:
            return []
        return _write_segments(texts, parts, pool, vocabulary)
    finally:
        texts.unpersist()


def _write_segments(
    texts: DataFrame, parts: dict[str, int], pool: str, vocabulary: int
) -> list[tuple[str, SegmentEntry]]:
    def write(key: tuple[pa.Scalar, ...], rows: pa.Table) -> pa.Table:
        group, part = (value.as_py() for value in key)
        segment, problem = None, None
        try:
            built = Segment.build(rows, vocabulary)
            segment = json.dumps(asdict(PoolStore(pool).write_segment(built)))
        except (PoolError, StorageError) as error:  # across Spark it would arrive as a page of stack traces
            problem = str(error)
        kinds = (pa.string(), pa.int32(), pa.string(), pa.string())
        row = zip((group, part, segment, problem), kinds, strict=True)
        return pa.table([pa.array([value], kind) for value, kind in row], names=["group", "part", "segment", "error"])

    spark = texts.sparkSession
    counted = spark.createDataFrame(list(parts.items()), "group string, parts int")
    # Whose texts these are, or where nobody knows, what they say: equal rows must meet to be counted once.
    spread = sf.when(sf.col("entity_id").isNull(), sf.xxhash64("token_ids")).otherwise(sf.xxhash64("entity_id"))
    split = (
        texts.where(sf.size("token_ids") > 0)
        .join(sf.broadcast(counted), "group")
        .withColumn("part", sf.pmod(spread, sf.col("parts")).cast("int"))
    )
    # As many tasks as there are segments: by its own estimate Spark would put small ones into one.
    tasks = min(sum(parts.values()), 4 * spark.sparkContext.defaultParallelism)
    written = split.repartition(tasks, "group", "part").groupBy("group", "part").applyInArrow(write, _SEGMENT).collect()
    for row in sorted(written, key=lambda row: row["group"]):
        if row["error"] is not None:
            raise PoolError(f"group {row['group']!r}: {row['error']}")
    ordered = sorted(written, key=lambda row: (row["group"], row["part"]))
    return [(row["group"], SegmentEntry(**json.loads(row["segment"]))) for row in ordered]


@dataclass(frozen=True)
class Target:
    """The pool that is to grow.

    Attributes:
        pool: root of the store, for all workers.
        tokenizer_hash, vocabulary: see :class:`PoolBuilder`.
        limits: of a group.
        onto: the version that is added to; None: there is none.
        before: the version in force.
    """

    pool: str
    tokenizer_hash: str
    vocabulary: int
    limits: Limits
    onto: str | None
    before: str | None

    def builder(self) -> PoolBuilder:
        """A builder for all but publishing."""
        return PoolBuilder(PoolStore(self.pool), "", self.tokenizer_hash, self.vocabulary, limits=self.limits)


def grow(spark: SparkSession, segments: Sequence[tuple[str, SegmentEntry]], target: Target) -> dict[str, Any]:
    """Add segments to a pool's groups: each group in a task of its own, as many at once as there are cores.

    Returns:
        ``grown``, ``samples`` and ``halvings``, see :meth:`PoolBuilder.publish_grown`.

    Raises:
        PoolError: as :meth:`PoolBuilder.growths` and :meth:`PoolBuilder.grow`.
    """
    added: dict[str, list[SegmentEntry]] = {}
    for group, entry in segments:
        added.setdefault(group, []).append(entry)
    here = target.builder()
    forgotten = here.forgotten(target.before)
    growths = here.growths(added, target.onto)
    grown = _spread(spark, growths, lambda growth: target.builder().grow(growth, forgotten))
    halvings = here.halvings(grown, target.onto)
    new = [entry for group in grown for entry in group.new]
    samples = _spread(spark, list(_stretches(new)), lambda some: target.builder().sample(some, halvings))
    return {
        "grown": [asdict(group) for group in grown],
        "samples": [asdict(entry) for sample in samples for entry in sample],
        "halvings": halvings,
    }


def _spread(spark: SparkSession, items: Sequence[_Item], work: Callable[[_Item], _Result]) -> list[_Result]:
    """Do something with each of some items in a task of its own."""

    def done(item: _Item) -> tuple[_Result | None, str]:
        try:
            return work(item), ""
        except (PoolError, StorageError) as error:  # across Spark it would arrive as a page of stack traces
            return None, str(error)

    results = list[_Result]()
    tasks = max(1, min(len(items), _MOST_TASKS))
    for result, problem in spark.sparkContext.parallelize(items, tasks).map(done).collect():
        if result is None:
            raise PoolError(problem)
        results.append(result)
    return results


def _stretches(entries: Iterable[SegmentEntry]) -> Iterator[list[SegmentEntry]]:
    """Segments, as many together as one task should read."""
    stretch, tokens = list[SegmentEntry](), 0
    for entry in entries:
        if stretch and tokens + entry.tokens > SEGMENT_TOKENS:
            yield stretch
            stretch, tokens = [], 0
        stretch.append(entry)
        tokens += entry.tokens
    if stretch:
        yield stretch


def _checked_columns(texts: DataFrame) -> DataFrame:
    """The four columns, those that are optional with nulls where they are missing."""
    for name in ("group", "token_ids"):
        if name not in texts.columns:
            raise InputError(f"column {name!r} is missing; there are: {', '.join(texts.columns)}")
    kind = texts.schema["token_ids"].dataType
    if not (isinstance(kind, ArrayType) and isinstance(kind.elementType, IntegralType)):
        raise InputError(f"column 'token_ids' holds {kind.simpleString()}, not lists of whole numbers")
    optional = {"entity_id": "string", "available_at": "timestamp"}
    chosen = [
        (sf.col(name) if name in texts.columns else sf.lit(None)).cast(kind).alias(name)
        for name, kind in optional.items()
    ]
    return texts.select(sf.col("group").cast("string").alias("group"), "token_ids", *chosen)


def _checked_groups(texts: DataFrame) -> dict[str, int]:
    """Tokens by group."""
    null = sf.col("token_ids").isNull() | sf.exists("token_ids", lambda token: token.isNull())
    counted = texts.groupBy("group").agg(
        sf.sum(sf.size("token_ids").cast("long")).alias("tokens"), sf.count_if(null).alias("nulls")
    )
    sizes = dict[str, int]()
    for row in sorted(counted.collect(), key=lambda row: row["group"] or ""):
        if row["group"] is None:
            raise InputError("column 'group' holds nulls")
        if row["nulls"]:
            raise InputError(f"column 'token_ids' holds nulls, in group {row['group']!r}")
        check_group(row["group"])
        sizes[row["group"]] = row["tokens"]
    return sizes


def read_file(spark: SparkSession, path: Path | str) -> DataFrame:
    """The rows of a Parquet file or folder.

    Raises:
        InputError: it is not there or cannot be read.
    """
    try:
        return spark.read.parquet(str(path))
    except (PySparkException, Py4JJavaError) as error:
        if isinstance(error, PySparkException) and error.getCondition() == "PATH_NOT_FOUND":
            raise InputError(f"{path}: there is no such file") from None
        cause = str(getattr(error, "java_exception", error)).splitlines()[0]
        raise InputError(f"{path}: not a readable Parquet file: {cause}") from None


def read_warehouse(spark: SparkSession, url: str, wanted: Knowledge) -> DataFrame:
    """The wanted texts, those of a closed validity too."""
    columns = ["group_name", "entity_id", "token_ids", "available_at"]
    window = TimeWindow("valid_from", wanted.since, wanted.until) if wanted.since or wanted.until else None
    equal = {name: getattr(wanted, name) for name in ("domain", "kind", "tokenizer_hash")}
    rows = read_rows(spark, Table(url, "knowledge", "knowledge"), columns, window, equal)
    return rows.select(sf.col("group_name").alias("group"), "token_ids", "entity_id", "available_at")


def _build(spark: SparkSession, given: argparse.Namespace) -> dict[str, Any]:
    if given.knowledge:
        texts = read_file(spark, given.knowledge)
    else:
        url = os.environ.get("DARE_WAREHOUSE_URL")
        if not url:
            raise SourceError("set DARE_WAREHOUSE_URL to the warehouse's URL")
        wanted = Knowledge(given.domain, given.kind, given.tokenizer_hash, given.since, given.until)
        texts = read_warehouse(spark, url, wanted)
    segments = build_segments(texts, given.pool, given.vocabulary, given.segment_tokens)
    made: Any = [{"group": group, **asdict(entry)} for group, entry in segments]
    if given.grow:
        limits = Limits(given.group_bytes, given.text_days)
        target = Target(given.pool, given.tokenizer_hash, given.vocabulary, limits, given.onto, given.before)
        made = grow(spark, segments, target)
    given.out.write_text(json.dumps(made, ensure_ascii=False, indent=1), "utf-8")
    return {
        "groups": len({group for group, _ in segments}),
        "segments": len(segments),
        "texts": sum(entry.texts for _, entry in segments),
        "tokens": sum(entry.tokens for _, entry in segments),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    parser = argparse.ArgumentParser(prog="build_pools.py", description="Index knowledge for the retrieval pools.")
    parser.add_argument("--pool", required=True, metavar="DIR", help="root of the pool store")
    parser.add_argument("--vocabulary", type=int, required=True, metavar="N", help="token ids are below it")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="what was made, in JSON")
    parser.add_argument(
        "--segment-tokens", type=int, default=SEGMENT_TOKENS, metavar="N", help="larger groups are split"
    )
    parser.add_argument("--grow", action="store_true", help="add the segments to the pool's groups")
    parser.add_argument("--onto", metavar="VERSION", help="of the pool that is added to; default: to nothing")
    parser.add_argument("--before", metavar="VERSION", help="of the pool in force; it says who was forgotten")
    parser.add_argument("--group-bytes", type=int, metavar="N", help="of a group at most")
    parser.add_argument("--text-days", type=int, metavar="N", help="age of a text at most")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--knowledge", metavar="PARQUET", help="columns group, token_ids, entity_id?, available_at?")
    source.add_argument("--domain", help="the warehouse's texts of this domain")
    parser.add_argument("--kind", choices=("item", "user"))
    parser.add_argument("--tokenizer-hash")
    parser.add_argument("--since", type=moment, metavar="ISO", help="loaded at this moment or later")
    parser.add_argument("--until", type=moment, metavar="ISO", help="loaded at this moment or before")
    given = parser.parse_args(argv)
    if given.domain and not (given.kind and given.tokenizer_hash):
        parser.error("--domain needs --kind and --tokenizer-hash")
    return run(lambda spark: _build(spark, given))


if __name__ == "__main__":
    sys.exit(main())
