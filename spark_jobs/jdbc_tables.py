"""Tables behind JDBC, read by several connections, each a range of a column that the database has in order."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, Final

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as sf
from pyspark.sql.types import DateType, NumericType, StructType, TimestampType

from spark_jobs.column_values import column
from spark_jobs.postgres_source import Timeless, TimeWindow

#: Rows fetched from the server at a time; many drivers fetch ten, or all.
_FETCHED_ROWS: Final = 10_000
#: Connections at most, whatever the number of cores.
_CONNECTIONS: Final = 16
#: By how much a window is wider than asked: a driver may take times for those of another zone.
_ZONES: Final = timedelta(days=1)


@dataclass(frozen=True)
class JdbcTable:
    """A table behind JDBC.

    Attributes:
        spark: the session.
        url: ``jdbc:…``.
        name: with its schema.
        keys: columns that it can be split by: the first of these that holds numbers or times is.
    """

    spark: SparkSession
    url: str
    name: str
    keys: Sequence[str]

    @cached_property
    def schema(self) -> StructType:
        return self._reader(dbtable=self.name).load().schema

    def read(self, window: TimeWindow | Timeless | None = None) -> DataFrame:
        """All columns. The window is the database's to apply, so its column must hold dates or times.

        Rows outside it may come along, as may those whose time is not in the calendar.
        """
        frame = self._reader(dbtable=self.name, **self._ranges).load()
        return frame if window is None else frame.where(self._within(window))

    def _within(self, window: TimeWindow | Timeless) -> Column:
        time = column(window.column)
        if isinstance(window, Timeless):
            return time.isNull()
        kind = "date" if isinstance(self.schema[window.column].dataType, DateType) else "timestamp"
        since, until = window.since and window.since - _ZONES, window.until and window.until + _ZONES
        within = sf.lit(True)
        if since is not None:
            within = within & (time >= sf.lit(since).cast(kind))
        return within if until is None else within & (time <= sf.lit(until).cast(kind))

    @cached_property
    def _ranges(self) -> dict[str, str]:
        """Options of Spark that split the table; none where it has no such column, or no rows."""
        splitting = NumericType | DateType | TimestampType
        fields = {field.name: field.dataType for field in self.schema}
        key = next((name for name in self.keys if isinstance(fields.get(name), splitting)), None)
        if key is None:
            return {}
        jvm: Any = self.spark._jvm
        quoted = jvm.org.apache.spark.sql.jdbc.JdbcDialects.get(self.url).quoteIdentifier(key)
        query = f"SELECT min({quoted}) AS low, max({quoted}) AS high FROM {self.name}"  # noqa: S608 - the domain's own
        kind = "long" if isinstance(fields[key], NumericType) else "string"
        ends = self._reader(query=query).load().toDF("low", "high")
        found = ends.select(*[sf.col(end).try_cast(kind).alias(end) for end in ends.columns]).first()
        if found is None or None in found:
            return {}
        low, high = map(str, found)
        partitions = min(_CONNECTIONS, self.spark.sparkContext.defaultParallelism)
        return {"partitionColumn": key, "lowerBound": low, "upperBound": high, "numPartitions": str(partitions)}

    def _reader(self, **options: str) -> Any:
        return self.spark.read.format("jdbc").options(url=self.url, fetchsize=_FETCHED_ROWS, **options)
