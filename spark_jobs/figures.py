"""What the checks of the source are judged by: how many pulled entities fail each rule, and a few of them."""

from functools import reduce
from operator import or_
from typing import Any, Final

import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as sf
from pyspark.sql.pandas.types import from_arrow_schema
from pyspark.sql.types import BooleanType, StringType, StructField, StructType

from dare_core.config.domains import Domain
from dare_core.quality.metrics import injection
from dare_core.quality.source import COLUMNS, COMMANDS, coverage, described, required, unique
from dare_core.schemas import PULLED, SOURCE_FIGURE, Kind

_ID: Final = "entity_id"


def source_figures(pulled: DataFrame, domain: Domain, kind: Kind) -> pa.Table:
    """Count, in one aggregation, for every rule of :mod:`dare_core.quality.source`.

    Args:
        pulled: as it was written; by a program that keeps to schema ``PULLED``, or to another.
        domain: names the attributes.
        kind: whose entities they are.

    Returns:
        Schema ``SOURCE_FIGURE``. Examples are the first and the last id that fails.
    """
    names = described(domain, kind)
    there = dict(pulled.dtypes)
    wanted = {field.name: field.dataType.simpleString() for field in from_arrow_schema(PULLED)}
    other = sorted(name for name in there.keys() | wanted.keys() if there.get(name) != wanted.get(name))
    # Lists and objects are read as their JSON.
    parsed = StructType([StructField(name, StringType()) for name in names])
    pulled = pulled.withColumn("known", sf.from_json("attributes", parsed))
    failing = {
        required(kind): reduce(or_, [sf.col(name).isNull() for name in wanted]),
        **{coverage(kind, name): _absent(sf.col("known").getField(name)) for name in names},
    }
    if "title" in names:
        failing[COMMANDS] = _commands(sf.col("known.title"))
    counts = [sf.count_if(fails).alias(f"f{place}") for place, fails in enumerate(failing.values())]
    by_id = pulled.groupBy(_ID).agg(sf.count("*").alias("rows"), *counts)
    rows = sf.col("rows")
    counted = by_id.agg(
        sf.coalesce(sf.sum(rows), sf.lit(0)).alias("entities"),
        *_figure("twice", sf.when(rows > 1, rows)),
        *[part for place in range(len(counts)) for part in _figure(f"f{place}", sf.col(f"f{place}"))],
    ).first()
    assert counted is not None  # of an empty frame too
    found = [{"rule": COLUMNS, "failing": len(other), "examples": other}, _found(unique(kind), counted, "twice")]
    found += [_found(rule, counted, f"f{place}") for place, rule in enumerate(failing)]
    return pa.Table.from_pylist([{**row, "entities": counted["entities"]} for row in found], SOURCE_FIGURE)


def _figure(name: str, failing: Column) -> list[Column]:
    fails = sf.when(failing > 0, sf.col(_ID))
    some = sf.array_distinct(sf.array_compact(sf.array(sf.min(fails), sf.max(fails))))
    return [sf.coalesce(sf.sum(failing), sf.lit(0)).alias(name), some.alias(f"{name} examples")]


def _found(rule: str, counted: Any, name: str) -> dict[str, Any]:
    return {"rule": rule, "failing": counted[name], "examples": counted[f"{name} examples"]}


def _absent(value: Column) -> Column:
    return value.isNull() | value.isin("", "[]")


def _are_commands(titles: pa.Array) -> pa.Array:
    return pa.array([bool(injection(title or "")) for title in titles.to_pylist()], pa.bool_())


_commands = sf.arrow_udf(_are_commands, BooleanType())
