"""Pull what changed from a domain's source tables, as entities (schema ``PULLED``).

    spark-submit spark_jobs/pull.py --domain-file config/movies.toml --kinds item user \
        --since item=2024-01-01T00:00:00Z --as-of 2024-02-01T00:00:00Z --out DIR

An item changed when its own row did. A user changed when its row did or when it met an item. Both ends of the window
count as inside it, and no event after ``--as-of`` is seen: an item changed later is left out, and so is a user who
neither existed nor did anything by then. What a row said before its last change is not known; a user changed after
``--as-of`` who has earlier interactions is pulled with the attributes of today, and dated by the interactions.

The warehouse, the default source, is the URL in ``DARE_WAREHOUSE_URL``, which never stands on a command line.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from pyspark.sql import Column, DataFrame, Observation, SparkSession, Window
from pyspark.sql import functions as sf
from pyspark.sql.types import StringType

from dare_core.domains import Domain, EntityTable, read_domain
from dare_core.errors import SettingError
from dare_core.schemas import KINDS, PULLED, Kind
from spark_jobs.postgres_source import TimeWindow
from spark_jobs.session import run
from spark_jobs.source_tables import Section, SourceTables, column

#: The section of the domain file that each kind's table is in.
SECTIONS: Final[Mapping[Kind, Section]] = {"item": "items", "user": "users"}

#: Keys of an entity's JSON that the platform gives a meaning; an attribute may not take them.
_RESERVED: Final = {"title", "history", "value", "time"}

_FIRST_FEW: Final = 3


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

    Args:
        since: the watermark of a kind, inclusive; a kind without one is pulled whole.
        as_of: the latest event seen, inclusive.

    Returns:
        entities written by kind, and ``dropped_interactions``: those up to ``as_of`` whose user or item is in no table.

    Raises:
        SettingError: an attribute has a reserved name, the group is no attribute, or items lack a title.
        SourceError: a table or column is missing; an id is missing or there twice; a time is missing or none.
    """
    _check_names(domain)
    tables = SourceTables(spark, domain, warehouse_url)
    _check_keys(tables, "items")
    dropped = Observation()
    counts: dict[str, int] = {}
    for kind in kinds:
        if kind == "item":
            entities = _items(tables, since.get(kind), as_of)
        else:
            _check_keys(tables, "users")
            entities = _users(tables, as_of, dropped)
        if kind in since:
            entities = entities.where(sf.col("data_as_of") >= since[kind])
        counts[kind] = _write(entities, domain, kind, f"{out}/{kind}")
    return counts | {"dropped_interactions": dropped.get["dropped"] if "user" in kinds else 0}


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


def _check_keys(tables: SourceTables, section: Section) -> None:
    """Every row of the whole table must have an id of its own and a time: a row without would be lost for good."""
    spec: EntityTable = getattr(tables.domain.source, section)
    keys = tables.read(section, list(dict.fromkeys([spec.id, spec.updated_at])))
    wrong = (
        keys.groupBy(column(spec.id).cast("string").alias("id"))
        .agg(sf.count("*").alias("rows"), sf.count_if(_time(spec.updated_at).isNull()).alias("timeless"))
        .where((sf.col("rows") > 1) | (sf.col("timeless") > 0) | sf.col("id").isNull())
        .orderBy("id")
        .limit(_FIRST_FEW)
        .collect()
    )
    if not wrong:
        return
    if wrong[0]["id"] is None:
        raise tables.error(section, f"{wrong[0]['rows']} rows have no {spec.id}")
    repeated = [row["id"] for row in wrong if row["rows"] > 1]
    if repeated:
        raise tables.error(section, f"several rows have the same {spec.id}: {', '.join(map(repr, repeated))}, …")
    timeless = ", ".join(repr(row["id"]) for row in wrong)
    raise tables.error(section, f"{spec.updated_at} is empty, or no time, where {spec.id} is {timeless}, …")


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


def _items(tables: SourceTables, since: datetime | None, as_of: datetime) -> DataFrame:
    """The items as there were at ``as_of``, with ``data_as_of``."""
    window = TimeWindow(tables.domain.source.items.updated_at, since, as_of)
    items = _entities(tables, "items", window).withColumn("data_as_of", sf.col("updated_at"))
    return items.where(sf.col("data_as_of") <= as_of)


def _users(tables: SourceTables, as_of: datetime, dropped: Observation) -> DataFrame:
    """The users there were at ``as_of``, their details extended by ``history``, with ``data_as_of``."""
    users = _entities(tables, "users")
    interactions = _interactions(tables, users, as_of, dropped)
    history = _history(interactions, tables.domain.knowledge.max_history)
    own_change = sf.when(sf.col("updated_at") <= as_of, sf.col("updated_at"))
    return (
        users.join(history, "entity_id", "left")
        .withColumn("data_as_of", sf.greatest(own_change, sf.col("newest")))
        .where(sf.col("data_as_of").isNotNull())
        .withColumn("details", sf.col("details").withField("history", sf.coalesce(sf.col("history"), sf.array())))
    )


def _interactions(tables: SourceTables, users: DataFrame, as_of: datetime, dropped: Observation) -> DataFrame:
    """Columns ``entity_id`` (of the user), ``item_id``, ``time`` and ``entry`` of every interaction up to ``as_of``."""
    spec = tables.domain.source.interactions
    key = [column(spec.user).cast("string").alias("entity_id"), column(spec.item).cast("string").alias("item_id")]
    timeless = tables.read("interactions", [spec.user, spec.item, spec.time]).where(_time(spec.time).isNull())
    if pairs := [f"{row['entity_id']!r} and {row['item_id']!r}" for row in timeless.select(*key).take(_FIRST_FEW)]:
        raise tables.error("interactions", f"{spec.time} is empty, or no time, for user and item {', '.join(pairs)}, …")
    seen = tables.read(
        "interactions", [spec.user, spec.item, spec.value, spec.time], TimeWindow(spec.time, None, as_of)
    )
    events = seen.select(*key, column(spec.value).alias("value"), _time(spec.time).alias("time"))
    met = _entities(tables, "items").select(sf.col("entity_id").alias("item_id"), "details")
    known = users.select("entity_id", sf.lit(True).alias("known"))
    unknown = sf.col("details").isNull() | sf.col("known").isNull()
    return (
        events.where(sf.col("time") <= as_of)
        .join(met, "item_id", "left")
        .join(known, "entity_id", "left")
        .observe(dropped, sf.count_if(unknown).alias("dropped"))
        .where(~unknown)
        .withColumn("entry", sf.col("details").withField("value", sf.col("value")).withField("time", sf.col("time")))
    )


def _history(interactions: DataFrame, longest: int) -> DataFrame:
    """Columns ``entity_id``, ``history`` (the newest ``longest`` entries, oldest first) and ``newest``, a time."""
    backwards = Window.partitionBy("entity_id").orderBy(
        sf.col("time").desc(), sf.col("item_id").desc(), sf.col("value").cast("string").desc()
    )
    newest_first = interactions.withColumn("age", sf.row_number().over(backwards)).where(sf.col("age") <= longest)
    by_age = sf.sort_array(sf.collect_list(sf.struct("age", "entry")), asc=False)
    return newest_first.groupBy("entity_id").agg(
        sf.transform(by_age, lambda aged: aged["entry"]).alias("history"), sf.max("time").alias("newest")
    )


def _write(entities: DataFrame, domain: Domain, kind: Kind, path: str) -> int:
    pulled = entities.select(
        sf.lit(domain.name).alias("domain"),
        sf.lit(kind).alias("kind"),
        "entity_id",
        json_objects(sf.col("details")).alias("attributes"),
        "data_as_of",
    )
    pulled.select(*PULLED.names).write.mode("overwrite").parquet(path)
    written: int = entities.sparkSession.read.parquet(path).count()
    return written


def _time(name: str) -> Column:
    """The column as a time; null where it cannot be read as one (a file may hold text)."""
    return column(name).try_cast("timestamp")


def _as_json(structs: pa.Array) -> pa.Array:
    return pa.array([json.dumps(_plain(row), ensure_ascii=False) for row in structs.to_pylist()], pa.string())


#: A column of structs as JSON objects, as ``attributes`` holds them.
json_objects = sf.arrow_udf(_as_json, StringType())


def _plain(value: Any) -> Any:
    """The value as JSON knows it: no nulls inside objects and lists, times in ISO 8601, numbers as numbers."""
    match value:
        case dict():
            plain = {key: _plain(inner) for key, inner in value.items()}
            if isinstance(plain.get("value"), str):  # of a CSV file
                plain["value"] = _number(plain["value"])
            return {key: inner for key, inner in plain.items() if inner is not None}
        case list():
            return [inner for inner in map(_plain, value) if inner is not None]
        case datetime() | date():
            return value.isoformat()
        case float() | Decimal():
            if not math.isfinite(value):
                return None
            return int(value) if value == int(value) else float(value)
        case _:
            return value


def _number(text: str) -> Any:
    try:
        number = float(text)
    except ValueError:
        return text
    return _plain(number) if math.isfinite(number) else text


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
