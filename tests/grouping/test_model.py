"""Group models on disk."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dare_core.errors import PoolError, StorageError
from dare_core.grouping import (
    CLUSTER_ASSIGNMENT,
    AttributeGroups,
    GroupModel,
    GroupModelStore,
    ItemFactors,
    StoredModel,
    UserClusters,
)
from dare_core.grouping import model as group_model
from dare_core.grouping.model import KEPT_VERSIONS, factors_table

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


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "grouping"


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


#: A version as it was written before Spark found the clusters.
EARLIER = """{
 "attributes": {"attribute": "occupation", "names": ["artist", "日本 – écrivain"], "rest": "rest", "several": "first"},
 "clusters": {"centroids": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], "named": 4, "names": ["cluster 1", "cluster 4"],
  "silhouette": 0.25},
 "format": 1,
 "interactions": 7,
 "items": {"alpha": 1.0, "regularization": 0.01},
 "scheme": "the scheme",
 "tables": {"assignments": "%s", "items": "%s"}
}"""


def test_a_model_of_an_earlier_release_is_read(store: GroupModelStore, root: Path) -> None:
    model = clustered()
    assert model.items is not None
    factors = pa.array(model.items.factors.tolist(), pa.list_(pa.float32(), 3))
    (root / "tables").mkdir(parents=True)
    digests = []
    for table in (model.assignments, pa.table({"item_id": model.items.ids, "factors": factors})):
        pq.write_table(table, root / "table")
        digests.append(hashlib.sha256((root / "table").read_bytes()).hexdigest())
        (root / "table").rename(root / "tables" / f"{digests[-1]}.parquet")
    content = (EARLIER % tuple(digests)).encode()
    (root / "versions").mkdir()
    version = hashlib.sha256(content).hexdigest()[:16]
    (root / "versions" / f"{version}.json").write_bytes(content)
    (root / "CURRENT").write_text(version)
    read = store.read()
    assert read is not None
    assert store.publish(read) == store.publish(model), "and it is what this release would have written"


def in_pieces(store: GroupModelStore) -> StoredModel:
    """Items and users in two pieces each, and one user who was assigned again later."""

    def assigned(**clusters: str) -> str:
        return store.tables.write(pa.table([[*clusters], [*clusters.values()]], schema=CLUSTER_ASSIGNMENT))

    factors = (store.tables.write(factors_table([item], np.full((1, 3), 1, np.float32))) for item in "ij")
    whole = (assigned(a="cluster 1", u="cluster 1"), assigned(b="cluster 4"))
    described = StoredModel(ATTRIBUTES, clustered().clusters, "the scheme", 7, 1.0, 0.01, tuple(factors), whole, 2)
    return described.with_added([assigned(u="cluster 4")])


def test_a_model_in_pieces_is_read_as_a_whole_and_the_latest_of_a_user_holds(store: GroupModelStore) -> None:
    stored = in_pieces(store)
    assert stored.with_added(stored.assignments[-1:]) is stored
    version = store.publish_stored(stored)
    read = store.read()
    assert read is not None and read.items is not None
    assert dict(zip(*read.assignments.to_pydict().values(), strict=True)) == {
        "a": "cluster 1", "b": "cluster 4", "u": "cluster 4"
    }  # fmt: skip
    assert (read.items.ids, read.items.factors.tolist()) == (("i", "j"), [[1, 1, 1], [1, 1, 1]])
    again = store.read_stored()
    assert again is not None
    assert (again.items, again.assignments, again.whole) == (stored.items, stored.assignments, 2)
    assert len(store.files_of(version)) == 6
    assert not stored.is_scattered
    assert stored.with_added("x" * 16).is_scattered

    store.purge(["u"], ["j"])
    left = store.read()
    assert left is not None and left.items is not None
    assert (left.assignments["entity_id"].to_pylist(), left.items.ids) == (["a", "b"], ("i",))
    assert store.holding(["u"], ["j"]) == []


def test_a_model_without_clusters_has_no_tables(store: GroupModelStore, root: Path) -> None:
    store.publish(GroupModel(ATTRIBUTES))
    read = store.read()
    assert read is not None
    assert (read.attributes, read.clusters, len(read.assignments)) == (ATTRIBUTES, None, 0)
    assert not (root / "tables").exists()


def test_other_content_is_another_version_and_the_earlier_one_stays(store: GroupModelStore, root: Path) -> None:
    first, second = store.publish(clustered()), store.publish(clustered("cluster 4"))
    assert store.current() == second != first
    before = store.read_version(first)
    assert before.assignments["cluster"].to_pylist() == ["cluster 1"]
    assert len(list((root / "tables").iterdir())) == 3  # the items' factors are shared


def test_old_versions_go_and_so_do_their_tables_after_a_while(store: GroupModelStore, root: Path) -> None:
    for number in range(KEPT_VERSIONS + 3):
        store.publish(clustered(f"cluster {number}"))
    for table in (root / "tables").iterdir():
        os.utime(table, (0, 0))
    store.publish(clustered("the last"))
    assert len(store.versions()) == KEPT_VERSIONS
    assert len(list((root / "tables").iterdir())) == KEPT_VERSIONS + 1
    assert all(store.read_version(version) for version in store.versions())


def damage(root: Path, version: str, broken: str) -> None:
    table = next((root / "tables").iterdir())
    match broken:
        case "version":
            path = root / "versions" / f"{version}.json"
            path.write_text(path.read_text().replace("cluster 4", "cluster 5"))
        case "missing version":
            (root / "versions" / f"{version}.json").unlink()
        case "table":
            table.write_bytes(table.read_bytes()[:-1])
        case "missing table":
            table.unlink()


@pytest.mark.parametrize("broken", ["version", "missing version", "table", "missing table"])
def test_of_a_damaged_model_the_one_before_is_used_with_a_warning(
    store: GroupModelStore, root: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = store.publish(GroupModel(ATTRIBUTES))
    bad = store.publish(clustered())
    damage(root, bad, broken)
    read = store.read()
    assert read is not None
    assert (read.attributes, read.clusters) == (ATTRIBUTES, None)
    assert f"group model {good} is used instead of {bad}" in caplog.text
    with pytest.raises(PoolError, match=f"group model {bad}"):
        store.read_version(bad)


def test_where_no_model_is_whole_the_damage_is_named_and_what_to_do(store: GroupModelStore, root: Path) -> None:
    damage(root, bad := store.publish(clustered()), "table")
    with pytest.raises(PoolError, match=f"group model {bad}: .* is damaged: .*; .* delete .*grouping to group anew"):
        store.read()


def test_a_model_of_a_newer_release_is_refused_although_an_older_one_is_there(
    store: GroupModelStore, monkeypatch: Any
) -> None:
    store.publish(GroupModel(ATTRIBUTES))
    with monkeypatch.context() as newer:
        newer.setattr(group_model, "_FORMAT", 3)
        store.publish(clustered())
    with pytest.raises(PoolError, match="format 3 is none of the formats 1 and 2 that this release reads"):
        store.read()


def test_models_on_object_storage_are_published_read_expired_and_fallen_back_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"memory://{tmp_path.name}/pools/user"
    store = GroupModelStore(url, cache=tmp_path)
    assert store.read() is None
    versions = [store.publish(clustered(f"cluster {number}")) for number in range(KEPT_VERSIONS + 2)]
    elsewhere = GroupModelStore(url, cache=tmp_path)
    assert elsewhere.current() == versions[-1]
    assert set(elsewhere.versions()) == set(versions[2:])
    read = elsewhere.read()
    assert read is not None
    assert read.assignments["cluster"].to_pylist() == [f"cluster {KEPT_VERSIONS + 1}"]
    store.files.write(f"versions/{versions[-1]}.json", b"{}")
    assert elsewhere.read() is not None
    assert f"{versions[-2]} is used instead of {versions[-1]}" in caplog.text
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["CURRENT"]


def test_a_publication_that_is_interrupted_leaves_the_model_before(
    store: GroupModelStore, root: Path, monkeypatch: Any
) -> None:
    first = store.publish(clustered())
    model = replace(clustered("cluster 4"), interactions=8)
    written = 0
    while store.current() == first:  # interrupted before its first rename, before its second, ...
        renames = iter(range(written))

        def rename(path: Path, target: Path, renames: Any = renames) -> None:
            if next(renames, None) is None:
                raise OSError(28, "No space left on device")
            os.rename(path, target)  # noqa: PTH104 - Path.rename is what is replaced

        monkeypatch.setattr(Path, "rename", rename)
        try:
            store.publish(model)
        except (PoolError, StorageError):
            written += 1
        read = store.read()
        assert read is not None
        assert (read.interactions == 7) == (store.current() == first)
    assert written == 4  # two tables, the version, the pointer
    assert [path.name for path in root.rglob(".*")] == []


def test_users_and_items_are_purged_from_every_version(store: GroupModelStore, root: Path) -> None:
    alone = store.publish(GroupModel(ATTRIBUTES))
    for cluster in ("cluster 1", "cluster 4"):
        store.publish(clustered(cluster))
    (root / "tables" / "torn.parquet").write_bytes(b"PAR1")
    assert len(store.holding(["u"], ["j"])) == 4, "two tables of users, one of items, and one that cannot be read"
    assert len(store.purge(["u"], ["j"])) == 2
    left = store.read()
    assert left is not None and left.items is not None
    assert (left.assignments["entity_id"].to_pylist(), left.items.ids, left.items.factors.shape) == ([], ("i",), (1, 3))
    assert store.holding(["u"], ["j"]) == []
    assert alone in store.versions()
    assert store.purge(["u"], ["j"]) == []
