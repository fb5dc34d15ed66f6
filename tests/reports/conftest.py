"""A warehouse of a few entities with hostile names, and a tiny model that writes nonsense about them."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from sqlalchemy import Engine

from dare_core.config.settings import Settings
from dare_core.schemas import ENTITY
from dare_core.warehouse.entities import upsert_entities
from tests.support.tiny_model import save_tiny_model

HOSTILE = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def settings(settings: Settings, warehouse_url: str, engine: Engine, model: Path) -> Settings:
    rows = [
        {
            "domain": "movies",
            "kind": kind,
            "entity_id": f"{number}{HOSTILE}",
            "group_name": f"group {number % 2} {HOSTILE}",
            "attributes": json.dumps({"title": f"Film {number} {HOSTILE}", "history": []}),
            "data_as_of": datetime(1998, 5, 1, tzinfo=UTC),
            "events": 1,
        }
        for kind, count in (("item", 5), ("user", 2))
        for number in range(count)
    ]
    upsert_entities(engine, pa.Table.from_pylist(rows, ENTITY))
    changes = {
        "warehouse_url": warehouse_url,
        "model": str(model),
        "max_new_tokens": 24,
        "shard_size": 3,
        "probe_share": 1.0,
        "max_failing_share": 1.0,
    }
    return Settings.model_validate(settings.model_dump() | changes)
