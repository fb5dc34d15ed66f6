"""How alike an interaction's item is to what its user had liked before, as a dataset gives it."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader

from dare_core.features.dataset import InteractionDataset
from dare_core.features.history import feature_schema
from dare_core.features.likeness import FIGURES, INTERACTIONS
from dare_core.schemas import TIME

_DAY = datetime(2026, 1, 1, tzinfo=UTC)


def _items(rows: list[dict[str, Any]]) -> pa.Table:
    usual = {
        "event_timestamp": _DAY, "created_timestamp": _DAY, "valid_to": None, "group_name": "", "text": "",
        "form": "answer",
    }  # fmt: skip
    whole = [usual | {"request_id": f"r{number}"} | row for number, row in enumerate(rows)]
    schema = feature_schema("item", 2)
    forms = pa.array([row["form"] for row in whole])
    table = pa.Table.from_pylist(whole, schema)
    return table if "form" in schema.names else table.append_column("form", forms)


def _interactions(rows: list[tuple[str, str, int, float]]) -> pa.Table:
    user, item, day, label = zip(*rows, strict=True)
    times = pa.array([_DAY + timedelta(days=one) for one in day], TIME)
    return pa.table({"user_id": user, "item_id": item, "event_timestamp": times, "label": label})


def _likeness(items: pa.Table, interactions: pa.Table) -> list[list[float]]:
    dataset = InteractionDataset(interactions, items, feature_schema("user", 2).empty_table())
    [batch] = DataLoader(dataset, batch_size=len(dataset))
    assert batch["likeness"].dtype == torch.float32 and batch["likeness"].shape[1] == FIGURES
    return [
        [round(value, 4) for value in [*row[:4], *map(float, torch.nonzero(torch.tensor(row[4:]))[:, 0])]]
        for row in batch["likeness"].tolist()
    ]


def test_a_dataset_tells_how_alike_an_item_is_to_what_the_user_had_liked() -> None:
    items = _items(
        [
            {"item_id": "a", "embedding": [1.0, 0.0]},
            {"item_id": "b", "embedding": [0.6, 0.8]},
            {"item_id": "c", "embedding": [-1.0, 0.0]},
        ]
    )
    interactions = _interactions(
        [
            ("u", "a", 4, 1.0),  # met before: b and c, liked, and b, not
            ("u", "b", 1, 1.0),
            ("u", "c", 2, 0.5),
            ("u", "b", 3, 0.0),  # b itself, and c, all liked
            ("v", "a", 9, 1.0),  # of another user
            ("u", "nowhere", 9, 1.0),
            ("u", "a", 5, 0.0),  # b, c, b again and a
        ]
    )
    b = math.exp((0.6 - 1) / 0.1)  # what b weighs for a; c weighs next to nothing
    # likes, mean, max, leaning, tiers that hold any
    assert _likeness(items, interactions) == [
        [2, -0.2, 0.6, round(3 / 13 * (1 / 2 - 2 / 3), 4), 0, 6],
        [0, 0, 0, 0],
        [1, -0.6, -0.6, 0, 0],
        [2, 0.2, 1, 0, 0, 9],
        [0, 0, 0, 0],
        [0, 0, 0, 0],
        [3, 0.2, 1, round(4 / 14 * ((1 + b) / (1 + 2 * b) - 3 / 4), 4), 0, 6, 9],
    ]


def test_likes_are_compared_in_the_version_of_the_later_interactions_moment() -> None:
    items = _items(
        [
            {"item_id": "a", "embedding": [1.0, 0.0]},
            {"item_id": "b", "embedding": [1.0, 0.0]},
            {"item_id": "b", "embedding": [0.0, 1.0], "event_timestamp": _DAY + timedelta(days=5)},
        ]
    )
    interactions = _interactions([("u", "b", 1, 1.0), ("u", "a", 2, 0.0), ("u", "a", 6, 0.0)])
    assert _likeness(items, interactions) == [[0, 0, 0, 0], [1, 1, 1, 0, 9], [1, 0, 0, round(-2 / 12 / 2, 4), 0]]


def test_vectors_that_are_made_of_something_else_are_not_compared() -> None:
    rows = [
        {"item_id": "a", "embedding": [1.0, 0.0], "form": "answer"},
        {"item_id": "b", "embedding": [1.0, 0.0], "form": "attributes+answer"},
        {"item_id": "c", "embedding": [1.0, 0.0], "form": "attributes+answer"},
    ]
    interactions = _interactions([("u", "a", 1, 1.0), ("u", "b", 2, 1.0), ("u", "c", 3, 1.0), ("u", "a", 4, 1.0)])
    assert [row[0] for row in _likeness(_items(rows), interactions)] == [0, 0, 1, 1]
    assert [row[0] for row in _likeness(_items(rows).drop_columns(["form"]), interactions)] == [0, 1, 2, 3]


def test_of_likes_of_one_moment_those_of_greater_item_ids_count_in_any_order_of_rows() -> None:
    items = _items([{"item_id": f"{n:03}", "embedding": [math.cos(n / 99), math.sin(n / 99)]} for n in range(100)])
    rows = [("u", f"{n:03}", 1, 1.0) for n in range(100)]
    asked = [("u", "000", 2, 0.0)]
    first, *_ = _likeness(items, _interactions([*asked, *rows]))
    *_, last = _likeness(items, _interactions([*rows[::-1], *asked]))
    assert first == last
    assert first[:3] == [
        INTERACTIONS,
        pytest.approx(np.cos(np.arange(50, 100) / 99).mean(), abs=1e-4),
        round(math.cos(50 / 99), 4),
    ]


def test_without_versions_or_interactions_there_is_no_likeness() -> None:
    nothing = feature_schema("item", 2).empty_table()
    assert _likeness(nothing, _interactions([("u", "a", 1, 1.0), ("u", "a", 2, 1.0)])) == [[0, 0, 0, 0]] * 2
    empty = InteractionDataset(
        _interactions([("u", "a", 1, 1.0)]).slice(0, 0),
        nothing,
        nothing.rename_columns(["user_id", *nothing.column_names[1:]]),
    )
    assert empty.batch([]).keys() >= {"likeness"} and len(empty) == 0
