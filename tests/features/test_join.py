"""The point-in-time join against a reference that looks at every version of every interaction."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sqlalchemy import Engine
from torch.utils.data import DataLoader

from dare_core.errors import InputError
from dare_core.features.dataset import InteractionDataset
from dare_core.features.history import export_features, feature_schema, read_features
from dare_core.features.join import versions_at
from dare_core.schemas import KINDS, TIME
from dare_core.sources.importer import described, import_tables
from dare_core.warehouse.entities import upsert_entities
from dare_core.warehouse.knowledge import load_knowledge

Rows = Callable[..., pa.Table]
_DAY = datetime(2026, 1, 1, tzinfo=UTC)


def _versions(seed: int, count: int) -> pa.Table:
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        created = _DAY + timedelta(days=int(random.integers(20)))
        rows.append(
            {
                "item_id": str(random.integers(12)),
                "event_timestamp": _DAY + timedelta(days=int(random.integers(10))),
                "created_timestamp": created,
                "valid_to": created + timedelta(days=1) if random.random() < 0.5 else None,
                "group_name": "",
                "text": "",
                "embedding": [float(number + 1), 0.0],
                "request_id": f"r{number:03}",
            }
        )
    return pa.Table.from_pylist(rows, feature_schema("item", 2))


def _seen(versions: list[dict[str, Any]], entity: str, moment: datetime) -> int:
    """The reference."""
    allowed = [
        (version["event_timestamp"], version["created_timestamp"], version["request_id"], at)
        for at, version in enumerate(versions)
        if version["item_id"] == entity
        and version["event_timestamp"] <= moment
        and (version["valid_to"] is None or version["valid_to"] > moment)
    ]
    if not allowed:
        return -1
    newest = max((event, created) for event, created, _, _ in allowed)
    return min((request, at) for event, created, request, at in allowed if (event, created) == newest)[1]


@pytest.mark.parametrize("count", [0, 1, 150])
def test_every_interaction_sees_what_a_look_at_each_version_finds(count: int) -> None:
    versions = _versions(count, count)
    random = np.random.default_rng(1)
    entities = [str(entity) for entity in random.integers(14, size=400)]
    moments = [_DAY + timedelta(days=int(day)) for day in random.integers(-2, 24, size=400)]
    found = versions_at(versions, "item", pa.chunked_array([entities]), pa.chunked_array([pa.array(moments, TIME)]))
    listed = versions.to_pylist()
    assert found.tolist() == [_seen(listed, *asked) for asked in zip(entities, moments, strict=True)]


def test_moments_finer_than_a_microsecond_are_cut_to_it() -> None:
    versions = _versions(3, 150)
    moments = pa.array([_DAY + timedelta(days=day) for day in range(20)], TIME)
    finer = pa.array([int(_DAY.timestamp() + day * 86_400) * 1_000_000_000 + 999 for day in range(20)], pa.int64())
    asked = pa.chunked_array([["3"] * 20])
    found = versions_at(versions, "item", asked, pa.chunked_array([finer.cast(pa.timestamp("ns", "UTC"))]))
    assert found.tolist() == versions_at(versions, "item", asked, pa.chunked_array([moments])).tolist()


def test_a_dataset_gives_vectors_of_the_moment_and_zeros_before() -> None:
    items = pa.Table.from_pylist(
        [
            {
                "item_id": "1", "event_timestamp": _DAY + timedelta(days=day), "created_timestamp": _DAY,
                "valid_to": None, "group_name": "", "text": "", "embedding": [1.0, day], "request_id": str(day),
            }
            for day in (1, 2)
        ],
        feature_schema("item", 2),
    )  # fmt: skip
    users = feature_schema("user", 2).empty_table()
    interactions = pa.table(
        {
            "user_id": ["u"] * 3,
            "item_id": ["1"] * 3,
            "event_timestamp": pa.array([_DAY + timedelta(days=day) for day in range(3)], TIME),
            "label": [0.0, 1.0, 1.0],
        }
    )
    [batch] = DataLoader(InteractionDataset(interactions, items, users), batch_size=3)
    assert batch["item"].tolist() == [[0, 0], [1, 1], [1, 2]]
    assert batch["has_item"].tolist() == [False, True, True]
    assert not batch["has_user"].any() and not batch["user"].any()
    assert batch["label"].dtype == torch.float32
    with pytest.raises(InputError, match="no column label"):
        InteractionDataset(interactions.drop(["label"]), items, users)


@pytest.fixture
def loaded(engine: Engine, entity_rows: Rows, knowledge_rows: Rows, embedding_rows: Rows) -> Engine:
    """Three items and a user, each with two versions; the second one's data is of ten days later."""
    ids = [("item", "1"), ("item", "2"), ("item", "3"), ("user", "u")]
    upsert_entities(engine, entity_rows([{"kind": kind, "entity_id": of} for kind, of in ids]))
    for version in (0, 1):
        rows = [
            {
                "request_id": f"{kind}{of}v{version}", "kind": kind, "entity_id": of, "epoch": version,
                "data_as_of": _DAY - timedelta(days=3000 - 10 * version), "text": f"{of} v{version}",
            }
            for kind, of in ids
        ]  # fmt: skip
        load_knowledge(engine, knowledge_rows(rows), embedding_rows([row["request_id"] for row in rows]))
    return engine


def test_the_export_is_read_as_it_is_and_joins_as_the_warehouse_does(loaded: Engine, tmp_path: Path) -> None:
    assert export_features(loaded, "movies", tmp_path) == {"item": 6, "user": 2}
    exported = {kind: pq.read_table(tmp_path / f"{kind}.parquet") for kind in KINDS}
    assert exported["item"].schema.equals(feature_schema("item", 384), check_metadata=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["item.parquet", "user.parquet"]
    assert read_features(loaded, "movies", "item").equals(exported["item"])
    begin = _DAY - timedelta(days=3000)
    moments = [begin + timedelta(days=days) for days in (-1, 0, 1, 10, 11)]
    ratings = pa.table(
        {
            "user_id": ["u"] * 5,
            "item_id": ["1", "2", "3", "1", "2"],
            "rating": [1.0] * 5,
            "rated_at": pa.array(moments, TIME),
        }
    )
    import_tables(loaded, {"ratings": described(ratings, "test", ["user_id", "item_id", "rated_at"], [])})
    interactions = ratings.rename_columns(["user_id", "item_id", "label", "event_timestamp"])
    joined = InteractionDataset(interactions, exported["item"], exported["user"])
    for kind in KINDS:
        ids = exported[kind]["request_id"].to_pylist()
        here = [ids[row] if row >= 0 else None for row in joined.rows[kind].tolist()]
        with loaded.connect() as connection:
            there = connection.exec_driver_sql(f"""
                SELECT f.request_id FROM source.ratings AS r
                LEFT JOIN LATERAL (SELECT * FROM features.as_of(r.rated_at) WHERE kind = '{kind}') AS f
                    ON f.entity_id = r.{kind}_id
                ORDER BY r.rated_at
            """).scalars()
            assert here == list(there)
        assert here[:2] == [None, None] and here[-1] is not None, "what happens at the moment itself is not seen"


def test_a_domain_without_features_is_named(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no features of domain 'books'"):
        export_features(engine, "books", tmp_path / "out")
