"""A domain's source tables as Spark frames, wherever they lie."""

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
from pyspark.sql.types import BinaryType, DateType, StringType, StructField, TimestampType

from dare_core import errors
from dare_core.config.domains import Domain, EntityTable
from dare_core.errors import SourceError
from dare_core.schemas import KINDS, Kind
from dare_core.warehouse.connection import connected
from dare_core.warehouse.entities import count_forgotten
from spark_jobs.column_values import column, id_text, is_plain, legible, moments, without
from spark_jobs.csv_files import read_csv, unmistaken
from spark_jobs.jdbc_tables import JdbcTable
from spark_jobs.parquet_files import read_parquet
from spark_jobs.postgres_source import Column as PostgresColumn
from spark_jobs.postgres_source import PostgresReader, Table, Timeless, TimeWindow, one_snapshot, read_rows

#: How Spark words what it met in a file, and the PostgreSQL reader in a table.
_DAMAGED_FILE: Final = re.compile(r"\[FAILED_READ_FILE\.\w+\] Encountered error while reading file (\S+?)\.\s")
_OURS: Final = re.compile(r"^dare_core\.errors\.(WarehouseError|StorageError|InputError): (.+)", re.MULTILINE)
_DATABASE: Final = re.compile(r"^psycopg\.(?:errors\.)?\w+: (.+)", re.MULTILINE)

_BAD_RECORD: Final = re.compile(r"\[MALFORMED_CSV_RECORD\] Malformed CSV record: (.*?) SQLSTATE", re.DOTALL)
_OTHER_TYPE: Final = re.compile(r"Parquet column \[(.+?)\]\. Expected Spark type (\S+), actual Parquet type (\w+)")
#: What an expression of :mod:`spark_jobs.column_values` refuses.
_REFUSED: Final = re.compile(r"\[USER_RAISED_EXCEPTION\] (.*?) SQLSTATE", re.DOTALL)
#: Characters of a file's row that an error shows.
_SHOWN: Final = 200

_TOMBSTONE: Final = "#tombstone"
#: So many are sent to every executor: some tens of megabytes.
_BROADCAST_TOMBSTONES: Final = 200_000

Section = Literal["items", "users", "interactions"]


@contextmanager
def failures_in_words() -> Iterator[None]:
    """Spark finds damaged files and refused rows while it works: pages of stack traces, of which one line is of use.

    Raises:
        SourceError: instead of them; names the file, or says what the database said.
        WarehouseError, StorageError, InputError: an executor met it.
    """
    try:
        yield
    except (Py4JJavaError, PySparkException) as error:
        if found := _REFUSED.search(str(error)):
            raise SourceError(found[1]) from None
        if found := _DAMAGED_FILE.search(str(error)):
            raise SourceError(f"{found[1]} cannot be read: {_why_not(str(error))}") from None
        if found := _OURS.search(str(error)):
            raise getattr(errors, found[1])(found[2].strip()) from None
        if found := _DATABASE.search(str(error)):
            raise SourceError(f"the source database refused to go on: {found[1].strip()}") from None
        raise


def _why_not(error: str) -> str:
    if found := _BAD_RECORD.search(error):
        record = " ".join(found[1].split())
        shown = record if len(record) <= _SHOWN else f"{record[:_SHOWN]}…"
        hint = "; where a backslash stands before quotes, set source.csv.escape = '\\'" if '\\"' in record else ""
        return f"a row has not as many fields as the header, or its quotes are not closed: {shown!r}{hint}"
    if found := _OTHER_TYPE.search(error):
        return f"its column {found[1]!r} holds {found[3]}, in other files of the table {found[2]}"
    return "it is damaged, cut short, or of another format"


@dataclass(frozen=True)
class SourceTables:
    """The tables that a domain's ``[source]`` names; ``warehouse_url`` is where they are if it gives no location.

    PostgreSQL's tables are read as they are in ``snapshot``; without one, each partition as it is when it is read. A
    CSV file has a header row and is text throughout: ids keep their leading zeros, numbers stay as they are written. An
    attribute column of it is multi-valued when any of its values contains the list separator.
    """

    spark: SparkSession
    domain: Domain
    warehouse_url: str | None
    snapshot: str | None = None

    @classmethod
    @contextmanager
    def opened(cls, spark: SparkSession, domain: Domain, warehouse_url: str | None) -> Iterator["SourceTables"]:
        """The tables, those of PostgreSQL all as they are now until the block ends."""
        url = domain.source.location or warehouse_url
        if domain.source.format != "postgres" or url is None:
            yield cls(spark, domain, warehouse_url)
            return
        with one_snapshot(url) as snapshot:
            yield cls(spark, domain, warehouse_url, snapshot)

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
                raise self._refused(section, name, "holds binary data")
            if not is_plain(frame.schema[name].dataType):
                raise self._refused(
                    section,
                    name,
                    f"holds {frame.schema[name].dataType.simpleString()}; "
                    "texts, numbers, truth values, times and lists of them can be read",
                )
        chosen = frame.select(*[self._values(section, frame.schema[name]).alias(name) for name in columns])
        for name, kind in self._id_columns(section).items():
            if name in columns and self.forgotten_entities[kind]:
                marks = self._tombstones(kind)
                chosen = chosen.join(marks, self._tombstone(name, kind) == marks[_TOMBSTONE], "left_anti")
        if self.domain.source.format == "csv":
            chosen = self._split_lists(section, chosen)
        for name, none in getattr(self.domain.source, section).none_values.items():
            if name in columns:
                kind = chosen.schema[name].dataType
                chosen = chosen.withColumn(name.replace("`", "``"), without(kind, column(name), none))
        return chosen

    def _values(self, section: Section, field: StructField) -> Column:
        """A column's values: ids the same whatever the type, times as times, text legible."""
        name, kind, values = field.name, field.dataType, column(field.name)
        spec = getattr(self.domain.source, section)
        if self.domain.source.format == "csv" and isinstance(kind, StringType):
            values = unmistaken(self.domain.source.csv, name, values)
        if name in self._id_columns(section):
            told = f"holds {kind.simpleString()}, in which ids must be whole numbers below 2^53; write them as text"
            ids = id_text(kind, values, f"{self._refused(section, name, told)}; found: ")
            if ids is None:
                raise self._refused(section, name, f"holds {kind.simpleString()}; an id is one text or number")
            return legible(StringType(), ids) if isinstance(kind, StringType) else ids
        if name == self._time_column(section):
            times = moments(kind, values, spec.time_unit)
            if times is None or "logical_time_type" in (field.metadata or {}):
                raise self._refused(
                    section,
                    name,
                    f"holds {kind.simpleString()}, not times with a date; {self._remedy(section)}",
                )
            return times if isinstance(kind, StringType) else legible(kind, times)
        return legible(kind, values)

    def _time_column(self, section: Section) -> str:
        spec = getattr(self.domain.source, section)
        return str(spec.updated_at if isinstance(spec, EntityTable) else spec.time)

    def _refused(self, section: Section, name: str, problem: str) -> SourceError:
        return self.error(section, f"column {name!r} ({self._key(section, name)}) {problem}")

    def forgotten(self, kind: Kind) -> int:
        """How many rows of a kind's table :meth:`read` leaves out, since their entities were forgotten."""
        if not self.forgotten_entities[kind]:
            return 0
        section: Section = "items" if kind == "item" else "users"
        [name] = self._id_columns(section)
        ids = self._load(section, [name], None)
        ids = ids.select(self._values(section, ids.schema[name]).alias(name))
        marks = self._tombstones(kind)
        rows: int = ids.join(marks, self._tombstone(name, kind) == marks[_TOMBSTONE], "left_semi").count()
        return rows

    @cached_property
    def forgotten_entities(self) -> dict[Kind, int]:
        """How many of the domain's entities were forgotten, by kind; none without a warehouse."""
        if self.warehouse_url is None:
            return dict.fromkeys(KINDS, 0)
        with connected(self.warehouse_url) as engine:
            return {kind: count_forgotten(engine, self.domain.name, kind) for kind in KINDS}

    def _tombstones(self, kind: Kind) -> DataFrame:
        """Column :data:`_TOMBSTONE`: what is kept of the domain's forgotten entities of a kind."""
        marks = self._of_warehouse("forgotten", kind, ["entity"]).select(sf.col("entity").alias(_TOMBSTONE))
        # How many there are, Spark cannot know: it would sort and move all that is read.
        return sf.broadcast(marks) if self.forgotten_entities[kind] <= _BROADCAST_TOMBSTONES else marks

    def _tombstone(self, name: str, kind: Kind) -> Column:
        """As :func:`dare_core.warehouse.entities.tombstone`, of a column of ids."""
        return sf.sha2(sf.concat(sf.lit(f"{self.domain.name}/{kind}/"), column(name).cast("string")), 256)

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

    def known_ids(self, kind: Kind) -> DataFrame:
        """Column ``entity_id`` of the domain's entities that the warehouse has; none without a warehouse."""
        if self.warehouse_url is None:
            return self.spark.createDataFrame([], "entity_id string")
        known = self._of_warehouse("entity", kind, ["entity_id", "deleted_at"])
        return known.where(sf.col("deleted_at").isNull()).select("entity_id")

    def _of_warehouse(self, table: str, kind: Kind, columns: Sequence[str]) -> DataFrame:
        """Columns of one of the warehouse's tables: the rows of the domain's kind."""
        assert self.warehouse_url is not None
        return read_rows(
            self.spark,
            Table(self.warehouse_url, "knowledge", table),
            columns,
            equal={"domain": self.domain.name, "kind": kind},
        )

    def windowed(self, section: Section) -> bool:
        """Whether the source itself leaves out the rows outside a window of time, so that less is read."""
        name = self._time_column(section)
        match self.domain.source.format:
            case "postgres":
                there = {known.name: known for known in self._postgres_columns(section, self._postgres_table(section))}
                return name in there and there[name].is_time
            case "jdbc":
                fields = self._load_jdbc(section, None).schema
                return name in fields.names and isinstance(fields[name].dataType, DateType | TimestampType)
            case _:
                return False

    def error(self, section: Section, problem: str) -> SourceError:
        """An error about a table, which names it and its key in the domain file."""
        name = self.domain.name
        return SourceError(f"domain {name}: source table {self._table(section)!r} (source.{section}.table): {problem}")

    def _load(self, section: Section, columns: Sequence[str], window: TimeWindow | Timeless | None) -> DataFrame:
        match self.domain.source.format:
            case "postgres":
                return self._load_postgres(section, columns, window)
            case "jdbc":
                return self._load_jdbc(section, window)
            case "parquet" | "csv" as suffix:
                return self._load_files(section, suffix)

    def _load_postgres(
        self, section: Section, columns: Sequence[str], window: TimeWindow | Timeless | None
    ) -> DataFrame:
        source, table = self.domain.source, self._postgres_table(section)
        # Asked here too, since an error from within Spark's planner comes as a page of stack traces.
        there = {known.name: known for known in self._postgres_columns(section, table)}
        for name in columns:
            if name not in there:
                raise self._missing_column(section, name, list(there))
        time, unit = self._time_column(section), getattr(source, section).time_unit
        if time in columns and not there[time].may_be_time(unit is not None):
            raise self._refused(
                section, time, f"holds {there[time].source}, not times with a date; {self._remedy(section)}"
            )
        chosen = [there[name] for name in columns]
        served = window if window and there[window.column].is_time else None
        return PostgresReader(table, chosen, self.spark.sparkContext.defaultParallelism, served).frame(self.spark)

    def _postgres_table(self, section: Section) -> Table:
        source = self.domain.source
        url = source.location or self.warehouse_url
        if url is None:
            raise SourceError(f"domain {self.domain.name}: set source.location, or DARE_WAREHOUSE_URL")
        return Table(url, source.db_schema, self._table(section), self.snapshot)

    def _postgres_columns(self, section: Section, table: Table) -> list[PostgresColumn]:
        """The table's columns; those of JSON are lists where a value is one."""
        if section not in self._described:
            self._described[section] = table.columns(self._id_columns(section), self._all_columns(section))
        return self._described[section]

    @cached_property
    def _described(self) -> dict[Section, list[PostgresColumn]]:
        return {}

    @cached_property
    def _read_files(self) -> dict[Section, DataFrame]:
        return {}

    def _all_columns(self, section: Section) -> list[str]:
        spec = getattr(self.domain.source, section)
        if isinstance(spec, EntityTable):
            return [spec.id, spec.updated_at, *([spec.title] if spec.title else []), *spec.attributes]
        return [spec.user, spec.item, spec.value, spec.time]

    @staticmethod
    def _remedy(section: Section) -> str:
        return f'if it counts from 1970 on, set source.{section}.time_unit = "seconds" or "milliseconds"'

    def _jdbc_table(self, section: Section) -> JdbcTable:
        source = self.domain.source
        if not (source.location or "").startswith("jdbc:"):
            raise SourceError(f"domain {self.domain.name}: with format jdbc, source.location must be jdbc:…")
        if section not in self._jdbc_tables:
            spec = getattr(source, section)
            keys = [spec.id, spec.updated_at] if isinstance(spec, EntityTable) else [spec.time, spec.user]
            name = f"{source.db_schema}.{self._table(section)}"
            self._jdbc_tables[section] = JdbcTable(self.spark, str(source.location), name, tuple(keys))
        return self._jdbc_tables[section]

    @cached_property
    def _jdbc_tables(self) -> dict[Section, JdbcTable]:
        return {}

    def _load_jdbc(self, section: Section, window: TimeWindow | Timeless | None) -> DataFrame:
        try:
            table = self._jdbc_table(section)
            return table.read(window if window and self.windowed(section) else None)
        except (Py4JJavaError, PySparkException) as error:
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
        if section in self._read_files:  # listed once, so that all of a pull sees the same files
            return self._read_files[section]
        base = f"{source.location.rstrip('/')}/{self._table(section)}"
        columns, ids = self._all_columns(section), list(self._id_columns(section))
        for path in (f"{base}.{suffix}", base):
            try:
                if suffix == "csv":
                    frame = read_csv(self.spark, path, source.csv, columns, ids)
                else:
                    frame = read_parquet(self.spark, path, ids)
                return self._read_files.setdefault(section, frame)
            except (AnalysisException, Py4JJavaError) as error:
                if not isinstance(error, AnalysisException) or error.getCondition() != "PATH_NOT_FOUND":
                    cause = str(getattr(error, "java_exception", error)).splitlines()[0]
                    raise self.error(section, f"{path} cannot be read: {cause}") from None
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
        for key, names in getattr(self.domain.source, section).columns.items():
            if name in names:
                return f"source.{section}.{key}"
        raise AssertionError(f"{name} is no column of source.{section}")

    def _missing_column(self, section: Section, name: str, there: Sequence[str]) -> SourceError:
        return self.error(section, f"no column {name!r} ({self._key(section, name)}); there are: {', '.join(there)}")
