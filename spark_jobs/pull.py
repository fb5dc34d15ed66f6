"""Pull what changed from a domain's source tables, as entities (schema ``PULLED``).

    spark-submit spark_jobs/pull.py --domain-file config/movies.toml --kinds item user \
        --since item=2024-01-01T00:00:00Z --as-of 2024-02-01T00:00:00Z --out DIR

An item changed when its own row did. A user changed when its row did, when it met an item, or when an item that it met
before is new to the warehouse. Both ends of the window count as inside it, and no event after ``--as-of`` is seen.

What a row said before its last change is not known. So nothing of an item or user that changed after ``--as-of`` is
shown: it is left out, and so is the item in histories. With ``--as-read``, for a pull of now, such a row is taken as it
is read instead: one that changes all the time would never be taken otherwise.

The ids of the source and of the warehouse are compared, whole. What the warehouse does not have counts as changed,
whenever that was; what the source does not have goes to ``DIR/gone/<kind>``. Interactions are read whole only where a
user or an item changed.

The warehouse, the default source, is the URL in ``DARE_WAREHOUSE_URL``, which never stands on a command line.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as sf

from dare_core.config.domains import Domain, EntityTable, read_domain
from dare_core.schemas import GONE, KINDS, MAX_ID, PULLED, SOURCE_FIGURE, Kind
from dare_core.sources.tables_there import require_names
from spark_jobs import run_tables
from spark_jobs.attributes import json_objects
from spark_jobs.column_values import column
from spark_jobs.figures import source_figures
from spark_jobs.interactions import Interactions
from spark_jobs.postgres_source import TimeWindow
from spark_jobs.session import doing, run
from spark_jobs.source_tables import Section, SourceTables, failures_in_words
from spark_jobs.window import Window, read_by_now, time_of

#: The section of the domain file that each kind's table is in.
SECTIONS: Final[Mapping[Kind, Section]] = {"item": "items", "user": "users"}

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
    *,
    as_read: bool = False,
    allow_deletions: bool = False,
) -> dict[str, int]:
    """Write the table ``<out>/<kind>`` for every kind: what changed in [``since[kind]``, ``as_of``].

    ``<out>/gone/<kind>`` holds the column ``entity_id`` of what the warehouse has and the source has not;
    ``<out>/figures/<kind>`` what :func:`~spark_jobs.figures.source_figures` counts of what was written.

    Args:
        out: a folder or a URL.
        since: the watermark of a kind, inclusive; a kind without one is pulled whole.
        as_of: the latest event seen, inclusive.
        as_read: items and users that changed after ``as_of`` are taken as they are read.
        allow_deletions: however many are gone, it is meant.

    Returns:
        entities written by kind; ``<kind>_gone``; ``<kind>_forgotten`` where rows of forgotten ones were left out;
        ``<kind>_later``: rows left out, since their time lies after ``as_of``; of interactions what
        :meth:`~spark_jobs.interactions.Interactions.count` counts, and as ``hidden_interactions``, where there are
        any, those that no history shows since their item changed after ``as_of``.

    Raises:
        SettingError: an attribute has a reserved name, the group is no attribute, or items lack a title.
        SourceError: a table or column is missing; an id is missing, there twice or too long; a time is missing or none;
            more of a kind is gone than ``max_deleted_share``; or interactions are of strangers alone.
    """
    require_names(domain)
    with SourceTables.opened(spark, domain, warehouse_url) as tables:
        try:
            return _pull(tables, kinds, since, Window(None, as_of, as_read), out, allow_deletions)
        finally:
            spark.catalog.clearCache()


def _pull(
    tables: SourceTables,
    kinds: Sequence[Kind],
    since: Mapping[Kind, datetime],
    whole: Window,
    out: Path | str,
    allow_deletions: bool,
) -> dict[str, int]:
    spark, domain = tables.spark, tables.domain
    read = KINDS if "user" in kinds else kinds
    keys = {kind: _keys(tables, SECTIONS[kind]).persist() for kind in read}
    known = {kind: tables.known_ids(kind).persist() for kind in read}
    interactions = Interactions(tables, replace(whole, since=since.get("user")), keys)
    counts: dict[str, int] = {}
    for kind in kinds:
        window = replace(whole, since=since.get(kind))
        doing(spark, f"ids of {kind}s")
        _check_keys(tables, SECTIONS[kind], keys[kind])
        counts[f"{kind}_later"] = keys[kind].where(~window.seen(sf.col("updated_at"))).count()
        counts[f"{kind}_gone"] = _write_gone(tables, kind, keys[kind], known[kind], out, allow_deletions)
        unknown = _unknown(keys[kind].where(window.seen(sf.col("updated_at"))), known[kind]) if kind in since else None
        if kind == "item":
            doing(spark, "items that changed")
            counts[kind] = _write(_items(interactions, window, unknown), domain, kind, out)
        else:
            doing(spark, "interactions")
            interactions.check_times()
            counts |= interactions.count()
            # Where the warehouse has no items, nobody waits for one.
            new = _unknown(keys["item"], known["item"]) if kind in since and not known["item"].isEmpty() else None
            doing(spark, "users that changed, with their histories")
            entities = _users(interactions, unknown, new)
            counts[kind] = _write(entities, domain, kind, out)
            written = _written(spark, f"{out}/{kind}", ["entity_id"])
            if hidden := interactions.hidden(written):
                counts["hidden_interactions"] = hidden
        if left_out := tables.forgotten(kind):
            counts[f"{kind}_forgotten"] = left_out
    return counts


def _keys(tables: SourceTables, section: Section) -> DataFrame:
    """Columns ``entity_id``, ``rows``, ``timeless`` (rows without a time) and ``updated_at`` of every id of a table."""
    spec: EntityTable = getattr(tables.domain.source, section)
    keys = tables.read(section, list(dict.fromkeys([spec.id, spec.updated_at])))
    time = time_of(spec.updated_at)
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


def _write_gone(
    tables: SourceTables, kind: Kind, keys: DataFrame, known: DataFrame, out: Path | str, allow: bool
) -> int:
    missing = known.join(keys, "entity_id", "left_anti")
    gone = run_tables.write(missing, f"{out}/gone/{kind}", GONE)
    there, source = known.count(), tables.domain.source
    if not allow and not source.may_lose(gone, there):
        raise tables.error(
            SECTIONS[kind],
            f"{gone} of the {there} {kind}s that the warehouse knows are gone, more than source.max_deleted_share "
            f"{source.max_deleted_share} allows; wait until the table is whole, or, if these deletions are meant, "
            "allow them for one run: --allow-deletions, or allow_deletions of the trigger form",
        )
    return gone


def _unknown(keys: DataFrame, known: DataFrame) -> DataFrame | None:
    """Ids of rows that the warehouse lacks: late ones, or back again. None: there are none."""
    unknown = keys.join(known, "entity_id", "left_anti").select("entity_id")
    return None if unknown.isEmpty() else unknown


def _entities(tables: SourceTables, section: Section, window: TimeWindow | None = None) -> DataFrame:
    """Columns ``entity_id``, ``updated_at`` and ``details``, a struct of the title and the attributes."""
    spec: EntityTable = getattr(tables.domain.source, section)
    details = ({"title": spec.title} if spec.title else {}) | {name: name for name in spec.attributes}
    frame = tables.read(section, list(dict.fromkeys([spec.id, spec.updated_at, *details.values()])), window)
    return frame.select(
        column(spec.id).cast("string").alias("entity_id"),
        time_of(spec.updated_at).alias("updated_at"),
        sf.struct(*[column(name).alias(key) for key, name in details.items()]).alias("details"),
    )


def _items(met: Interactions, window: Window, unknown: DataFrame | None) -> DataFrame:
    """The items that changed, with ``data_as_of`` and ``events``."""
    tables = met.tables
    rows = window.of_rows(tables.domain.source.items.updated_at, whole=unknown is not None)
    items = _entities(tables, "items", rows).withColumn("data_as_of", sf.col("updated_at"))
    items = items.where(window.seen(sf.col("updated_at")))
    if window.since is not None:
        recent = items.where(window.recent(sf.col("updated_at")))
        items = recent if unknown is None else recent.unionByName(items.join(unknown, "entity_id", "left_semi"))
        items = items.dropDuplicates(["entity_id"])
        if items.isEmpty():
            return items.withColumn("events", sf.lit(0))
    return items.join(met.of_items(), "entity_id", "left").withColumn("events", sf.coalesce("events", sf.lit(0)))


def _users(met: Interactions, unknown: DataFrame | None, new_items: DataFrame | None) -> DataFrame:
    """The users that changed, their details extended by ``history``, with ``data_as_of`` and ``events``.

    Args:
        met: what they did.
        unknown: users that the warehouse lacks.
        new_items: items that it lacks: of what users did with them earlier, it knows nothing yet.
    """
    tables, window = met.tables, met.window
    users = _entities(tables, "users").where(window.seen(sf.col("updated_at")))
    if window.since is not None:
        changed = users.where(window.recent(sf.col("updated_at"))).select("entity_id").union(met.acted())
        changed = changed if unknown is None else changed.union(unknown)
        changed = changed if new_items is None else changed.union(met.met(new_items))
        users = users.join(changed.distinct(), "entity_id", "left_semi").persist()
        if users.isEmpty():
            return users.select("*", sf.col("updated_at").alias("data_as_of"), sf.lit(0).alias("events"))
    histories = met.histories(users, _entities(tables, "items"), tables.domain.knowledge.max_history)
    return (
        users.join(histories, "entity_id", "left")
        .withColumn("data_as_of", sf.greatest("updated_at", "newest"))
        .withColumn("details", sf.col("details").withField("history", sf.coalesce(sf.col("history"), sf.array())))
        .withColumn("events", sf.coalesce("events", sf.lit(0)))
    )


def _write(entities: DataFrame, domain: Domain, kind: Kind, out: Path | str) -> int:
    """Entities, and what the checks are judged by; returns how many entities."""
    pulled = entities.select(
        sf.lit(domain.name).alias("domain"),
        sf.lit(kind).alias("kind"),
        "entity_id",
        json_objects(sf.col("details")).alias("attributes"),
        read_by_now(sf.col("data_as_of")).alias("data_as_of"),
        sf.col("events").cast("long").alias("events"),
    )
    path, spark = f"{out}/{kind}", entities.sparkSession
    count = run_tables.write(pulled, path, PULLED)
    figures = source_figures(_written(spark, path), domain, kind)
    run_tables.write(spark.createDataFrame(figures).coalesce(1), f"{out}/figures/{kind}", SOURCE_FIGURE)
    return count


def _written(spark: SparkSession, path: str, columns: Sequence[str] | None = None) -> DataFrame:
    written = run_tables.read(spark, path, PULLED, columns)
    assert written is not None
    return written


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="pull.py", description="Pull what changed from a domain's source tables.")
    parser.add_argument("--domain-file", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, required=True)
    parser.add_argument("--since", type=_watermark, action="append", default=[], metavar="KIND=ISO")
    parser.add_argument("--as-of", type=moment, required=True, metavar="ISO")
    parser.add_argument("--as-read", action="store_true")
    parser.add_argument("--allow-deletions", action="store_true")
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
            spark,
            read_domain(given.domain_file),
            given.kinds,
            dict(given.since),
            given.as_of,
            given.out,
            url,
            as_read=given.as_read,
            allow_deletions=given.allow_deletions,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
