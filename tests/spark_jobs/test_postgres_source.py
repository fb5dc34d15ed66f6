"""The PostgreSQL data source, against a real server."""

from collections import Counter
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as sf

from dare_core.errors import SourceError
from spark_jobs.postgres_source import (
    BATCH_ROWS,
    BlockRange,
    PostgresReader,
    Table,
    Timeless,
    TimeStretch,
    TimeWindow,
    one_snapshot,
    read_rows,
)


def reader(shop: Any, name: str, partitions: int) -> PostgresReader:
    table = Table(shop.url, "shop", name)
    return PostgresReader(table, table.columns(), partitions)


def rows_read(reader: PostgresReader) -> list[dict[str, Any]]:
    return [row for part in reader.parts() for batch in reader.read(part) for row in batch.to_pylist()]


def test_partitions_read_every_row_once(shop: Any, spark: SparkSession) -> None:
    shop.execute("CREATE TABLE shop.big AS SELECT n, repeat('x', 90) AS filler FROM generate_series(1, 25000) n")
    frame = reader(shop, "big", 4).frame(spark)
    assert frame.rdd.getNumPartitions() == 4
    (counts,) = frame.agg(sf.count("*"), sf.count_distinct("n"), sf.min("n"), sf.max("n")).collect()
    assert counts == (25000, 25000, 1, 25000)
    big = reader(shop, "big", 2)
    sizes = [[batch.num_rows for batch in big.read(part)] for part in big.parts()]
    assert sum(map(sum, sizes)) == 25000
    assert max(map(max, sizes)) == BATCH_ROWS


def test_rows_added_after_planning_belong_to_the_last_partition(shop: Any) -> None:
    shop.execute("CREATE TABLE shop.growing AS SELECT generate_series(1, 2000) AS n")
    growing = reader(shop, "growing", 3)
    parts = growing.parts()
    shop.execute("INSERT INTO shop.growing SELECT generate_series(2001, 4000)")
    read = [n for part in parts for batch in growing.read(part) for n in batch["n"].to_pylist()]
    assert sorted(read) == list(range(1, 4001))


def test_rows_that_move_between_the_partitions_reads_are_read_once_as_they_were(shop: Any) -> None:
    shop.execute("CREATE TABLE shop.moving AS SELECT n, 0 AS price FROM generate_series(1, 4000) n")
    with one_snapshot(shop.url) as snapshot:
        table = Table(shop.url, "shop", "moving", snapshot)
        moving = PostgresReader(table, table.columns(), 3)
        first, *rest = moving.parts()
        read = [row for batch in moving.read(first) for row in batch.to_pylist()]
        shop.execute("UPDATE shop.moving SET price = 1 WHERE n <= 1000; DELETE FROM shop.moving WHERE n = 4000")
        read += [row for part in rest for batch in moving.read(part) for row in batch.to_pylist()]
    assert Counter((row["n"], row["price"]) for row in read) == Counter((n, 0) for n in range(1, 4001))


def test_a_partitioned_table_is_read_in_ranges_of_its_leaves_blocks(shop: Any) -> None:
    shop.execute(
        """CREATE TABLE shop.events (n int) PARTITION BY RANGE (n);
        CREATE TABLE shop.events_low PARTITION OF shop.events FOR VALUES FROM (0) TO (1000);
        CREATE TABLE shop.events_high PARTITION OF shop.events FOR VALUES FROM (1000) TO (9000);
        INSERT INTO shop.events SELECT generate_series(0, 8999 - 1)"""
    )
    events = reader(shop, "events", 3)
    assert len(events.parts()) == 3
    assert Counter(row["n"] for row in rows_read(events)) == Counter(range(8999))


def test_a_view_is_one_partition_and_an_empty_table_has_no_rows(shop: Any) -> None:
    shop.execute("CREATE VIEW shop.titles AS SELECT item_id, title FROM shop.items; CREATE TABLE shop.none (n int)")
    titles = reader(shop, "titles", 4)
    assert len(titles.parts()) == 1
    assert len(rows_read(titles)) == 3
    assert rows_read(reader(shop, "none", 4)) == []


def test_types_come_from_the_database(shop: Any, spark: SparkSession) -> None:
    shop.execute(
        """CREATE TYPE shop.mood AS ENUM ('calm', 'tense');
        CREATE DOMAIN shop.score AS smallint;
        CREATE TABLE shop.typed (
            a bool, b shop.score, c bigint, d real, e double precision, f numeric(6, 2), g numeric, h char(4), i date,
            j timestamp, k timestamptz, l text[], m int[], n shop.mood, o uuid, p jsonb, "Q.`q" text);
        INSERT INTO shop.typed VALUES (true, 3, 4000000000, 0.5, 0.1, 12.34, 0.25, 'ab', '2024-01-02',
            '2024-01-02 03:04', '2024-01-02 03:04:05.000006+02', '{a,NULL,"b,c"}', '{1,2}', 'calm',
            '00000000-0000-0000-0000-000000000001', '{"k": 1}', 'odd name');
        INSERT INTO shop.typed (f, g, i, j, k) VALUES ('NaN', 'NaN', 'infinity', '-infinity', 'infinity')"""
    )
    typed = reader(shop, "typed", 1)
    frame = typed.frame(spark)
    assert [kind for _, kind in frame.dtypes] == [
        "boolean", "smallint", "bigint", "float", "double", "decimal(6,2)", "double", "string", "date", "timestamp",
        "timestamp", "array<string>", "array<int>", "string", "string", "string", "string",
    ]  # fmt: skip
    (batch,) = typed.read(typed.parts()[0])
    first, second = batch.to_pylist()
    assert list(first.values()) == [
        True, 3, 4_000_000_000, 0.5, 0.1, Decimal("12.34"), 0.25, "ab", date(2024, 1, 2),
        datetime(2024, 1, 2, 3, 4, tzinfo=UTC), datetime(2024, 1, 2, 1, 4, 5, 6, tzinfo=UTC), ["a", None, "b,c"],
        [1, 2], "calm", "00000000-0000-0000-0000-000000000001", '{"k": 1}', "odd name",
    ]  # fmt: skip
    assert set(second.values()) == {None}
    assert frame.where(sf.col("k").isNotNull()).count() == 1
    assert batch.schema.field("k").type == pa.timestamp("us", tz="UTC")


def test_columns_are_chosen_by_name(shop: Any, spark: SparkSession) -> None:
    rows = read_rows(spark, Table(shop.url, "shop", "items"), ["title", "item_id"], equal={"item_id": "2"})
    assert [row.asDict() for row in rows.collect()] == [{"title": "Plain", "item_id": 2}]


@pytest.mark.parametrize("kind", ["timestamp", "timestamptz"])
def test_a_time_window_is_inclusive_and_evaluated_by_the_database(shop: Any, kind: str) -> None:
    shop.execute(
        f"CREATE TABLE shop.timed (n int, at {kind});"
        "INSERT INTO shop.timed SELECT n, timestamp '2024-01-01' + n * interval '1 day' FROM generate_series(0, 3) n;"
        "INSERT INTO shop.timed VALUES (8, NULL), (9, 'infinity')"
    )
    first, second = datetime(2024, 1, 2, tzinfo=UTC), datetime(2024, 1, 3, tzinfo=UTC)
    table = Table(shop.url, "shop", "timed")
    for since, until, expected in [(first, second, [1, 2]), (first, None, [1, 2, 3]), (None, first, [0, 1])]:
        timed = PostgresReader(table, table.columns(), 1, TimeWindow("at", since, until))
        assert [row["n"] for row in rows_read(timed)] == expected


def test_where_an_index_serves_the_window_partitions_are_stretches_of_time_and_each_row_is_read_once(
    shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spark_jobs.postgres_source._STRETCH_ROWS", 100)
    shop.execute(
        "CREATE TABLE shop.events AS SELECT n, timestamptz '2024-01-01Z' + n * interval '1 hour' AS at, n % 2 AS kind "
        "FROM generate_series(0, 9999) n; INSERT INTO shop.events VALUES (10000, NULL), (10001, 'infinity');"
        "CREATE INDEX ON shop.events (at); ANALYZE shop.events"
    )
    table = Table(shop.url, "shop", "events")
    since, until = datetime(2024, 1, 2, tzinfo=UTC), datetime(2024, 1, 18, tzinfo=UTC)
    for window, equal, parts, expected in [
        (TimeWindow("at", since, until), {}, {3, 4, 5}, range(24, 409)),
        (TimeWindow("at", since, until), {"kind": "0"}, {2, 3}, range(24, 409, 2)),
        (TimeWindow("at", datetime(2025, 2, 10, tzinfo=UTC), None), {}, {2, 3}, range(9744, 10000)),
        (Timeless("at"), {}, {1}, [10000, 10001]),
    ]:
        read = PostgresReader(table, table.columns(), 8, window, equal)
        found = read.parts()
        assert len(found) in parts and {type(part) for part in found} == {TimeStretch}
        assert sorted(row["n"] for row in rows_read(read)) == list(expected)
    everything = PostgresReader(table, table.columns(), 8, TimeWindow("at", None, until))
    most = PostgresReader(table, table.columns(), 8, TimeWindow("at", since, None))
    assert isinstance(everything.parts()[0], TimeStretch)
    assert isinstance(most.parts()[0], BlockRange), "no index is of use where nearly all is read"


def test_the_password_shows_neither_in_plans_nor_in_errors(shop: Any, spark: SparkSession, capfd: Any) -> None:
    reader(shop, "items", 1).frame(spark).explain("extended")
    assert shop.url not in capfd.readouterr().out
    for url in [
        "postgresql://reader:hunter2@127.0.0.1:1/shop",
        "postgresql://reader:hunter2#x@127.0.0.1/shop",
        "postgresql://reader:hunter2@[127.0.0.1/shop",
        "hunter2",
    ]:
        with pytest.raises(SourceError) as raised:
            Table(url, "shop", "items").columns()
        assert "hunter2" not in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_missing_table_is_a_source_error(shop: Any) -> None:
    with pytest.raises(SourceError, match=r"source table shop\.nothing cannot be read: .* does not exist"):
        Table(shop.url, "shop", "nothing").columns()
