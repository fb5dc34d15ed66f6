from collections import Counter
from dataclasses import asdict

import pytest
from sqlalchemy import Engine

from dare_core.config.domains import Domain
from dare_core.errors import SettingError, SourceError
from dare_core.evaluation.service import entities_in_service
from dare_core.evaluation.source import read_source
from dare_core.sources.importer import import_tables
from dare_core.sources.movielens import read_movielens

from .conftest import START


def test_naive_times_beside_aware_ones_are_utc_and_an_item_without_a_title_is_not_asked_about(
    engine: Engine, soon: Domain
) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("""
            CREATE SCHEMA IF NOT EXISTS source;
            CREATE TABLE source.items AS SELECT n AS item_id, CASE WHEN n > 2 THEN 'Film ' || n WHEN n = 1 THEN ' ' END
                AS title, 1990 AS release_year, '{Drama}'::text[] AS genres, date '2020-01-01' AS updated_at
                FROM generate_series(1, 9) AS n;
            CREATE TABLE source.users AS SELECT n AS user_id, 20 AS age, 'F' AS gender, 'writer' AS occupation,
                CASE WHEN n > 1 THEN timestamp '2020-01-01' END AS updated_at FROM generate_series(1, 4) AS n;
            CREATE TABLE source.ratings AS SELECT 1 + n %% 4 AS user_id, 1 + n %% 9 AS item_id,
                CASE WHEN n <> 5 THEN 1 + n %% 5 END AS rating,
                timestamptz '2020-02-01 00:00+00' + n * interval '1 hour' AS rated_at FROM generate_series(1, 400) AS n
        """)
    rows = read_source(engine, soon)
    assert len(rows.interactions) == 399
    assert rows.items["3"]["updated_at"] == START == rows.users["2"]["updated_at"]
    entities = entities_in_service(soon, rows, rows.interactions[200].time)
    assert {entity.entity_id for entity in entities if entity.kind == "item"} == set("3456789")
    users = [entity for entity in entities if entity.kind == "user"]
    assert {user.entity_id for user in users} == set("234")
    assert all(entry["title"].startswith("Film") for user in users for entry in user.attributes["history"])


def test_the_source_is_read_as_it_was_imported(movies: Domain, engine: Engine) -> None:
    tables = read_movielens()
    tables["ratings"] = tables["ratings"].slice(0, 500)
    import_tables(engine, tables)
    rows = read_source(engine, movies)
    assert len(rows.interactions) == 500
    assert [one.time for one in rows.interactions] == sorted(tables["ratings"]["rated_at"].to_pylist())
    assert rows.items["50"]["title"] == "Star Wars"
    assert asdict(rows)["users"]["1"]["occupation"] == "technician"


def test_of_a_large_table_some_users_are_read_whole_and_the_same_ones_again(movies: Domain, engine: Engine) -> None:
    tables = read_movielens()
    import_tables(engine, tables)
    assert movies.evaluation is not None
    few = movies.evaluation.model_copy(update={"max_interactions": 20_000})
    rows = read_source(engine, movies.model_copy(update={"evaluation": few}))
    assert rows.share == 0.2
    assert 0.1 < len(rows.interactions) / 100_000 < 0.3
    did = Counter(tables["ratings"]["user_id"].to_pylist())
    assert Counter(one.user for one in rows.interactions) == {user: did[user] for user in rows.users}
    assert set(rows.items) == {one.item for one in rows.interactions}
    fewer = movies.evaluation.model_copy(update={"max_interactions": 10_000})
    assert set(read_source(engine, movies.model_copy(update={"evaluation": fewer})).users) < set(rows.users)


def test_without_the_tables_it_is_said_how_to_import_them(movies: Domain, engine: Engine) -> None:
    with pytest.raises(SourceError, match="dare source import"):
        read_source(engine, movies)


def test_tables_that_lie_elsewhere_are_refused_with_what_to_do(movies: Domain, engine: Engine) -> None:
    source = movies.source.model_copy(update={"format": "parquet", "location": "s3://lake"})
    with pytest.raises(SettingError, match=r"domain movies: source\.format parquet .* import the tables"):
        read_source(engine, movies.model_copy(update={"source": source}))


def test_a_column_that_holds_no_times_is_named(engine: Engine, movies: Domain) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("""
            CREATE SCHEMA IF NOT EXISTS source;
            CREATE TABLE source.ratings AS SELECT 1 AS user_id, 1 AS item_id, 5 AS rating, 17 AS rated_at
        """)
    with pytest.raises(SourceError, match="'rated_at' holds int, and no times"):
        read_source(engine, movies)
