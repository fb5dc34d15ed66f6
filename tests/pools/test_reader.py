import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dare_core.drafts import Context
from dare_core.errors import PoolError
from dare_core.pools import Pool, PoolBuilder, PoolDrafter, PoolStore
from dare_core.pools.reader import PoolDifference, diff
from tests.pools.built import OTHER, VOCABULARY, add, build, held, texts


def test_a_pool_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    build(pools)
    with pytest.raises(
        PoolError, match=r"built with tokenizer h \(model m\), but the model in use has tokenizer other"
    ):
        Pool.open(pools, "other")
    with pytest.raises(PoolError, match=r"built with tokenizer h, the new texts with other; build the pool again"):
        PoolBuilder(pools, "m", "other", VOCABULARY).add(OTHER)


def test_what_is_missing_or_no_version_is_named(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    with pytest.raises(PoolError, match=r"there is no pool at .*dare pool build"):
        Pool.open(pools, "h")
    with pytest.raises(PoolError, match="there is no pool at"):
        add(pools)
    build(pools)
    with pytest.raises(PoolError, match="no version '0123456789abcdef'"):
        Pool.open(pools, "h", "0123456789abcdef")
    with pytest.raises(PoolError, match="versions are 16 hex digits"):
        Pool.open(pools, "h", "../../elsewhere")


def test_a_manifest_from_a_newer_release_or_damaged_is_refused(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    path = tmp_path / "versions" / f"{build(pools).version}.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(PoolError, match="format 99 is not the format 2 that this release reads; update"):
        Pool.open(pools, "h")
    path.write_text("{")
    with pytest.raises(PoolError, match="not a pool manifest"):
        Pool.open(pools, "h")
    path.write_text(json.dumps(content | {"model": "x"}))
    with pytest.raises(PoolError, match="its content does not have its name"):
        Pool.open(pools, "h")


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["header", "body", "shorter", "gone"])
def test_a_damaged_version_is_named_and_the_one_before_it_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    pools = PoolStore(tmp_path)
    old = build(pools)
    opened_before = Pool.open(pools, "h")
    new = add(pools)
    entry = next(e for e in new.groups["Western"].segments)
    path = tmp_path / "segments" / entry.sha256
    if damage == "header":
        _flip(path, 20)
    elif damage == "body":
        Pool.open(pools, "h")  # this host has checked it, and must see that it changed
        _flip(path, entry.size - 1)
    elif damage == "shorter":
        path.write_bytes(path.read_bytes()[:-4])
    else:
        path.unlink()
    with pytest.raises(PoolError, match=entry.sha256):
        pools.check(new)
    with caplog.at_level(logging.WARNING):
        assert Pool.open(pools, "h").manifest.version == old.version
    assert entry.sha256 in caplog.text
    assert f"pool version {old.version} is used instead of {new.version}" in caplog.text
    assert held(opened_before, "Drama") == [[1, 2, 3], [1, 2, 9]]


def test_where_no_version_is_whole_the_damage_is_raised(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    build(pools)
    for path in (tmp_path / "segments").iterdir():
        _flip(path, 70)
    with pytest.raises(PoolError, match=r"segments/\w+ is damaged: its checksum is wrong"):
        Pool.open(pools, "h")


def test_building_again_mends_damage(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    made = build(pools)
    for path in (tmp_path / "segments").iterdir():
        _flip(path, 70)
    assert build(pools).version == made.version
    assert held(Pool.open(pools, "h"), "Drama") == [[1, 2, 3], [1, 2, 9]]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The segments' files that are opened, to be read or to be mapped."""
    found: list[Path] = []
    original = Path.open

    def counted(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.parent.name == "segments":
            found.append(self)
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", counted)
    return found


@pytest.mark.parametrize("root", ["pool", "memory://read/pool"])
def test_once_a_host_has_checked_a_pool_it_opens_no_file_but_those_of_the_groups_that_are_drafted_from(
    tmp_path: Path, root: str, opened: list[Path]
) -> None:
    root = root if "://" in root else str(tmp_path / root)
    build(PoolStore(root, cache=tmp_path / "cache"), texts(*((f"group {n}", [n, n + 1]) for n in range(40))))
    Pool.open(PoolStore(root, cache=tmp_path / "cache"), "h")
    opened.clear()
    pool = Pool.open(PoolStore(root, cache=tmp_path / "cache"), "h")
    assert opened == []
    drafter = PoolDrafter(pool)
    for _ in range(2):
        drafter.draft([Context("group 7", np.array([7], np.int32), 0, 1)], 4)
    assert len(opened) == 2  # the group's, and that of all groups


def test_what_a_host_has_checked_is_checked_again_where_its_notes_are_damaged(
    tmp_path: Path, opened: list[Path]
) -> None:
    pools = PoolStore(tmp_path)
    build(pools)
    (notes,) = (tmp_path / "verified").iterdir()
    for damage in (b"{", b"[]", b'{"a": 1}'):
        notes.write_bytes(damage)
        opened.clear()
        Pool.open(PoolStore(tmp_path), "h")
        assert len(set(opened)) == 3


def test_the_difference_of_two_versions_is_counted_by_group(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    old = build(pools)
    new = add(pools)
    assert diff(pools, old.version, new.version) == PoolDifference({"Drama": 1, "Western": 1}, {})
    assert diff(pools, new.version, old.version) == PoolDifference({}, {"Drama": 1, "Western": 1})
