import json
from collections.abc import Iterator
from datetime import UTC, datetime

import pyarrow as pa

from dare_core.config.domains import Domain
from dare_core.knowledge.chat import ChatEncoder
from dare_core.knowledge.planning import Choice, Planner
from dare_core.knowledge.requests import Decoding
from dare_core.schemas import DUE, RENDERING, REQUEST

DECODING = Decoding("m", "hash", "strict", 2, 0.1, 16)


def due(n: int) -> Iterator[pa.RecordBatch]:
    rows = [
        {
            "domain": "movies",
            "kind": "item",
            "entity_id": str(i),
            "group_name": f"group {i % 3}",
            "attributes": json.dumps({"title": f"Film {i}"}),
            "data_as_of": datetime(1998, 1, 1, tzinfo=UTC),
            "events": i,
            "content": f"content {i}",
            "profile": f"profile {i}",
            "verdict": "new",
        }
        for i in range(n)
    ]
    yield from pa.Table.from_pylist(rows, DUE).to_batches(max_chunksize=4)


def choose(
    movies: Domain,
    encoder: ChatEncoder,
    states: dict[str, str],
    n: int = 10,
    limit: int | None = None,
    room: int = 1000,
) -> Choice:
    def known(ids: list[str]) -> dict[str, str]:
        return {i: states[i] for i in ids if i in states}

    planner = Planner(movies, encoder, DECODING, room, "settings", known)  # type: ignore[arg-type]
    return planner.choose("item", due(n), limit)


def test_due_entities_without_knowledge_are_asked_for_sorted_by_group(movies: Domain, encoder: ChatEncoder) -> None:
    choice = choose(movies, encoder, {})
    assert len(choice.requests) == 10
    assert [row["group_name"] for row in choice.requests] == sorted(row["group_name"] for row in choice.requests)
    pa.Table.from_pylist(choice.requests, REQUEST).validate(full=True)


def test_whatever_was_rendered_is_kept_with_what_the_prompt_showed(movies: Domain, encoder: ChatEncoder) -> None:
    choice = choose(movies, encoder, {}, n=5)
    pa.Table.from_pylist(choice.rendered, RENDERING).validate(full=True)
    asked = {row["entity_id"]: row["request_id"] for row in choice.requests}
    assert {row["entity_id"]: row["request_id"] for row in choice.rendered} == asked
    assert choice.rendered[3] == {
        "domain": "movies", "kind": "item", "entity_id": "3", "request_id": asked["3"], "settings": "settings",
        "content": "content 3", "profile": "profile 3", "events": 3,
    }  # fmt: skip


def test_a_limit_takes_the_first_that_need_it(movies: Domain, encoder: ChatEncoder) -> None:
    first = next(row["request_id"] for row in choose(movies, encoder, {}).requests if row["entity_id"] == "0")
    choice = choose(movies, encoder, {first: "valid"}, limit=3)
    assert sorted(row["entity_id"] for row in choice.requests) == ["1", "2", "3"]


def test_valid_and_quarantined_requests_need_no_text_and_are_counted(movies: Domain, encoder: ChatEncoder) -> None:
    ids = {row["entity_id"]: row["request_id"] for row in choose(movies, encoder, {}, n=4).requests}
    choice = choose(movies, encoder, {ids["1"]: "valid", ids["2"]: "quarantined"}, n=4)
    assert sorted(row["entity_id"] for row in choice.requests) == ["0", "3"]
    assert choice.settled == {"same_prompt": 1, "quarantined": 1}
    assert {row["entity_id"]: row["request_id"] for row in choice.rendered} == ids


def test_knowledge_that_is_too_old_is_asked_for_again_in_a_new_epoch(movies: Domain, encoder: ChatEncoder) -> None:
    [first] = choose(movies, encoder, {}, n=1).requests
    choice = choose(movies, encoder, {first["request_id"]: "expired"}, n=1)
    [second] = choice.requests
    assert (first["epoch"], second["epoch"]) == (0, 1)
    assert second["request_id"] != first["request_id"]
    assert [row["request_id"] for row in choice.rendered] == [second["request_id"]]
    assert choose(movies, encoder, {first["request_id"]: "expired", second["request_id"]: "valid"}, n=1).requests == []


def test_an_entity_whose_prompt_cannot_fit_is_refused_with_the_reason(movies: Domain, encoder: ChatEncoder) -> None:
    choice = choose(movies, encoder, {}, n=2, room=10)
    assert choice.requests == []
    assert choice.settled == {"unfit": 2}
    assert {row["rule"] for row in choice.unfit} == {"prompt"}
    assert "of at most 10" in choice.unfit[0]["value"]
    assert [row["request_id"] for row in choice.rendered] == [row["request_id"] for row in choice.unfit]
