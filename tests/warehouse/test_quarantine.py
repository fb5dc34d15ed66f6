"""Review of quarantined texts, on a real database."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from sqlalchemy import Engine

from dare_core import schemas
from dare_core.errors import InputError
from dare_core.warehouse import quarantine
from dare_core.warehouse.entities import upsert_entities
from dare_core.warehouse.knowledge import load_knowledge, request_states

Rows = Callable[..., pa.Table]
WRITTEN = datetime(2026, 1, 1, tzinfo=UTC)
TABLES = ("knowledge", "knowledge_embedding", "quarantine", "quarantined_text")


def everything(engine: Engine) -> list[list[Any]]:
    with engine.connect() as connection:
        return [
            connection.exec_driver_sql(f"SELECT to_jsonb(t)::text FROM knowledge.{table} AS t ORDER BY 1").all()
            for table in TABLES
        ]


def column(engine: Engine, query: str) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.exec_driver_sql(query).scalars())


@pytest.fixture
def refused(engine: Engine, entity_rows: Rows, knowledge_rows: Rows, embedding_rows: Rows) -> Engine:
    """Two films with refused texts, r1 by two rules and with knowledge from before; and a prompt that was unfit."""
    upsert_entities(engine, entity_rows([{"entity_id": "1"}, {"entity_id": "2"}, {"entity_id": "3"}]))
    old = [{"request_id": "r0", "entity_id": "1", "available_at": WRITTEN - timedelta(days=9)}]
    load_knowledge(engine, knowledge_rows(old), embedding_rows(["r0"]))
    texts = knowledge_rows(
        [{"request_id": "r1", "entity_id": "1", "text": "A\0film."}, {"request_id": "r2", "entity_id": "2"}]
    )
    broken = [("r1", "length", "7"), ("r1", "echo", "0.500"), ("r2", "refusal", "i'm sorry"), ("r3", "prompt", "long")]
    rows = [
        {
            "request_id": request_id, "rule": rule, "domain": "movies", "kind": "item", "entity_id": request_id[1],
            "run_id": "run-1", "value": value, "text": "" if rule == "prompt" else "A film.",
            "quarantined_at": WRITTEN + timedelta(hours=1),
        }
        for request_id, rule, value in broken
    ]  # fmt: skip
    quarantine.record(engine, pa.Table.from_pylist(rows, schemas.QUARANTINE), texts)
    return engine


@pytest.fixture
def embed(embedding_rows: Rows) -> Callable[[pa.Table], list[pa.Table]]:
    return lambda texts: [embedding_rows(texts["request_id"].to_pylist())]


Embed = Callable[[pa.Table], list[pa.Table]]


def test_what_is_in_quarantine_is_found_with_all_its_rules(refused: Engine) -> None:
    found = {row.request_id: (row.rules, row.state) for row in quarantine.find(refused)}
    assert found == {
        "r1": ({"length": "7", "echo": "0.500"}, "waiting"),
        "r2": ({"refusal": "i'm sorry"}, "waiting"),
        "r3": ({"prompt": "long"}, "waiting"),
    }
    assert [row.rules for row in quarantine.find(refused, rule="echo")] == [{"length": "7", "echo": "0.500"}]
    assert quarantine.find(refused, run_id="run-2") == quarantine.find(refused, domain="shop") == []
    assert len(quarantine.find(refused, limit=2)) == 2
    assert (quarantine.prompt(refused, "r1"), quarantine.prompt(refused, "r3")) == ("What is it?", None)


def test_a_released_text_is_knowledge_with_its_vector_and_says_who_released_it(refused: Engine, embed: Embed) -> None:
    done = quarantine.release(refused, ["r1"], "ada", embed)
    assert (done.released, done.before) == (["r1"], {})
    assert column(refused, "SELECT request_id FROM features.item") == ["r1"]
    assert column(refused, "SELECT text FROM knowledge.knowledge WHERE valid_to IS NULL") == [
        "A\N{REPLACEMENT CHARACTER}film."
    ]
    assert column(refused, "SELECT request_id FROM knowledge.knowledge WHERE valid_to IS NOT NULL") == ["r0"]
    [row] = quarantine.find(refused, ["r1"])
    assert (row.state, row.released_by) == ("released", "ada")
    assert request_states(refused, ["r1"]) == {"r1": "valid"}


def test_releasing_a_text_again_changes_nothing(refused: Engine, embed: Embed) -> None:
    quarantine.release(refused, ["r1"], "ada", embed)
    before = everything(refused)
    again = quarantine.release(refused, ["r1"], "grace", embed)
    assert (again.released, again.before["r1"][1]) == ([], "ada")
    assert everything(refused) == before


def test_two_reviewers_at_once_release_a_text_once(refused: Engine, embed: Embed) -> None:
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda by: quarantine.release(refused, ["r1"], by, embed), ["ada", "grace"]))
    assert sorted(len(each.released) for each in done) == [0, 1]
    assert column(refused, "SELECT count(*) FROM knowledge.knowledge WHERE request_id = 'r1'") == [1]


def test_a_text_whose_entity_has_newer_knowledge_or_is_gone_is_refused_with_all_others(
    refused: Engine, embed: Embed, knowledge_rows: Rows, embedding_rows: Rows
) -> None:
    newer = [{"request_id": "r9", "entity_id": "1", "available_at": WRITTEN + timedelta(days=2)}]
    load_knowledge(refused, knowledge_rows(newer), embedding_rows(["r9"]))
    before = everything(refused)
    with pytest.raises(InputError, match=r"nothing was released; r1: item 1 has newer knowledge, written 2026-01-03"):
        quarantine.release(refused, ["r1", "r2"], "ada", embed)
    assert everything(refused) == before
    with refused.begin() as connection:
        connection.exec_driver_sql("UPDATE knowledge.entity SET deleted_at = now() WHERE entity_id = '2'")
    with pytest.raises(InputError, match="r2: item 2 is gone from the source since"):
        quarantine.release(refused, ["r2"], "ada", embed)


def test_what_is_not_in_quarantine_or_has_no_text_is_refused(refused: Engine, embed: Embed) -> None:
    with pytest.raises(InputError, match="not in quarantine: r7; `dare quarantine list`"):
        quarantine.release(refused, ["r1", "r7"], "ada", embed)
    with pytest.raises(InputError, match=r"there is no text to release: r3 \(prompt\); nothing was released"):
        quarantine.release(refused, ["r1", "r3"], "ada", embed)
    assert column(refused, "SELECT count(*) FROM knowledge.quarantine WHERE released_at IS NOT NULL") == [0]


def test_a_text_that_is_asked_again_may_still_be_released_and_counts_as_no_try(refused: Engine, embed: Embed) -> None:
    assert quarantine.ask_again(refused, retries=2) == 2
    assert {row.state for row in quarantine.find(refused, ["r1", "r2"])} == {"asked again"}
    assert quarantine.release(refused, ["r2"], "ada", embed).released == ["r2"]
    assert request_states(refused, ["r1", "r2"]) == {"r1": "released", "r2": "valid"}


def test_quarantine_keeps_a_text_once_per_rule_whatever_it_holds(
    engine: Engine, knowledge_rows: Rows, embedding_rows: Rows
) -> None:
    row = {
        "request_id": "r1", "domain": "movies", "kind": "item", "entity_id": "1", "run_id": "run-1", "value": None,
        "text": "nul \0 inside", "quarantined_at": datetime(2026, 1, 1, tzinfo=UTC),
    }  # fmt: skip
    rows = pa.Table.from_pylist([{**row, "rule": "printable"}, {**row, "rule": "length"}], schemas.QUARANTINE)
    assert quarantine.record(engine, rows) == 2
    assert quarantine.record(engine, rows) == 0
    assert column(engine, "SELECT DISTINCT text FROM knowledge.quarantine") == ["nul \N{REPLACEMENT CHARACTER} inside"]
    assert request_states(engine, ["r1"]) == {"r1": "quarantined"}
    load_knowledge(engine, knowledge_rows([{"request_id": "r1", "entity_id": "1"}]), embedding_rows([]))
    assert request_states(engine, ["r1"]) == {"r1": "valid"}
