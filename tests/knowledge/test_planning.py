import json
from collections.abc import Iterator
from datetime import UTC, datetime

import pyarrow as pa

from dare_core.domains import Domain
from dare_core.knowledge.chat import ChatEncoder
from dare_core.knowledge.planning import Planner
from dare_core.knowledge.requests import Decoding
from dare_core.schemas import ENTITY, REQUEST

DECODING = Decoding("m", "hash", "strict", 2, 0.1, 16)


def entities(n: int) -> Iterator[pa.RecordBatch]:
    rows = [
        {
            "domain": "movies",
            "kind": "item",
            "entity_id": str(i),
            "group_name": f"group {i % 3}",
            "attributes": json.dumps({"title": f"Film {i}"}),
            "data_as_of": datetime(1998, 1, 1, tzinfo=UTC),
        }
        for i in range(n)
    ]
    yield from pa.Table.from_pylist(rows, ENTITY).to_batches(max_chunksize=4)


def planner(movies: Domain, encoder: ChatEncoder, states: dict[str, str], room: int = 1000) -> Planner:
    return Planner(movies, encoder, DECODING, room, lambda ids: {i: states[i] for i in ids if i in states})  # type: ignore[misc]


def test_entities_without_knowledge_are_asked_for_sorted_by_group(movies: Domain, encoder: ChatEncoder) -> None:
    rows = planner(movies, encoder, {}).choose("item", entities(10), None)
    assert len(rows) == 10
    assert [row["group_name"] for row in rows] == sorted(row["group_name"] for row in rows)
    pa.Table.from_pylist(rows, REQUEST).validate(full=True)


def test_a_limit_takes_the_first_that_need_it(movies: Domain, encoder: ChatEncoder) -> None:
    everything = planner(movies, encoder, {}).choose("item", entities(10), None)
    first = next(row["request_id"] for row in everything if row["entity_id"] == "0")
    rows = planner(movies, encoder, {first: "valid"}).choose("item", entities(10), 3)
    assert sorted(row["entity_id"] for row in rows) == ["1", "2", "3"]


def test_valid_and_quarantined_requests_are_skipped_and_counted(movies: Domain, encoder: ChatEncoder) -> None:
    ids = {
        row["entity_id"]: row["request_id"] for row in planner(movies, encoder, {}).choose("item", entities(4), None)
    }
    busy = planner(movies, encoder, {ids["1"]: "valid", ids["2"]: "quarantined"})
    assert sorted(row["entity_id"] for row in busy.choose("item", entities(4), None)) == ["0", "3"]
    assert dict(busy.skipped) == {"item_valid": 1, "item_quarantined": 1}


def test_closed_knowledge_is_asked_for_again_in_a_new_epoch(movies: Domain, encoder: ChatEncoder) -> None:
    [first] = planner(movies, encoder, {}).choose("item", entities(1), None)
    [second] = planner(movies, encoder, {first["request_id"]: "closed"}).choose("item", entities(1), None)
    assert (first["epoch"], second["epoch"]) == (0, 1)
    assert second["request_id"] != first["request_id"]
    both = planner(movies, encoder, {first["request_id"]: "closed", second["request_id"]: "valid"})
    assert both.choose("item", entities(1), None) == []


def test_an_entity_whose_prompt_cannot_fit_is_refused_with_the_reason(movies: Domain, encoder: ChatEncoder) -> None:
    tight = planner(movies, encoder, {}, room=10)
    assert tight.choose("item", entities(2), None) == []
    assert dict(tight.skipped) == {"item_unfit": 2}
    assert {row["rule"] for row in tight.unfit} == {"prompt"}
    assert "of at most 10" in tight.unfit[0]["value"]
