import json
from pathlib import Path

import pyarrow as pa
import pytest

from dare_core.errors import PoolError
from dare_core.pools import GLOBAL_GROUP, PoolStore
from dare_core.pools.index import START, SuffixIndex
from dare_core.schemas import POOL_TEXT

VOCABULARY = 100


def texts(*rows: tuple[str, list[int]]) -> pa.Table:
    return pa.table({"group": [group for group, _ in rows], "token_ids": [ids for _, ids in rows]}, schema=POOL_TEXT)


SOME = texts(("Drama", [1, 2, 3]), ("Komödie ☂/..", [4, 5]), ("Drama", [1, 2, 9]))


def test_a_version_is_named_by_its_content(tmp_path: Path) -> None:
    first = PoolStore(tmp_path / "a").build(SOME, "m", "h", VOCABULARY)
    again = PoolStore(tmp_path / "a").build(SOME, "m", "h", VOCABULARY)
    elsewhere = PoolStore(tmp_path / "b").build(SOME, "m", "h", VOCABULARY)
    other = PoolStore(tmp_path / "b").build(texts(("Drama", [1])), "m", "h", VOCABULARY)
    assert first.version == again.version == elsewhere.version != other.version
    assert [path.name for path in (tmp_path / "a" / "versions").iterdir()] == [first.version]
    assert PoolStore(tmp_path / "b").current() == other.version


def test_groups_named_anything_are_kept_apart_beside_the_global_pool(tmp_path: Path) -> None:
    store = PoolStore(tmp_path)
    manifest = store.build(SOME, "m", "h", VOCABULARY)
    assert {name: (part.texts, part.tokens) for name, part in manifest.groups.items()} == {
        GLOBAL_GROUP: (3, 8),
        "Drama": (2, 6),
        "Komödie ☂/..": (1, 2),
    }
    pool = store.open("h")
    assert pool.index("Komödie ☂/..").tokens.tolist() == [START, 4, 5]
    assert pool.index("Drama").tokens.tolist() == [START, 1, 2, 3, START, 1, 2, 9]
    assert pool.index(GLOBAL_GROUP).tokens.tolist() == [START, 1, 2, 3, START, 4, 5, START, 1, 2, 9]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["CURRENT", "versions"]


def test_a_group_that_the_pool_lacks_has_the_global_pool(tmp_path: Path) -> None:
    store = PoolStore(tmp_path)
    store.build(SOME, "m", "h", VOCABULARY)
    pool = store.open("h")
    assert pool.resolve("Drama") == "Drama"
    assert pool.resolve("Western") == GLOBAL_GROUP


def test_an_empty_pool_has_nothing_for_any_group(tmp_path: Path) -> None:
    store = PoolStore(tmp_path)
    store.build(texts(), "m", "h", VOCABULARY)
    assert store.open("h").resolve("Drama") is None
    assert store.open("h").resolve(GLOBAL_GROUP) is None


def test_an_opened_index_is_the_one_that_was_built(tmp_path: Path) -> None:
    store = PoolStore(tmp_path)
    store.build(SOME, "m", "h", VOCABULARY)
    built, opened = SuffixIndex.build([[1, 2, 3], [1, 2, 9]]), store.open("h").index("Drama")
    assert opened.tokens.tolist() == built.tokens.tolist()
    assert opened.suffixes.tolist() == built.suffixes.tolist()
    assert not opened.tokens.flags.writeable


def test_an_older_version_stays_open_while_a_newer_one_is_published(tmp_path: Path) -> None:
    store = PoolStore(tmp_path)
    old = store.build(SOME, "m", "h", VOCABULARY)
    pool = store.open("h")
    store.build(texts(("Drama", [7])), "m", "h", VOCABULARY)
    assert pool.index("Drama").tokens.tolist() == [START, 1, 2, 3, START, 1, 2, 9]
    assert store.open("h", old.version).manifest.texts == 3


def test_a_pool_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    store = PoolStore(tmp_path)
    store.build(SOME, "m", "h", VOCABULARY)
    with pytest.raises(
        PoolError, match=r"built with tokenizer h \(model m\), but the model in use has tokenizer other"
    ):
        store.open("other")


@pytest.mark.parametrize("bad", [[1, VOCABULARY], [-1]])
def test_token_ids_out_of_range_are_refused_and_leave_nothing(tmp_path: Path, bad: list[int]) -> None:
    with pytest.raises(PoolError, match=r"outside the tokenizer's 0\.\.99"):
        PoolStore(tmp_path).build(texts(("a", bad)), "m", "h", VOCABULARY)
    assert not list(tmp_path.iterdir())


def test_the_global_pools_name_is_refused_for_a_group(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match="rename the group"):
        PoolStore(tmp_path).build(texts((GLOBAL_GROUP, [1])), "m", "h", VOCABULARY)


def test_what_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    store = PoolStore(tmp_path)
    with pytest.raises(PoolError, match=r"there is no pool at .*dare pool build"):
        store.open("h")
    version = store.build(SOME, "m", "h", VOCABULARY).version
    with pytest.raises(PoolError, match="no version '0123456789abcdef'"):
        store.open("h", "0123456789abcdef")
    with pytest.raises(PoolError, match="versions are 16 hex digits"):
        store.open("h", "../../elsewhere")
    manifest = tmp_path / "versions" / version / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(PoolError, match="format 99 is not the format 1"):
        store.open("h")
    manifest.write_text("{")
    with pytest.raises(PoolError, match="not a pool manifest"):
        store.open("h")
    manifest.write_text(json.dumps(content))
    for part in (tmp_path / "versions" / version).glob("*/tokens.npy"):
        part.write_bytes(part.read_bytes()[:40])
    with pytest.raises(PoolError, match="group 'Drama' cannot be read"):
        store.open("h").index("Drama")
