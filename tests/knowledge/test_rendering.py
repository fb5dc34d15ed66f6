import json
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from dare_core.config.domains import Domain
from dare_core.knowledge.chat import ChatEncoder
from dare_core.knowledge.rendering import Rendered, Renderer
from dare_core.knowledge.requests import Decoding
from dare_core.schemas import DUE, RENDERING, REQUEST

DECODING = Decoding("m", "hash", "strict", 2, 0.1, 16)


def due(n: int) -> list[dict[str, Any]]:
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
            "earlier": False,
        }
        for i in range(n)
    ]
    pa.Table.from_pylist(rows, DUE).validate(full=True)
    return rows


def render(
    movies: Domain, encoder: ChatEncoder, states: dict[str, str], n: int = 10, room: int = 1000, **changed: Any
) -> Rendered:
    def known(ids: list[str]) -> dict[str, str]:
        return {i: states[i] for i in ids if i in states}

    renderer = Renderer(movies, encoder, DECODING, room, "settings", known)  # type: ignore[arg-type]
    return renderer.render("item", [row | changed for row in due(n)])


def test_due_entities_without_knowledge_are_asked_for_in_their_order(movies: Domain, encoder: ChatEncoder) -> None:
    choice = render(movies, encoder, {})
    assert [row["entity_id"] for row in choice.requests] == [str(i) for i in range(10)]
    pa.Table.from_pylist(choice.requests, REQUEST).validate(full=True)


def test_whatever_was_rendered_is_kept_with_what_the_prompt_showed(movies: Domain, encoder: ChatEncoder) -> None:
    choice = render(movies, encoder, {}, n=5)
    pa.Table.from_pylist(choice.renderings, RENDERING).validate(full=True)
    asked = {row["entity_id"]: row["request_id"] for row in choice.requests}
    assert {row["entity_id"]: row["request_id"] for row in choice.renderings} == asked
    assert choice.renderings[3] == {
        "domain": "movies", "kind": "item", "entity_id": "3", "request_id": asked["3"], "settings": "settings",
        "content": "content 3", "profile": "profile 3", "events": 3,
    }  # fmt: skip


def test_what_an_entity_was_earlier_keeps_no_rendering_and_dates_a_text_that_is_there(
    movies: Domain, encoder: ChatEncoder
) -> None:
    asked = render(movies, encoder, {}, n=2, earlier=True)
    assert (len(asked.requests), asked.renderings) == (2, [])
    [first, _] = asked.requests
    again = render(movies, encoder, {first["request_id"]: "closed"}, n=2, earlier=True)
    assert again.earlier == {first["request_id"]: first["data_as_of"]}
    assert (len(again.requests), again.settled) == (1, {"same_prompt": 1})


def test_valid_and_quarantined_requests_need_no_text_and_are_counted(movies: Domain, encoder: ChatEncoder) -> None:
    ids = {row["entity_id"]: row["request_id"] for row in render(movies, encoder, {}, n=4).requests}
    choice = render(movies, encoder, {ids["1"]: "valid", ids["2"]: "quarantined"}, n=4)
    assert sorted(row["entity_id"] for row in choice.requests) == ["0", "3"]
    assert choice.settled == {"same_prompt": 1, "quarantined": 1}
    assert {row["entity_id"]: row["request_id"] for row in choice.renderings} == ids


def test_knowledge_that_is_too_old_is_asked_for_again_in_a_new_epoch(movies: Domain, encoder: ChatEncoder) -> None:
    [first] = render(movies, encoder, {}, n=1).requests
    choice = render(movies, encoder, {first["request_id"]: "expired"}, n=1)
    [second] = choice.requests
    assert (first["epoch"], second["epoch"]) == (0, 1)
    assert second["request_id"] != first["request_id"]
    assert [row["request_id"] for row in choice.renderings] == [second["request_id"]]
    assert render(movies, encoder, {first["request_id"]: "expired", second["request_id"]: "valid"}, n=1).requests == []


def test_an_entity_whose_prompt_cannot_fit_is_refused_with_the_reason(movies: Domain, encoder: ChatEncoder) -> None:
    choice = render(movies, encoder, {}, n=2, room=10)
    assert choice.requests == []
    assert choice.settled == {"unfit": 2}
    assert {row["rule"] for row in choice.unfit} == {"prompt"}
    assert "of at most 10" in choice.unfit[0]["value"]
    assert [row["request_id"] for row in choice.renderings] == [row["request_id"] for row in choice.unfit]
