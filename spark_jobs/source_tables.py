"""A domain's source tables as Spark frames, wherever they lie."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

from py4j.protocol import Py4JJavaError  # type: ignore[import-untyped]
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as sf
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    BooleanType,
    DataType,
    DateType,
    NullType,
    NumericType,
    StringType,
    TimestampNTZType,
    TimestampType,
)

from dare_core.config.domains import Domain, EntityTable
from dare_core.errors import SourceError
from dare_core.schemas import KINDS, Kind
from dare_core.warehouse.connection import connect
from dare_core.warehouse.entities import forgotten
from spark_jobs.postgres_source import PostgresSource, Table, Timeless, TimeWindow

#: How Spark words what it met in a file, and the PostgreSQL reader in a table.
_DAMAGED_FILE: Final = re.compile(r"\[FAILED_READ_FILE\.\w+\] Encountered error while reading file (\S+?)\.\s")
_DATABASE: Final = re.compile(r"^psycopg\.(?:errors\.)?\w+: (.+)", re.MULTILINE)

#: What a column, or the values of a list in it, may hold.
_PLAIN: Final = (NullType, StringType, NumericType, BooleanType, DateType, TimestampType, TimestampNTZType)

Section = Literal["items", "users", "interactions"]


def column(name: str) -> Column:
    """The column of exactly this name, dots and backticks included."""
    return sf.col("`" + name.replace("`", "``") + "`")


@contextmanager
def failures_in_words() -> Iterator[None]:
    """Spark finds damaged files and refused rows while it works: pages of stack traces, of which one line is of use.

    Raises:
        SourceError: instead of them; names the file, or says what the database said.
    """
    try:
        yield
    except (Py4JJavaError, PySparkException) as error:
        if found := _DAMAGED_FILE.search(str(error)):
            raise SourceError(f"{found[1]} cannot be read: it is damaged, cut short, or of another format") from None
        if found := _DATABASE.search(str(error)):
            raise SourceError(f"the source database refused to go on: {found[1].strip()}") from None
        raise


@dataclass(frozen=True)
class SourceTables:
    """The tables that a domain's ``[source]`` names; ``warehouse_url`` is where they are if it gives no location.

    A CSV file has a header row and is text throughout: ids keep their leading zeros, numbers stay as they are written.
    An attribute column of it is multi-valued when any of its values contains the list separator.
    """

    spark: SparkSession
    domain: Domain
    warehouse_url: str | None

    def read(self, section: Section, columns: Sequence[str], window: TimeWindow | Timeless | None = None) -> DataFrame:
        """The columns of the items', users' or interactions' table, text made safe to store.

        Rows of forgotten users and items are left out wherever the column of their ids is read.

        Args:
            window: rows outside it may be left out where that saves reading them; the caller filters all the same.

        Raises:
            SourceError: the table or a column is missing, or a column is binary or nested; names the table, the column
                and the key of the domain file.
        """
        frame = self._load(section, columns, window)
        for name in columns:
            if name not in frame.columns:
                raise self._missing_column(section, name, frame.columns)
            if isinstance(frame.schema[name].dataType, BinaryType):
                raise self.error(section, f"column {name!r} ({self._key(section, name)}) holds binary data")
            if not _is_plain(frame.schema[name].dataType):
                raise self.error(
                    section,
                    f"column {name!r} ({self._key(section, name)}) holds {frame.schema[name].dataType.simpleString()}; "
                    "texts, numbers, truth values, times and lists of them can be read",
                )
        chosen = frame.select(*[_legible(frame.schema[name].dataType, column(name)).alias(name) for name in columns])
        for name, kind in self._id_columns(section).items():
            if name in columns and self._tombstones[kind]:
                chosen = chosen.where(~self._is_forgotten(name, kind))
        return self._split_lists(section, chosen) if self.domain.source.format == "csv" else chosen

    def forgotten(self, kind: Kind) -> int:
        """How many rows of a kind's table :meth:`read` leaves out, since their entities were forgotten."""
        if not self._tombstones[kind]:
            return 0
        section: Section = "items" if kind == "item" else "users"
        [name] = self._id_columns(section)
        ids = self._load(section, [name], None).select(column(name))
        rows: int = ids.where(self._is_forgotten(name, kind)).count()
        return rows

    @cached_property
    def _tombstones(self) -> dict[Kind, list[str]]:
        """What is kept of the domain's forgotten entities, by kind; nothing without a warehouse."""
        found: dict[Kind, list[str]] = {kind: [] for kind in KINDS}
        if self.warehouse_url is not None:
            engine = connect(self.warehouse_url)
            found |= {kind: forgotten(engine, self.domain.name, kind) for kind in KINDS}
            engine.dispose()
        return found

    def _id_columns(self, section: Section) -> dict[str, Kind]:
        """The columns of a table that hold ids of entities, and of which kind."""
        source = self.domain.source
        match section:
            case "items":
                return {source.items.id: "item"}
            case "users":
                return {source.users.id: "user"}
            case "interactions":
                return {source.interactions.user: "user", source.interactions.item: "item"}

    def _is_forgotten(self, name: str, kind: Kind) -> Column:
        entity = sf.concat(sf.lit(f"{self.domain.name}/{kind}/"), column(name).cast("string"))
        return sf.coalesce(sf.sha2(entity, 256).isin(self._tombstones[kind]), sf.lit(False))

    def known_ids(self, kind: Kind) -> DataFrame:
        """Column ``entity_id`` of the domain's entities that the warehouse has; none without a warehouse."""
        if self.warehouse_url is None:
            return self.spark.createDataFrame([], "entity_id string")
        names = ["domain", "kind", "entity_id", "deleted_at"]
        known = self.spark.read.format(PostgresSource.name()).options(
            url=self.warehouse_url,
            schema="knowledge",
            table="entity",
            columns=json.dumps(names),
            partitions=self.spark.sparkContext.defaultParallelism,
        )
        ours = (sf.col("domain") == self.domain.name) & (sf.col("kind") == kind) & sf.col("deleted_at").isNull()
        return known.load().where(ours).select("entity_id")

    def error(self, section: Section, problem: str) -> SourceError:
        """An error about a table, which names it and its key in the domain file."""
        name = self.domain.name
        return SourceError(f"domain {name}: source table {self._table(section)!r} (source.{section}.table): {problem}")

    def _load(self, section: Section, columns: Sequence[str], window: TimeWindow | Timeless | None) -> DataFrame:
        match self.domain.source.format:
            case "postgres":
                return self._load_postgres(section, columns, window)
            case "jdbc":
                return self._load_jdbc(section)
            case "parquet" | "csv" as suffix:
                return self._load_files(section, suffix)

    def _load_postgres(
        self, section: Section, columns: Sequence[str], window: TimeWindow | Timeless | None
    ) -> DataFrame:
        source = self.domain.source
        url = source.location or self.warehouse_url
        if url is None:
            raise SourceError(f"domain {self.domain.name}: set source.location, or DARE_WAREHOUSE_URL")
        table = Table(url, source.db_schema, self._table(section))
        # Asked here too, since an error from within Spark's planner comes as a page of stack traces.
        there = [known.name for known in table.columns()]
        for name in columns:
            if name not in there:
                raise self._missing_column(section, name, there)
        reader = self.spark.read.format(PostgresSource.name())
        if window:
            reader = reader.options(**window.options())
        return reader.options(
            url=url,
            schema=table.schema,
            table=table.name,
            columns=json.dumps(list(columns)),
            partitions=self.spark.sparkContext.defaultParallelism,
        ).load()

    def _load_jdbc(self, section: Section) -> DataFrame:
        source = self.domain.source
        if not (source.location or "").startswith("jdbc:"):
            raise SourceError(f"domain {self.domain.name}: with format jdbc, source.location must be jdbc:…")
        reader = self.spark.read.format("jdbc")
        try:
            return reader.options(url=source.location, dbtable=f"{source.db_schema}.{self._table(section)}").load()
        except (Py4JJavaError, AnalysisException) as error:
            cause = str(getattr(error, "java_exception", error)).splitlines()[0]
            if "No suitable driver" in cause or "ClassNotFoundException" in cause:
                raise SourceError(
                    f"domain {self.domain.name}: no JDBC driver for source location; "
                    "set jdbc_driver_jar (DARE_JDBC_DRIVER_JAR) to the driver's jar"
                ) from None
            raise self.error(section, f"cannot be read: {cause}") from None

    def _load_files(self, section: Section, suffix: Literal["parquet", "csv"]) -> DataFrame:
        source = self.domain.source
        if source.location is None:
            raise SourceError(f"domain {self.domain.name}: with format {suffix}, source.location must be a folder")
        base = f"{source.location.rstrip('/')}/{self._table(section)}"
        reader = self.spark.read
        if suffix == "csv":  # RFC 4180; every file's header is checked against the first one's
            reader = reader.options(header=True, escape='"', multiLine=True, enforceSchema=False, mode="FAILFAST")
        for path in (f"{base}.{suffix}", base):
            try:
                return reader.format(suffix).load(path)
            except AnalysisException as error:
                if error.getCondition() != "PATH_NOT_FOUND":
                    raise self.error(section, f"{path} cannot be read: {str(error).splitlines()[0]}") from None
        raise self.error(section, f"there is neither {base}.{suffix} nor {base}/")

    def _split_lists(self, section: Section, frame: DataFrame) -> DataFrame:
        spec = getattr(self.domain.source, section)
        names = [name for name in spec.attributes if name in frame.columns] if isinstance(spec, EntityTable) else []
        if not names:
            return frame
        separator = sf.lit(self.domain.source.list_separator)
        multiple = frame.agg(*[sf.max(sf.contains(column(name), separator)).alias(name) for name in names]).first()
        assert multiple is not None
        for name in names:
            if multiple[name]:
                values = sf.split(column(name), sf.concat(sf.lit("\\Q"), separator, sf.lit("\\E")))
                trimmed = sf.transform(values, lambda value: sf.trim(value, sf.lit(" ")))
                frame = frame.withColumn(name, sf.filter(trimmed, lambda value: value != ""))
        return frame

    def _table(self, section: Section) -> str:
        return str(getattr(self.domain.source, section).table)

    def _key(self, section: Section, name: str) -> str:
        for key, value in getattr(self.domain.source, section):
            if value == name or (isinstance(value, tuple) and name in value):
                return f"source.{section}.{key}"
        raise AssertionError(f"{name} is no column of source.{section}")

    def _missing_column(self, section: Section, name: str, there: Sequence[str]) -> SourceError:
        return self.error(section, f"no column {name!r} ({self._key(section, name)}); there are: {', '.join(there)}")


def _legible(kind: DataType, values: Column) -> Column:
    """Values as PostgreSQL and Python can hold them.

    Files and other databases can hold NUL characters, broken UTF-8 and times before the year 1 or after 9999.
    """
    if isinstance(kind, StringType):
        return sf.translate(sf.make_valid_utf8(values), "\0", "")
    if isinstance(kind, ArrayType) and isinstance(kind.elementType, StringType):
        return sf.transform(values, lambda value: _legible(kind.elementType, value))
    if isinstance(kind, DateType | TimestampType | TimestampNTZType):
        return in_calendar(values)
    return values


def _is_plain(kind: DataType) -> bool:
    of = kind.elementType if isinstance(kind, ArrayType) else kind
    return isinstance(of, _PLAIN)


def in_calendar(times: Column) -> Column:
    """Dates or times of the years 1 to 9999; null where they are others, which neither Python nor JSON can hold."""
    return sf.when(sf.year(times).between(1, 9999), times)
