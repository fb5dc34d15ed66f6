import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dare_core.errors import PoolError
from dare_core.pools import GLOBAL_GROUP, Limits, Pool, PoolBuilder, PoolStore, builder
from dare_core.pools.segments import MOST_SEGMENTS, Segment
from dare_core.storage.atomic import is_scratch
from tests.pools.built import OTHER, SOME, VOCABULARY, add, build, files, held, texts


def test_a_version_is_named_by_its_content(tmp_path: Path) -> None:
    first = build(PoolStore(tmp_path / "a"))
    again = build(PoolStore(tmp_path / "a"), SOME.take([2, 0, 1]))
    elsewhere = build(PoolStore(tmp_path / "b"))
    other = build(PoolStore(tmp_path / "b"), OTHER)
    assert first.version == again.version == elsewhere.version != other.version
    assert [path.stem for path in (tmp_path / "a" / "versions").iterdir()] == [first.version]
    assert PoolStore(tmp_path / "b").current() == other.version


def test_groups_named_anything_are_kept_apart_beside_the_global_pool(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    manifest = build(pools)
    assert {name: (part.texts, part.tokens) for name, part in manifest.groups.items()} == {
        GLOBAL_GROUP: (3, 8),
        "Drama": (2, 6),
        "Komödie ☂/..": (1, 2),
    }
    assert (manifest.texts, manifest.tokens) == (3, 8)
    pool = Pool.open(pools, "h")
    assert held(pool, "Komödie ☂/..") == [[4, 5]]
    assert held(pool, "Drama") == [[1, 2, 3], [1, 2, 9]]
    assert held(pool, GLOBAL_GROUP) == [[1, 2, 3], [1, 2, 9], [4, 5]]


def test_a_group_that_the_pool_lacks_has_the_global_pool(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    build(pools)
    pool = Pool.open(pools, "h")
    assert pool.resolve("Drama") == "Drama"
    assert pool.resolve("Western") == GLOBAL_GROUP


@pytest.mark.parametrize("rows", [texts(), texts(("Drama", []))])
def test_an_empty_pool_has_nothing_for_any_group(tmp_path: Path, rows: pa.Table) -> None:
    pools = PoolStore(tmp_path)
    manifest = build(pools, rows)
    assert list(manifest.groups) == [GLOBAL_GROUP]
    assert Pool.open(pools, "h").resolve("Drama") is None
    assert Pool.open(pools, "h").resolve(GLOBAL_GROUP) is None


def test_adding_texts_writes_them_alone_and_leaves_the_older_version_as_it_was(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    old = build(pools, texts(*(("Drama", [n, n, n, n]) for n in range(20)), ("Komödie", [4, 5])))
    before, opened = files(tmp_path / "segments"), Pool.open(pools, "h")
    new = add(pools)
    written = files(tmp_path / "segments") - before
    assert len(written) == 3  # Drama's, Western's, and the global pool's
    assert sum((tmp_path / "segments" / name).stat().st_size for name in written) < 500
    assert new.groups["Komödie"] == old.groups["Komödie"]
    assert new.groups["Drama"].segments[0] == old.groups["Drama"].segments[0]
    assert [7, 8] in held(Pool.open(pools, "h"), "Drama")
    assert [7, 8] not in held(opened, "Drama")
    assert [7, 8] not in held(Pool.open(pools, "h", old.version), "Drama")
    assert pools.versions() == [new.version, old.version]


def test_adding_what_is_there_changes_nothing(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    rows = texts(("Drama", [1, 2], "film 1"), ("Drama", [3, 4], "film 2"))
    first = build(pools, rows)
    assert add(pools, rows.slice(0, 1)).version == first.version
    both = add(pools, texts(("Drama", [1, 2], "film 1"), ("Drama", [1, 2], "film 3")))
    assert held(Pool.open(pools, "h"), "Drama") == [[1, 2], [1, 2], [3, 4]]
    assert both.texts == 3


def test_many_nights_of_new_texts_hold_what_one_build_of_all_does(tmp_path: Path) -> None:
    nights = [
        texts(*(("ab"[n % 2], [n, n + 1, k], f"{night} {n}") for n in range(6))) for night, k in enumerate(range(30))
    ]
    pools = PoolStore(tmp_path)
    build(pools, nights[0])
    for night in nights[1:]:
        manifest = add(pools, night)
        assert all(len(part.segments) <= MOST_SEGMENTS for part in manifest.groups.values())
    whole = PoolStore(tmp_path / "whole")
    build(whole, pa.concat_tables(nights))
    for group in ("a", "b", GLOBAL_GROUP):
        assert held(Pool.open(pools, "h"), group) == held(Pool.open(whole, "h"), group)


def test_the_global_pool_is_a_sample_when_the_pool_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "GLOBAL_TOKENS", 400)
    rows = texts(*(("ab"[n % 2], [n % 90, n // 90, 3, 4, 5]) for n in range(600)))
    pools = PoolStore(tmp_path)
    built = build(pools, rows)
    assert built.tokens == 3000
    assert 200 <= built.groups[GLOBAL_GROUP].tokens <= 400 * 1.3
    in_steps = PoolStore(tmp_path / "steps")
    build(in_steps, rows.slice(0, 50))
    assert add(in_steps, rows.slice(50, 250)).groups[GLOBAL_GROUP].tokens < 1500
    add(in_steps, rows.slice(300))
    assert held(Pool.open(in_steps, "h"), GLOBAL_GROUP) == held(Pool.open(pools, "h"), GLOBAL_GROUP)


def test_a_bound_on_a_group_is_kept_by_every_build(tmp_path: Path) -> None:
    pools, limits = PoolStore(tmp_path), Limits(group_bytes=1000)
    build(pools, texts(*(("a", [n, n, n, n, n]) for n in range(30))), limits=limits)
    for night in range(5):
        manifest = add(pools, texts(*(("a", [n, night, n, night, n]) for n in range(10))), limits=limits)
        assert manifest.groups["a"].tokens <= 1000 // 9


@pytest.mark.parametrize("bad", [[1, VOCABULARY], [-1]])
def test_token_ids_out_of_range_are_refused_and_leave_nothing(tmp_path: Path, bad: list[int]) -> None:
    with pytest.raises(PoolError, match=r"outside the tokenizer's 0\.\.99"):
        build(PoolStore(tmp_path), texts(("a", [1]), ("b", bad)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "said"), [(GLOBAL_GROUP, "rename the group"), ("", "empty name")])
def test_names_that_a_group_cannot_have_are_refused(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(PoolError, match=said):
        build(PoolStore(tmp_path), texts((name, [1])))


class KilledError(Exception):
    """The process is killed."""


class _FailingWriter:
    """A file whose disk is full, or whose writer is killed, after so many bytes in all files together."""

    left = 0
    error: Exception = KilledError()

    def __init__(self, file: Any) -> None:
        self._file = file

    def __enter__(self) -> "_FailingWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: bytes) -> None:
        room = data[: _FailingWriter.left]
        self._file.write(room)
        _FailingWriter.left -= len(data)
        if _FailingWriter.left < 0:
            self._file.flush()
            raise _FailingWriter.error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _total_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    _FailingWriter.left = 1 << 40
    _failing(monkeypatch)
    pools = PoolStore(root)
    build(pools)
    _FailingWriter.left = 1 << 40
    add(pools)
    return (1 << 40) - _FailingWriter.left


def _failing(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.open

    def open_failing(path: Path, mode: str = "r", **options: Any) -> Any:
        opened = original(path, mode, **options)
        return _FailingWriter(opened) if mode == "wb" and is_scratch(path.name) else opened

    monkeypatch.setattr(Path, "open", open_failing)


def test_a_publication_interrupted_at_any_byte_leaves_the_old_version_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = _total_written(tmp_path / "whole", monkeypatch)
    assert written > 500
    _FailingWriter.error = KilledError()
    pools = PoolStore(tmp_path / "cut")
    _FailingWriter.left = 1 << 40
    old = build(pools)
    wanted = PoolStore(tmp_path / "whole").current()
    for length in range(written):
        _FailingWriter.left = length
        with pytest.raises(KilledError):
            add(pools)
        _FailingWriter.left = 1 << 40
        assert pools.current() == old.version
        for name in files(tmp_path / "cut" / "segments"):  # what an earlier try left would be there already
            if name not in {e.sha256 for part in old.groups.values() for e in part.segments}:
                (tmp_path / "cut" / "segments" / name).unlink()
        for path in (tmp_path / "cut" / "versions").iterdir():
            if path.stem != old.version:
                path.unlink()
    assert held(Pool.open(pools, "h"), "Drama") == [[1, 2, 3], [1, 2, 9]]
    assert add(pools).version == wanted


def test_what_interrupted_tries_left_does_not_stand_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = _total_written(tmp_path / "whole", monkeypatch)
    _FailingWriter.error = KilledError()
    pools = PoolStore(tmp_path / "cut")
    _FailingWriter.left = 1 << 40
    build(pools)
    for length in range(0, written, 40):
        _FailingWriter.left = length
        try:
            add(pools)
        except KilledError:
            continue
        break
    _FailingWriter.left = 1 << 40
    assert add(pools).version == PoolStore(tmp_path / "whole").current() or pools.manifest().texts >= 5


def test_a_full_disk_is_said_and_leaves_the_old_version_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools = PoolStore(tmp_path)
    old = build(pools)
    before = files(tmp_path)
    _failing(monkeypatch)
    _FailingWriter.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    _FailingWriter.left = 10
    with pytest.raises(PoolError, match=r"cannot be written: No space left on device; the version in force stays"):
        add(pools)
    assert files(tmp_path) == before
    assert pools.current() == old.version


def test_of_two_builders_at_once_one_wins_and_the_other_says_so(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    build(pools)

    def attempt(n: int) -> str:
        try:
            return add(PoolStore(tmp_path), texts(("Drama", [n, n]))).version
        except PoolError as error:
            return str(error)

    with ThreadPoolExecutor(4) as threads:
        outcomes = list(threads.map(attempt, range(20, 24)))
    won = [outcome for outcome in outcomes if len(outcome) == 16]
    lost = [outcome for outcome in outcomes if "another builder has published" in outcome]
    assert won
    assert len(won) + len(lost) == 4
    assert pools.current() in won
    # Each winner followed the version in force, so that none of their texts is lost.
    assert len(held(Pool.open(pools, "h"), "Drama")) == 2 + len(won)


def test_a_builder_that_began_before_another_published_does_not_undo_it(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    began_at = build(pools).version
    other = add(pools)
    entry = pools.write_segment(Segment.build(texts(("Drama", [50])), VOCABULARY))
    with pytest.raises(PoolError, match=rf"published {other.version} meanwhile"):
        PoolBuilder(pools, "m", "h", VOCABULARY).publish({"Drama": [entry]}, replacing=began_at)
    assert pools.current() == other.version
