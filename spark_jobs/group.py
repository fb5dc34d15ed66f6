"""Give every pulled entity its retrieval-pool group (schema ``ENTITY``).

    spark-submit spark_jobs/group.py --domain-file config/movies.toml --in DIR --out DIR

The first simple rule: the value of the attribute that the domain file names; of a list, its first value.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as sf
from pyspark.sql.types import StringType

from dare_core.domains import Domain, read_domain
from dare_core.errors import InputError
from dare_core.schemas import ENTITY, KINDS
from spark_jobs.session import run

#: The group of an entity that lacks the attribute.
UNKNOWN: Final = "unknown"

#: What the global pool is called, so no group may be.
_GLOBAL: Final = "*"

_LONGEST_NAME: Final = 64


def group(spark: SparkSession, domain: Domain, source: Path | str, out: Path | str) -> dict[str, int]:
    """Write ``<out>/<kind>/*.parquet`` for every kind found in ``source``, where ``pull`` wrote.

    Returns:
        entities by kind, and ``groups``: how many groups they are in.

    Raises:
        InputError: ``source`` holds no kind.
    """
    attributes = {"item": domain.source.items.group, "user": domain.source.users.group}
    counts: dict[str, int] = {}
    groups = 0
    for kind in KINDS:
        pulled = _read(spark, f"{source}/{kind}")
        if pulled is None:
            continue
        grouped = pulled.withColumn("group_name", _group_names(sf.col("attributes"), sf.lit(attributes[kind])))
        grouped.select(*ENTITY.names).write.mode("overwrite").parquet(f"{out}/{kind}")
        written = spark.read.parquet(f"{out}/{kind}")
        counts[kind] = written.count()
        groups += written.select("group_name").distinct().count()
    if not counts:
        raise InputError(f"{source} holds neither {' nor '.join(KINDS)}: pull first")
    return counts | {"groups": groups}


def group_name(value: Any) -> str:
    """The group that an attribute's value (as JSON knows it) names: one printable line of 64 characters at most."""
    if isinstance(value, list):
        value = value[0] if value else None
    if value is None:
        return UNKNOWN
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    one_line = "".join(character for character in " ".join(text.split()) if character.isprintable())
    name = one_line[:_LONGEST_NAME].strip()
    return UNKNOWN if name in ("", _GLOBAL) else name


def _named_groups(attributes: pa.Array, key: pa.Array) -> pa.Array:
    named = zip(attributes.to_pylist(), key.to_pylist(), strict=True)
    return pa.array([group_name(json.loads(entity).get(attribute)) for entity, attribute in named], pa.string())


_group_names = sf.arrow_udf(_named_groups, StringType())


def _read(spark: SparkSession, path: str) -> DataFrame | None:
    try:
        return spark.read.parquet(path)
    except AnalysisException as error:
        if error.getCondition() == "PATH_NOT_FOUND":
            return None
        raise


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit status."""
    parser = argparse.ArgumentParser(prog="group.py", description="Give every pulled entity its group.")
    parser.add_argument("--domain-file", type=Path, required=True)
    parser.add_argument("--in", dest="source", required=True, metavar="DIR", help="where pull.py wrote")
    parser.add_argument("--out", required=True, metavar="DIR")
    given = parser.parse_args(argv)
    return run(lambda spark: group(spark, read_domain(given.domain_file), given.source, given.out))


if __name__ == "__main__":
    sys.exit(main())
