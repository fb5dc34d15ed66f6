"""The digest of what an installation holds: equal for equal work, other where anything is lost, doubled or changed."""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from sqlalchemy import Engine

from dare_core.config.settings import Settings
from dare_core.knowledge.shards import write_part
from dare_core.operations.digest import Row, digest, unfinished
from dare_core.pools import PoolBuilder, PoolStore
from dare_core.warehouse.knowledge import load_knowledge
from dare_core.warehouse.pools import pool_store
from tests.support.inventory import compare, inventory

Rows = Callable[..., pa.Table]


@pytest.fixture
def settings(settings: Settings, warehouse_url: str) -> Settings:
    return Settings.model_validate(settings.model_dump() | {"warehouse_url": warehouse_url})


def other(row: dict[str, object]) -> dict[str, object]:
    """The same text, written by another run, another day."""
    return {**row, "run_id": "another", "available_at": datetime(2027, 1, 1, tzinfo=UTC), "seconds": 9.0, "steps": 1}


def test_who_wrote_a_text_when_and_how_fast_does_not_count(
    settings: Settings, engine: Engine, knowledge_rows: Rows, embedding_rows: Rows
) -> None:
    row = {"request_id": "r1", "entity_id": "1"}
    digests = []
    for text in (row, other(row)):
        load_knowledge(engine, knowledge_rows([text]), embedding_rows(["r1"]))
        digests.append(digest(settings, engine))
        with engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM knowledge.knowledge")
    assert digests[0] == digests[1]
    assert digests[0]["warehouse.knowledge"].rows == digests[0]["warehouse.knowledge_embedding"].rows == 1
    load_knowledge(engine, knowledge_rows([{**row, "text": "Another."}]), embedding_rows(["r1"]))
    changed = digest(settings, engine)
    assert changed["warehouse.knowledge"] != digests[0]["warehouse.knowledge"]
    assert changed["warehouse.knowledge_embedding"] == digests[0]["warehouse.knowledge_embedding"]


def test_a_pool_counts_by_its_texts_not_by_its_files(settings: Settings, engine: Engine) -> None:
    def texts(*ids: list[int]) -> pa.Table:
        return pa.table({"group": ["Drama"] * len(ids), "token_ids": pa.array(ids, pa.list_(pa.int32()))})

    def made(*nights: pa.Table) -> object:
        store: PoolStore = pool_store(settings, engine, "movies", "item")
        PoolBuilder(store, "m", "t", 100).build(nights[0])
        for night in nights[1:]:
            PoolBuilder(store, "m", "t", 100).add(night)
        return digest(settings, engine)["pool.movies.item"]

    at_once = made(texts([1, 2], [3]))
    assert made(texts([1, 2]), texts([3])) == at_once
    assert made(texts([1, 2]), texts([4])) != at_once
    assert unfinished(settings, engine) == []
    for segment in (settings.pool_dir("movies", "item") / "segments").iterdir():
        segment.write_bytes(b"")
    assert all("damaged" in problem for problem in unfinished(settings, engine))


def test_staged_parts_count_by_their_rows(settings: Settings, engine: Engine, knowledge_rows: Rows) -> None:
    rows = knowledge_rows([{"request_id": "r1", "entity_id": "1"}, {"request_id": "r2", "entity_id": "2"}]).to_pylist()
    write_part(settings.run_dir("one") / "staged" / "item-0000", 0, rows, 1.0)
    together = digest(settings, engine)["staged.texts"]
    write_part(settings.run_dir("one") / "staged" / "item-0000", 0, rows[1:], 1.0)
    write_part(settings.run_dir("one") / "staged" / "item-0000", 1, [other(rows[0])], 2.0)
    assert digest(settings, engine)["staged.texts"] == together
    wanted = inventory(settings, engine)
    write_part(settings.run_dir("one") / "staged" / "item-0000", 2, rows[:1], 1.0)
    assert compare(wanted, inventory(settings, engine)).doubled == {"staged.texts": 1}


def test_rows_are_told_apart_by_what_became_of_them() -> None:
    a, b, c = (Row(key, b"said") for key in (b"a", b"b", b"c"))
    found = compare({"part": Counter([a, b])}, {"part": Counter([a, a, Row(b"b", b"otherwise")])})
    assert (found.lost, found.doubled, found.changed) == ({}, {"part": 1}, {"part": 1})
    assert compare({"part": Counter([a, b, c])}, {"part": Counter([b])}).lost == {"part": 2}
    assert not compare({"part": Counter([a])}, {"part": Counter([a])})


def test_validity_that_ends_before_it_begins_and_texts_without_a_vector_are_unfinished(
    settings: Settings, engine: Engine, knowledge_rows: Rows, embedding_rows: Rows
) -> None:
    load_knowledge(engine, knowledge_rows([{"request_id": "r1", "entity_id": "1"}]), embedding_rows(["r1"]))
    assert unfinished(settings, engine) == []
    load_knowledge(engine, knowledge_rows([{"request_id": "r2", "entity_id": "2"}]), embedding_rows([]))
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE knowledge.knowledge SET valid_to = valid_from - interval '1 day' WHERE request_id = 'r1'"
        )
    assert unfinished(settings, engine) == [
        "1 texts are valid until before they are valid",
        "1 valid texts have no vector of the encoder in force",
    ]
