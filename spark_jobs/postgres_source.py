"""A PostgreSQL table as a Spark frame: read in partitions, streamed as Arrow batches, without a driver jar.

    table = Table(url, "source", "ratings")
    PostgresReader(table, table.columns(), partitions=8, window=TimeWindow("rated_at", since, until)).frame(spark)

The database sends only rows whose time lies in the window, and whose columns have the values that are asked for. A
frame is a function over partitions, and no data source of Spark's: for each of those Spark starts two Python processes
to plan with, which takes longer than most reads; and Spark 4.1 keeps what ``pushFilters`` leaves behind with the frame.

Partitions are ranges of the table's blocks, read by PostgreSQL's TID range scans, so they need no key column and are
of equal size on disk. Views and foreign tables have no blocks and are one partition. Where an index serves the window
of time, as the planner says, partitions are stretches of time instead.

Every partition is a transaction of its own, under the snapshot that the option ``snapshot`` names, as
:func:`one_snapshot` gives it: each row is read exactly once, as it was then. Without one that holds of quiet tables
only: a row that is updated between two partitions' reads moves to another block, and can be read twice or not at all.

Types: whole numbers, floats, ``numeric(p, s)``, bool, text, date, timestamps and arrays of text or whole numbers keep
their kind. ``numeric`` without precision is read as double; a timestamp without zone is taken as UTC; an infinite time,
one outside the years 1 to 9999 (which Python cannot hold) and a numeric NaN are null. Arrays of other types (enum,
uuid, ...) are lists of texts; of several dimensions, one list of all their values. Any other type (uuid, enum, jsonb,
...) is read as its text.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any, Final

import psycopg
import pyarrow as pa
from psycopg import conninfo, sql
from psycopg.postgres import types as pg_types
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

from dare_core.errors import SourceError
from dare_core.schemas import TIME

#: Rows fetched from the server, and handed to Spark, at a time.
BATCH_ROWS: Final = 10_000

#: Rows of a stretch of time, as the planner estimates them: a connection for fewer is not worth it.
_STRETCH_ROWS: Final = 50_000

_MAX_DECIMAL_DIGITS: Final = 38

_SCALARS: Final = {
    "bool": pa.bool_(),
    "int2": pa.int16(),
    "int4": pa.int32(),
    "int8": pa.int64(),
    "float4": pa.float32(),
    "float8": pa.float64(),
    "text": pa.string(),
    "varchar": pa.string(),
}
_LISTS: Final = {
    "text": pa.list_(pa.string()),
    "varchar": pa.list_(pa.string()),
    "int2": pa.list_(pa.int16()),
    "int4": pa.list_(pa.int32()),
    "int8": pa.list_(pa.int64()),
}
_AS_THEY_ARE: Final = {pg_types[name].oid: kind for name, kind in _SCALARS.items()} | {
    pg_types[name].array_oid: kind for name, kind in _LISTS.items()
}
_NUMERIC: Final = pg_types["numeric"].oid
_JSON: Final = {pg_types["json"].oid, pg_types["jsonb"].oid}
#: Types of text, by the names that PostgreSQL gives them; what is read as text besides is none of these.
_TEXT: Final = ("text", "character varying", "character", "name", "citext")
#: A JSON value as a list of texts: an array's values, or the one value that there is.
_JSON_LIST: Final = (
    "CASE jsonb_typeof({0}::jsonb) WHEN 'array' THEN ARRAY(SELECT jsonb_array_elements_text({0}::jsonb)) "
    "WHEN 'null' THEN NULL ELSE ARRAY[{0}::jsonb #>> '{{}}'] END"
)
#: An array of any number of dimensions as a list.
_FLAT: Final = "CASE WHEN array_ndims({0}) > 1 THEN ARRAY(SELECT unnest({0})) ELSE {0} END"
#: Whether a date or time is one of the calendar's, as SQL; infinite ones are not.
_IN_CALENDAR: Final = "({0} >= '0001-01-01' AND {0} < '10000-01-01')"
_TIMES: Final = {
    pg_types["date"].oid: (pa.date32(), f"CASE WHEN {_IN_CALENDAR} THEN {{0}} END"),
    pg_types["timestamp"].oid: (TIME, f"CASE WHEN {_IN_CALENDAR} THEN {{0}} AT TIME ZONE 'UTC' END"),
    pg_types["timestamptz"].oid: (TIME, f"CASE WHEN {_IN_CALENDAR} THEN {{0}} END"),
}

# A partitioned table's own relation is empty, and a block range applies to each of its leaves: the largest one counts.
_EXTENT: Final = """
    SELECT bool_and(relkind IN ('r', 'm', 'p')), max(pg_relation_size(oid)) / current_setting('block_size')::bigint
    FROM pg_class, (SELECT format('%%I.%%I', %s::text, %s::text)::regclass AS root)
    WHERE oid = root OR oid IN (SELECT relid FROM pg_partition_tree(root))
"""


@dataclass(frozen=True)
class Column:
    """A column as it is read; ``value`` is the SQL of its value, ``{0}`` in it the column; ``source``, its own type."""

    name: str
    type: pa.DataType
    value: str = "{0}"
    source: str = ""

    @property
    def is_time(self) -> bool:
        """Whether the database compares it with times."""
        return bool(pa.types.is_date(self.type) or pa.types.is_timestamp(self.type))

    @property
    def is_list(self) -> bool:
        return bool(pa.types.is_list(self.type))

    def may_be_time(self, is_counted: bool) -> bool:
        """Whether it can tell when something happened: a time, a text of one or, where it counts, a number."""
        is_number = pa.types.is_integer(self.type) or pa.types.is_floating(self.type) or pa.types.is_decimal(self.type)
        return self.is_time or self.source.startswith(_TEXT) or (is_counted and is_number)

    def sql_value(self) -> sql.Composed:
        return sql.SQL(self.value).format(sql.Identifier(self.name))

    @classmethod
    def described(cls, column: psycopg.Column, source: str, is_id: bool, is_list: bool) -> "Column":
        """The column that a result's description announces.

        Args:
            column: the description.
            source: its type's name.
            is_id: its numbers are read digit by digit.
            is_list: of JSON, it is read as a list.
        """
        code, name = column.type_code, column.name
        if code in _JSON and is_list:
            return cls(name, pa.list_(pa.string()), _JSON_LIST, source)
        if source.endswith("[]"):
            kind = _AS_THEY_ARE.get(code, pa.list_(pa.string()))
            return cls(name, kind, _FLAT if code in _AS_THEY_ARE else f"({_FLAT})::text[]", source)
        if code in _AS_THEY_ARE:
            return cls(name, _AS_THEY_ARE[code], source=source)
        if code in _TIMES:
            return cls(name, *_TIMES[code], source)
        if code != _NUMERIC:
            return cls(name, pa.string(), "{0}::text", source)
        precision, scale = column.precision, column.scale
        if precision is None or scale is None or not 0 <= scale <= precision <= _MAX_DECIMAL_DIGITS:
            if is_id:
                return cls(name, pa.string(), "trim_scale(nullif({0}, 'NaN'))::text", source)
            return cls(name, pa.float64(), "nullif({0}, 'NaN')::float8", source)
        return cls(name, pa.decimal128(precision, scale), "nullif({0}, 'NaN')", source)


def connect(url: str, snapshot: str | None = None) -> psycopg.Connection[Any]:
    """A read-only connection in UTC, which sees the database as it is, or was in a snapshot.

    Raises:
        SourceError: in one line that never holds the password.
    """
    try:
        port = conninfo.conninfo_to_dict(url).get("port") or "0"
        well_formed = str(port).replace(",", "").isdigit()
    except psycopg.ProgrammingError:
        well_formed = False
    if not well_formed:  # libpq would say so by quoting the URL, or the part of a password that it took for a port
        raise SourceError("the source's URL is not of the form postgresql://user:password@host:port/database")
    try:
        connection = psycopg.connect(url, client_encoding="UTF8", fallback_application_name="dare")
    except psycopg.Error as error:
        raise SourceError(f"the source database cannot be reached: {' '.join(str(error).split())}") from None
    connection.read_only = True
    if snapshot is not None:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
    connection.execute("SET TIME ZONE 'UTC'")
    return connection


@contextmanager
def one_snapshot(url: str) -> Iterator[str]:
    """The database as it is now, by a name under which every connection can read it until the block ends.

    Raises:
        SourceError: the database cannot be reached.
    """
    with connect(url) as connection:
        connection.rollback()
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")  # it idles as long as Spark reads
        row = connection.execute("SELECT pg_export_snapshot()").fetchone()
        assert row is not None
        yield str(row[0])
        connection.rollback()


@dataclass(frozen=True)
class Table:
    """A table, view or foreign table of one database, as it is, or was in a snapshot."""

    url: str
    schema: str
    name: str
    snapshot: str | None = None

    def columns(self, ids: Collection[str] = (), lists: Collection[str] = ()) -> list[Column]:
        """All columns, in the table's order.

        Args:
            ids: those whose numbers are read as text, digit by digit.
            lists: those that, if they are of JSON and any value is an array, are read as lists.

        Raises:
            SourceError: the database cannot be reached, or the table is not there or not readable.
        """
        with self.connect() as connection:
            try:
                result = connection.execute(sql.SQL("SELECT * FROM {} LIMIT 0").format(self.identifier()))
                described = result.description or ()
                codes = [column.type_code for column in described]
                names = dict(
                    connection.execute(
                        "SELECT oid::int8, format_type(oid, NULL) FROM pg_type WHERE oid = ANY(%s)", (codes,)
                    ).fetchall()
                )
                return [
                    Column.described(
                        column,
                        names.get(column.type_code, ""),
                        column.name in ids,
                        column.type_code in _JSON
                        and column.name in lists
                        and self._holds_arrays(connection, column.name),
                    )
                    for column in described
                ]
            except psycopg.Error as error:
                message = error.diag.message_primary or type(error).__name__
                raise SourceError(f"source table {self.schema}.{self.name} cannot be read: {message}") from None

    def _holds_arrays(self, connection: psycopg.Connection[Any], name: str) -> bool:
        found = connection.execute(
            sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE jsonb_typeof({}::jsonb) = 'array')").format(
                self.identifier(), sql.Identifier(name)
            )
        ).fetchone()
        return bool(found and found[0])

    def blocks(self) -> int:
        """How many blocks the table's rows lie in; 0 when they do not lie in blocks."""
        with self.connect() as connection:
            row = connection.execute(_EXTENT, (self.schema, self.name)).fetchone()
        in_blocks, blocks = row or (False, None)
        return int(blocks or 0) if in_blocks else 0

    def identifier(self) -> sql.Identifier:
        return sql.Identifier(self.schema, self.name)

    def connect(self) -> psycopg.Connection[Any]:
        """As :func:`connect`."""
        return connect(self.url, self.snapshot)


@dataclass(frozen=True)
class TimeWindow:
    """Rows whose ``column`` holds a time from ``since`` to ``until``, inclusive; ``None`` is no bound."""

    column: str
    since: datetime | None
    until: datetime | None

    def conditions(self) -> list[sql.Composed]:
        # The bare column is compared, in a session that is in UTC, so that an index on it serves.
        bounds = [(">=", self.since), ("<=", self.until)]
        return [
            sql.SQL("{} {} {} AND {}").format(
                column, sql.SQL(sign), sql.Literal(bound), sql.SQL(_IN_CALENDAR).format(column)
            )
            for column in [sql.Identifier(self.column)]
            for sign, bound in bounds
            if bound is not None
        ]


@dataclass(frozen=True)
class Timeless:
    """Rows whose ``column`` holds no time, or one that is not in the calendar."""

    column: str

    def conditions(self) -> list[sql.Composed]:
        condition = f"({{0}} IS NULL OR NOT {_IN_CALENDAR})"
        return [sql.SQL(condition).format(sql.Identifier(self.column))]


@dataclass(frozen=True)
class BlockRange:
    """Blocks ``start`` up to, not including, ``end``; ``None`` means all that follow, also those added meanwhile."""

    start: int
    end: int | None

    def conditions(self) -> list[sql.Composed]:
        bounds = [(">=", self.start or None), ("<", self.end)]
        return [
            sql.SQL("ctid {} {}::tid").format(sql.SQL(sign), sql.Literal(f"({block},0)"))
            for sign, block in bounds
            if block is not None
        ]


@dataclass(frozen=True)
class TimeStretch:
    """Rows whose ``column`` holds a time from ``start`` up to, not including, ``end``; ``None`` is no bound."""

    column: str
    start: datetime | None
    end: datetime | None

    def conditions(self) -> list[sql.Composed]:
        bounds = [(">=", self.start), ("<", self.end)]
        return [
            sql.SQL("{} {} {}").format(sql.Identifier(self.column), sql.SQL(sign), sql.Literal(bound))
            for sign, bound in bounds
            if bound is not None
        ]


@dataclass(frozen=True)
class PostgresReader:
    """Reads some columns of a table.

    Attributes:
        table: that is read.
        columns: of the table, in any order.
        partitions: at most so many, each read over a connection of its own.
        window: of time; None: all rows.
        equal: by column, the value that rows must have.
    """

    table: Table
    columns: Sequence[Column]
    partitions: int = 1
    window: TimeWindow | Timeless | None = None
    equal: Mapping[str, str] = field(default_factory=dict)

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([(column.name, column.type) for column in self.columns])

    def frame(self, spark: SparkSession) -> DataFrame:
        """The rows; read again whenever Spark needs them."""
        parts = self.parts()

        def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                for number in batch["id"].to_pylist():
                    yield from self.read(parts[number])

        numbers = spark.range(len(parts), numPartitions=len(parts))
        return numbers.mapInArrow(read, from_arrow_schema(self.schema))

    def parts(self) -> Sequence[BlockRange | TimeStretch]:
        """What the partitions read: each row is in one of them."""
        if self.window and self.window.conditions() and (rows := self._rows_by_index()) is not None:
            return self._stretches(self.window, rows)
        blocks = self.table.blocks()
        count = max(1, min(self.partitions, blocks))
        bounds = [blocks * index // count for index in range(count)]
        return [BlockRange(start, end) for start, end in zip(bounds, [*bounds[1:], None], strict=True)]

    def read(self, part: BlockRange | TimeStretch) -> Iterator[pa.RecordBatch]:
        """The rows of a part, :data:`BATCH_ROWS` at a time."""
        schema = self.schema
        with self.table.connect() as connection, connection.cursor("dare_read") as cursor:
            cursor.execute(self._query(part.conditions()), binary=True)
            while rows := cursor.fetchmany(BATCH_ROWS):
                values = zip(*rows, strict=True)
                arrays = [pa.array(column, kind) for column, kind in zip(values, schema.types, strict=True)]
                yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _rows_by_index(self) -> float | None:
        """How many rows the planner expects where it would find all of them by an index; None: it would not."""
        with self.table.connect() as connection:
            row = connection.execute(sql.SQL("EXPLAIN (FORMAT JSON) {}").format(self._query([]))).fetchone()
        assert row is not None
        plan = row[0][0]["Plan"]
        return float(plan["Plan Rows"]) if "Seq Scan" not in _scans(plan) else None

    def _stretches(self, window: TimeWindow | Timeless, rows: float) -> list[TimeStretch]:
        """Of equal length, from the first to the last time that the window holds."""
        name = window.column
        count = min(self.partitions, int(rows // _STRETCH_ROWS) + 1) if isinstance(window, TimeWindow) else 1
        bounds: list[datetime] = []
        if count > 1:
            ends = sql.SQL("min({0})::timestamptz, max({0})::timestamptz").format(sql.Identifier(name))
            with self.table.connect() as connection:
                first, last = connection.execute(self._query([], ends)).fetchone() or (None, None)
            if first is not None and last is not None:
                bounds = [first + (last - first) * index / count for index in range(1, count)]
        edges = [None, *bounds, None]
        return [TimeStretch(name, start, end) for start, end in pairwise(edges)]

    def _query(self, conditions: Sequence[sql.Composed], what: sql.Composable | None = None) -> sql.Composed:
        asked = [
            sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value)) for name, value in self.equal.items()
        ]
        asked += [*(self.window.conditions() if self.window else ()), *conditions]
        return sql.SQL("SELECT {} FROM {} WHERE {}").format(
            what or sql.SQL(", ").join(column.sql_value() for column in self.columns),
            self.table.identifier(),
            sql.SQL(" AND ").join(asked) if asked else sql.SQL("true"),
        )


def read_rows(
    spark: SparkSession,
    table: Table,
    columns: Sequence[str],
    window: TimeWindow | None = None,
    equal: Mapping[str, str] | None = None,
) -> DataFrame:
    """Columns of a table that has them, by as many connections as there are cores."""
    there = {column.name: column for column in table.columns()}
    chosen = [there[name] for name in columns]
    return PostgresReader(table, chosen, spark.sparkContext.defaultParallelism, window, equal or {}).frame(spark)


def _scans(plan: Mapping[str, Any]) -> set[str]:
    """The kinds of a plan's nodes that read something."""
    found = {str(plan["Node Type"])} if "Scan" in str(plan["Node Type"]) else set()
    return found.union(*[_scans(child) for child in plan.get("Plans", [])])
