"""Which store `dare pool` opens for a name, a folder or a URL."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from sqlalchemy import Engine

from dare_core.cli.options import held
from dare_core.cli.pool import pool_store_at
from dare_core.config.settings import load_settings
from dare_core.errors import SettingError
from dare_core.pools import Pool, PoolBuilder
from dare_core.pools.register import FileRegister
from dare_core.warehouse.pools import WarehouseRegister, pool_store


@pytest.fixture
def url(tmp_path: Path, warehouse_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The storage of an installation, on a file system that is not the local one."""
    url = f"memory://{tmp_path.name}/shared"
    monkeypatch.setenv("DARE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("DARE_STORAGE", url)
    monkeypatch.setenv("DARE_WAREHOUSE_URL", warehouse_url)
    monkeypatch.setenv("DARE_POOL_CACHE_GB", "0.000002")
    with held:
        yield url
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


def texts(*tokens: int) -> pa.Table:
    return pa.table({"group": ["Drama"], "token_ids": pa.array([list(tokens)], pa.list_(pa.int32()))})


def test_a_pool_of_the_pipeline_is_meant_by_its_name_and_by_its_url(url: str, engine: Engine) -> None:
    built = PoolBuilder(pool_store(load_settings(), engine, "movies", "item"), "m", "h", 100).build(texts(1, 2, 3))
    for root in ("movies/item", f"{url}/pools/movies/item", f"{url}/pools/movies/item/"):
        store = pool_store_at(root)
        assert isinstance(store.register, WarehouseRegister)
        assert store.current() == built.version
    for other in ("movies/user", f"{url}/elsewhere/movies/item"):
        assert isinstance(pool_store_at(other).register, FileRegister)
    with pytest.raises(SettingError, match="no installed filesystem serves the URL nowhere://movies/item"):
        pool_store_at("nowhere://movies/item")


@pytest.mark.parametrize("root", ["movies/item", "memory://elsewhere/pool"])
def test_what_this_machine_keeps_of_a_pool_is_in_the_data_folder_and_bounded(
    url: str, engine: Engine, tmp_path: Path, root: str
) -> None:
    PoolBuilder(pool_store(load_settings(), engine, "movies", "item"), "m", "h", 100).build(texts(0, 7))
    for token in range(6):
        store = pool_store_at(root)
        PoolBuilder(store, "m", "h", 100).build(texts(token, *range(20)))
        Pool.open(store, "h").group("Drama")
        kept = [path.stat().st_size for path in (tmp_path / "data" / "pool_cache" / "segments").iterdir()]
        assert 0 < sum(kept) <= 2000
