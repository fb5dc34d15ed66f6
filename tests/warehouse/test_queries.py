"""The example queries, on loaded rows."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from sqlalchemy import Engine

from dare_core.config.settings import PROJECT_DIR, Settings
from dare_core.errors import InputError, SettingError, WarehouseError
from dare_core.sources.importer import described, import_tables
from dare_core.warehouse import queries
from dare_core.warehouse.entities import upsert_entities
from dare_core.warehouse.interactions import register_all
from dare_core.warehouse.knowledge import load_knowledge

Rows = Callable[..., pa.Table]
_ITEMS = [f"{n:02}" for n in range(30)]


@pytest.fixture
def loaded(engine: Engine, entity_rows: Rows, knowledge_rows: Rows, embedding_rows: Rows) -> Engine:
    """30 items with vectors side by side, one more without knowledge, and a user whose vector is that of item 00."""
    items = [{"entity_id": item, "attributes": f'{{"title": "Film {item}"}}'} for item in _ITEMS]
    upsert_entities(engine, entity_rows([*items, {"entity_id": "99"}, {"entity_id": "u", "kind": "user"}]))
    requests = [f"r{item}" for item in _ITEMS]
    rows = [{"request_id": request, "entity_id": item} for request, item in zip(requests, _ITEMS, strict=True)]
    load_knowledge(engine, knowledge_rows(rows), embedding_rows(requests))
    late = datetime(1998, 2, 1, tzinfo=UTC)
    user = {
        "request_id": "ru",
        "entity_id": "u",
        "kind": "user",
        "data_as_of": late,
        "group_name": "student",
        "steps": 30,
    }
    load_knowledge(engine, knowledge_rows([user]), embedding_rows(["ru"]))
    return engine


def _ratings() -> dict[str, pa.Table]:
    begin = datetime(1998, 1, 1, tzinfo=UTC)
    rows = [
        {"user_id": "u", "item_id": "00", "rating": 1.0, "rated_at": begin},  # item 00's knowledge may show this moment
        {"user_id": "u", "item_id": "01", "rating": 2.0, "rated_at": begin + timedelta(days=1)},
        {
            "user_id": "u",
            "item_id": "02",
            "rating": 3.0,
            "rated_at": begin + timedelta(days=31),
        },  # the user's data_as_of
        {"user_id": "u", "item_id": "03", "rating": 4.0, "rated_at": begin + timedelta(days=32)},
        {"user_id": "v", "item_id": "99", "rating": 5.0, "rated_at": begin + timedelta(days=32)},
    ]
    table = pa.Table.from_pylist(rows).set_column(
        3, "rated_at", pa.array([row["rated_at"] for row in rows], pa.timestamp("us", "UTC"))
    )
    return {"ratings": described(table, "test", ["user_id", "item_id"], ["rated_at"])}


def test_nearest_items_are_the_neighbours(loaded: Engine) -> None:
    answer = queries.run(loaded, "nearest_items", {"item": "10", "k": "2"})
    assert answer.columns == ("item", "neighbour", "title", "group_name", "distance")
    assert {(row[0], row[1], row[2]) for row in answer.rows} == {("10", "09", "Film 09"), ("10", "11", "Film 11")}
    assert 0 < answer.rows[0][4] <= answer.rows[1][4] < 0.01
    by_default = queries.run(loaded, "nearest_items", {})
    assert [row[:2] for row in by_default.rows] == [("00", f"{n:02}") for n in range(1, 11)]


def test_a_negative_number_of_neighbours_is_refused(loaded: Engine) -> None:
    with pytest.raises(InputError, match="LIMIT must not be negative"):
        queries.run(loaded, "nearest_items", {"k": "-1"})


def test_a_users_nearest_items_are_those_of_its_vector(loaded: Engine) -> None:
    answer = queries.run(loaded, "user_nearest_items", {"k": "3"})
    assert [row[:3] for row in answer.rows] == [("u", f"{n:02}", f"Film {n:02}") for n in range(3)]
    assert queries.run(loaded, "user_nearest_items", {"user": "nobody"}).rows == []


def test_freshness_counts_what_has_valid_knowledge(loaded: Engine) -> None:
    items, users = queries.run(loaded, "freshness", {}).rows
    written = datetime(2026, 1, 1, tzinfo=UTC)
    assert (items[0], items[1], items[2], float(items[3])) == ("item", 31, 30, round(30 / 31, 4))
    assert items[4:6] == (written, written)
    assert isinstance(items[6], timedelta)
    assert users[:3] == ("user", 1, 1)


def test_tokens_per_step_are_sums_over_texts(loaded: Engine) -> None:
    rows = queries.run(loaded, "tokens_per_step_by_group", {"run_id": "run-1"}).rows
    assert [
        (kind, group, texts, tokens, float(rate), float(relaxed)) for kind, group, texts, tokens, rate, relaxed in rows
    ] == [
        ("item", "Drama", 30, 900, 3.0, 0.1),
        ("user", "student", 1, 30, 1.0, 0.1),
    ]
    assert queries.run(loaded, "tokens_per_step_by_group", {"run_id": "none"}).rows == []


def test_the_training_join_never_sees_the_future(loaded: Engine) -> None:
    import_tables(loaded, _ratings())
    answer = queries.run(loaded, "training_join", {})
    assert [(row[1], row[4], row[5]) for row in answer.rows] == [
        ("03", "student", "Drama"),
        ("02", None, "Drama"),  # the user's text was written from this very rating
        ("01", None, "Drama"),
    ]
    assert answer.rows[0][-1] == pytest.approx(0.987, abs=0.01)


def test_the_training_join_takes_the_text_of_the_time(
    loaded: Engine, knowledge_rows: Rows, embedding_rows: Rows
) -> None:
    import_tables(loaded, _ratings())
    newer = {
        "request_id": "new",
        "entity_id": "01",
        "group_name": "Comedy",
        "data_as_of": datetime(1999, 1, 1, tzinfo=UTC),
    }
    load_knowledge(loaded, knowledge_rows([newer]), embedding_rows(["new"]))
    groups = {row[1]: row[5] for row in queries.run(loaded, "training_join", {}).rows}
    assert groups["01"] == "Drama", "the closed text was the one in force"


def test_the_training_join_reads_the_tables_that_the_domains_file_names(loaded: Engine, tmp_path: Path) -> None:
    shipped = (PROJECT_DIR / "config" / "movies.toml").read_text()
    named = shipped.replace('table = "ratings"', 'table = "what they \\"did\\":x"').replace('"rated_at"', '"when"')
    (tmp_path / "movies.toml").write_text(named)
    (tmp_path / "files.toml").write_text(named.replace('format = "postgres"', 'format = "csv"\nlocation = "/tables"'))
    settings = Settings(config_dir=tmp_path)
    with loaded.begin() as connection:
        connection.exec_driver_sql(
            'CREATE SCHEMA IF NOT EXISTS source; CREATE TABLE source."what they ""did"":x" AS SELECT 3 AS user_id, '
            "3 AS item_id, "
            "1.0 AS rating, timestamp '1999-01-01' AS \"when\""
        )
        connection.exec_driver_sql("UPDATE knowledge.knowledge SET entity_id = '3' WHERE entity_id = '03'")
        connection.exec_driver_sql("UPDATE knowledge.entity SET entity_id = '3' WHERE entity_id = '03'")
    [row] = queries.run(loaded, "training_join", {}, settings).rows
    assert (row[1], row[5]) == ("3", "Drama")
    with pytest.raises(InputError, match=r"the interactions of domain files are not there \(csv\)"):
        queries.run(loaded, "training_join", {"domain": "files"}, settings)


def test_likeness_reads_times_that_count_from_1970(loaded: Engine, tmp_path: Path) -> None:
    shipped = (PROJECT_DIR / "config" / "movies.toml").read_text()
    (tmp_path / "movies.toml").write_text(shipped.replace('"rated_at"', '"at"\ntime_unit = "milliseconds"'))
    settings = Settings(config_dir=tmp_path)
    register_all(loaded, settings)
    at = int(datetime(1999, 1, 1, tzinfo=UTC).timestamp() * 1000)
    rows = pa.table({"user_id": ["u", "u"], "item_id": ["01", "03"], "rating": [5.0, 5.0], "at": [at, at + 1]})
    import_tables(loaded, {"ratings": described(rows, "test", ["user_id", "item_id"])})
    later, first = queries.run(loaded, "likeness", {}, settings).rows
    assert (later[1], later[3], later[4]) == ("03", datetime(1999, 1, 1, 0, 0, 0, 1000, tzinfo=UTC), 1)
    assert (first[1], first[4]) == ("01", 0)


def test_an_unknown_domain_is_no_empty_answer(engine: Engine) -> None:
    for name in queries.names():
        with pytest.raises(SettingError, match=r"'films'.* there are: movies, shop"):
            queries.run(engine, name, {"domain": "films"})


def test_each_query_says_what_it_is_for_and_what_it_takes() -> None:
    for question in queries.questions():
        assert question.purpose.endswith(".")
        assert question.parameters["domain"] == "the domain (text, default movies)"
    assert queries.questions()[2].parameters["k"] == "how many (int, default 10)"


def test_every_query_runs_without_parameters_on_an_empty_warehouse(engine: Engine) -> None:
    import_tables(engine, {"ratings": _ratings()["ratings"].slice(0, 0)})
    assert len(queries.names()) == 6
    for name in queries.names():
        assert queries.run(engine, name, {}).rows == []


def test_mistakes_are_answered_with_what_there_is(engine: Engine) -> None:
    with pytest.raises(InputError, match="query 'oops' does not exist; there are: freshness, likeness, nearest_items"):
        queries.run(engine, "oops", {})
    with pytest.raises(InputError, match="has no parameter 'size'; there are: domain, item, k"):
        queries.run(engine, "nearest_items", {"size": "3"})
    with pytest.raises(InputError, match="parameter k is 'many', which is no int"):
        queries.run(engine, "nearest_items", {"k": "many"})
    with pytest.raises(WarehouseError, match=r"source.ratings.*run .*`dare source import`"):
        queries.run(engine, "training_join", {})


def test_a_query_cannot_write(engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "vandal.sql").write_text("-- Writes.\nDELETE FROM knowledge.entity RETURNING 1;\n")
    monkeypatch.setattr(queries, "_FOLDER", tmp_path)
    with pytest.raises(Exception, match="read-only transaction"):
        queries.run(engine, "vandal", {})
