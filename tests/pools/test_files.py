import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from dare_core.errors import PoolError
from dare_core.pools import Pool, PoolStore, retention
from dare_core.pools.files import KEPT_UNREAD_SECONDS
from tests.pools.built import add, build, held, texts


@pytest.fixture
def url() -> Iterator[str]:
    """A root on a file system that is not the local one."""
    memory = fsspec.filesystem("memory")
    yield "memory://bucket/pools"
    memory.rm("/bucket", recursive=True)


def test_a_pool_on_object_storage_is_read_through_a_cache(tmp_path: Path, url: str, cache: Path) -> None:
    pools = PoolStore(url, cache=cache)
    build(pools)
    add(pools)
    assert held(Pool.open(PoolStore(url, cache=cache), "h"), "Drama") == [[1, 2, 3], [1, 2, 9], [7, 8]]
    assert retention.rollback(pools).version == pools.versions()[0]
    assert retention.expire(pools, keep=1)
    pools.check(pools.manifest())
    assert not tmp_path.joinpath("segments").exists()


def test_damage_on_object_storage_is_found_when_it_is_read(url: str, cache: Path, caplog: Any) -> None:
    pools = PoolStore(url, cache=cache)
    old = build(pools)
    new = add(pools)
    memory = fsspec.filesystem("memory")
    name = f"/bucket/pools/segments/{new.groups['Western'].segments[0].sha256}"
    memory.pipe_file(name, memory.cat_file(name)[:-1] + b"x")
    (cache / "segments" / Path(name).name).unlink()
    assert Pool.open(pools, "h").manifest.version == old.version
    assert "is damaged" in caplog.text


def test_the_cache_holds_no_more_than_it_may(url: str, cache: Path) -> None:
    pools = PoolStore(url, cache=cache, cache_bytes=1500)
    for n in range(6):
        build(pools, texts(("Drama", [n, *range(40)])))
        Pool.open(pools, "h")
        assert sum(path.stat().st_size for path in (cache / "segments").iterdir()) <= 1500
    small = PoolStore(url, register=pools.register, cache=cache / "small", cache_bytes=100)
    with pytest.raises(PoolError, match="more than the cache"):
        Pool.open(small, "h")


def test_copies_that_nobody_reads_any_more_go_though_there_is_room(url: str, cache: Path) -> None:
    pools = PoolStore(url, cache=cache)
    build(pools, texts(("Drama", [1, 2, 3])))
    [unread, *others] = (cache / "segments").iterdir()
    long_ago = time.time() - KEPT_UNREAD_SECONDS - 1
    os.utime(unread, (long_ago, long_ago))
    build(pools, texts(("Drama", [4, 5, 6])))
    Pool.open(pools, "h")
    assert not unread.exists()
    assert all(path.exists() for path in others)


def test_local_folders_are_not_copied_into_the_cache(tmp_path: Path, cache: Path) -> None:
    pools = PoolStore(tmp_path / "pools", cache=cache)
    build(pools)
    Pool.open(pools, "h")
    assert pools.files.local == tmp_path / "pools"
    assert not cache.exists()
