"""Ids, times and lists of every type that common tools write are read as they were meant, or refused by column."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import Row, SparkSession

from dare_core.errors import SettingError, SourceError
from spark_jobs.postgres_source import TimeWindow
from spark_jobs.source_tables import SourceTables, failures_in_words

Read = Callable[..., list[Row]]

DAY = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture
def read(spark: SparkSession, shop: Any) -> Read:
    """The rows of some columns of a table of the shop's domain."""

    @failures_in_words()
    def read(section: Any, *columns: str, window: TimeWindow | None = None) -> list[Row]:
        return SourceTables(spark, shop.domain, shop.url).read(section, columns, window).collect()

    return read


def write(shop: Any, folder: Path, lines: str = "", **tables: pa.Table) -> None:
    """Make Parquet tables the shop's source."""
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    shop.write_domain(f'format = "parquet"\nlocation = "{folder}"')
    shop.domain_file.write_text(
        shop.domain_file.read_text("utf-8").replace("[source.items]", f"[source.items]\n{lines}")
    )


def ratings(users: pa.Array, items: pa.Array, times: pa.Array | None = None) -> pa.Table:
    times = pa.array([DAY] * len(users)) if times is None else times
    return pa.table({"user_id": users, "item_id": items, "rating": pa.array([5.0] * len(users)), "rated_at": times})


def test_ids_of_numeric_columns_keep_their_digits_and_join(shop: Any, read: Read) -> None:
    shop.execute(
        "ALTER TABLE shop.items ALTER item_id TYPE numeric; ALTER TABLE shop.users ALTER user_id TYPE numeric(12, 3);"
        "UPDATE shop.items SET item_id = 9007199254740993 WHERE item_id = 1;"
        "UPDATE shop.items SET item_id = 9007199254740992 WHERE item_id = 2;"
        "UPDATE shop.items SET item_id = 12345678.00 WHERE item_id = 3;"
        "ALTER TABLE shop.ratings ALTER item_id TYPE bigint; DELETE FROM shop.ratings;"
        "INSERT INTO shop.ratings SELECT 1, i, 5, '2024-01-02Z' "
        "FROM unnest('{9007199254740993,9007199254740992,12345678}'::bigint[]) i"
    )
    items = {"9007199254740993", "9007199254740992", "12345678"}
    assert {row["item_id"] for row in read("items", "item_id")} == items
    assert {row["item_id"] for row in as_text(read("interactions", "item_id"))} == items
    assert {row["user_id"] for row in read("users", "user_id")} == {"1", "2", "3", "4"}
    assert {row["user_id"] for row in as_text(read("interactions", "user_id"))} == {"1"}


def as_text(rows: list[Row]) -> list[dict[str, str]]:
    return [{name: str(value) for name, value in row.asDict().items()} for row in rows]


def test_floating_point_ids_are_whole_numbers_or_refused_by_column(shop: Any, tmp_path: Path, read: Read) -> None:
    users = pa.array([101.0, None, 2.0**53 - 1, float("nan")], pa.float64())
    write(shop, tmp_path, ratings=ratings(users, pa.array([7, 8, 9, 9])))
    assert [row["user_id"] for row in read("interactions", "user_id")] == ["101", None, "9007199254740991", None]
    for wrong in (0.5, 2.0**53, float("inf")):
        write(shop, tmp_path, ratings=ratings(pa.array([wrong]), pa.array([7])))
        with pytest.raises(SourceError, match=r"column 'user_id' \(source.interactions.user\) holds double, in which"):
            read("interactions", "user_id", "item_id")


def test_ids_in_names_of_folders_keep_their_zeros(shop: Any, tmp_path: Path, read: Read) -> None:
    table = pa.table({"item_id": ["1"], "rating": [5.0], "rated_at": [DAY]})
    for user in ("0101", "7"):
        (tmp_path / f"ratings/year=2024/user_id={user}").mkdir(parents=True)
        pq.write_table(table, tmp_path / f"ratings/year=2024/user_id={user}/part.parquet")
    write(shop, tmp_path)
    assert {row["user_id"] for row in read("interactions", "user_id")} == {"0101", "7"}
    for part in tmp_path.rglob("*.parquet"):
        part.unlink()
        (part.parent / "part.csv").write_text("item_id,rating,rated_at\n1,5,2024-01-01\n")
    shop.write_domain(f'format = "csv"\nlocation = "{tmp_path}"')
    assert {row["user_id"] for row in read("interactions", "user_id", "item_id")} == {"0101", "7"}


def test_times_in_nanoseconds_are_read_beside_others(shop: Any, tmp_path: Path, read: Read) -> None:
    (tmp_path / "ratings").mkdir()
    moments = pd.to_datetime(["2024-01-03T10:20:30.123456789", "1969-12-31T23:59:59.999999999"])
    for unit, zone in (("ns", "UTC"), ("ns", None), ("us", "UTC"), ("ms", None)):
        times = pa.array(moments.as_unit("ns")).cast(pa.timestamp(unit, zone), safe=False)
        table = ratings(pa.array(["u", "u"]), pa.array(["1", "2"]), times)
        pq.write_table(table, tmp_path / f"ratings/{unit}{zone}.parquet")
    write(shop, tmp_path)
    read_times = {row["rated_at"].replace(tzinfo=UTC) for row in read("interactions", "rated_at")}
    assert read_times == {
        datetime(2024, 1, 3, 10, 20, 30, 123456, tzinfo=UTC), datetime(2024, 1, 3, 10, 20, 30, 123000, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC),  # as Arrow cut it
    }  # fmt: skip


def test_a_time_of_day_is_no_time_and_its_column_is_named(shop: Any, tmp_path: Path, read: Read) -> None:
    shop.execute("ALTER TABLE shop.items ALTER updated_at TYPE time")
    with pytest.raises(
        SourceError, match=r"'updated_at' \(source.items.updated_at\) holds time without time zone, not"
    ):
        read("items", "updated_at")
    daytime = pa.array([36_000_000_000], pa.time64("us"))
    write(shop, tmp_path, ratings=ratings(pa.array(["u"]), pa.array(["1"]), daytime))
    with pytest.raises(SourceError, match=r"ratings.parquet: column 'rated_at' holds TIME.*without a date"):
        read("interactions", "rated_at")
    write(shop, tmp_path, ratings=ratings(pa.array(["u"]), pa.array(["1"]), pa.array(["10:20:30"])))
    assert [row["rated_at"] for row in read("interactions", "rated_at")] == [None]  # which a pull refuses by row


@pytest.mark.parametrize("source", ["postgres", "parquet"])
def test_times_that_count_from_1970_are_read_in_the_unit_that_the_domain_names(
    shop: Any, tmp_path: Path, read: Read, source: str
) -> None:
    if source == "postgres":
        shop.execute(
            "ALTER TABLE shop.items ALTER updated_at TYPE bigint USING 1704067200;"
            "UPDATE shop.items SET updated_at = 1704153600 WHERE item_id = 3"
        )
    else:
        times = pa.array([1704067200, 1704067200, 1704153600])
        genres = pa.array([["a"]] * 3)
        write(shop, tmp_path, items=pa.table({"item_id": [1, 2, 3], "title": ["a", "b", "c"], "release_year": [1, 2, 3],
                                              "genres": genres, "price": [1, 2, 3], "updated_at": times}))  # fmt: skip
        write(shop, tmp_path, ratings=ratings(pa.array(["u"]), pa.array(["1"])))
    with pytest.raises(SourceError, match=r"'updated_at' \(source.items.updated_at\) holds bigint.*time_unit = \"sec"):
        read("items", "updated_at")
    text = shop.domain_file.read_text("utf-8")
    shop.domain_file.write_text(text.replace("[source.items]", '[source.items]\ntime_unit = "seconds"'))
    times = [row["updated_at"] for row in read("items", "updated_at", window=TimeWindow("updated_at", None, DAY))]
    assert sorted(time.replace(tzinfo=UTC) for time in times) == [DAY, DAY, DAY.replace(day=2)]  # whoever asks filters
    shop.domain_file.write_text(text.replace("[source.items]", '[source.items]\ntime_unit = "milliseconds"'))
    assert read("items", "updated_at")[0][0].year == 1970


def test_text_that_counts_and_text_of_times_are_read(
    shop: Any, tmp_path: Path, read: Read, spark: SparkSession
) -> None:
    shop.execute("ALTER TABLE shop.items ALTER updated_at TYPE text USING '2024-01-01 00:00:00+01'")
    rows = read("items", "updated_at", window=TimeWindow("updated_at", None, DAY))
    assert {row["updated_at"] for row in rows} == {"2024-01-01 00:00:00+01"}
    (tmp_path / "ratings.csv").write_text("user_id,item_id,rating,rated_at\n1,1,5,1704067200.5\n1,2,5,soon\n")
    shop.write_domain(f'format = "csv"\nlocation = "{tmp_path}"')
    text = shop.domain_file.read_text("utf-8")
    shop.domain_file.write_text(text.replace("[source.interactions]", '[source.interactions]\ntime_unit = "seconds"'))
    times = [row["rated_at"] for row in read("interactions", "rated_at")]
    assert (times[0].replace(tzinfo=UTC), times[1]) == (DAY.replace(microsecond=500_000), None)


def test_lists_of_every_kind_in_postgresql_are_lists(shop: Any, read: Read) -> None:
    shop.execute(
        """CREATE TYPE shop.mood AS ENUM ('calm', 'tense');
        ALTER TABLE shop.items DROP genres, DROP release_year, DROP price;
        ALTER TABLE shop.items ADD genres text[], ADD release_year jsonb, ADD price shop.mood[];
        UPDATE shop.items SET genres = '{{a,b},{c,d}}', release_year = '["slow", 1, null, {"k": 1}]', price = '{calm}'
            WHERE item_id = 1;
        UPDATE shop.items SET genres = '{}', release_year = '"sea"', price = '{{calm},{tense}}' WHERE item_id = 2;
        UPDATE shop.items SET genres = NULL, release_year = 'null' WHERE item_id = 3"""
    )
    rows = sorted(read("items", "item_id", "genres", "release_year", "price"))
    assert [tuple(row)[1:] for row in rows] == [
        (["a", "b", "c", "d"], ["slow", "1", None, '{"k": 1}'], ["calm"]), ([], ["sea"], ["calm", "tense"]),
        (None, None, None),
    ]  # fmt: skip
    shop.execute("UPDATE shop.items SET release_year = '{\"k\": 1}'")
    assert read("items", "release_year")[0][0] == '{"k": 1}'


def test_a_column_of_another_type_in_one_of_the_files_is_named(shop: Any, tmp_path: Path, read: Read) -> None:
    (tmp_path / "ratings").mkdir()
    for name, item in (("a", pa.array([1])), ("b", pa.array(["x"]))):
        pq.write_table(ratings(pa.array(["u"]), item), tmp_path / f"ratings/{name}.parquet")
    write(shop, tmp_path)
    with pytest.raises(
        SourceError, match=r"ratings/[ab].parquet cannot be read: its column 'item_id' holds \w+, in oth"
    ):
        read("interactions", "item_id")


def test_values_that_mean_none_are_none(shop: Any, read: Read) -> None:
    shop.execute(
        "UPDATE shop.items SET title = ' N/A', genres = '{(no genres listed),Drama}', price = -1 WHERE item_id = 1;"
        "UPDATE shop.ratings SET rating = -1 WHERE user_id = 1"
    )
    text = shop.domain_file.read_text("utf-8")
    none = 'none_values = { title = ["N/A"], genres = ["(no genres listed)"], price = [-1] }'
    text = text.replace("[source.items]", f"[source.items]\n{none}")
    text = text.replace("[source.interactions]", "[source.interactions]\nnone_values = { rating = [-1] }")
    shop.domain_file.write_text(text)
    [first] = [tuple(row)[1:] for row in read("items", "item_id", "title", "genres", "price") if row["item_id"] == 1]
    assert first == (None, ["Drama"], None)
    assert {row["rating"] for row in read("interactions", "user_id", "rating") if row["user_id"] == 1} == {None}
    shop.domain_file.write_text(text.replace("{ rating =", "{ rated_at ="))
    with pytest.raises(SettingError, match=r"interactions: .*'rated_at' is no column that may be none; there are: rat"):
        read("interactions", "rating")
