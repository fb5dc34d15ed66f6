"""Group models on disk."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dare_core.errors import PoolError
from dare_core.grouping import (
    CLUSTER_ASSIGNMENT,
    AttributeGroups,
    GroupModel,
    GroupModelStore,
    ItemFactors,
    UserClusters,
)
from dare_core.grouping import model as group_model
from dare_core.grouping.model import KEPT_VERSIONS

ATTRIBUTES = AttributeGroups("occupation", "first", "rest", ("artist", "日本 – écrivain"))


def clustered(cluster: str = "cluster 1") -> GroupModel:
    return GroupModel(
        ATTRIBUTES,
        UserClusters(("cluster 1", "cluster 4"), np.eye(2, 3, dtype=np.float32), 0.25, named=4),
        ItemFactors(("i", "j"), np.array([[0.1, 0.2, 0.3], [1, 2, 3]], np.float32), 1.0, 0.01),
        pa.table([["u"], [cluster]], schema=CLUSTER_ASSIGNMENT),
        "the scheme",
        interactions=7,
    )


@pytest.fixture
def store(tmp_path: Path) -> GroupModelStore:
    return GroupModelStore(tmp_path)


def test_a_model_is_read_as_it_was_published(store: GroupModelStore) -> None:
    assert store.read() is None
    version = store.publish(clustered())
    read = store.read()
    assert store.current() == version
    assert read is not None and read.clusters is not None and read.items is not None
    assert (read.attributes, read.scheme, read.interactions) == (ATTRIBUTES, "the scheme", 7)
    assert (read.clusters.names, read.clusters.silhouette, read.clusters.named) == (("cluster 1", "cluster 4"), 0.25, 4)
    assert read.clusters.centroids.tolist() == np.eye(2, 3).tolist()
    assert read.items.ids == ("i", "j")
    assert read.items.factors.tobytes() == clustered().items.factors.tobytes()  # type: ignore[union-attr]
    assert read.assignments == clustered().assignments
    assert store.publish(read) == version


def test_a_model_without_clusters_has_no_tables(store: GroupModelStore) -> None:
    store.publish(GroupModel(ATTRIBUTES))
    read = store.read()
    assert read is not None
    assert (read.attributes, read.clusters, len(read.assignments)) == (ATTRIBUTES, None, 0)
    assert list((store.root / "tables").iterdir()) == []


def test_other_content_is_another_version_and_the_earlier_one_stays(store: GroupModelStore) -> None:
    first, second = store.publish(clustered()), store.publish(clustered("cluster 4"))
    assert store.current() == second != first
    before = store.read(first)
    assert before is not None
    assert before.assignments["cluster"].to_pylist() == ["cluster 1"]
    assert len(list((store.root / "tables").iterdir())) == 3  # the items' factors are shared


def test_old_versions_go_and_so_do_their_tables_after_a_while(store: GroupModelStore) -> None:
    for number in range(KEPT_VERSIONS + 3):
        store.publish(clustered(f"cluster {number}"))
    for table in (store.root / "tables").iterdir():
        os.utime(table, (0, 0))
    store.publish(clustered("the last"))
    assert len(store.versions()) == KEPT_VERSIONS
    assert len(list((store.root / "tables").iterdir())) == KEPT_VERSIONS + 1
    assert all(store.read(version) for version in store.versions())


@pytest.mark.parametrize("broken", ["version", "table", "missing table"])
def test_damage_is_named_with_the_way_back(store: GroupModelStore, broken: str) -> None:
    good = store.publish(GroupModel(ATTRIBUTES))
    bad = store.publish(clustered())
    table = next((store.root / "tables").iterdir())
    match broken:
        case "version":
            path = store.root / "versions" / f"{bad}.json"
            path.write_text(path.read_text().replace("cluster 4", "cluster 5"))
        case "table":
            table.write_bytes(table.read_bytes()[:-1])
        case "missing table":
            table.unlink()
    with pytest.raises(PoolError, match=f"group model {bad}.*write {good} into .*CURRENT to go back"):
        store.read()
    (store.root / "CURRENT").write_text(good)
    assert store.read() is not None


def test_a_model_of_a_newer_release_is_refused(store: GroupModelStore, monkeypatch: Any) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(group_model, "_FORMAT", 2)
        store.publish(clustered())
    with pytest.raises(PoolError, match="format 2 is not the format 1 that this release reads"):
        store.read()


def test_a_publication_that_is_interrupted_leaves_the_model_before(store: GroupModelStore, monkeypatch: Any) -> None:
    first = store.publish(clustered())
    model = replace(clustered("cluster 4"), interactions=8)
    written = 0
    while store.current() == first:  # interrupted before its first rename, before its second, ...
        renames = iter(range(written))

        def rename(path: Path, target: Path, renames: Any = renames) -> None:
            if next(renames, None) is None:
                raise OSError(28, "No space left on device")
            os.replace(path, target)  # noqa: PTH105 - Path.replace is what is replaced

        monkeypatch.setattr(Path, "replace", rename)
        try:
            store.publish(model)
        except OSError:
            written += 1
        read = store.read()
        assert read is not None
        assert (read.interactions == 7) == (store.current() == first)
    assert written == 4  # two tables, the version, the pointer
    assert [path.name for path in store.root.rglob(".*")] == []
