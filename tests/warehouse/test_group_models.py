from pathlib import Path

import pytest
from sqlalchemy import Engine

from dare_core.errors import WarehouseError
from dare_core.grouping import AttributeGroups, GroupModel, GroupModelStore
from dare_core.schemas import Kind
from dare_core.warehouse.connection import connect
from dare_core.warehouse.group_models import WarehousePointer


def model(*names: str) -> GroupModel:
    return GroupModel(AttributeGroups("genres", "first", "rest", names))


def store(engine: Engine, root: Path, kind: Kind = "item") -> GroupModelStore:
    return GroupModelStore(root, WarehousePointer(engine, "movies", kind, str(root)))


def test_the_group_model_in_force_is_a_row_of_the_warehouse_for_each_kind(engine: Engine, tmp_path: Path) -> None:
    assert store(engine, tmp_path).read() is None
    store(engine, tmp_path).publish(model("Drama"))
    second = store(engine, tmp_path).publish(model("Drama", "War"))
    assert store(engine, tmp_path).current() == second
    read = store(engine, tmp_path).read()
    assert read is not None
    assert read.attributes.names == ("Drama", "War")
    assert store(engine, tmp_path, "user").current() is None
    assert not (tmp_path / "grouping" / "CURRENT").exists()


def test_a_warehouse_without_the_table_says_what_to_do(empty_database_url: str, tmp_path: Path) -> None:
    with pytest.raises(WarehouseError, match="dare warehouse upgrade"):
        store(connect(empty_database_url), tmp_path).read()
