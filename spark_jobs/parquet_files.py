"""Parquet tables as frames, also where their times are in nanoseconds or their ids in the names of folders.

Spark reads nanoseconds as whole numbers, if at all, and does not say where: the files' footers do.
"""

import re
from collections.abc import Sequence
from functools import cache, reduce
from typing import Any, Final

from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as sf
from pyspark.sql.types import ArrayType, DataType, StringType, StructField, StructType

from dare_core.errors import SourceError
from spark_jobs.column_values import column, of_nanoseconds
from spark_jobs.files_of_tables import Files

#: Columns that hold times in nanoseconds, lists of them included, and whether those are in UTC.
_Nanoseconds = tuple[tuple[str, bool], ...]
#: A line of a schema as a footer words it: a column, or what is inside one.
_FIELD: Final = re.compile(r"^( +)(?:optional|required|repeated) \S+ (.+?)(?: \((.+)\))?(?: = \d+)?(?:;| \{)$")


def read_parquet(spark: SparkSession, path: str, ids: Sequence[str]) -> DataFrame:
    """The table at a path.

    Args:
        spark: the session.
        path: of a file, or a folder of them.
        ids: columns that are read as text where they stand in the names of folders: ``user_id=0101`` is 0101.

    Raises:
        AnalysisException: there is nothing, or no Parquet.
        SourceError: a column holds times of day, which Spark cannot read; names it.
    """
    files = Files.at(spark, path)
    by_unit: dict[_Nanoseconds, list[str]] = {}
    for file, types in _times(files).items():
        if timeless := [name for name, kind in types.items() if kind.startswith("TIME(")]:
            raise SourceError(
                f"{file}: column {timeless[0]!r} holds {types[timeless[0]]}, times of day without a date, which cannot "
                "be read; write the table without it, or as text"
            )
        unit = {name: kind.endswith(",true)") for name, kind in types.items() if "(NANOS" in kind}
        by_unit.setdefault(tuple(sorted(unit.items())), []).append(file)
    if not by_unit:
        by_unit[()] = list(files.paths)
    frames = [_frame(files, paths, dict(unit), ids) for unit, paths in by_unit.items()]
    return reduce(lambda one, other: one.unionByName(other), frames)


def _frame(files: Files, paths: Sequence[str], nanoseconds: dict[str, bool], ids: Sequence[str]) -> DataFrame:
    frame = files.load(files.spark.read, "parquet", paths)
    if folders := files.partition_columns(ids):
        fields = [
            StructField(field.name, StringType() if field.name in folders else field.dataType) for field in frame.schema
        ]
        frame = files.load(files.spark.read.schema(StructType(fields)), "parquet", paths)
    return frame.select(
        *[_value(frame.schema[name].dataType, name, nanoseconds.get(name)).alias(name) for name in frame.columns]
    )


def _value(kind: DataType, name: str, is_utc: bool | None) -> Column:
    """A column's values; ``is_utc`` is of nanoseconds, None: they are something else."""
    if is_utc is None:
        return column(name)
    if isinstance(kind, ArrayType):
        return sf.transform(column(name), lambda value: of_nanoseconds(value, is_utc))
    return of_nanoseconds(column(name), is_utc)


def _times(files: Files) -> dict[str, dict[str, str]]:
    """By file, columns that hold times, or lists of them, with the type as Parquet words it (TIMESTAMP(NANOS,true))."""
    jvm: Any = files.spark._jvm
    conf = files.spark._jsc.hadoopConfiguration()
    statuses = jvm.java.util.ArrayList()
    for file in files.paths:
        where = jvm.org.apache.hadoop.fs.Path(file)
        statuses.add(where.getFileSystem(conf).getFileStatus(where))
    try:
        footers = jvm.org.apache.parquet.hadoop.ParquetFileReader.readAllFootersInParallel(conf, statuses, True)
    except Py4JJavaError:
        return {}  # Spark names the file that has none
    return {
        footer.getFile().toString(): _times_of(footer.getParquetMetadata().getFileMetaData().getSchema().toString())
        for footer in footers
    }


@cache
def _times_of(schema: str) -> dict[str, str]:
    found, name = {}, ""
    for line in schema.splitlines():
        if field := _FIELD.match(line):
            name = field[2] if len(field[1]) == 2 else name
            if field[3] and field[3].startswith("TIME"):
                found[name] = field[3]
    return found
