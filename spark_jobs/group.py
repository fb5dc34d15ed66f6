"""Give every pulled entity its retrieval-pool group (schema ``GROUPED``).

    spark-submit spark_jobs/group.py --domain-file config/movies.toml --as-of 2024-02-01T00:00:00Z \
        --pools .dare/pools/movies --in DIR --out DIR --run RUN

Items are grouped by attribute; users by collaborative cluster where the domain file configures clusters, and by
attribute at their cold start. What a group is, is decided from the whole source and kept as a group model beside the
kind's pool: groups keep their names from run to run, and users their cluster. A group takes effect when its entity is
pulled, which is when a text is due. With ``--run``, the executors also copy the entities into the run's staging tables.

The warehouse, the default source, is the URL in ``DARE_WAREHOUSE_URL``, which never stands on a command line.
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as sf

from dare_core.config.domains import AttributeGrouping, Domain, EntityTable, read_domain
from dare_core.errors import InputError
from dare_core.grouping import AttributeGroups, GroupModelStore, StoredModel, route
from dare_core.schemas import ENTITY, GROUPED, KINDS, PULLED, Kind
from dare_core.warehouse.connection import connect, connected
from dare_core.warehouse.entity_staging import WRITERS, EntityStaging, copy_entities
from dare_core.warehouse.group_models import WarehousePointer
from spark_jobs import run_tables
from spark_jobs.attributes import json_objects
from spark_jobs.column_values import column
from spark_jobs.pull import SECTIONS, moment
from spark_jobs.session import doing, run
from spark_jobs.source_tables import SourceTables, failures_in_words
from spark_jobs.user_clusters import assignments, cluster_users

_ROUTE: Final = "group_name string, group_rule string"


@failures_in_words()
def group(
    spark: SparkSession,
    domain: Domain,
    source: Path | str,
    out: Path | str,
    models: Callable[[Kind], GroupModelStore],
    as_of: datetime,
    warehouse_url: str | None,
    run_id: str | None = None,
) -> dict[str, Any]:
    """Write the table ``<out>/<kind>`` for every kind found in ``source``, where ``pull`` wrote.

    Args:
        source: a folder or a URL.
        out: likewise.
        models: each kind's group models.
        as_of: the latest interaction seen, inclusive.
        run_id: whose staging tables in the warehouse the entities are copied into; None: they are not.

    Returns:
        entities by kind; ``groups``, how many they are in; and as ``<kind>_grouping`` the version of the group model,
        to how many entities each rule applied, and what :func:`~spark_jobs.user_clusters.cluster_users` reports.

    Raises:
        InputError: ``source`` holds no kind.
        PoolError: no version of a group model is whole.
        SourceError: a source table or column is missing.
    """
    tables = SourceTables(spark, domain, warehouse_url)
    summary: dict[str, Any] = {}
    groups = 0
    for kind in KINDS:
        pulled = run_tables.read(spark, f"{source}/{kind}", PULLED)
        if pulled is None:
            continue
        doing(spark, f"groups of {kind}s")
        store = models(kind)
        before = store.read_stored()
        model, report = StoredModel(_attribute_groups(tables, kind, before)), dict[str, Any]()
        if kind == "user" and domain.grouping.users.clusters is not None:
            scheme = domain.grouping.users.clusters
            doing(spark, "clusters of users")
            ids = run_tables.read(spark, f"{source}/{kind}", PULLED, ["entity_id"])
            assert ids is not None
            model, report = cluster_users(tables, scheme, as_of, ids, model.attributes, before, store.files.location)
            spark.catalog.clearCache()
        doing(spark, f"groups of {kind}s")
        path = f"{out}/{kind}"
        clusters = assignments(spark, store.files.location, model) if model.assignments else None
        summary[kind] = _write_routed(pulled, model.attributes, clusters, path)
        version = store.publish_stored(model)
        rules, names = _counts(spark, path)
        summary[f"{kind}_grouping"] = {"version": version, "by_rule": dict(sorted(rules.items())), **report}
        groups += names
        if run_id is not None and warehouse_url is not None:
            doing(spark, f"copying {kind}s into the warehouse")
            _copy(spark, path, EntityStaging(run_id, kind), warehouse_url)
    if not summary:
        raise InputError(f"{source} holds neither {' nor '.join(KINDS)}: pull first")
    return summary | {"groups": groups}


def _attribute_groups(tables: SourceTables, kind: Kind, before: StoredModel | None) -> AttributeGroups:
    """Which values of the kind's attribute have a group, by their count in the source table."""
    spec: EntityTable = getattr(tables.domain.source, SECTIONS[kind])
    scheme: AttributeGrouping = getattr(tables.domain.grouping, SECTIONS[kind])
    unfitted = AttributeGroups(spec.group, scheme.several, scheme.rest, ())

    def names(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            named = [unfitted.name(json.loads(attributes)) for attributes in batch["attributes"].to_pylist()]
            yield pa.record_batch({"name": pa.array(named, pa.string())})

    attribute = sf.struct(column(spec.group).alias(spec.group))
    described = tables.read(SECTIONS[kind], [spec.group]).select(json_objects(attribute).alias("attributes"))
    counted = described.mapInArrow(names, "name string").groupBy("name").count()
    counts = {row["name"]: row["count"] for row in counted.where(sf.col("count") * 2 >= scheme.min_count).collect()}
    return AttributeGroups.fit(spec.group, scheme, counts, before.attributes if before else None)


def _write_routed(pulled: DataFrame, groups: AttributeGroups, clusters: DataFrame | None, path: str) -> int:
    """Write ``pulled`` with ``group_name`` and ``group_rule``; returns how many rows."""

    def routed(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            entities = zip(batch["attributes"].to_pylist(), batch["cluster"].to_pylist(), strict=True)
            found = [route(groups, json.loads(attributes), cluster) for attributes, cluster in entities]
            yield (
                batch.drop_columns("cluster")
                .append_column("group_name", pa.array([entity.group for entity in found], pa.string()))
                .append_column("group_rule", pa.array([entity.rule for entity in found], pa.string()))
            )

    if clusters is None:
        joined = pulled.withColumn("cluster", sf.lit(None).cast("string"))
    else:
        joined = pulled.join(clusters, "entity_id", "left").select(*pulled.columns, "cluster")
    return run_tables.write(joined, path, GROUPED, routed)


def _counts(spark: SparkSession, path: str) -> tuple[dict[str, int], int]:
    """To how many entities each rule applied, and how many groups they are in."""
    written = run_tables.read(spark, path, GROUPED, ["group_name", "group_rule"])
    assert written is not None
    rules, names = Counter[str](), set[str]()
    for row in written.groupBy("group_name", "group_rule").count().collect():
        rules[row["group_rule"]] += row["count"]
        names.add(row["group_name"])
    return rules, len(names)


def _copy(spark: SparkSession, path: str, staging: EntityStaging, warehouse_url: str) -> None:
    """Copy entities into staging tables of the warehouse, by as many executors at once as may."""
    files = run_tables.files_of(path)
    with connected(warehouse_url) as engine:
        tables = staging.create(engine, min(WRITERS, spark.sparkContext.defaultParallelism))

    def copy(numbers: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in numbers:
            for number in batch["id"].to_pylist():
                mine = run_tables.batches(files[number :: len(tables)], ENTITY)
                yield pa.record_batch({"rows": [copy_entities(warehouse_url, tables[number], mine)]})

    spark.range(0, len(tables), 1, len(tables)).mapInArrow(copy, "rows long").collect()


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    parser = argparse.ArgumentParser(prog="group.py", description="Give every pulled entity its group.")
    parser.add_argument("--domain-file", type=Path, required=True)
    parser.add_argument("--as-of", type=moment, required=True, metavar="ISO")
    parser.add_argument("--pools", required=True, metavar="DIR", help="where the kinds' pools are; a folder or a URL")
    parser.add_argument("--in", dest="source", required=True, metavar="DIR", help="where pull.py wrote")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--run", metavar="ID", help="copy the entities into this run's staging tables too")
    given = parser.parse_args(argv)
    url = os.environ.get("DARE_WAREHOUSE_URL")

    def program(spark: SparkSession) -> dict[str, Any]:
        domain = read_domain(given.domain_file)
        models = _models(given.pools, domain.name, url)
        return group(spark, domain, given.source, given.out, models, given.as_of, url, given.run)

    return run(program)


def _models(pools: str, domain: str, warehouse_url: str | None) -> Callable[[Kind], GroupModelStore]:
    """The kinds' group models beside their pools; which is in force, the warehouse says where there is one."""
    engine = connect(warehouse_url) if warehouse_url else None

    def of(kind: Kind) -> GroupModelStore:
        root = f"{pools}/{kind}"
        return GroupModelStore(root, WarehousePointer(engine, domain, kind, root) if engine else None)

    return of


if __name__ == "__main__":
    sys.exit(main())
