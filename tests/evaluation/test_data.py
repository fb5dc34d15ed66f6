from dataclasses import asdict, replace
from datetime import timedelta

import numpy as np
import pytest
from sqlalchemy import Engine

from dare_core.config.domains import Domain
from dare_core.errors import SettingError, SourceError
from dare_core.evaluation.data import (
    HISTORY,
    Entity,
    Interaction,
    SourceRows,
    choose_entities,
    make_split,
    read_source,
    split_moment,
)
from dare_core.sources.importer import import_tables
from dare_core.sources.movielens import read_movielens

from .conftest import START, source_rows


def tampered(rows: SourceRows) -> SourceRows:
    """Everything after the split says the opposite, of items and users in another order."""
    moment = split_moment(rows)
    later = [one for one in rows.interactions if one.time > moment]
    planted = [
        Interaction(one.time, other.user, other.item, 6 - one.value)
        for one, other in zip(later, reversed(later), strict=True)
    ]
    return replace(rows, interactions=[one for one in rows.interactions if one.time <= moment] + planted)


def test_nothing_after_the_split_changes_whom_texts_are_about_or_what_they_can_show(
    movies: Domain, rows: SourceRows
) -> None:
    assert choose_entities(movies, tampered(rows), 12) == choose_entities(movies, rows, 12)


def test_naive_times_beside_aware_ones_are_utc_and_an_item_without_a_title_is_not_asked_about(
    engine: Engine, movies: Domain
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
    rows = read_source(engine, movies)
    assert len(rows.interactions) == 399
    assert rows.items["3"]["updated_at"] == START == rows.users["2"]["updated_at"]
    entities = choose_entities(movies, rows, 12)
    assert {entity.entity_id for entity in entities if entity.kind == "item"} == set("3456789")
    users = [entity for entity in entities if entity.kind == "user"]
    assert {user.entity_id for user in users} < set("234")
    assert all(entry["title"].startswith("Film") for user in users for entry in user.attributes["history"])
    assert len(make_split(movies, rows, entities).test) == 80


def test_nothing_after_the_split_changes_a_training_example(movies: Domain, rows: SourceRows) -> None:
    entities = choose_entities(movies, rows, 12)
    honest, planted = make_split(movies, rows, entities), make_split(movies, tampered(rows), entities)
    for name, array in vars(honest.train).items():
        np.testing.assert_array_equal(array, getattr(planted.train, name), err_msg=name)
    assert honest.codes == planted.codes
    assert (honest.test.labels != planted.test.labels).any()  # else nothing was planted


def test_tests_lie_after_every_training_example(movies: Domain, rows: SourceRows) -> None:
    tied = [one._replace(time=START + timedelta(hours=(place + 1) // 7)) for place, one in enumerate(rows.interactions)]
    split = make_split(movies, replace(rows, interactions=tied), choose_entities(movies, rows, 12))
    assert len(split.train) == sum(one.time <= split.moment for one in tied)
    assert len(split.train) + len(split.test) == len(tied)


def test_a_text_is_seen_only_after_the_newest_event_that_its_prompt_shows(movies: Domain, rows: SourceRows) -> None:
    shown = rows.interactions[50]
    planted = Entity("user", shown.user, "g", {}, shown.time)
    split = make_split(movies, rows, [planted])
    seen = np.concatenate([split.train.texts, split.test.texts])[:, 1] > 0
    assert seen.any()
    expected = [one.user == shown.user and one.time > shown.time for one in rows.interactions]
    assert seen.tolist() == expected


def test_a_user_s_prompt_shows_the_first_of_its_history_and_is_dated_by_the_last_of_these(
    movies: Domain, rows: SourceRows
) -> None:
    users = [entity for entity in choose_entities(movies, rows, 12) if entity.kind == "user"]
    assert users
    for user in users:
        own = [one for one in rows.interactions if one.user == user.entity_id]
        shown = own[: movies.knowledge.max_history]
        assert [entry["value"] for entry in user.attributes["history"]] == [one.value for one in shown]
        assert user.data_as_of == shown[-1].time


def test_a_history_holds_the_newest_likes_before_the_example_and_nothing_of_its_own_moment(movies: Domain) -> None:
    hours = [*range(1, 2 * HISTORY), 50, 50, 51]  # two at once
    met = [Interaction(START + timedelta(hours=hour), "u0", f"i{n}", 5.0) for n, hour in enumerate(hours)]
    met += [Interaction(START + timedelta(hours=60 + n), "u1", f"i{n}", 1.0 + n % 5) for n in range(2 * len(hours))]
    rows = source_rows(met, users=2, items=len(hours))
    split = make_split(movies, rows, choose_entities(movies, rows, 4))
    history = np.concatenate([split.train.history, split.test.history])
    items = np.concatenate([split.train.fields, split.test.fields])[:, 1]
    assert history[0].tolist() == [0] * HISTORY
    assert history[3].tolist() == [*items[2::-1], *[0] * (HISTORY - 3)]
    first, second = len(hours) - 3, len(hours) - 2
    assert history[first].tolist() == history[second].tolist() == items[first - 1 : first - 1 - HISTORY : -1].tolist()


def test_a_rating_of_four_stars_is_a_like(movies: Domain, rows: SourceRows) -> None:
    split = make_split(movies, rows, choose_entities(movies, rows, 12))
    labels = np.concatenate([split.train.labels, split.test.labels])
    assert labels.tolist() == [float(one.value >= 4) for one in rows.interactions]


def test_a_domain_that_does_not_say_what_a_like_is_cannot_be_evaluated(movies: Domain, rows: SourceRows) -> None:
    silent = movies.model_copy(update={"evaluation": None})
    with pytest.raises(SettingError, match="positive_from"):
        make_split(silent, rows, choose_entities(movies, rows, 12))


def test_the_source_is_read_as_it_was_imported(movies: Domain, engine: Engine) -> None:
    tables = read_movielens()
    tables["ratings"] = tables["ratings"].slice(0, 500)
    import_tables(engine, tables)
    rows = read_source(engine, movies)
    assert len(rows.interactions) == 500
    assert [one.time for one in rows.interactions] == sorted(tables["ratings"]["rated_at"].to_pylist())
    assert rows.items["50"]["title"] == "Star Wars"
    assert asdict(rows)["users"]["1"]["occupation"] == "technician"


def test_without_the_tables_it_is_said_how_to_import_them(movies: Domain, engine: Engine) -> None:
    with pytest.raises(SourceError, match="dare source import"):
        read_source(engine, movies)
