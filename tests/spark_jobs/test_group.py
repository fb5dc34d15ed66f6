"""``group`` on rows as ``pull`` writes them."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from sqlalchemy import Engine

from dare_core.config.domains import ClusterGrouping, Domain, read_domain
from dare_core.errors import InputError, SourceError
from dare_core.grouping import GroupModelStore
from dare_core.grouping import model as group_model
from dare_core.schemas import GROUPED, PULLED, Kind
from dare_core.storage import run_files
from dare_core.warehouse.entities import EntityChanges, Pulled, merge_entities
from dare_core.warehouse.entity_staging import EntityStaging
from spark_jobs import user_clusters
from spark_jobs.group import group

NOW = datetime(2024, 1, 31, tzinfo=UTC)


def write_pulled(
    folder: Path, kind: str, entities: Mapping[str, Mapping[str, Any]], file: str = "part.parquet"
) -> None:
    rows = [
        {"domain": "shop", "kind": kind, "entity_id": entity_id, "attributes": json.dumps(attributes),
         "data_as_of": datetime(2024, 1, 1, tzinfo=UTC), "events": 1}
        for entity_id, attributes in entities.items()
    ]  # fmt: skip
    (folder / kind).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, PULLED), folder / kind / file)


def groups(folder: Path, kind: str) -> dict[str, tuple[str, str]]:
    """Group and rule of every entity."""
    written = run_files.read_table(folder / kind, GROUPED)
    columns = (written[name].to_pylist() for name in ("entity_id", "group_name", "group_rule"))
    return {entity: (name, rule) for entity, name, rule in zip(*columns, strict=True)}


def models(folder: Path) -> Callable[[Kind], GroupModelStore]:
    return lambda kind: GroupModelStore(folder / "pools" / kind)


def test_entities_get_the_group_of_their_configured_attribute(spark: SparkSession, shop: Any, tmp_path: Path) -> None:
    entities = {"0": {"genres": ["Drama"]}, "1": {"genres": ["Drama", "War"]}, "2": {"occupation": "not for items"}}
    write_pulled(tmp_path / "in", "item", entities)
    write_pulled(tmp_path / "in", "user", {})
    summary = group(spark, shop.domain, tmp_path / "in", tmp_path / "out", models(tmp_path), NOW, shop.url)
    assert {name: summary[name] for name in ("item", "user", "groups")} == {"item": 3, "user": 0, "groups": 2}
    assert summary["item_grouping"]["by_rule"] == {"attribute": 2, "unknown": 1}
    assert groups(tmp_path / "out", "item") == {
        "0": ("Drama", "attribute"),
        "1": ("Drama", "attribute"),
        "2": ("unknown", "unknown"),
    }
    written = run_files.read_table(tmp_path / "out" / "item", GROUPED)["attributes"].to_pylist()
    assert sorted(written) == sorted(map(json.dumps, entities.values()))
    assert models(tmp_path)("item").current() == summary["item_grouping"]["version"]


def test_executors_copy_the_entities_into_the_run_s_staging_tables(
    spark: SparkSession, shop: Any, engine: Engine, tmp_path: Path
) -> None:
    for number in range(3):  # three files, one writer for each core
        write_pulled(tmp_path / "in", "item", {str(number): {"genres": ["Drama"]}}, f"{number}.parquet")
    staging = EntityStaging("r", "item")
    for _ in range(2):  # a second try begins again
        group(spark, shop.domain, tmp_path / "in", tmp_path / "out", models(tmp_path), NOW, shop.url, "r")
        assert len(staging.there(engine)) == spark.sparkContext.defaultParallelism
    assert merge_entities(engine, staging, 3, Pulled("shop", "item", NOW)) == EntityChanges(changed=3)
    assert staging.there(engine) == []
    with engine.connect() as connection:
        kept = connection.exec_driver_sql("SELECT entity_id, group_name, attributes FROM knowledge.entity ORDER BY 1")
        assert kept.all() == [(str(number), "Drama", {"genres": ["Drama"]}) for number in range(3)]


def test_rare_values_are_counted_over_the_whole_source_and_merged(
    spark: SparkSession, shop: Any, tmp_path: Path
) -> None:
    shop.execute("INSERT INTO shop.items SELECT n, 'x', 1999, '{Drama,日本}', 1, now() FROM generate_series(10, 15) n")
    shop.domain_file.write_text(
        shop.domain_file.read_text("utf-8") + '[grouping.items]\nseveral = "all"\nmin_count = 3\nrest = "others"\n',
        "utf-8",
    )
    write_pulled(tmp_path / "in", "item", {"0": {"genres": ["日本", "Drama"]}, "1": {"genres": ["Action"]}, "2": {}})
    group(spark, shop.domain, tmp_path / "in", tmp_path / "out", models(tmp_path), NOW, shop.url)
    assert groups(tmp_path / "out", "item") == {
        "0": ("Drama + 日本", "attribute"),
        "1": ("others", "rest"),
        "2": ("unknown", "unknown"),
    }


def test_a_folder_without_pulled_entities_is_an_error(spark: SparkSession, shop: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pull first"):
        group(spark, shop.domain, tmp_path, tmp_path / "out", models(tmp_path), NOW, shop.url)


def test_a_source_without_the_group_s_column_is_an_error(spark: SparkSession, shop: Any, tmp_path: Path) -> None:
    shop.execute("ALTER TABLE shop.items DROP COLUMN genres")
    write_pulled(tmp_path / "in", "item", {"0": {}})
    with pytest.raises(SourceError, match=r"no column 'genres' \(source.items.attributes\)"):
        group(spark, shop.domain, tmp_path / "in", tmp_path / "out", models(tmp_path), NOW, shop.url)


TASTES, USERS, ITEMS_OF_A_TASTE = 3, 90, 12


class Cinema:
    """Ninety users of three tastes as Parquet tables, and a domain that clusters them."""

    def __init__(self, folder: Path, domain_text: str) -> None:
        self.folder = folder
        self.domain_file = folder / "cinema.toml"
        (folder / "source").mkdir()
        source = f'format = "parquet"\nlocation = "{folder / "source"}"'
        clusters = "[grouping.users.clusters]\nmin_clusters = 2\nmax_clusters = 4\nrank = 4\niterations = 5\n"
        self.domain_file.write_text(domain_text.format(source=source) + clusters, "utf-8")
        self.ratings = [row for user in range(USERS) for row in self.of_taste(user, user % TASTES, 8)]
        self.write("items", item_id=[str(n) for n in range(40)], genres=[["Drama"]] * 40)
        self.write("users", user_id=[str(n) for n in range(200)], occupation=["writer", "artist"] * 100)
        self.write_ratings()

    @property
    def domain(self) -> Domain:
        return read_domain(self.domain_file)

    def of_taste(self, user: int, taste: int, count: int) -> list[tuple[str, str, float, datetime]]:
        random = np.random.default_rng((user, taste))
        items = random.choice(ITEMS_OF_A_TASTE, count, replace=False) + taste * ITEMS_OF_A_TASTE
        return [(str(user), str(item), 4.0, datetime(2024, 1, 2, tzinfo=UTC)) for item in items]

    def write(self, table: str, **columns: Sequence[Any]) -> None:
        pq.write_table(pa.table(columns), self.folder / "source" / f"{table}.parquet")

    def write_ratings(self) -> None:
        columns = zip(*self.ratings, strict=True)
        self.write("ratings", **dict(zip(("user_id", "item_id", "rating", "rated_at"), columns, strict=True)))

    def group(self, spark: SparkSession, users: Sequence[int], as_of: datetime = NOW) -> dict[str, Any]:
        pulled = {str(user): {"occupation": ["writer", "artist"][user % 2]} for user in users}
        write_pulled(self.folder / "in", "user", pulled)
        summary = group(spark, self.domain, self.folder / "in", self.folder / "out", models(self.folder), as_of, None)
        grouping: dict[str, Any] = summary["user_grouping"]
        return grouping

    def groups(self) -> dict[int, tuple[str, str]]:
        return {int(user): found for user, found in groups(self.folder / "out", "user").items()}


@pytest.fixture
def cinema(tmp_path: Path, domain_text: str) -> Cinema:
    return Cinema(tmp_path, domain_text)


def test_users_are_clustered_by_what_they_met_and_keep_their_cluster(
    spark: SparkSession, cinema: Cinema, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_clusters, "PIECE_ROWS", 40)
    monkeypatch.setattr(group_model, "_ADDED", 1)

    def pieces() -> tuple[int, int, int]:
        """Of the items; of the assignments that were written at once, and of those that were added since."""
        stored = models(cinema.folder)("user").read_stored()
        assert stored is not None
        return len(stored.items), stored.whole, len(stored.assignments) - stored.whole

    first = cinema.group(spark, range(92))
    assert pieces() == (1, 3, 0)
    found = cinema.groups()
    assert first["by_rule"] == {"attribute": 2, "cluster": USERS}
    assert (first["clusters"], first["fitted"], first["moved"]) == (TASTES, True, 0)
    assert {found[user] for user in (90, 91)} == {("writer", "attribute"), ("artist", "attribute")}
    of_taste = [{found[user] for user in range(taste, USERS, TASTES)} for taste in range(TASTES)]
    assert [len(names) for names in of_taste] == [1] * TASTES  # everybody is with those of the same taste
    assert len(set.union(*of_taste)) == TASTES

    # A newcomer and one who met a little of something else: folded in.
    cinema.ratings += cinema.of_taste(91, 0, 8) + cinema.of_taste(1, 2, 3)
    cinema.write_ratings()
    second = cinema.group(spark, [1, 91])
    assert (second["fitted"], second["moved"]) == (False, 0)
    assert cinema.groups() == {1: found[1], 91: found[0]}
    assert pieces() == (1, 3, 1)
    cinema.group(spark, [1, 91])
    assert pieces() == (1, 3, 1), "the same try twice adds nothing"
    monkeypatch.setattr(user_clusters, "PIECE_ROWS", 200)
    for users in ([2], [3], [1, 2]):
        cinema.group(spark, users)
    assert pieces() == (1, 1, 0), "what was added several times is written anew with all others"
    model = models(cinema.folder)("user").read()
    assert model is not None
    assert len(model.assignments) == 91

    # Many more interactions: another fit, the same names. User 4 has come to like something else altogether.
    cinema.ratings += [row for user in range(USERS) for row in cinema.of_taste(1000 + user, user % TASTES, 8)]
    cinema.ratings = [row for row in cinema.ratings if row[0] != "4"] + cinema.of_taste(4, 0, 12)
    cinema.write_ratings()
    third = cinema.group(spark, range(92))
    assert (third["fitted"], third["clusters"], third["moved"]) == (True, TASTES, 1)
    assert third["moved_share"] == pytest.approx(1 / 91, abs=1e-4)
    assert cinema.groups() == found | {4: found[0], 90: ("writer", "attribute"), 91: found[0]}


def test_nothing_after_as_of_is_seen_and_too_few_users_are_grouped_by_attribute(
    spark: SparkSession, cinema: Cinema
) -> None:
    before = cinema.group(spark, [0, 1], as_of=datetime(2024, 1, 1, tzinfo=UTC))
    assert before["clusters"] == 0
    assert cinema.groups() == {0: ("writer", "attribute"), 1: ("artist", "attribute")}


def test_folding_in_reproduces_the_factors_that_mllib_fits(spark: SparkSession, cinema: Cinema) -> None:
    from pyspark.ml.recommendation import ALS

    from dare_core.grouping import ItemFactors

    scheme = ClusterGrouping(min_clusters=2, max_clusters=2)
    rows = [(int(user), int(item), value) for user, item, value, _ in cinema.ratings]
    frame = spark.createDataFrame(rows, "user int, item int, value double")
    als = ALS(
        rank=4, maxIter=2, regParam=scheme.regularization, alpha=scheme.alpha, implicitPrefs=True, userCol="user",
        itemCol="item", ratingCol="value", seed=1,
    ).fit(frame)  # fmt: skip
    factors = {row["id"]: row["features"] for row in als.itemFactors.collect()}
    items = ItemFactors(
        tuple(map(str, factors)), np.array(list(factors.values()), np.float32), scheme.alpha, scheme.regularization
    )
    fitted = als.userFactors.where("id = 5").collect()[0]["features"]
    folded = items.fold_in([str(item) for user, item, _ in rows if user == 5], [4.0] * 8)
    np.testing.assert_allclose(folded, fitted, rtol=2e-4, atol=1e-5)


def test_grouping_again_gives_the_same_version_of_the_model(spark: SparkSession, shop: Any, tmp_path: Path) -> None:
    write_pulled(tmp_path / "in", "item", {"0": {"genres": ["Drama"]}})
    first, second = (
        group(spark, shop.domain, tmp_path / "in", tmp_path / "out", models(tmp_path), moment, shop.url)
        for moment in (NOW, NOW + timedelta(days=1))
    )
    assert first == second
