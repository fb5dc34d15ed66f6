"""An installation with two runs about six items and three users, and how tests look into it."""

import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from sqlalchemy import Engine, text

from dare_core.config.settings import Settings
from dare_core.grouping import (
    CLUSTER_ASSIGNMENT,
    AttributeGroups,
    GroupModel,
    GroupModelStore,
    ItemFactors,
    UserClusters,
)
from dare_core.operations.forgetting import Forgotten
from dare_core.operations.forgetting.traces import Entities
from dare_core.pools import PoolStore
from dare_core.schemas import Kind
from dare_core.stages import generate, load, plan, pools, report
from dare_core.stages.request import RunRequest
from dare_core.warehouse.group_models import WarehousePointer
from dare_core.warehouse.pools import pool_store

NOW = datetime(1998, 5, 1, tzinfo=UTC)
USER = Entities("movies", "user", ("1",))
ITEM = Entities("movies", "item", ("2",))
IDS = [str(number) for number in range(6)]


def entity(kind: Kind, number: int, **attributes: Any) -> dict[str, Any]:
    return {
        "domain": "movies",
        "kind": kind,
        "entity_id": str(number),
        "group_name": f"group {number % 2}",
        "attributes": json.dumps({"title": f"{kind.capitalize()} number {number}", **attributes}),
        "data_as_of": NOW,
        "events": 3,
    }


def met(item: int) -> dict[str, Any]:
    return {"title": f"Item number {item}", "value": 4, "time": "1998-01-01T00:00:00+00:00"}


ENTITIES = [
    *(entity("item", number) for number in range(6)),
    *(entity("user", number, history=[met(number + 3), met(2)]) for number in range(3)),
]


def refresh(settings: Settings, request: RunRequest) -> None:
    """A run from its plan on, the pools and the report included."""
    plan.run(settings, request)
    for part in plan.assignments(settings, request):
        generate.run(settings, request, part)
    load.run(settings, request)
    pools.run(settings.model_copy(update={"max_acceptance_loss": 1.0}), request)
    report.run(settings, request)


def clustered(clusters: list[str]) -> GroupModel:
    return GroupModel(
        AttributeGroups("occupation", "first", "rest", ()),
        UserClusters(("cluster 1", "cluster 2"), np.eye(2, 3, dtype=np.float32), 0.25, named=2),
        ItemFactors(tuple(IDS), np.ones((6, 3), np.float32), 1.0, 0.01),
        pa.table([IDS[:3], clusters], schema=CLUSTER_ASSIGNMENT),
    )


def groups(settings: Settings, engine: Engine) -> GroupModelStore:
    root = str(settings.pool_dir("movies", "user"))
    return GroupModelStore(root, WarehousePointer(engine, "movies", "user", root))


def pool(settings: Settings, engine: Engine, kind: Kind) -> PoolStore:
    return pool_store(settings, engine, "movies", kind)


def rows(engine: Engine, statement: str) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(statement))]


def of(engine: Engine, who: Entities, table: str) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """The rows of a table that are about some entities, and the others."""
    [entity_id] = who.ids
    own = f"(kind = '{who.kind}' AND entity_id = '{entity_id}')"
    query = f"SELECT t::text FROM knowledge.{table} AS t WHERE {{}} ORDER BY 1"
    return rows(engine, query.format(own)), rows(engine, query.format(f"NOT {own}"))


def require_nothing_found(done: Forgotten) -> None:
    assert done.found == []
    assert done.tables > 10
    assert done.searched_files > 10
    assert done.searched_segments > 2
