import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dare_core.errors import PoolError
from dare_core.pools import GLOBAL_GROUP, Pool, PoolManifest, PoolStore, retention
from dare_core.pools.segments import TEXT_ROW, Segment, entity_hash
from tests.pools.built import OTHER, VOCABULARY, add, build, files, held, texts


def test_versions_are_rolled_back_and_forth(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    with pytest.raises(PoolError, match="there is no pool"):
        retention.rollback(pools)
    old = build(pools)
    with pytest.raises(PoolError, match="has no version before"):
        retention.rollback(pools)
    new = add(pools)
    assert retention.rollback(pools).version == old.version == pools.current()
    assert retention.rollback(pools, new.version).version == new.version == pools.current()


def test_the_latest_versions_and_those_in_use_are_kept_the_others_expire(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    made = [build(pools).version, *(add(pools, texts(("Drama", [n, n + 1]))).version for n in range(10, 15))]
    pools.pin(made[1], "run 1")
    assert retention.expire(pools, keep=2) == [made[3], made[2], made[0]]
    assert pools.versions() == [made[5], made[4], made[1]]
    for version in (made[5], made[4], made[1]):
        pools.check(pools.manifest(version))
    pools.unpin("run 1")
    assert retention.expire(pools, keep=0) == [made[4], made[1]]  # the one in force stays
    named = {e.sha256 for part in pools.manifest().groups.values() for e in part.segments}
    assert files(tmp_path / "segments") == named
    assert held(Pool.open(pools, "h"), "Drama")


def test_a_pin_of_a_version_that_is_not_there_is_refused(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    build(pools)
    with pytest.raises(PoolError, match="no version"):
        pools.pin("0123456789abcdef", "run 1")


def test_files_of_a_builder_at_work_are_not_expired(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    build(pools)
    old = add(pools, OTHER)
    entry = pools.write_segment(Segment.build(texts(("Drama", [50])), VOCABULARY))
    add(pools, texts(("Drama", [51])))
    assert retention.expire(pools, keep=1)[0] == old.version
    path = tmp_path / "segments" / entry.sha256
    assert path.exists()
    os.utime(path, (time.time() - 90_000,) * 2)
    retention.expire(pools, keep=1)
    assert not path.exists()


def test_a_forgotten_entitys_texts_leave_every_segment_and_do_not_come_back(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    mine = ("Drama", [11, 12, 13], "user 7")
    build(pools, texts(mine, ("Drama", [1, 2, 3], "user 8"), *(("Horror", [n, n], f"u{n}") for n in range(20))))
    old = add(pools, texts(("Horror", [14, 15, 16], "user 7")))
    assert len(old.groups["Horror"].segments) == 2
    new = retention.forget(pools, ["user 7"])

    def about(manifest: PoolManifest) -> int:
        pool = Pool.open(pools, "h", manifest.version)
        rows = np.concatenate([np.empty(0, TEXT_ROW), *(s.rows for name in manifest.groups for s in pool.group(name))])
        return int((rows["entity"] == entity_hash("user 7")).sum())

    assert about(old) == 4
    assert about(new) == 0
    assert about(add(pools, texts(mine, ("Drama", [20], "user 9")))) == 0
    rebuilt = build(pools, texts(mine, ("Drama", [1, 2, 3], "user 8")))
    assert about(rebuilt) == 0
    retention.expire(pools, keep=1)
    left = b"".join(path.read_bytes() for path in (tmp_path / "segments").iterdir())
    assert np.array([11, 12, 13], np.int32).tobytes() not in left
    assert np.array([14, 15, 16], np.int32).tobytes() not in left
    assert np.array([1, 2, 3], np.int32).tobytes() in left


def test_a_group_whose_last_text_is_forgotten_is_gone(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    build(pools, texts(("Drama", [1], "a"), ("Horror", [2], "b")))
    assert set(retention.forget(pools, ["b"]).groups) == {GLOBAL_GROUP, "Drama"}
    assert Pool.open(pools, "h").resolve("Horror") == GLOBAL_GROUP


def test_purging_leaves_no_file_that_holds_a_text_of_the_entity(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    mine, hers = ("Drama", [11, 12, 13], "user 7"), ("Drama", [1, 2, 3], "user 8")
    without = build(pools, texts(hers))
    first, second = build(pools, texts(mine, hers)), add(pools, texts(("Horror", [14, 15], "user 7")))
    pools.pin(first.version, "a run that is over")
    candidate = PoolManifest.of(second.groups, **{**_facts(second), "model": "another"})
    pools.files.write(f"versions/{candidate.version}.json", candidate.to_json())
    (tmp_path / "segments" / ".writing-x").write_bytes(b"cut short")
    removed = retention.purge(pools, ["user 7"])
    assert sorted(removed) == sorted([first.version, second.version, candidate.version])
    assert pools.versions()[1:] == [without.version], "which never held any"
    assert retention.holding(pools, ["user 7"]) == []
    assert held(Pool.open(pools, "h"), "Drama") == [[1, 2, 3]]
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or np.array([11, 12, 13], np.int32).tobytes() not in path.read_bytes()
    (notes,) = (tmp_path / "verified").iterdir()
    assert set(json.loads(notes.read_bytes())) <= {path.name for path in (tmp_path / "segments").iterdir()}
    in_force = pools.current()
    assert (retention.purge(pools, ["user 7"]), pools.current()) == ([], in_force), "again, it changes nothing"


def test_texts_that_a_pool_knows_nobody_for_are_purged_by_their_tokens(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    build(pools, texts(("Drama", [11, 12, 13]), ("Drama", [1, 2, 3]), ("Horror", [11, 12, 13], "user 8")))
    assert len(retention.holding(pools, [], [[11, 12, 13]])) == 2, "of the group and of all groups"
    retention.purge(pools, [], [[11, 12, 13]])
    assert held(Pool.open(pools, "h"), "Drama") == [[1, 2, 3]]
    assert held(Pool.open(pools, "h"), "Horror") == [[11, 12, 13]], "is known to be somebody else's"


def test_purging_reaches_the_cache_of_a_pool_on_object_storage(tmp_path: Path) -> None:
    pools = PoolStore("memory://purged/pool", cache=tmp_path)
    build(pools, texts(("Drama", [11, 12, 13], "user 7"), ("Horror", [1], "user 8")))
    assert held(Pool.open(pools, "h"), "Drama") == [[11, 12, 13]]
    retention.purge(pools, ["user 7"])
    assert retention.holding(pools, ["user 7"]) == []
    for path in (tmp_path / "segments").iterdir():
        assert np.array([11, 12, 13], np.int32).tobytes() not in path.read_bytes()


def test_a_segment_that_cannot_be_read_counts_as_holding(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    build(pools, texts(("Drama", [1, 2, 3], "user 8")))
    (tmp_path / "segments" / "torn").write_bytes(b"DAREPOOL")
    assert retention.holding(pools, ["user 7"]) == ["segments/torn"]
    retention.purge(pools, ["user 7"])
    assert not (tmp_path / "segments" / "torn").exists()


def _facts(manifest: PoolManifest) -> dict[str, Any]:
    return {name: value for name, value in vars(manifest).items() if name not in ("version", "groups")}
