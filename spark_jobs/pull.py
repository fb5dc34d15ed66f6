"""Pull what changed from a domain's source tables, as entities (schema ``PULLED``).

    spark-submit spark_jobs/pull.py --domain-file config/movies.toml --kinds item user \
        --since item=2024-01-01T00:00:00Z --as-of 2024-02-01T00:00:00Z --out DIR

An item changed when its own row did. A user changed when its row did or when it met an item. Both ends of the window
count as inside it, and no event after ``--as-of`` is seen: an item changed later is left out, and so is a user who
neither existed nor did anything by then. What a row said before its last change is not known; a user changed after
``--as-of`` who has earlier interactions is pulled with the attributes of today, and dated by the interactions.

The ids of the source and of the warehouse are compared, whole. What the warehouse does not have counts as changed,
whenever that was; what the source does not have goes to ``DIR/gone/<kind>``. Interactions are read whole only where a
user or an item changed.

The warehouse, the default source, is the URL in ``DARE_WAREHOUSE_URL``, which never stands on a command line.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pyspark.sql import Column, DataFrame, Observation, SparkSession, Window
from pyspark.sql import functions as sf

from dare_core.config.domains import Domain, EntityTable, read_domain
from dare_core.errors import SettingError
from dare_core.schemas import KINDS, MAX_ID, PULLED, Kind
from spark_jobs.attributes import json_objects
from spark_jobs.column_values import column, in_calendar
from spark_jobs.postgres_source import Timeless, TimeWindow
from spark_jobs.session import run
from spark_jobs.source_tables import Section, SourceTables, failures_in_words

#: The section of the domain file that each kind's table is in.
SECTIONS: Final[Mapping[Kind, Section]] = {"item": "items", "user": "users"}

#: Keys of an entity's JSON that the platform gives a meaning; an attribute may not take them.
_RESERVED: Final = {"title", "history", "value", "time"}

_FIRST_FEW: Final = 3
#: Characters of a value that an error shows.
_SHOWN: Final = 60


@failures_in_words()
def pull(
    spark: SparkSession,
    domain: Domain,
    kinds: Sequence[Kind],
    since: Mapping[Kind, datetime],
    as_of: datetime,
    out: Path | str,
    warehouse_url: str | None,
) -> dict[str, int]:
    """Write ``<out>/<kind>/*.parquet`` for every kind: what changed in [``since[kind]``, ``as_of``].

    ``<out>/gone/<kind>/*.parquet`` hold the column ``entity_id`` of what the warehouse has and the source has not.

    Args:
        since: the watermark of a kind, inclusive; a kind without one is pulled whole.
        as_of: the latest event seen, inclusive.

    Returns:
        entities written by kind; ``<kind>_gone``; ``<kind>_forgotten`` where rows of forgotten ones were left out;
        ``<kind>_later``: rows whose time lies after ``as_of``, which a later pull takes; and of interactions
        ``dropped_interactions``: those that were read as new and whose user or item is in no table, and
        ``later_interactions``: those after ``as_of``.

    Raises:
        SettingError: an attribute has a reserved name, the group is no attribute, or items lack a title.
        SourceError: a table or column is missing; an id is missing, there twice or too long; a time is missing or none;
            or more of a kind is gone than ``max_deleted_share``.
    """
    _check_names(domain)
    with SourceTables.opened(spark, domain, warehouse_url) as tables:
        return _pull(tables, kinds, since, as_of, out)


def _pull(
    tables: SourceTables, kinds: Sequence[Kind], since: Mapping[Kind, datetime], as_of: datetime, out: Path | str
) -> dict[str, int]:
    domain = tables.domain
    counts: dict[str, int] = {}
    dropped: Observation | None = None
    for kind in kinds:
        keys = _keys(tables, SECTIONS[kind]).persist()
        _check_keys(tables, SECTIONS[kind], keys)
        known = tables.known_ids(kind).persist()
        counts[f"{kind}_later"] = keys.where(sf.col("updated_at") > as_of).count()
        counts[f"{kind}_gone"] = _write_gone(tables, kind, keys, known, f"{out}/gone/{kind}")
        unknown = _unknown(keys, known, as_of) if kind in since else None
        if kind == "item":
            entities = _items(tables, since.get(kind), as_of, unknown)
        else:
            entities, dropped = _users(tables, since.get(kind), as_of, unknown)
        counts[kind] = _write(entities, domain, kind, f"{out}/{kind}")
        if left_out := tables.forgotten(kind):
            counts[f"{kind}_forgotten"] = left_out
        keys.unpersist()
        known.unpersist()
    return counts | {
        "dropped_interactions": dropped.get["dropped"] if dropped else 0,
        "later_interactions": _later_interactions(tables, as_of) if dropped else 0,
    }


def _check_names(domain: Domain) -> None:
    for section in SECTIONS.values():
        spec: EntityTable = getattr(domain.source, section)
        taken = [name for name in spec.attributes if name in _RESERVED and name != spec.title]
        if taken:
            raise SettingError(f"domain {domain.name}: source.{section}.attributes: {taken[0]!r} is a reserved name")
        if spec.group not in spec.attributes:
            raise SettingError(f"domain {domain.name}: source.{section}.group: {spec.group!r} is no attribute")
    if domain.source.items.title is None:
        raise SettingError(f"domain {domain.name}: source.items.title is missing")


def _keys(tables: SourceTables, section: Section) -> DataFrame:
    """Columns ``entity_id``, ``rows``, ``timeless`` (rows without a time) and ``updated_at`` of every id of a table."""
    spec: EntityTable = getattr(tables.domain.source, section)
    keys = tables.read(section, list(dict.fromkeys([spec.id, spec.updated_at])))
    time = _time(spec.updated_at)
    return keys.groupBy(column(spec.id).cast("string").alias("entity_id")).agg(
        sf.count("*").alias("rows"), sf.count_if(time.isNull()).alias("timeless"), sf.max(time).alias("updated_at")
    )


def _check_keys(tables: SourceTables, section: Section, keys: DataFrame) -> None:
    """Every row of the whole table must have an id of its own and a time: a row without would be lost for good."""
    spec: EntityTable = getattr(tables.domain.source, section)
    wrong = (
        keys.where(
            (sf.col("rows") > 1)
            | (sf.col("timeless") > 0)
            | sf.col("entity_id").isNull()
            | ~sf.length("entity_id").between(1, MAX_ID)
        )
        .withColumnRenamed("entity_id", "id")
        .orderBy("id")
        .limit(_FIRST_FEW)
        .collect()
    )
    if not wrong:
        return
    if not wrong[0]["id"]:  # null or empty, which come first
        raise tables.error(section, f"{wrong[0]['rows']} rows have no {spec.id}")
    if long := [row["id"][:_SHOWN] for row in wrong if len(row["id"]) > MAX_ID]:
        raise tables.error(section, f"{spec.id} has more than {MAX_ID} characters: {long[0]!r}…")
    repeated = [row["id"] for row in wrong if row["rows"] > 1]
    if repeated:
        raise tables.error(section, f"several rows have the same {spec.id}: {', '.join(map(repr, repeated))}, …")
    timeless = ", ".join(repr(row["id"]) for row in wrong)
    raise tables.error(section, f"{spec.updated_at} is empty, or no time, where {spec.id} is {timeless}, …")


def _write_gone(tables: SourceTables, kind: Kind, keys: DataFrame, known: DataFrame, path: str) -> int:
    known.join(keys, "entity_id", "left_anti").write.mode("overwrite").parquet(path)
    gone: int = tables.spark.read.parquet(path).count()
    there, most = known.count(), tables.domain.source.max_deleted_share
    if gone > most * there:
        raise tables.error(
            SECTIONS[kind],
            f"{gone} of the {there} {kind}s that the warehouse knows are gone, more than source.max_deleted_share "
            f"{most} allows; wait until the table is whole, or raise the share for one run",
        )
    return gone


def _unknown(keys: DataFrame, known: DataFrame, as_of: datetime) -> DataFrame | None:
    """Ids of rows from up to ``as_of`` that the warehouse lacks: late ones, or back again. None: there are none."""
    unknown = keys.where(sf.col("updated_at") <= as_of).join(known, "entity_id", "left_anti").select("entity_id")
    return None if unknown.isEmpty() else unknown


def _entities(tables: SourceTables, section: Section, window: TimeWindow | None = None) -> DataFrame:
    """Columns ``entity_id``, ``updated_at`` and ``details``, a struct of the title and the attributes."""
    spec: EntityTable = getattr(tables.domain.source, section)
    details = ({"title": spec.title} if spec.title else {}) | {name: name for name in spec.attributes}
    frame = tables.read(section, list(dict.fromkeys([spec.id, spec.updated_at, *details.values()])), window)
    return frame.select(
        column(spec.id).cast("string").alias("entity_id"),
        _time(spec.updated_at).alias("updated_at"),
        sf.struct(*[column(name).alias(key) for key, name in details.items()]).alias("details"),
    )


def _items(tables: SourceTables, since: datetime | None, as_of: datetime, unknown: DataFrame | None) -> DataFrame:
    """The items that changed, as there were at ``as_of``, with ``data_as_of`` and ``events``."""
    window = TimeWindow(tables.domain.source.items.updated_at, since if unknown is None else None, as_of)
    items = _entities(tables, "items", window).withColumn("data_as_of", sf.col("updated_at"))
    items = items.where(sf.col("data_as_of") <= as_of)
    if since is not None:
        recent = items.where(sf.col("data_as_of") >= since)
        items = recent if unknown is None else recent.unionByName(items.join(unknown, "entity_id", "left_semi"))
        items = items.dropDuplicates(["entity_id"])
        if items.isEmpty():
            return items.withColumn("events", sf.lit(0))
    spec = tables.domain.source.interactions
    met = tables.read("interactions", [spec.item, spec.time], TimeWindow(spec.time, None, as_of))
    counted = (
        met.where(_time(spec.time) <= as_of)
        .groupBy(column(spec.item).cast("string").alias("entity_id"))
        .agg(sf.count("*").alias("events"))
    )
    return items.join(counted, "entity_id", "left").withColumn("events", sf.coalesce("events", sf.lit(0)))


def _users(
    tables: SourceTables, since: datetime | None, as_of: datetime, unknown: DataFrame | None
) -> tuple[DataFrame, Observation]:
    """The users that changed, as there were at ``as_of``.

    Their details are extended by ``history``; ``data_as_of`` and ``events`` are beside them. The observation tells,
    once the frame was written, how many interactions were ``dropped``.
    """
    _check_times(tables)
    users = _entities(tables, "users")
    dropped = Observation()
    interactions = _interactions(tables, users, since, as_of, dropped)
    if since is not None:
        changed = interactions.select("entity_id").distinct().persist()
        changed.count()  # for the observation, whatever is read of the frame later
        own = users.where(sf.col("updated_at").between(since, as_of)).select("entity_id")
        changed = changed.union(own) if unknown is None else changed.union(own).union(unknown)
        users = users.join(changed.distinct(), "entity_id", "left_semi").persist()
        if users.isEmpty():
            return users.select("*", sf.col("updated_at").alias("data_as_of"), sf.lit(0).alias("events")), dropped
        interactions = _interactions(tables, users, None, as_of)
    history = _history(interactions, tables.domain.knowledge.max_history)
    own_change = sf.when(sf.col("updated_at") <= as_of, sf.col("updated_at"))
    entities = (
        users.join(history, "entity_id", "left")
        .withColumn("data_as_of", sf.greatest(own_change, sf.col("newest")))
        .where(sf.col("data_as_of").isNotNull())
        .withColumn("details", sf.col("details").withField("history", sf.coalesce(sf.col("history"), sf.array())))
        .withColumn("events", sf.coalesce("events", sf.lit(0)))
    )
    return entities, dropped


def _check_times(tables: SourceTables) -> None:
    """Every interaction must have a time: one without would be lost for good."""
    spec = tables.domain.source.interactions
    key = [column(spec.user).cast("string").alias("entity_id"), column(spec.item).cast("string").alias("item_id")]
    frame = tables.read("interactions", [spec.user, spec.item, spec.time], Timeless(spec.time))
    timeless = frame.where(_time(spec.time).isNull())
    if pairs := [f"{row['entity_id']!r} and {row['item_id']!r}" for row in timeless.select(*key).take(_FIRST_FEW)]:
        raise tables.error("interactions", f"{spec.time} is empty, or no time, for user and item {', '.join(pairs)}, …")


def _later_interactions(tables: SourceTables, as_of: datetime) -> int:
    """Many of them tell of a mistake: times in another unit, or of another zone."""
    time = tables.domain.source.interactions.time
    times = tables.read("interactions", [time], TimeWindow(time, as_of, None))
    count: int = times.where(_time(time) > as_of).count()
    return count


def _interactions(
    tables: SourceTables,
    users: DataFrame,
    since: datetime | None,
    as_of: datetime,
    dropped: Observation | None = None,
) -> DataFrame:
    """Columns ``entity_id``, ``item_id``, ``time`` and ``entry`` of the users' interactions in [``since``, ``as_of``].

    Those whose user or item is not known are left out, and counted as ``dropped`` by the observation.
    """
    spec = tables.domain.source.interactions
    window = TimeWindow(spec.time, since, as_of)
    seen = tables.read("interactions", [spec.user, spec.item, spec.value, spec.time], window).select(
        column(spec.user).cast("string").alias("entity_id"),
        column(spec.item).cast("string").alias("item_id"),
        column(spec.value).alias("value"),
        _time(spec.time).alias("time"),
    )
    events = seen.where(sf.col("time") <= as_of if since is None else sf.col("time").between(since, as_of))
    met = _entities(tables, "items").select(sf.col("entity_id").alias("item_id"), "details")
    known = users.select("entity_id", sf.lit(True).alias("known"))
    unknown = sf.col("details").isNull() | sf.col("known").isNull()
    resolved = events.join(met, "item_id", "left").join(known, "entity_id", "left")
    if dropped is not None:
        resolved = resolved.observe(dropped, sf.count_if(unknown).alias("dropped"))
    return resolved.where(~unknown).withColumn(
        "entry", sf.col("details").withField("value", sf.col("value")).withField("time", sf.col("time"))
    )


def _history(interactions: DataFrame, longest: int) -> DataFrame:
    """Columns ``entity_id``, ``history`` (the newest ``longest`` entries, oldest first), ``newest`` and ``events``."""
    of_user = Window.partitionBy("entity_id")
    backwards = of_user.orderBy(sf.col("time").desc(), sf.col("item_id").desc(), sf.col("value").cast("string").desc())
    counted = interactions.withColumn("events", sf.count("*").over(of_user))
    newest_first = counted.withColumn("age", sf.row_number().over(backwards)).where(sf.col("age") <= longest)
    by_age = sf.sort_array(sf.collect_list(sf.struct("age", "entry")), asc=False)
    return newest_first.groupBy("entity_id").agg(
        sf.transform(by_age, lambda aged: aged["entry"]).alias("history"),
        sf.max("time").alias("newest"),
        sf.max("events").alias("events"),
    )


def _write(entities: DataFrame, domain: Domain, kind: Kind, path: str) -> int:
    pulled = entities.select(
        sf.lit(domain.name).alias("domain"),
        sf.lit(kind).alias("kind"),
        "entity_id",
        json_objects(sf.col("details")).alias("attributes"),
        "data_as_of",
        sf.col("events").cast("long").alias("events"),
    )
    pulled.select(*PULLED.names).write.mode("overwrite").parquet(path)
    written: int = entities.sparkSession.read.parquet(path).count()
    return written


def _time(name: str) -> Column:
    """The column as a time; null where it cannot be read as one (a file may hold text)."""
    return in_calendar(column(name).try_cast("timestamp"))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="pull.py", description="Pull what changed from a domain's source tables.")
    parser.add_argument("--domain-file", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, required=True)
    parser.add_argument("--since", type=_watermark, action="append", default=[], metavar="KIND=ISO")
    parser.add_argument("--as-of", type=moment, required=True, metavar="ISO")
    parser.add_argument("--out", required=True, metavar="DIR")
    return parser.parse_args(argv)


def moment(text: str) -> datetime:
    """A time in ISO 8601, UTC where it does not say."""
    given = datetime.fromisoformat(text)
    return given.astimezone(UTC) if given.tzinfo else given.replace(tzinfo=UTC)


def _watermark(text: str) -> tuple[str, datetime]:
    kind, _, since = text.partition("=")
    if kind not in KINDS:
        raise ValueError(kind)
    return kind, moment(since)


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    given = _arguments(argv)
    url = os.environ.get("DARE_WAREHOUSE_URL")
    return run(
        lambda spark: pull(
            spark, read_domain(given.domain_file), given.kinds, dict(given.since), given.as_of, given.out, url
        )
    )


if __name__ == "__main__":
    sys.exit(main())
