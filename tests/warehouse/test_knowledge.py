"""Texts loaded, closed and read, on a real database."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from sqlalchemy import Engine

from dare_core import schemas
from dare_core.errors import InputError, WarehouseError
from dare_core.warehouse.connection import lock_knowledge, transaction
from dare_core.warehouse.entities import EntityChanges, upsert_entities
from dare_core.warehouse.knowledge import LoadSummary, load_knowledge, pool_texts, request_states
from dare_core.warehouse.renderings import record_renderings

Rows = Callable[..., pa.Table]


def _all(engine: Engine, query: str) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(query)]


def _everything(engine: Engine) -> list[list[tuple[Any, ...]]]:
    tables = ("entity", "knowledge", "knowledge_embedding", "quarantine")
    return [_all(engine, f"SELECT to_jsonb(t)::text FROM knowledge.{table} AS t ORDER BY 1") for table in tables]


def test_every_column_comes_back_as_it_was_loaded(engine: Engine, knowledge_rows: Rows, embedding_rows: Rows) -> None:
    rows = knowledge_rows(
        [{"request_id": "r1", "entity_id": "1", "text": "Ünïcode \\ \t\n\N{PILE OF POO}", "token_ids": []}]
    )
    vectors = embedding_rows(["r1"])
    assert load_knowledge(engine, rows, vectors) == LoadSummary(loaded=1, already_there=0, superseded=0)
    assert _all(engine, f"SELECT {', '.join(schemas.KNOWLEDGE.names)} FROM knowledge.knowledge") == [
        tuple(rows.to_pylist()[0].values())
    ]
    [(vector,)] = _all(engine, "SELECT embedding FROM knowledge.knowledge_embedding")
    assert vector.to_list() == vectors["embedding"][0].as_py()


def test_loading_again_changes_nothing(
    engine: Engine, entity_rows: Rows, knowledge_rows: Rows, embedding_rows: Rows
) -> None:
    entities = entity_rows([{"entity_id": "1"}, {"entity_id": "2"}])
    rows = knowledge_rows([{"request_id": "r1", "entity_id": "1"}, {"request_id": "r2", "entity_id": "2"}])
    assert upsert_entities(engine, entities) == EntityChanges(2, 0)
    load_knowledge(engine, rows, embedding_rows(["r1", "r2"]))
    before = _everything(engine)
    assert upsert_entities(engine, entities) == EntityChanges(0, 0)
    assert load_knowledge(engine, rows, embedding_rows(["r1", "r2"])) == LoadSummary(
        loaded=0, already_there=2, superseded=0
    )
    assert _everything(engine) == before


def test_the_first_committed_text_of_a_request_wins(engine: Engine, knowledge_rows: Rows, embedding_rows: Rows) -> None:
    load_knowledge(
        engine, knowledge_rows([{"request_id": "r1", "entity_id": "1", "text": "first"}]), embedding_rows([])
    )
    second = knowledge_rows(
        [{"request_id": "r1", "entity_id": "1", "text": "second"}, {"request_id": "r2", "entity_id": "2"}]
    )
    assert load_knowledge(engine, second, embedding_rows([])) == LoadSummary(loaded=1, already_there=1, superseded=0)
    assert _all(engine, "SELECT text FROM knowledge.knowledge WHERE request_id = 'r1'") == [("first",)]


def test_a_new_text_closes_the_entitys_earlier_one(engine: Engine, knowledge_rows: Rows, embedding_rows: Rows) -> None:
    old = [
        {"request_id": "r1", "entity_id": "1"},
        {"request_id": "r2", "entity_id": "2"},
        {"request_id": "u1", "entity_id": "1", "kind": "user"},
    ]
    load_knowledge(engine, knowledge_rows(old), embedding_rows([]))
    new = knowledge_rows([{"request_id": "r1b", "entity_id": "1", "epoch": 1}])
    assert load_knowledge(engine, new, embedding_rows(["r1b"])) == LoadSummary(loaded=1, already_there=0, superseded=1)
    assert _all(
        engine,
        """
        SELECT old.valid_to = new.valid_from, new.valid_to IS NULL
        FROM knowledge.knowledge AS old, knowledge.knowledge AS new
        WHERE old.request_id = 'r1' AND new.request_id = 'r1b'
    """,
    ) == [(True, True)]
    assert request_states(engine, ["r1", "r1b", "r2", "u1", "none"]) == {
        "r1": "closed", "r1b": "valid", "r2": "valid", "u1": "valid"
    }  # fmt: skip


def on(number: int) -> datetime:
    return datetime(1998, 1, number, tzinfo=UTC)


def test_of_an_entity_the_text_that_saw_the_newest_data_wins_whoever_commits_last(
    engine: Engine, knowledge_rows: Rows, embedding_rows: Rows
) -> None:
    for name, seen in (("tuesday", 6), ("monday", 5), ("sunday", 4), ("wednesday", 7)):
        row = {"request_id": name, "entity_id": "1", "data_as_of": on(seen)}
        summary = load_knowledge(engine, knowledge_rows([row]), embedding_rows([name]))
        late = name in ("monday", "sunday")
        assert (summary.loaded, summary.superseded, summary.outdated) == (1, int(name == "wednesday"), int(late))
    assert _all(engine, "SELECT request_id FROM knowledge.knowledge WHERE valid_to IS NULL") == [("wednesday",)]
    assert _all(engine, "SELECT request_id FROM knowledge.knowledge_embedding WHERE is_valid") == [("wednesday",)]
    seen_then = "SELECT request_id FROM features.as_of('{}')"
    for moment, name in (
        ("1998-01-05 12:00Z", "monday"),
        ("1998-01-06 12:00Z", "tuesday"),
        ("1998-01-04 12:00Z", "sunday"),
    ):
        assert _all(engine, seen_then.format(moment)) == [(name,)]


def test_where_the_source_went_back_the_text_that_saw_all_there_is_wins(
    engine: Engine, entity_rows: Rows, knowledge_rows: Rows, embedding_rows: Rows
) -> None:
    load_knowledge(
        engine, knowledge_rows([{"request_id": "r1", "entity_id": "1", "data_as_of": on(6)}]), embedding_rows(["r1"])
    )
    upsert_entities(engine, entity_rows([{"entity_id": "1", "data_as_of": on(5)}]))  # the newest event was deleted
    again = knowledge_rows([{"request_id": "r2", "entity_id": "1", "data_as_of": on(5)}])
    assert load_knowledge(engine, again, embedding_rows(["r2"])).outdated == 0
    assert _all(engine, "SELECT request_id FROM knowledge.knowledge WHERE valid_to IS NULL") == [("r2",)]


def test_of_texts_that_saw_the_same_the_one_that_was_asked_last_wins(
    engine: Engine, entity_rows: Rows, knowledge_rows: Rows, embedding_rows: Rows
) -> None:
    upsert_entities(engine, entity_rows([{"entity_id": "1"}]))
    asked = {"request_id": "tuesday", "settings": "s", "content": "c", "profile": "p", "events": 1}
    row = {"domain": "movies", "kind": "item", "entity_id": "1", **asked}
    record_renderings(engine, pa.Table.from_pylist([row], schemas.RENDERING))
    for name in ("tuesday", "monday"):
        load_knowledge(engine, knowledge_rows([{"request_id": name, "entity_id": "1"}]), embedding_rows([name]))
    assert _all(engine, "SELECT request_id FROM knowledge.knowledge WHERE valid_to IS NULL") == [("tuesday",)]


def test_vectors_of_unknown_requests_are_left_out(engine: Engine, knowledge_rows: Rows, embedding_rows: Rows) -> None:
    load_knowledge(engine, knowledge_rows([{"request_id": "r1", "entity_id": "1"}]), embedding_rows(["r1", "stranger"]))
    assert _all(engine, "SELECT request_id FROM knowledge.knowledge_embedding") == [("r1",)]


def test_one_entity_with_two_new_texts_is_refused(engine: Engine, knowledge_rows: Rows, embedding_rows: Rows) -> None:
    rows = knowledge_rows([{"request_id": "r1", "entity_id": "7"}, {"request_id": "r2", "entity_id": "7"}])
    with pytest.raises(InputError, match="hold movies item 7 more than once"):
        load_knowledge(engine, rows, embedding_rows([]))


def test_vectors_of_another_width_or_a_stranger_are_refused(
    engine: Engine, knowledge_rows: Rows, embedding_rows: Rows
) -> None:
    load_knowledge(engine, knowledge_rows([{"request_id": "r0", "entity_id": "0"}]), embedding_rows(["r0"]))

    def vectors(encoder: str, width: int) -> pa.Table:
        values = pa.FixedSizeListArray.from_arrays(pa.array([0.5] * width, pa.float32()), width)
        return pa.table({"request_id": ["r1"], "encoder": [encoder], "form": ["answer"], "embedding": values})

    rows = knowledge_rows([{"request_id": "r1", "entity_id": "1"}])
    with pytest.raises(InputError, match="have 768 dimensions, and those of 'minilm' have 384"):
        load_knowledge(engine, rows, vectors("minilm", 768))
    with pytest.raises(InputError, match="of encoder 'stranger', and the warehouse has minilm; run"):
        load_knowledge(engine, rows, vectors("stranger", 384))
    assert _all(engine, "SELECT count(*) FROM knowledge.knowledge") == [(1,)]


@pytest.mark.parametrize(
    ("death", "error"),
    [("RAISE EXCEPTION 'dead'", psycopg.Error), ("PERFORM pg_terminate_backend(pg_backend_pid())", WarehouseError)],
)
def test_a_load_that_dies_in_the_middle_leaves_nothing(
    engine: Engine, knowledge_rows: Rows, embedding_rows: Rows, death: str, error: type[Exception]
) -> None:
    load_knowledge(engine, knowledge_rows([{"request_id": "r0", "entity_id": "1"}]), embedding_rows(["r0"]))
    before = _everything(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {death}; RETURN new; END $$"
        )
        connection.exec_driver_sql(
            "CREATE TRIGGER die AFTER INSERT ON knowledge.knowledge_embedding FOR EACH ROW EXECUTE FUNCTION die()"
        )
    rows, vectors = knowledge_rows([{"request_id": "r1", "entity_id": "1"}]), embedding_rows(["r1"])
    with pytest.raises(error, match=r"dead|terminating connection"):
        load_knowledge(engine, rows, vectors)
    assert _everything(engine) == before
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER die ON knowledge.knowledge_embedding")
    assert load_knowledge(engine, rows, vectors) == LoadSummary(loaded=1, already_there=0, superseded=1)


def test_loads_at_once_wait_for_each_other(engine: Engine, knowledge_rows: Rows, embedding_rows: Rows) -> None:
    together = threading.Barrier(4)

    def load(worker: int) -> LoadSummary:
        rows = [{"request_id": f"shared-{n}", "entity_id": f"{n}", "text": f"by {worker}"} for n in range(20)]
        rows.append({"request_id": f"own-{worker}", "entity_id": "everybodys"})
        together.wait()
        return load_knowledge(engine, knowledge_rows(rows), embedding_rows([row["request_id"] for row in rows]))

    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(load, range(4)))
    assert sorted(summary.loaded for summary in done) == [1, 1, 1, 21]
    assert sum(summary.superseded for summary in done) == 3
    assert _all(engine, "SELECT count(*) FILTER (WHERE valid_to IS NULL), count(*) FROM knowledge.knowledge") == [
        (21, 24)
    ]
    assert _all(engine, "SELECT count(*) FROM knowledge.knowledge WHERE valid_to < valid_from") == [(0,)]


def test_a_load_does_not_wait_for_one_of_another_domain(
    engine: Engine, knowledge_rows: Rows, embedding_rows: Rows
) -> None:
    with transaction(engine) as cursor:
        lock_knowledge(cursor, ["books"])
        films = knowledge_rows([{"request_id": "r1", "entity_id": "1"}])
        assert load_knowledge(engine, films, embedding_rows(["r1"])).loaded == 1


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"kind": "shop"}, "knowledge_kind"),
        ({"verification": "lax"}, "knowledge_verification"),
        ({"text": "nul \0"}, "0x00"),
        ({"text": None}, "null"),
    ],
)
def test_rows_that_cannot_be_stored_are_refused(
    engine: Engine, knowledge_rows: Rows, embedding_rows: Rows, row: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        load_knowledge(engine, knowledge_rows([{"request_id": "r1", "entity_id": "1", **row}]), embedding_rows([]))


def test_where_the_clock_was_set_back_validity_goes_on_from_where_it_was(
    engine: Engine, knowledge_rows: Rows, embedding_rows: Rows
) -> None:
    load_knowledge(engine, knowledge_rows([{"request_id": "r1", "entity_id": "1"}]), embedding_rows([]))
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE knowledge.knowledge SET valid_from = now() + interval '2 days'")
    load_knowledge(engine, knowledge_rows([{"request_id": "r2", "entity_id": "1", "epoch": 1}]), embedding_rows([]))
    ordered = "SELECT request_id, valid_from <= coalesce(valid_to, 'infinity') FROM knowledge.knowledge ORDER BY 1"
    assert _all(engine, ordered) == [("r1", True), ("r2", True)]
    assert _all(engine, "SELECT count(DISTINCT m) FROM knowledge.knowledge, unnest(ARRAY[valid_from, valid_to]) m") == [
        (1,)
    ]


def test_a_commit_whose_answer_is_lost_is_loaded_again_and_changes_nothing(
    engine: Engine, knowledge_rows: Rows, embedding_rows: Rows
) -> None:
    rows = knowledge_rows([{"request_id": "r1", "entity_id": "1"}])

    do_commit = engine.dialect.do_commit

    def broken(connection: Any) -> None:
        do_commit(connection)
        with connection.cursor() as cursor:
            if cursor.execute("SELECT FROM knowledge.knowledge").rowcount:
                raise psycopg.OperationalError("server closed the connection unexpectedly")

    engine.dialect.do_commit = broken  # type: ignore[method-assign]
    try:
        with pytest.raises(WarehouseError, match="perhaps while it committed; load again"):
            load_knowledge(engine, rows, embedding_rows(["r1"]))
    finally:
        engine.dialect.do_commit = do_commit  # type: ignore[method-assign]
    assert load_knowledge(engine, rows, embedding_rows(["r1"])) == LoadSummary(0, 1, 0)


def test_pool_texts_are_all_texts_of_a_tokenizer(engine: Engine, knowledge_rows: Rows, embedding_rows: Rows) -> None:
    none = embedding_rows([])
    load_knowledge(engine, knowledge_rows([{"request_id": "b", "entity_id": "1", "token_ids": [1]}]), none)
    load_knowledge(
        engine,
        knowledge_rows(
            [
                {"request_id": "a", "entity_id": "1", "token_ids": [2, 3], "group_name": "Comedy"},
                {"request_id": "c", "entity_id": "2", "tokenizer_hash": "another"},
                {"request_id": "d", "entity_id": "3", "kind": "user"},
            ]
        ),
        none,
    )
    texts = pool_texts(engine, "movies", "item", "t")
    assert texts.schema == schemas.POOL_KNOWLEDGE
    assert [(row["group"], row["token_ids"], row["entity_id"]) for row in texts.to_pylist()] == [
        ("Comedy", [2, 3], "1"),
        ("Drama", [1], "1"),
    ]
    assert pool_texts(engine, "books", "item", "t").num_rows == 0
