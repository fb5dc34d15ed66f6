"""``pull`` from every kind of source, through the days of a shop: also those on which nothing happens."""

import csv
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from sqlalchemy import Engine

from dare_core.schemas import ENTITY, GONE, KINDS, PULLED, Kind
from dare_core.storage import run_files
from dare_core.warehouse.entities import Pulled, upsert_entities
from spark_jobs.pull import pull

SCHEMAS = {
    "items": "item_id string, title string, release_year int, genres string, price double, updated_at timestamp",
    "users": "user_id string, age int, occupation string, updated_at timestamp",
    "ratings": "user_id string, item_id string, rating double, rated_at timestamp",
}
Rows = dict[str, list[tuple[Any, ...]]]
Write = Callable[[Rows], None]
#: The kinds' watermark less an overlap.
OVERLAP = timedelta(hours=1)


def at(day: int, hour: int = 10) -> datetime:
    return datetime(2024, 1, day, hour, tzinfo=UTC)


def shop_rows() -> Rows:
    return {
        "items": [(f"i{n}", f"Title {n}", 1990 + n, "Drama", 1.5, at(n)) for n in (1, 2, 3)],
        "users": [("u1", 24, "writer", at(1)), ("u2", 30, "artist", at(2))],
        "ratings": [("u1", "i1", 4.0, at(3)), ("u2", "i2", 5.0, at(4))],
    }


def write_csv(rows: Rows, folder: Path) -> None:
    for name, columns in SCHEMAS.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(column.split()[0] for column in columns.split(", "))
            table.writerows([[str(value) for value in row] for row in rows[name]])


def write_parquet(rows: Rows, folder: Path) -> None:
    kinds = {"string": pa.string(), "int": pa.int32(), "double": pa.float64(), "timestamp": pa.timestamp("us", "UTC")}
    for name, columns in SCHEMAS.items():
        schema = pa.schema([(column, kinds[kind]) for column, kind in map(str.split, columns.split(", "))])
        table = [dict(zip(schema.names, row, strict=True)) for row in rows[name]]
        pq.write_table(pa.Table.from_pylist(table, schema), folder / f"{name}.parquet")


def write_postgres(rows: Rows, url: str) -> None:
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        for name, columns in SCHEMAS.items():
            types = columns.replace("string", "text").replace("double", "float8").replace("timestamp", "timestamptz")
            cursor.execute(f"DROP TABLE shop.{name}; CREATE TABLE shop.{name} ({types})")
            cursor.executemany(
                f"INSERT INTO shop.{name} VALUES ({', '.join(['%s'] * len(columns.split(', ')))})", rows[name]
            )


def write_jdbc(rows: Rows, spark: SparkSession, url: str) -> None:
    for name, columns in SCHEMAS.items():
        spark.createDataFrame(rows[name], columns).write.jdbc(url, f"APP.{name.upper()}", mode="overwrite")


@pytest.fixture(params=["csv", "parquet", "postgres", pytest.param("jdbc", marks=pytest.mark.full)])
def write(request: pytest.FixtureRequest, spark: SparkSession, shop: Any, tmp_path: Path) -> Write:
    """Write the shop's tables where its domain finds them."""
    derby = "jdbc:derby:memory:days;create=true"  # Spark brings Derby along
    location = {"jdbc": derby, "postgres": shop.url}.get(request.param, str(tmp_path))
    schema = {"jdbc": "app"}.get(request.param, "shop")
    shop.write_domain(f'format = "{request.param}"\nlocation = "{location}"\nschema = "{schema}"')
    match request.param:
        case "csv":
            return lambda rows: write_csv(rows, tmp_path)
        case "parquet":
            return lambda rows: write_parquet(rows, tmp_path)
        case "postgres":
            return lambda rows: write_postgres(rows, shop.url)
        case _:
            return lambda rows: write_jdbc(rows, spark, derby)


@pytest.fixture
def night(spark: SparkSession, shop: Any, engine: Engine, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Pull at the end of a day, and let the warehouse know; per kind the ids that were pulled, and what was counted."""
    watermarks: dict[Kind, datetime] = {}

    def night(number: int) -> dict[str, Any]:
        until = at(number, 23)
        since: dict[Kind, datetime] = {kind: mark - OVERLAP for kind, mark in watermarks.items()}
        out = tmp_path / "out"
        counts = pull(spark, shop.domain, KINDS, since, until, out, shop.url, as_read=True)
        ids = {}
        for kind in KINDS:
            rows = [{**row, "group_name": "g"} for row in run_files.read_table(out / kind, PULLED).to_pylist()]
            gone = run_files.read_table(out / "gone" / kind, GONE)["entity_id"].to_pylist()
            upsert_entities(engine, pa.Table.from_pylist(rows, ENTITY), Pulled("shop", kind, until, gone))
            watermarks[kind] = until
            ids[kind] = sorted(row["entity_id"] for row in rows)
        return counts | ids

    return night


def test_days_on_which_something_changes_or_nothing_does(write: Write, night: Callable[..., dict[str, Any]]) -> None:
    rows = shop_rows()
    write(rows)
    first = night(10)
    assert (first["item"], first["user"]) == (["i1", "i2", "i3"], ["u1", "u2"])
    assert (first["new_interactions"], first["dropped_interactions"], first["later_interactions"]) == (2, 0, 0)

    unchanged = night(11)
    assert (unchanged["item"], unchanged["user"], unchanged["new_interactions"]) == ([], [], 0)

    rows["items"][0] = ("i1", "Another title", 1991, "Drama", 2.5, at(12))
    del rows["items"][2]
    write(rows)
    changed = night(12)
    assert (changed["item"], changed["user"]) == (["i1"], [])
    assert (changed["item_gone"], changed["user_gone"], changed["dropped_interactions"]) == (1, 0, 0)


@pytest.mark.parametrize("strangers", [[], [("u8", "i1", 4.0, at(3)), ("u9", "i2", 3.0, at(4))]])
def test_a_shop_in_which_nobody_or_only_strangers_bought_is_pulled(
    write: Write, night: Callable[..., dict[str, Any]], strangers: list[tuple[Any, ...]]
) -> None:
    write({**shop_rows(), "ratings": strangers})
    first = night(10)
    assert (first["item"], first["user"]) == (["i1", "i2", "i3"], ["u1", "u2"])
    assert (first["new_interactions"], first["dropped_interactions"]) == (len(strangers), len(strangers))
