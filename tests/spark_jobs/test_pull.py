"""``pull`` on a small shop: what is pulled, as of when, in which words."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from dare_core.errors import SettingError, SourceError
from dare_core.schemas import GONE, PULLED
from dare_core.storage import run_files
from dare_core.warehouse.entities import tombstone
from spark_jobs.interactions import Interactions
from spark_jobs.postgres_source import TimeWindow
from spark_jobs.pull import pull
from spark_jobs.source_tables import SourceTables

Pull = Callable[..., tuple[dict[str, int], dict[str, dict[str, Any]]]]


def day(number: int) -> datetime:
    return datetime(2024, 1, number, tzinfo=UTC)


LATER = day(30)


@pytest.fixture
def pulled(spark: SparkSession, shop: Any, tmp_path: Path) -> Pull:
    """Pull with the shop's domain: the counts, and per kind the written rows by entity."""

    def pulled(
        *kinds: str, as_of: datetime = LATER, as_read: bool = False, allow_deletions: bool = False, **since: datetime
    ) -> tuple[dict[str, int], dict[str, Any]]:
        how = {"as_read": as_read, "allow_deletions": allow_deletions}
        counts = pull(spark, shop.domain, kinds, since, as_of, tmp_path / "out", shop.url, **how)
        rows = {}
        for kind in kinds:
            table = run_files.read_table(tmp_path / "out" / kind, PULLED)
            assert set(table["kind"].to_pylist()) <= {kind}
            rows[kind] = {row["entity_id"]: row for row in table.to_pylist()}
            assert counts[kind] == len(rows[kind]) == table.num_rows
        return counts, rows

    return pulled


def attributes(row: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(row["attributes"]))


def test_items_carry_title_and_attributes_in_configured_order(pulled: Pull, shop: Any) -> None:
    _, rows = pulled("item")
    assert set(rows["item"]) == {"1", "2", "3"}
    first = attributes(rows["item"]["1"])
    assert list(first.items()) == [
        ("title", shop.odd_title), ("release_year", 1995), ("genres", ["Drama", "Comedy"]), ("price", 9.5),
    ]  # fmt: skip
    assert attributes(rows["item"]["2"]) == {"title": "Plain", "genres": []}
    assert rows["item"]["1"]["data_as_of"] == day(1)
    assert rows["item"]["1"]["domain"] == "shop"


def test_users_carry_their_newest_history_oldest_first(pulled: Pull, shop: Any) -> None:
    counts, rows = pulled("user")
    assert counts == {
        "user": 4, "user_gone": 0, "user_later": 0,
        "new_interactions": 8, "dropped_interactions": 2, "later_interactions": 0,
    }  # fmt: skip
    first = attributes(rows["user"]["1"])
    assert first["age"] == 24
    assert [(entry["title"], entry["value"], entry["time"]) for entry in first["history"]] == [
        ("Later", 5, "2024-01-03T00:00:00+00:00"),  # of the same time as another, which has the lower item id
        (shop.odd_title, 2, "2024-01-10T00:00:00+00:00"),
        ("Plain", 1, "2024-01-21T00:00:00+00:00"),
    ]
    assert first["history"][1]["genres"] == ["Drama", "Comedy"]
    assert rows["user"]["1"]["data_as_of"] == day(21)
    assert attributes(rows["user"]["2"]) == {"history": []}


def test_nothing_after_as_of_is_seen(pulled: Pull) -> None:
    counts, rows = pulled("item", "user", as_of=day(10))
    assert counts == {
        "item": 2, "item_gone": 0, "item_later": 1, "user": 2, "user_gone": 0, "user_later": 2,
        "new_interactions": 7, "dropped_interactions": 2, "later_interactions": 1, "hidden_interactions": 1,
    }  # fmt: skip
    assert set(rows["item"]) == {"1", "2"}
    assert set(rows["user"]) == {"1", "2"}  # the third came later; of the fourth, today's row says what it was not then
    assert rows["user"]["1"]["data_as_of"] == day(10)  # inclusive
    history = attributes(rows["user"]["1"])["history"]
    assert max(entry["time"] for entry in history) == day(10).isoformat()
    assert "Later" not in {entry["title"] for entry in history}  # met on the third, and called that since the 20th
    assert len(history) == 3  # the place goes to another
    assert rows["user"]["1"]["events"] == 4


def test_what_is_shown_is_never_older_than_data_as_of_nor_newer_than_as_of(pulled: Pull, shop: Any) -> None:
    shop.execute("ALTER TABLE shop.items ALTER title TYPE text USING updated_at::text")  # every title tells its time
    shop.execute("ALTER TABLE shop.users ALTER occupation TYPE text USING updated_at::text || '+00'")
    for as_of in (day(2), day(7), day(20), day(25), LATER):
        counts, rows = pulled("item", "user", as_of=as_of)
        for row in [*rows["item"].values(), *rows["user"].values()]:
            of_it = attributes(row)
            entries = of_it.get("history", [])
            shown = [of_it.get("title"), of_it.get("occupation"), *(entry["title"] for entry in entries)]
            times = [*filter(None, shown), *(entry["time"] for entry in entries)]
            assert max(map(datetime.fromisoformat, times)) == row["data_as_of"] <= as_of
        assert counts["item"] + counts["item_later"] == 3
        assert counts["user"] + counts["user_later"] == 4


def test_rows_that_change_all_the_time_are_taken_as_they_are_read(pulled: Pull, shop: Any) -> None:
    known(shop, item=[1, 2, 3], user=[1, 2, 3, 4])
    shop.execute("UPDATE shop.items SET price = 1, updated_at = now() WHERE item_id = 1")
    shop.execute("UPDATE shop.users SET age = 99, updated_at = '2099-01-01' WHERE user_id = 2")
    counts, rows = pulled("item", "user", item=day(29), user=day(29), as_read=True)
    assert (set(rows["item"]), set(rows["user"])) == ({"1"}, {"2"})
    assert attributes(rows["item"]["1"])["price"] == 1
    for row in (rows["item"]["1"], rows["user"]["2"]):
        assert LATER < row["data_as_of"] <= datetime.now(UTC)
    assert counts["item_later"] == counts["user_later"] == 0
    counts, rows = pulled("item", "user", item=day(29), user=day(29))
    assert (rows["item"], rows["user"], counts["item_later"], counts["user_later"]) == ({}, {}, 1, 1)


def test_a_column_of_dates_is_read_again_for_its_last_day(pulled: Pull, shop: Any) -> None:
    known(shop, item=[1, 2, 3], user=[1, 2, 3, 4])
    shop.execute("ALTER TABLE shop.items ALTER updated_at TYPE date; ALTER TABLE shop.users ALTER updated_at TYPE text")
    shop.execute("UPDATE shop.users SET updated_at = '2024-01-20' WHERE user_id = 2")
    shop.execute("ALTER TABLE shop.ratings ALTER rated_at TYPE date")
    evening = {"item": day(20) + timedelta(hours=19), "user": day(20) + timedelta(hours=19)}
    _, rows = pulled("item", "user", **evening)
    assert set(rows["item"]) == {"3"}  # changed on the 20th, at whatever hour
    assert "2" in rows["user"]
    evening["user"] = day(6) + timedelta(hours=19)
    assert "4" in pulled("user", user=evening["user"], as_of=day(26))[1]["user"]  # acted on the sixth


def known(shop: Any, domain: str = "shop", **ids: list[int]) -> None:
    """Put entities into the warehouse, as earlier pulls left them."""
    for kind, numbers in ids.items():
        for number in numbers:
            shop.execute(
                "INSERT INTO knowledge.entity (domain, kind, entity_id, group_name, attributes, data_as_of, events) "
                f"VALUES ('{domain}', '{kind}', '{number}', 'g', '{{}}', '2024-01-01Z', 1)"
            )


def test_only_what_changed_since_the_watermark_is_pulled_with_its_whole_history(pulled: Pull, shop: Any) -> None:
    known(shop, item=[1, 2, 3], user=[1, 2, 3, 4])
    _, rows = pulled("item", "user", item=day(5), user=day(8), as_of=day(10))
    assert set(rows["item"]) == {"2"}
    assert set(rows["user"]) == {"1", "2"}  # one acted, one changed
    assert len(attributes(rows["user"]["1"])["history"]) == 3
    counts, _ = pulled("item", "user", item=day(30), user=day(30))
    assert set(counts.values()) == {0}


def test_events_are_counted_up_to_as_of(pulled: Pull) -> None:
    _, rows = pulled("item", "user", as_of=day(10))
    assert {entity: row["events"] for entity, row in rows["item"].items()} == {"1": 3, "2": 2}
    assert {entity: row["events"] for entity, row in rows["user"].items()} == {"1": 4, "2": 0}
    _, rows = pulled("user")
    assert rows["user"]["1"]["events"] == 5  # of which the history shows three


def test_what_the_warehouse_lacks_is_pulled_however_late_it_came(pulled: Pull, shop: Any) -> None:
    known(shop, item=[1, 3], user=[1, 3, 4])
    counts, rows = pulled("item", "user", item=day(30), user=day(30))
    assert (set(rows["item"]), set(rows["user"])) == ({"2"}, {"1", "2", "4"})
    assert counts["item"] == 1
    assert counts["new_interactions"] == 0  # users who met the item before it was there are pulled again
    known(shop, item=[2])
    assert set(pulled("item", "user", item=day(30), user=day(30))[1]["user"]) == {"2"}
    shop.execute("UPDATE knowledge.entity SET deleted_at = now() WHERE kind = 'user' AND entity_id = '4'")
    assert set(pulled("user", user=day(27))[1]["user"]) == {"2", "4"}  # its row came back
    shop.execute("DELETE FROM knowledge.entity WHERE kind = 'item'")
    assert set(pulled("user", user=day(27))[1]["user"]) == {"2", "4"}  # of users alone, where no items are kept


def test_what_is_gone_from_the_source_is_named(pulled: Pull, shop: Any, tmp_path: Path) -> None:
    known(shop, item=[1, 2, 3, 4], user=[1, 2, 3, 4, 99])
    known(shop, "other", item=[7])
    counts, _ = pulled("item", "user", item=day(30), user=day(30))
    assert (counts["item_gone"], counts["user_gone"]) == (1, 1)
    assert run_files.read_table(tmp_path / "out" / "gone" / "item", GONE)["entity_id"].to_pylist() == ["4"]
    assert run_files.read_table(tmp_path / "out" / "gone" / "user", GONE)["entity_id"].to_pylist() == ["99"]
    shop.execute("DELETE FROM shop.items WHERE item_id <> 1")
    with pytest.raises(SourceError, match=r"3 of the 4 items .*max_deleted_share 0.02 .*meant.* --allow-deletions"):
        pulled("item")
    assert pulled("item", allow_deletions=True)[0]["item_gone"] == 3


def test_a_pull_whose_interactions_are_all_of_strangers_fails(pulled: Pull, shop: Any) -> None:
    shop.execute("UPDATE shop.ratings SET user_id = user_id + 1000")
    assert pulled("user")[0]["dropped_interactions"] == 8  # too few to tell
    shop.execute("INSERT INTO shop.ratings SELECT user_id, item_id, rating, rated_at FROM shop.ratings")
    message = (
        r"'ratings' .*16 of 16 new rows .*16 name no row of users: user_id is like '10\d\d', user_id there is like '\d'"
    )
    with pytest.raises(SourceError, match=message):
        pulled("user")


def test_a_second_pull_writes_the_same(pulled: Pull) -> None:
    assert pulled("user") == pulled("user")


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("INSERT INTO shop.items SELECT * FROM shop.items WHERE item_id = 2", "several rows .* same item_id: '2'"),
        ("UPDATE shop.items SET item_id = NULL WHERE item_id = 1", "1 rows have no item_id"),
        ("UPDATE shop.users SET updated_at = NULL WHERE user_id = 2", "updated_at is empty, .* user_id is '2'"),
        ("UPDATE shop.ratings SET rated_at = 'infinity' WHERE user_id = 77", "rated_at is empty.* '77' and '1'"),
        ("ALTER TABLE shop.items DROP COLUMN genres", r"'items' .*no column 'genres' \(source.items.attributes\)"),
        ("DROP TABLE shop.ratings", r"source table shop\.ratings cannot be read"),
    ],
)
def test_source_rows_that_would_be_lost_are_errors(pulled: Pull, shop: Any, statement: str, message: str) -> None:
    shop.execute(statement)
    with pytest.raises(SourceError, match=message):
        pulled("item", "user")


@pytest.mark.parametrize(
    ("line", "other", "message"),
    [
        ('title = "title"', "", "source.items.title is missing"),
        ('"age"', '"history"', "'history' is a reserved name"),
        ('group = "genres"', 'group = "price_class"', "'price_class' is no attribute"),
    ],
)
def test_a_domain_that_cannot_be_pulled_is_an_error(
    pulled: Pull, shop: Any, line: str, other: str, message: str
) -> None:
    shop.domain_file.write_text(shop.domain_file.read_text("utf-8").replace(line, other), "utf-8")
    with pytest.raises(SettingError, match=message):
        pulled("item")


def test_parquet_folders_are_sources(pulled: Pull, shop: Any, tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    (folder / "items").mkdir(parents=True)
    item = {"release_year": 2000.0, "genres": ["Drama"], "price": float("nan"), "updated_at": datetime(2024, 1, 1)}
    for index, title in enumerate(["nul\0 free", "second"]):
        named = item | {"item_id": f"i{index}", "title": title}
        pq.write_table(pa.Table.from_pylist([named]), folder / f"items/{index}.parquet")
    user = {"user_id": "u", "age": 5, "occupation": "x", "updated_at": day(1)}
    rating = {"user_id": "u", "item_id": "i1", "rating": 4.0, "rated_at": day(2)}
    pq.write_table(pa.Table.from_pylist([user]), folder / "users.parquet")
    pq.write_table(pa.Table.from_pylist([rating]), folder / "ratings.parquet")
    shop.write_domain(f'format = "parquet"\nlocation = "{folder}"')
    _, rows = pulled("item", "user")
    assert attributes(rows["item"]["i0"]) == {"title": "nul free", "release_year": 2000, "genres": ["Drama"]}
    assert [entry["title"] for entry in attributes(rows["user"]["u"])["history"]] == ["second"]


def test_csv_files_are_sources(pulled: Pull, shop: Any, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text(
        "item_id,title,release_year,genres,price,updated_at\n"
        '007,"A ""quoted"", | title\nin two lines",1995,Drama | Comedy,,2024-01-01T00:00:00Z\n'
        "8,Plain,,Drama,1.5,2024-01-01 00:00:00\n",
        "utf-8",
    )
    (tmp_path / "users.csv").write_text("user_id,age,occupation,updated_at\n1,24,writer,2024-01-01\n", "utf-8")
    (tmp_path / "ratings").mkdir()
    for index, rating in enumerate(["007,4.5", "8,good"]):
        (tmp_path / f"ratings/{index}.csv").write_text(
            f"user_id,item_id,rating,rated_at\n1,{rating},2024-01-0{index + 2}T00:00:00Z\n", "utf-8"
        )
    shop.write_domain(f'format = "csv"\nlocation = "{tmp_path}"')
    _, rows = pulled("item", "user")
    assert attributes(rows["item"]["007"]) == {
        "title": 'A "quoted", | title\nin two lines', "release_year": "1995", "genres": ["Drama", "Comedy"],
    }  # fmt: skip
    assert attributes(rows["item"]["8"])["genres"] == ["Drama"]
    assert [entry["value"] for entry in attributes(rows["user"]["1"])["history"]] == [4.5, "good"]

    (tmp_path / "users.csv").write_text("user_id,age,occupation,updated_at\n1,24,writer,yesterday\n", "utf-8")
    with pytest.raises(SourceError, match="updated_at is empty, or no time, where user_id is '1'"):
        pulled("user")
    (tmp_path / "users.csv").unlink()
    with pytest.raises(SourceError, match=r"'users' .*there is neither .*users.csv nor .*users/"):
        pulled("user")


def test_jdbc_tables_are_sources(pulled: Pull, spark: SparkSession, shop: Any) -> None:
    url = "jdbc:derby:memory:shop;create=true"  # Spark brings Derby along
    item = "1 item_id, 'Plain' title, 1995 release_year, 'Drama' genres, 1.5d price, timestamp'2024-01-01' updated_at"
    rating = "1 user_id, 1 item_id, 4.5d rating, timestamp'2024-01-02' rated_at"
    spark.sql(f"SELECT {item}").write.jdbc(url, "APP.ITEMS", mode="overwrite")
    spark.sql(f"SELECT {rating}").write.jdbc(url, "APP.RATINGS", mode="overwrite")
    shop.write_domain(f'format = "jdbc"\nlocation = "{url}"\nschema = "app"')
    _, rows = pulled("item")
    assert attributes(rows["item"]["1"])["genres"] == "Drama"
    assert rows["item"]["1"]["events"] == 1
    table = SourceTables(spark, shop.domain, shop.url)._jdbc_table("interactions")
    assert table._ranges["partitionColumn"] == "rated_at"
    for since, until, expected in ((day(1), day(3), 1), (day(4), None, 0), (None, day(1), 1)):  # wide by a day
        window = table.read(TimeWindow("rated_at", since, until))
        assert window.count() == expected
        assert "PushedFilters: [*" in window._jdf.queryExecution().executedPlan().toString()
    shop.write_domain('format = "jdbc"\nlocation = "jdbc:nosuch://reader:hunter2@db/shop"')
    with pytest.raises(SourceError, match="no JDBC driver for source location; set jdbc_driver_jar") as raised:
        pulled("item")
    assert "hunter2" not in str(raised.value)


def test_a_user_and_an_item_of_most_events_share_a_few_rows_and_the_table_is_read_once(
    pulled: Pull, shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.execute(
        "INSERT INTO shop.ratings SELECT 1, 2, 1, timestamptz '2023-01-01Z' + n * interval '1 second' "
        "FROM generate_series(1, 20000) n; INSERT INTO shop.ratings SELECT 3, 1 + n % 2, 5, '2023-01-01Z' "
        "FROM generate_series(1, 3) n"
    )
    read, plans = [], []
    load, histories = SourceTables._load, Interactions.histories

    def told(tables: SourceTables, section: str, *asked: Any) -> Any:
        read.append(section)
        return load(tables, section, *asked)

    def planned(interactions: Interactions, *asked: Any) -> Any:
        plans.append(histories(interactions, *asked))
        return plans[-1]

    monkeypatch.setattr(SourceTables, "_load", told)
    monkeypatch.setattr(Interactions, "histories", planned)
    counts, rows = pulled("item", "user")
    assert counts["new_interactions"] == 20011
    assert {name: row["events"] for name, row in rows["user"].items()} == {"1": 20005, "2": 0, "3": 3, "4": 1}
    assert rows["item"]["2"]["events"] == 20005
    entries = [entry["time"][:10] for entry in attributes(rows["user"]["1"])["history"]]
    assert entries == ["2024-01-03", "2024-01-10", "2024-01-21"]
    assert read.count("interactions") == 1
    assert plans[0]._jdf.queryExecution().optimizedPlan().toString().count("WindowGroupLimit") == 1


def test_all_tables_of_a_pull_are_read_as_of_one_moment(
    pulled: Pull, shop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def delete(*_: Any) -> None:
        shop.execute("DELETE FROM shop.items WHERE item_id = 1")

    monkeypatch.setattr("spark_jobs.pull._check_keys", delete)  # after the ids were read, and before the rows are
    assert set(pulled("item")[1]["item"]) == {"1", "2", "3"}


def test_forgotten_users_and_items_are_left_out_and_counted(pulled: Pull, shop: Any) -> None:
    shop.execute("INSERT INTO shop.ratings VALUES (4, 1, 3, '2024-01-07Z')")  # counts among the item's all the same
    for kind, entity_id in (("user", "4"), ("item", "2")):
        mark = tombstone("shop", kind, entity_id)
        shop.execute(f"INSERT INTO knowledge.forgotten VALUES ('shop', '{kind}', '{mark}', now())")
    counts, rows = pulled("item", "user")
    assert (counts["item_forgotten"], counts["user_forgotten"]) == (1, 1)
    assert (set(rows["item"]), set(rows["user"])) == ({"1", "3"}, {"1", "2", "3"})
    assert {name: row["events"] for name, row in rows["item"].items()} == {"1": 4, "3": 1}
    assert [entry["title"] for entry in attributes(rows["user"]["1"])["history"]] == [
        shop.odd_title, "Later", shop.odd_title
    ]  # fmt: skip
