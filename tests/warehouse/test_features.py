"""What analysts read: views and functions, the index behind them, and who may do what."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import psycopg
import pyarrow as pa
import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from dare_core import schemas
from dare_core.features.history import read_features
from dare_core.warehouse.connection import connect
from dare_core.warehouse.entities import Pulled, upsert_entities
from dare_core.warehouse.knowledge import LoadSummary, load_knowledge
from dare_core.warehouse.runs import record_run
from dare_core.warehouse.upkeep import index_health
from dare_core.warehouse.vectors import index_vectors

Rows = Callable[..., pa.Table]
_ITEMS = [f"{n:03}" for n in range(60)]
_MOMENT = datetime(1998, 1, 1, tzinfo=UTC)


def _as(url: str, role: str) -> Engine:
    return connect(f"{url}&options=-c%20role%3D{role}")


def _all(engine: Engine, query: str) -> list[tuple[object, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(query)]


@pytest.fixture
def loaded(engine: Engine, entity_rows: Rows, knowledge_rows: Rows, embedding_rows: Rows) -> Engine:
    """60 items with vectors side by side, the last 12 in another group, and a user whose vector is that of item 000."""
    groups = ["Drama"] * 48 + ["Comedy"] * 12
    items = [
        {"entity_id": item, "attributes": f'{{"title": "Film {item}"}}', "group_name": group}
        for item, group in zip(_ITEMS, groups, strict=True)
    ]
    upsert_entities(engine, entity_rows([*items, {"entity_id": "u", "kind": "user"}]))
    rows = [{"request_id": f"r{item}", "entity_id": item} for item in _ITEMS]
    load_knowledge(engine, knowledge_rows(rows), embedding_rows([row["request_id"] for row in rows]))
    user = {"request_id": "ru", "entity_id": "u", "kind": "user"}
    load_knowledge(engine, knowledge_rows([user]), embedding_rows(["ru"]))
    return engine


@pytest.fixture
def by_index(loaded: Engine) -> Iterator[psycopg.Connection]:
    """A session that takes the index wherever there is one: the rows are too few for the planner to want it."""
    with loaded.connect() as connection:
        for switch in ("enable_seqscan", "enable_sort", "enable_bitmapscan"):
            connection.exec_driver_sql(f"SET {switch} = off")
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        yield driver
        connection.invalidate()


def _vector(*values: float) -> str:
    return str([*values, *[0.0] * (schemas.EMBEDDING_WIDTH - len(values))])


def test_neighbours_come_from_the_index_of_their_domain_and_encoder(by_index: psycopg.Connection) -> None:
    [statement] = by_index.execute("SELECT knowledge.nearest_query('movies', false)").fetchone() or ()
    by_index.execute(f"PREPARE nearest (vector, text[], text, integer, text) AS {statement}")
    answer = by_index.execute(f"EXPLAIN EXECUTE nearest ('{_vector(1)}', '{{}}', NULL, 5, 'answer')").fetchall()
    plan = "\n".join(line for [line] in answer)
    assert "Index Scan using encoded_movies_1_nearest" in plan
    assert "Order By: ((embedding)::halfvec(384) <=> " in plan
    uses = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'encoded_movies_1_nearest'"
    by_index.execute("SELECT pg_stat_force_next_flush()")
    by_index.commit()
    before = by_index.execute(uses).fetchone()
    by_index.execute("SELECT * FROM features.similar_items('000', 5)")
    by_index.execute("SELECT pg_stat_force_next_flush()")
    by_index.commit()
    assert before is not None
    assert by_index.execute(uses).fetchone() == (before[0] + 1,), "the function executes that statement"


def test_similar_items_and_matches_are_the_nearest(loaded: Engine) -> None:
    found = _all(loaded, "SELECT item, title, item_group, distance FROM features.similar_items('010', 2)")
    assert {row[:3] for row in found} == {("009", "Film 009", "Drama"), ("011", "Film 011", "Drama")}
    assert _all(loaded, "SELECT item FROM features.match('u', 3)") == [("000",), ("001",), ("002",)]
    assert _all(loaded, "SELECT * FROM features.similar_items('nobody', 3)") == []
    assert _all(loaded, "SELECT * FROM features.similar_items('010', 3, 'books')") == []


def test_only_vectors_of_the_same_form_are_neighbours(by_index: psycopg.Connection) -> None:
    """The index gives up before it has seen the far ones of the other form, and the rest is looked for."""
    of_another = "UPDATE knowledge.knowledge_embedding SET form = 'attributes+answer' WHERE request_id = ANY(%s)"
    by_index.execute(of_another, [["r000", "r058", "r059"]])
    assert by_index.execute("SELECT item FROM features.similar_items('000', 10)").fetchall() == [("058",), ("059",)]
    assert by_index.execute("SELECT item FROM features.similar_items('001', 2)").fetchall() == [("002",), ("003",)]
    assert by_index.execute("SELECT item FROM features.match('u', 1)").fetchall() == [("001",)]


def test_every_row_says_the_form_of_its_vector_and_none_without_one(
    loaded: Engine, knowledge_rows: Rows, embedding_rows: Rows
) -> None:
    load_knowledge(loaded, knowledge_rows([{"request_id": "bare", "entity_id": "059", "epoch": 1}]), embedding_rows([]))
    with loaded.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE knowledge.knowledge_embedding SET form = 'history+answer' WHERE request_id IN ('r059', 'ru')"
        )
    assert _all(loaded, "SELECT request_id, form FROM features.item WHERE item_id = '059'") == [("bare", None)]
    history = "SELECT request_id, form FROM features.item_history WHERE item_id IN ('058', '059') ORDER BY 1"
    assert _all(loaded, history) == [("bare", None), ("r058", "answer"), ("r059", "history+answer")]
    for query in ("features.user", "features.user_history", "features.as_of(now()) WHERE kind = 'user'"):
        assert _all(loaded, f"SELECT request_id, form FROM {query}") == [("ru", "history+answer")]
    exported = read_features(loaded, "movies", "item")
    assert exported.column_names[-1] == "form"
    forms = dict(zip(exported["request_id"].to_pylist(), exported["form"].to_pylist(), strict=True))
    assert forms == {f"r{item}": "answer" for item in _ITEMS} | {"r059": "history+answer"}


def test_a_filter_does_not_shorten_the_answer(by_index: psycopg.Connection) -> None:
    """The 47 nearest are of another group. Where a scan gives up before it has seen enough, the rest is looked for."""
    query = "SELECT item FROM features.similar_items('000', 10, group_name => 'Comedy')"
    nearest = [(item,) for item in _ITEMS[48:58]]
    assert by_index.execute(query).fetchall() == nearest
    by_index.execute("ALTER FUNCTION knowledge.nearest_items SET hnsw.ef_search = 5")
    by_index.execute("ALTER FUNCTION knowledge.nearest_items SET hnsw.iterative_scan = off")
    assert by_index.execute(query).fetchall() == nearest


def test_replaced_and_deleted_items_are_neighbours_no_more(
    loaded: Engine, knowledge_rows: Rows, embedding_rows: Rows
) -> None:
    new = knowledge_rows([{"request_id": "new", "entity_id": "001", "epoch": 1}])
    far = embedding_rows(["x", "new"]).slice(1)
    load_knowledge(loaded, new, far)
    upsert_entities(loaded, schemas.ENTITY.empty_table(), Pulled("movies", "item", _MOMENT, ["002"]))
    assert _all(loaded, "SELECT item FROM features.similar_items('000', 2)") == [("003",), ("004",)]
    assert _all(loaded, "SELECT request_id FROM knowledge.knowledge_embedding WHERE NOT is_valid ORDER BY 1") == [
        ("r001",),
        ("r002",),
    ]
    history = "SELECT request_id, valid_to IS NULL FROM features.item_history WHERE item_id = '001' ORDER BY 1"
    assert _all(loaded, history) == [("new", True), ("r001", False)]
    assert _all(loaded, "SELECT request_id FROM features.item WHERE item_id IN ('001', '002')") == [("new",)]


def test_as_of_is_what_a_moments_prompts_could_have_seen(
    loaded: Engine, knowledge_rows: Rows, embedding_rows: Rows
) -> None:
    later = {"request_id": "later", "entity_id": "000", "data_as_of": _MOMENT + timedelta(days=9)}
    load_knowledge(loaded, knowledge_rows([later]), embedding_rows(["later"]))

    def seen(moment: datetime) -> list[tuple[object, ...]]:
        return _all(loaded, f"SELECT request_id FROM features.as_of('{moment}') WHERE entity_id IN ('000', 'u')")

    assert seen(_MOMENT) == [], "a text may show the event of its own moment"
    assert sorted(seen(_MOMENT + timedelta(seconds=1))) == [("r000",), ("ru",)]
    assert sorted(seen(_MOMENT + timedelta(days=9))) == [("r000",), ("ru",)]
    assert sorted(seen(_MOMENT + timedelta(days=10))) == [("later",), ("ru",)]
    valid = _all(loaded, "SELECT request_id FROM features.item UNION SELECT request_id FROM features.user")
    assert sorted(_all(loaded, "SELECT request_id FROM features.as_of(now())")) == sorted(valid)


def test_quality_accounts_for_every_text_of_a_run(loaded: Engine) -> None:
    run = {
        "domain": "movies", "state": "loaded", "params": "{}", "model": "m", "started_at": _MOMENT, "planned": 64,
        "generated": 64, "failed": 0, "quarantined": 2, "loaded": 61,
    }  # fmt: skip
    record_run(loaded, "run-1", **run)
    assert _all(loaded, "SELECT run_id, unaccounted, quarantined_by_rule FROM features.quality") == [("run-1", 1, {})]
    assert _all(loaded, "SELECT kind, sum(texts) FROM features.decoding_efficiency GROUP BY 1 ORDER BY 1") == [
        ("item", 60),
        ("user", 1),
    ]


def test_a_large_load_builds_the_index_afterwards_and_a_small_one_keeps_it_up(
    engine: Engine, knowledge_rows: Rows, embedding_rows: Rows
) -> None:
    def node() -> object:
        return _all(engine, "SELECT max(index.oid) FROM pg_class AS index WHERE relname = 'encoded_movies_1_nearest'")

    def load(first: int, count: int) -> None:
        rows = knowledge_rows([{"request_id": f"r{first}", "entity_id": "x"}])
        names = pa.array([f"r{n}" for n in range(first, first + count)])
        many = pa.table(
            [
                names if name in ("request_id", "entity_id") else pa.repeat(rows[name][0], count)
                for name in rows.schema.names
            ],
            schema=rows.schema,
        )
        load_knowledge(engine, many, embedding_rows([]))

    load_knowledge(engine, knowledge_rows([{"request_id": "a", "entity_id": "a"}]), embedding_rows(["a"]))
    first = node()
    load(0, 9_999)
    assert node() == first
    load(9_999, 10_001)
    second = node()
    assert second != first
    load(20_000, 10_000)
    assert node() == second, "as large, but the domain holds more"


def test_a_missing_index_of_vectors_is_named_and_built_by_the_next_load(loaded: Engine) -> None:
    assert index_health(loaded).missing == []
    with loaded.begin() as connection:
        connection.exec_driver_sql("DROP INDEX partitions.encoded_movies_1_nearest")
    assert index_health(loaded).missing == ["partitions.encoded_movies_1_nearest"]
    load_knowledge(loaded, schemas.KNOWLEDGE.empty_table())
    assert index_health(loaded).missing == []
    assert index_vectors(loaded) == 0


def test_a_reader_selects_views_and_calls_functions_and_nothing_else(loaded: Engine, warehouse_url: str) -> None:
    reader = _as(warehouse_url, "dare_reader")
    names = [name for [name] in _all(loaded, "SELECT viewname FROM pg_views WHERE schemaname = 'features'")]
    assert sorted(map(str, names)) == [
        "decoding_efficiency", "freshness", "item", "item_history", "quality", "user", "user_history"
    ]  # fmt: skip
    for name in names:
        _all(reader, f"SELECT * FROM features.{name} LIMIT 1")
    assert len(_all(reader, "SELECT * FROM features.similar_items('000')")) == 10
    assert len(_all(reader, "SELECT * FROM features.match('u')")) == 10
    assert len(_all(reader, "SELECT * FROM features.as_of(now())")) == 61
    for refused in (
        "SELECT * FROM knowledge.knowledge",
        "SELECT * FROM partitions.knowledge_movies",
        "SELECT knowledge.index_vectors()",
        "UPDATE features.item SET text = ''",
        "CREATE TABLE features.mine (x int)",
        "CREATE TABLE staging.mine (x int)",
    ):
        with pytest.raises(DBAPIError, match=r"permission denied|cannot update view"):
            _all(reader, refused)
    reader.dispose()


def test_a_loader_writes_everything_a_run_writes_and_changes_no_table(
    loaded: Engine, warehouse_url: str, entity_rows: Rows, knowledge_rows: Rows, embedding_rows: Rows
) -> None:
    loader = _as(warehouse_url, "dare_loader")
    upsert_entities(loader, entity_rows([{"entity_id": "1", "domain": "books"}]))
    rows = knowledge_rows([{"request_id": "b", "entity_id": "1", "domain": "books"}])
    assert load_knowledge(loader, rows, embedding_rows(["b"])) == LoadSummary(1, 0, 0)
    assert _all(loader, "SELECT count(*) FROM knowledge.vector_partition WHERE is_indexed") == [(2,)]
    for refused in ("DROP TABLE knowledge.entity", "DROP INDEX partitions.encoded_books_1_nearest"):
        with pytest.raises(DBAPIError, match="must be owner"):
            _all(loader, refused)
    loader.dispose()


def test_a_text_that_is_deleted_takes_its_vector_with_it(loaded: Engine) -> None:
    with loaded.begin() as connection:
        connection.exec_driver_sql("DELETE FROM knowledge.knowledge WHERE request_id = 'r000'")
    [found] = _all(
        loaded, "SELECT count(*), count(*) FILTER (WHERE request_id = 'r000') FROM knowledge.knowledge_embedding"
    )
    assert found == (60, 0)


def test_every_view_and_function_of_the_features_is_described(engine: Engine) -> None:
    assert (
        _all(
            engine,
            """
        SELECT proname FROM pg_proc WHERE pronamespace IN ('features'::regnamespace, 'knowledge'::regnamespace)
            AND obj_description(oid, 'pg_proc') IS NULL AND prorettype <> 'trigger'::regtype
    """,
        )
        == []
    )


def test_domains_lie_apart(loaded: Engine, knowledge_rows: Rows, embedding_rows: Rows) -> None:
    long = "d" * 60
    for domain in (f"{long}_a", f"{long}_b"):
        load_knowledge(
            loaded,
            knowledge_rows([{"request_id": domain, "entity_id": "1", "domain": domain}]),
            embedding_rows([domain]),
        )
    parts = _all(loaded, "SELECT tableoid::regclass::text, count(*) FROM knowledge.knowledge GROUP BY 1")
    assert dict(parts)["partitions.knowledge_movies"] == 61  # type: ignore[arg-type]
    assert len(parts) == 3
    assert np.all([name.startswith("partitions.") for name, _ in parts])  # type: ignore[attr-defined]
