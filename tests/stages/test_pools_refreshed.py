"""From loaded knowledge to pool versions: what was loaded since is added, in this process or by Spark."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from sqlalchemy import Engine

from dare_core import schemas
from dare_core.config.settings import Settings
from dare_core.grouping import AttributeGroups, GroupModel, GroupModelStore
from dare_core.pools import PoolManifest, PoolStore
from dare_core.stages import pools
from dare_core.stages.pools import Build, refresh_pool
from dare_core.warehouse.group_models import WarehousePointer
from dare_core.warehouse.knowledge import load_knowledge

Load = Callable[..., None]
BUILD = Build("movies", "hash", 1000)


@pytest.fixture
def load(engine: Engine) -> Load:
    """Loads texts of items: ``entity=(group, token ids)``."""
    loads = iter(range(100))

    def load(tokenizer_hash: str = "hash", **texts: tuple[str, Sequence[int]]) -> None:
        number = next(loads)
        moment = datetime(2024, 1, 1, tzinfo=UTC)
        rows: list[dict[str, Any]] = [
            {
                **{field.name: 0 for field in schemas.KNOWLEDGE if not pa.types.is_string(field.type)},
                **{field.name: "" for field in schemas.KNOWLEDGE if pa.types.is_string(field.type)},
                "request_id": f"{number} {entity}", "domain": "movies", "kind": "item", "entity_id": entity,
                "group_name": group, "prompt_token_ids": [], "token_ids": list(ids), "tokenizer_hash": tokenizer_hash,
                "verification": "strict", "data_as_of": moment, "available_at": moment,
            }
            for entity, (group, ids) in texts.items()
        ]  # fmt: skip
        table = pa.Table.from_pylist(rows, schemas.KNOWLEDGE)
        load_knowledge(engine, table, schemas.KNOWLEDGE_EMBEDDING.empty_table())

    return load


@pytest.fixture
def refresh(settings: Settings, engine: Engine, warehouse_url: str) -> Callable[..., PoolManifest | None]:
    def refresh(build: Build = BUILD, store: PoolStore | None = None, **changes: object) -> PoolManifest | None:
        changed = settings.model_copy(update=changes)
        store = store or PoolStore(settings.pool_dir("movies", "item"))
        return refresh_pool(changed, warehouse_url, engine, store, build, "item")

    return refresh


def held(manifest: PoolManifest | None) -> dict[str, int]:
    assert manifest is not None
    return {group: part.texts for group, part in manifest.groups.items() if group != "*"}


def test_what_was_loaded_since_is_added_and_read_once(
    load: Load, refresh: Callable[..., PoolManifest | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refresh() is None
    load(a=("Drama", [1, 2]), b=("日本", [3]))
    first = refresh()
    assert held(first) == {"Drama": 1, "日本": 1}
    assert refresh() == first  # nothing new: the same version
    load(a=("Drama", [4, 5]), c=("Comedy", [6]))
    read: list[int] = []
    texts = pools.pool_texts
    monkeypatch.setattr(pools, "pool_texts", lambda *given: (found := texts(*given), read.append(len(found)))[0])
    second = refresh()
    assert held(second) == {"Drama": 2, "日本": 1, "Comedy": 1}
    assert read == [2]  # not those of the first load
    assert second is not None and first is not None
    assert second.groups["日本"] == first.groups["日本"]


def test_a_lost_mark_costs_reading_everything_and_changes_nothing(
    load: Load, refresh: Callable[..., PoolManifest | None], settings: Settings
) -> None:
    load(a=("Drama", [1, 2]), b=("Comedy", [3]))
    first = refresh()
    assert first is not None
    (settings.pool_dir("movies", "item") / "loaded" / first.version).unlink()
    again = refresh()
    assert held(again) == held(first)
    assert again is not None
    assert again.tokens == first.tokens


def test_a_pool_of_another_tokenizer_is_built_anew(load: Load, refresh: Callable[..., PoolManifest | None]) -> None:
    load(a=("Drama", [1, 2]), b=("Comedy", [3]))
    refresh()
    load("other", c=("Drama", [900]))
    assert held(refresh(Build("movies", "other", 1000))) == {"Drama": 1}
    assert refresh(Build("movies", "a third", 1000)) is None


def test_the_group_model_in_force_is_the_version_s_scheme(
    load: Load, refresh: Callable[..., PoolManifest | None], settings: Settings, engine: Engine
) -> None:
    load(a=("Drama", [1, 2]))
    model = GroupModel(AttributeGroups("genres", "first", "rest", ("Drama",)))
    root = settings.pool_dir("movies", "item")
    scheme = GroupModelStore(root, WarehousePointer(engine, "movies", "item", str(root))).publish(model)
    manifest = refresh()
    assert manifest is not None
    assert manifest.scheme == scheme


def test_spark_adds_the_same_texts(load: Load, refresh: Callable[..., PoolManifest | None], settings: Settings) -> None:
    alone, spark = PoolStore(settings.data_dir / "alone"), PoolStore(settings.data_dir / "spark")
    load(a=("Drama", [1, 2]), b=("日本", [3]), c=("empty", []))
    assert held(refresh(store=alone)) == held(refresh(store=spark))
    load(a=("Drama", [4, 5]), d=("Comedy", [6]))
    added = refresh(store=spark, spark_pool_texts=2)
    assert held(added) == {"Drama": 2, "日本": 1, "Comedy": 1}
    assert added == refresh(store=alone)


def test_what_was_loaded_after_the_clock_was_set_back_is_added_too(
    load: Load, refresh: Callable[..., PoolManifest | None], engine: Engine
) -> None:
    load(a=("Drama", [1, 2]))
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE knowledge.knowledge SET valid_from = now() + interval '2 days'")
    refresh()
    load(b=("Comedy", [3]))
    assert held(refresh()) == {"Drama": 1, "Comedy": 1}
    load(c=("Comedy", [4]))
    assert held(refresh()) == {"Drama": 1, "Comedy": 2}
