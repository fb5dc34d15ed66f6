from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from sqlalchemy import Engine

from dare_core.errors import PoolError, WarehouseError
from dare_core.pools import Pool, PoolBuilder, PoolManifest, PoolStore, retention
from dare_core.warehouse.pools import WarehouseRegister, current_pool

Build = Callable[..., PoolManifest]


@pytest.fixture
def pools(engine: Engine, tmp_path: Path) -> PoolStore:
    return PoolStore(tmp_path, WarehouseRegister(engine, "movies", "item", str(tmp_path)))


def build(pools: PoolStore, *token_ids: int) -> PoolManifest:
    return PoolBuilder(pools, "m", "h", 100).build(pa.table({"group": ["Drama"], "token_ids": [list(token_ids)]}))


def test_the_version_in_force_is_a_row_of_the_warehouse(pools: PoolStore, engine: Engine, tmp_path: Path) -> None:
    assert pools.versions() == []
    first, second = build(pools, 1, 2), build(pools, 3)
    row = current_pool(engine, "movies", "item")
    assert row is not None
    assert (row["version"], row["groups"], row["texts"], row["tokens"]) == (second.version, 1, 1, 1)
    assert row["location"] == str(tmp_path)
    assert current_pool(engine, "movies", "user") is None
    assert pools.versions() == [second.version, first.version]
    assert not (tmp_path / "CURRENT").exists()
    assert retention.rollback(pools).version == first.version == pools.current()
    assert build(pools, 3).version == second.version == pools.current()  # built again, it is in force again


def test_each_kind_has_a_version_in_force_and_a_row_that_cannot_be_written_leaves_it(
    pools: PoolStore, engine: Engine, tmp_path: Path
) -> None:
    version = build(pools, 1).version
    others = WarehouseRegister(engine, "movies", "user", str(tmp_path))
    others.publish(pools.manifest(version), None)
    assert (pools.register.versions(), others.versions()) == ([version], [version])
    unknown_kind = WarehouseRegister(engine, "movies", "shop", str(tmp_path))  # type: ignore[arg-type]
    with pytest.raises(WarehouseError, match=f"{version} cannot be published: .*pool_version_kind"):
        unknown_kind.publish(pools.manifest(version), None)
    assert pools.register.versions() == [version]


def test_of_two_builders_the_slower_one_is_told(pools: PoolStore) -> None:
    first = build(pools, 1)
    build(pools, 2)
    with pytest.raises(PoolError, match="another builder has published"):
        PoolBuilder(pools, "m", "h", 100).publish({}, replacing=first.version)


def test_a_version_in_use_is_not_expired(pools: PoolStore) -> None:
    versions = [build(pools, n).version for n in range(4)]
    pools.pin(versions[0], "run 1")
    pools.pin(versions[1], "run 2")
    pools.pin(versions[1], "run 2")  # a run that is planned again pins again
    assert pools.register.pins() == {"run 1": versions[0], "run 2": versions[1]}
    assert retention.expire(pools, keep=1) == [versions[2]]
    pools.unpin("run 1")
    with pytest.raises(PoolError, match="is in use and stays"):
        pools.register.drop(versions[1])
    assert retention.expire(pools, keep=1) == [versions[0]]
    with pytest.raises(PoolError, match="no version"):
        pools.pin(versions[0], "run 3")


def test_a_worker_without_the_warehouse_falls_back_to_the_version_before(pools: PoolStore, tmp_path: Path) -> None:
    old = build(pools, 1)
    new = build(pools, 2)
    (tmp_path / "segments" / new.groups["Drama"].segments[0].sha256).unlink()
    assert Pool.open(PoolStore(tmp_path), "h", new.version).manifest.version == old.version
