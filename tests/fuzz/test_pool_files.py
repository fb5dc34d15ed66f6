"""Pool files as they may be found: an error that says so, or the very content that was written."""

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dare_core.errors import DareError, PoolError
from dare_core.grouping.attributes import AttributeGroups
from dare_core.grouping.model import GroupModel, GroupModelStore
from dare_core.pools import Pool, PoolBuilder, PoolStore, retention
from dare_core.pools.knowledge_file import read_knowledge
from dare_core.pools.manifest import PoolManifest
from dare_core.pools.register import FileRegister
from dare_core.pools.segments import Segment
from tests.fuzz.damage import damaged
from tests.fuzz.effort import tries

VOCABULARY = 100
TEXTS = pa.table(
    {
        "group": ["Drama", "Drama", "Komödie ☂/.."],
        "token_ids": pa.array([[1, 2, 3] * 9, [1, 2, 9], [4, 5]], pa.list_(pa.int32())),
        "entity_id": ["a", "b", "c"],
    }
)
SEGMENT = Segment.build(TEXTS, VOCABULARY).to_bytes()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of one version."""
    root = tmp_path_factory.mktemp("pool")
    PoolBuilder(PoolStore(root), "m", "h", VOCABULARY).build(TEXTS)
    return root


def content(root: Path) -> dict[str, Any]:
    """All that a drafter is given, checked as every opening checks it."""
    pool = Pool.open(PoolStore(root), "h")
    held = {}
    for group in pool.manifest.groups:
        first, end = pool.area(group)
        assert end - first == len(pool.group(group))
        held[group] = [(part.rows.tolist(), part.index.tokens.tolist(), part.index.order.tolist(),
                        part.index.keys.tolist()) for part in pool.group(group)]  # fmt: skip
    return held


@tries(60)
@given(data=st.data())
def test_a_pool_with_a_damaged_file_is_refused_or_holds_what_was_written(root: Path, data: st.DataObject) -> None:
    before = content(root)
    files = sorted(path for folder in ("segments", "versions") for path in (root / folder).iterdir())
    path = data.draw(st.sampled_from([*files, root / "CURRENT"]))
    whole = path.read_bytes()
    try:
        # Replaced, as copying a file does: an inode of its own, whatever the clock's grain.
        scratch = path.with_name(".scratch")
        scratch.write_bytes(data.draw(damaged(whole)))
        scratch.replace(path)
        try:
            assert content(root) == before
        except PoolError as error:
            assert str(root) in str(error) or "segment" in str(error) or "version" in str(error)
    finally:
        path.write_bytes(whole)
    assert content(root) == before


@tries(150)
@given(data=damaged(SEGMENT))
def test_a_segment_of_any_bytes_is_refused_or_has_the_size_that_its_header_says(data: bytes) -> None:
    try:
        segment = Segment.of_bytes(data, "file")
    except PoolError as error:
        assert str(error).startswith("file")
        return
    assert len(data) == len(SEGMENT)  # else it is found out; a changed body is, by the name of the file
    assert segment.to_bytes() == data


@tries(80)
@given(
    at=st.integers(8, 59),
    value=st.binary(min_size=1, max_size=8),
)
def test_a_header_with_a_right_checksum_and_wrong_sizes_is_refused(at: int, value: bytes) -> None:
    data = bytearray(SEGMENT)
    value = value[: 60 - at]
    data[at : at + len(value)] = value
    data[60:64] = np.uint32(zlib.crc32(bytes(data[:60]))).tobytes()
    if data[:32] == SEGMENT[:32]:
        return  # what is reserved means nothing
    try:
        segment = Segment.of_bytes(bytes(data), "file")
    except PoolError:
        return
    assert (len(segment.rows), len(segment.index.tokens)) == (3, len(SEGMENT_TOKENS))
    assert segment.index.key_tokens in (2, 3, 4)


SEGMENT_TOKENS = Segment.of_bytes(SEGMENT, "file").index.tokens

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def named(document: bytes) -> str:
    return hashlib.sha256(document).hexdigest()[:16]


@tries(150)
@given(data=st.data())
def test_a_manifest_with_a_value_of_any_kind_is_refused_or_read_as_it_stands(root: Path, data: st.DataObject) -> None:
    [path] = (root / "versions").iterdir()
    document = json.loads(path.read_bytes())
    key = data.draw(st.sampled_from([*document, "another"]))
    if key == "groups" and data.draw(st.booleans()):
        entry = document["groups"]["Drama"]["segments"][0]
        entry[data.draw(st.sampled_from([*entry, "another"]))] = data.draw(JSON)
    else:
        document[key] = data.draw(JSON)
    changed = json.dumps(document, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    try:
        manifest = PoolManifest.of_json(changed, named(changed), "manifest")
    except PoolError as error:
        assert "manifest" in str(error)
        return
    assert json.loads(manifest.to_json()) == document
    assert manifest.texts >= 0 and manifest.size >= 0
    for part in manifest.groups.values():
        assert all("/" not in entry.sha256 for entry in part.segments)


@pytest.mark.parametrize("depth", [100_000])
def test_a_manifest_nested_without_end_is_refused(root: Path, depth: int) -> None:
    document = b"[" * depth
    with pytest.raises(PoolError, match="not a pool manifest"):
        PoolManifest.of_json(document, named(document), "manifest")


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "a" * 63, "A" * 64, "a" * 63 + "\n", ""])
def test_a_manifest_cannot_name_a_file_outside_the_pool(root: Path, name: str) -> None:
    [path] = (root / "versions").iterdir()
    document = json.loads(path.read_bytes())
    document["groups"]["Drama"]["segments"][0]["sha256"] = name
    changed = json.dumps(document, sort_keys=True).encode()
    with pytest.raises(PoolError, match="no SHA-256"):
        PoolManifest.of_json(changed, named(changed), "manifest")


@tries(60)
@given(
    listed=st.binary(max_size=60) | st.lists(st.sampled_from(["0" * 16, "../../x", "é"])).map(" ".join).map(str.encode)
)
def test_a_list_of_versions_is_read_whole_or_refused(tmp_path: Path, listed: bytes) -> None:
    (tmp_path / "CURRENT").write_bytes(listed)
    register = FileRegister(tmp_path)
    try:
        assert register.versions() == listed.decode().split() != []
    except PoolError as error:
        assert str(tmp_path / "CURRENT") in str(error)


def test_a_list_of_versions_that_cannot_be_read_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    PoolBuilder(pools, "m", "h", VOCABULARY).build(TEXTS)
    retention.forget(pools, ["a"])
    for damage in (b"\xff", b""):
        (tmp_path / "CURRENT").write_bytes(damage)
        with pytest.raises(PoolError, match=r"CURRENT (cannot be read|is damaged)"):
            PoolBuilder(pools, "m", "h", VOCABULARY).build(TEXTS)  # which would let what was forgotten in again


@tries(40)
@given(document=st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
def test_a_pin_is_read_or_refused(tmp_path: Path, document: bytes) -> None:
    (tmp_path / "pins").mkdir(exist_ok=True)
    (tmp_path / "pins" / "0.json").write_bytes(document)
    try:
        assert FileRegister(tmp_path).pins() == {}
    except PoolError as error:
        assert "0.json is no pin" in str(error)


@tries(60)
@given(data=st.data())
def test_a_damaged_group_model_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    root = tmp_path_factory.mktemp("groups")
    store = GroupModelStore(root)
    groups = AttributeGroups("genres", "first", "rest", ("Drama", "Western"))
    store.publish(GroupModel(groups))
    files = [path for path in (root / "grouping").rglob("*") if path.is_file() and "lock" not in path.name]
    path = data.draw(st.sampled_from(sorted(files)))
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    try:
        found = GroupModelStore(root).read()
        assert found is None or found.attributes == groups  # none where the pointer is empty
    except DareError as error:
        assert str(error)


@pytest.fixture(scope="module")
def knowledge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("knowledge") / "texts.parquet"
    pq.write_table(TEXTS, path)
    return path


@tries(120)
@given(data=st.data())
def test_a_damaged_file_of_texts_is_refused_or_read(knowledge: Path, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "texts.parquet"
    path.write_bytes(data.draw(damaged(knowledge.read_bytes())))
    try:
        table = read_knowledge(path)
        Segment.build(table, VOCABULARY)
    except DareError as error:
        assert str(path) in str(error) or "token_ids" in str(error)
