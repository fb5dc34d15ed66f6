import errno
import json
import logging
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from fsspec.implementations.local import LocalFileSystem

from dare_core.errors import PoolError
from dare_core.pools import GLOBAL_GROUP, Limits, Pool, PoolManifest, PoolStore, store
from dare_core.pools.segments import TEXT_ROW, Segment, entity_hash

VOCABULARY = 100
Row = tuple[str, list[int]] | tuple[str, list[int], str]


def texts(*rows: Row) -> pa.Table:
    return pa.table(
        {
            "group": pa.array([row[0] for row in rows], pa.string()),
            "token_ids": pa.array([row[1] for row in rows], pa.list_(pa.int32())),
            "entity_id": pa.array([row[2] if len(row) > 2 else None for row in rows], pa.string()),
        }
    )


SOME = texts(("Drama", [1, 2, 3]), ("Komödie ☂/..", [4, 5]), ("Drama", [1, 2, 9]))
OTHER = texts(("Drama", [7, 8]), ("Western", [6]))


def build(pools: PoolStore, rows: pa.Table = SOME, **options: Any) -> PoolManifest:
    return pools.build(rows, "m", "h", VOCABULARY, **options)


def add(pools: PoolStore, rows: pa.Table = OTHER, **options: Any) -> PoolManifest:
    return pools.add(rows, "m", "h", VOCABULARY, **options)


def held(pool: Pool, group: str) -> list[list[int]]:
    """A group's texts, sorted."""
    found = []
    for segment in pool.group(group):
        ends = np.cumsum(segment.rows["length"] + 1)[:-1]
        found += [part[1:].tolist() for part in np.split(segment.index.tokens, ends)]
    return sorted(found)


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


# Versions


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
    pool = pools.open("h")
    assert held(pool, "Komödie ☂/..") == [[4, 5]]
    assert held(pool, "Drama") == [[1, 2, 3], [1, 2, 9]]
    assert held(pool, GLOBAL_GROUP) == [[1, 2, 3], [1, 2, 9], [4, 5]]


def test_a_group_that_the_pool_lacks_has_the_global_pool(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    build(pools)
    pool = pools.open("h")
    assert pool.resolve("Drama") == "Drama"
    assert pool.resolve("Western") == GLOBAL_GROUP


@pytest.mark.parametrize("rows", [texts(), texts(("Drama", []))])
def test_an_empty_pool_has_nothing_for_any_group(tmp_path: Path, rows: pa.Table) -> None:
    pools = PoolStore(tmp_path)
    manifest = build(pools, rows)
    assert list(manifest.groups) == [GLOBAL_GROUP]
    assert pools.open("h").resolve("Drama") is None
    assert pools.open("h").resolve(GLOBAL_GROUP) is None


def test_adding_texts_writes_them_alone_and_leaves_the_older_version_as_it_was(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    old = build(pools, texts(*(("Drama", [n, n, n, n]) for n in range(20)), ("Komödie", [4, 5])))
    before, opened = files(tmp_path / "segments"), pools.open("h")
    new = add(pools)
    written = files(tmp_path / "segments") - before
    assert len(written) == 3  # Drama's, Western's, and the global pool's
    assert sum((tmp_path / "segments" / name).stat().st_size for name in written) < 500
    assert new.groups["Komödie"] == old.groups["Komödie"]
    assert new.groups["Drama"].segments[0] == old.groups["Drama"].segments[0]
    assert [7, 8] in held(pools.open("h"), "Drama")
    assert [7, 8] not in held(opened, "Drama")
    assert [7, 8] not in held(pools.open("h", old.version), "Drama")
    assert pools.versions() == [new.version, old.version]


def test_adding_what_is_there_changes_nothing(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    rows = texts(("Drama", [1, 2], "film 1"), ("Drama", [3, 4], "film 2"))
    first = build(pools, rows)
    assert add(pools, rows.slice(0, 1)).version == first.version
    both = add(pools, texts(("Drama", [1, 2], "film 1"), ("Drama", [1, 2], "film 3")))
    assert held(pools.open("h"), "Drama") == [[1, 2], [1, 2], [3, 4]]
    assert both.texts == 3


def test_many_nights_of_new_texts_hold_what_one_build_of_all_does(tmp_path: Path) -> None:
    nights = [
        texts(*(("ab"[n % 2], [n, n + 1, k], f"{night} {n}") for n in range(6))) for night, k in enumerate(range(30))
    ]
    pools = PoolStore(tmp_path)
    build(pools, nights[0])
    for night in nights[1:]:
        manifest = add(pools, night)
        assert all(len(part.segments) <= store.MOST_SEGMENTS for part in manifest.groups.values())
    whole = PoolStore(tmp_path / "whole")
    build(whole, pa.concat_tables(nights))
    for group in ("a", "b", GLOBAL_GROUP):
        assert held(pools.open("h"), group) == held(whole.open("h"), group)


def test_the_global_pool_is_a_sample_when_the_pool_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "GLOBAL_TOKENS", 400)
    rows = texts(*(("ab"[n % 2], [n % 90, n // 90, 3, 4, 5]) for n in range(600)))
    pools = PoolStore(tmp_path)
    built = build(pools, rows)
    assert built.tokens == 3000
    assert 200 <= built.groups[GLOBAL_GROUP].tokens <= 400 * 1.3
    in_steps = PoolStore(tmp_path / "steps")
    build(in_steps, rows.slice(0, 50))
    assert add(in_steps, rows.slice(50, 250)).groups[GLOBAL_GROUP].tokens < 1500
    add(in_steps, rows.slice(300))
    assert held(in_steps.open("h"), GLOBAL_GROUP) == held(pools.open("h"), GLOBAL_GROUP)


def test_a_bound_on_a_group_is_kept_by_every_build(tmp_path: Path) -> None:
    pools, limits = PoolStore(tmp_path), Limits(group_bytes=1000)
    build(pools, texts(*(("a", [n, n, n, n, n]) for n in range(30))), limits=limits)
    for night in range(5):
        manifest = add(pools, texts(*(("a", [n, night, n, night, n]) for n in range(10))), limits=limits)
        assert manifest.groups["a"].tokens <= 1000 // 9


# Forgetting


def test_a_forgotten_entitys_texts_leave_every_segment_and_do_not_come_back(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    mine = ("Drama", [11, 12, 13], "user 7")
    build(pools, texts(mine, ("Drama", [1, 2, 3], "user 8"), *(("Horror", [n, n], f"u{n}") for n in range(20))))
    old = add(pools, texts(("Horror", [14, 15, 16], "user 7")))
    assert len(old.groups["Horror"].segments) == 2
    new = pools.forget(["user 7"])

    def about(manifest: PoolManifest) -> int:
        pool = pools.open("h", manifest.version)
        rows = np.concatenate([np.empty(0, TEXT_ROW), *(s.rows for name in manifest.groups for s in pool.group(name))])
        return int((rows["entity"] == entity_hash("user 7")).sum())

    assert about(old) == 4
    assert about(new) == 0
    assert about(add(pools, texts(mine, ("Drama", [20], "user 9")))) == 0
    rebuilt = build(pools, texts(mine, ("Drama", [1, 2, 3], "user 8")))
    assert about(rebuilt) == 0
    pools.expire(keep=1)
    left = b"".join(path.read_bytes() for path in (tmp_path / "segments").iterdir())
    assert np.array([11, 12, 13], np.int32).tobytes() not in left
    assert np.array([14, 15, 16], np.int32).tobytes() not in left
    assert np.array([1, 2, 3], np.int32).tobytes() in left


def test_a_group_whose_last_text_is_forgotten_is_gone(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    build(pools, texts(("Drama", [1], "a"), ("Horror", [2], "b")))
    assert set(pools.forget(["b"]).groups) == {GLOBAL_GROUP, "Drama"}
    assert pools.open("h").resolve("Horror") == GLOBAL_GROUP


def test_purging_leaves_no_file_that_holds_a_text_of_the_entity(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    mine, hers = ("Drama", [11, 12, 13], "user 7"), ("Drama", [1, 2, 3], "user 8")
    without = build(pools, texts(hers))
    first, second = build(pools, texts(mine, hers)), add(pools, texts(("Horror", [14, 15], "user 7")))
    pools.pin(first.version, "a run that is over")
    candidate = PoolManifest.of(second.groups, **{**_facts(second), "model": "another"})
    pools.files.write(f"versions/{candidate.version}.json", candidate.to_json())
    (tmp_path / "segments" / ".writing-x").write_bytes(b"cut short")
    removed = pools.purge(["user 7"])
    assert sorted(removed) == sorted([first.version, second.version, candidate.version])
    assert pools.versions()[1:] == [without.version], "which never held any"
    assert pools.holding(["user 7"]) == []
    assert held(pools.open("h"), "Drama") == [[1, 2, 3]]
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or np.array([11, 12, 13], np.int32).tobytes() not in path.read_bytes()
    stamps = {path.name for path in tmp_path.glob("verified/*/*")}
    assert stamps <= {path.name for path in (tmp_path / "segments").iterdir()}
    in_force = pools.current()
    assert (pools.purge(["user 7"]), pools.current()) == ([], in_force), "again, it changes nothing"


def test_texts_that_a_pool_knows_nobody_for_are_purged_by_their_tokens(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    build(pools, texts(("Drama", [11, 12, 13]), ("Drama", [1, 2, 3]), ("Horror", [11, 12, 13], "user 8")))
    assert len(pools.holding([], [[11, 12, 13]])) == 2, "of the group and of all groups"
    pools.purge([], [[11, 12, 13]])
    assert held(pools.open("h"), "Drama") == [[1, 2, 3]]
    assert held(pools.open("h"), "Horror") == [[11, 12, 13]], "is known to be somebody else's"


def test_purging_reaches_the_cache_of_a_pool_on_object_storage(tmp_path: Path) -> None:
    pools = PoolStore("memory://purged/pool", cache=tmp_path)
    build(pools, texts(("Drama", [11, 12, 13], "user 7"), ("Horror", [1], "user 8")))
    assert held(pools.open("h"), "Drama") == [[11, 12, 13]]
    pools.purge(["user 7"])
    assert pools.holding(["user 7"]) == []
    for path in (tmp_path / "segments").iterdir():
        assert np.array([11, 12, 13], np.int32).tobytes() not in path.read_bytes()


def test_a_segment_that_cannot_be_read_counts_as_holding(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    build(pools, texts(("Drama", [1, 2, 3], "user 8")))
    (tmp_path / "segments" / "torn").write_bytes(b"DAREPOOL")
    assert pools.holding(["user 7"]) == ["segments/torn"]
    pools.purge(["user 7"])
    assert not (tmp_path / "segments" / "torn").exists()


def _facts(manifest: PoolManifest) -> dict[str, Any]:
    return {name: value for name, value in vars(manifest).items() if name not in ("version", "groups")}


# What goes wrong


def test_a_pool_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    build(pools)
    with pytest.raises(
        PoolError, match=r"built with tokenizer h \(model m\), but the model in use has tokenizer other"
    ):
        pools.open("other")
    with pytest.raises(PoolError, match=r"built with tokenizer h, the new texts with other; build the pool again"):
        pools.add(OTHER, "m", "other", VOCABULARY)


@pytest.mark.parametrize("bad", [[1, VOCABULARY], [-1]])
def test_token_ids_out_of_range_are_refused_and_leave_nothing(tmp_path: Path, bad: list[int]) -> None:
    with pytest.raises(PoolError, match=r"outside the tokenizer's 0\.\.99"):
        build(PoolStore(tmp_path), texts(("a", [1]), ("b", bad)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "said"), [(GLOBAL_GROUP, "rename the group"), ("", "empty name")])
def test_names_that_a_group_cannot_have_are_refused(tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(PoolError, match=said):
        build(PoolStore(tmp_path), texts((name, [1])))


def test_what_is_missing_or_no_version_is_named(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    with pytest.raises(PoolError, match=r"there is no pool at .*dare pool build"):
        pools.open("h")
    with pytest.raises(PoolError, match="there is no pool at"):
        add(pools)
    build(pools)
    with pytest.raises(PoolError, match="no version '0123456789abcdef'"):
        pools.open("h", "0123456789abcdef")
    with pytest.raises(PoolError, match="versions are 16 hex digits"):
        pools.open("h", "../../elsewhere")


def test_a_manifest_from_a_newer_release_or_damaged_is_refused(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    path = tmp_path / "versions" / f"{build(pools).version}.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(PoolError, match="format 99 is not the format 2 that this release reads; update"):
        pools.open("h")
    path.write_text("{")
    with pytest.raises(PoolError, match="not a pool manifest"):
        pools.open("h")
    path.write_text(json.dumps(content | {"model": "x"}))
    with pytest.raises(PoolError, match="its content does not have its name"):
        pools.open("h")


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
    opened_before = pools.open("h")
    new = add(pools)
    entry = next(e for e in new.groups["Western"].segments)
    path = tmp_path / "segments" / entry.sha256
    if damage == "header":
        _flip(path, 20)
    elif damage == "body":
        pools.open("h")  # this host has checked it, and must see that it changed
        _flip(path, entry.size - 1)
    elif damage == "shorter":
        path.write_bytes(path.read_bytes()[:-4])
    else:
        path.unlink()
    with pytest.raises(PoolError, match=entry.sha256):
        pools.check(new)
    with caplog.at_level(logging.WARNING):
        assert pools.open("h").manifest.version == old.version
    assert entry.sha256 in caplog.text
    assert f"pool version {old.version} is used instead of {new.version}" in caplog.text
    assert held(opened_before, "Drama") == [[1, 2, 3], [1, 2, 9]]


def test_where_no_version_is_whole_the_damage_is_raised(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    build(pools)
    for path in (tmp_path / "segments").iterdir():
        _flip(path, 70)
    with pytest.raises(PoolError, match=r"segments/\w+ is damaged: its checksum is wrong"):
        pools.open("h")


def test_building_again_mends_damage(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    made = build(pools)
    for path in (tmp_path / "segments").iterdir():
        _flip(path, 70)
    assert build(pools).version == made.version
    assert held(pools.open("h"), "Drama") == [[1, 2, 3], [1, 2, 9]]


def test_a_host_reads_a_segments_bytes_once_to_check_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pools = PoolStore(tmp_path)
    build(pools)
    pools.open("h")
    opened: list[Path] = []
    original = Path.open

    def counted(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        opened.append(self)
        return original(self, mode, *arguments, **options)

    monkeypatch.setattr("dare_core.pools.files.Path.open", counted)
    pools.open("h")
    segments = [path for path in opened if path.parent.name == "segments"]
    assert len(segments) == len(set(segments))  # mapped once each, and not read besides


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
    original = os.fdopen
    monkeypatch.setattr("dare_core.storage.files.os.fdopen", lambda *a, **k: _FailingWriter(original(*a, **k)))


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
    assert held(pools.open("h"), "Drama") == [[1, 2, 3], [1, 2, 9]]
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
    assert len(held(pools.open("h"), "Drama")) == 2 + len(won)


def test_a_builder_that_began_before_another_published_does_not_undo_it(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    began_at = build(pools).version
    other = add(pools)
    entry = pools.write_segment(Segment.build(texts(("Drama", [50])), VOCABULARY))
    with pytest.raises(PoolError, match=rf"published {other.version} meanwhile"):
        pools.publish({"Drama": [entry]}, "m", "h", VOCABULARY, replacing=began_at)
    assert pools.current() == other.version


# Keeping


def test_versions_are_rolled_back_and_forth(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    with pytest.raises(PoolError, match="there is no pool"):
        pools.rollback()
    old = build(pools)
    with pytest.raises(PoolError, match="has no version before"):
        pools.rollback()
    new = add(pools)
    assert pools.rollback().version == old.version == pools.current()
    assert pools.rollback(new.version).version == new.version == pools.current()


def test_the_latest_versions_and_those_in_use_are_kept_the_others_expire(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    made = [build(pools).version, *(add(pools, texts(("Drama", [n, n + 1]))).version for n in range(10, 15))]
    pools.pin(made[1], "run 1")
    assert pools.expire(keep=2) == [made[3], made[2], made[0]]
    assert pools.versions() == [made[5], made[4], made[1]]
    for version in (made[5], made[4], made[1]):
        pools.check(pools.manifest(version))
    pools.unpin("run 1")
    assert pools.expire(keep=0) == [made[4], made[1]]  # the one in force stays
    named = {e.sha256 for part in pools.manifest().groups.values() for e in part.segments}
    assert files(tmp_path / "segments") == named
    assert held(pools.open("h"), "Drama")


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
    assert pools.expire(keep=1)[0] == old.version
    path = tmp_path / "segments" / entry.sha256
    assert path.exists()
    os.utime(path, (time.time() - 90_000,) * 2)
    pools.expire(keep=1)
    assert not path.exists()


def test_the_difference_of_two_versions_is_counted_by_group(tmp_path: Path) -> None:
    pools = PoolStore(tmp_path)
    old = build(pools)
    new = add(pools)
    assert pools.diff(old.version, new.version) == store.PoolDifference({"Drama": 1, "Western": 1}, {})
    assert pools.diff(new.version, old.version) == store.PoolDifference({}, {"Drama": 1, "Western": 1})


# Object storage


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
    assert held(PoolStore(url, cache=cache).open("h"), "Drama") == [[1, 2, 3], [1, 2, 9], [7, 8]]
    assert pools.rollback().version == pools.versions()[0]
    assert pools.expire(keep=1)
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
    assert pools.open("h").manifest.version == old.version
    assert "is damaged" in caplog.text


def test_the_cache_holds_no_more_than_it_may(url: str, cache: Path) -> None:
    pools = PoolStore(url, cache=cache, cache_bytes=1500)
    for n in range(6):
        build(pools, texts(("Drama", [n, *range(40)])))
        pools.open("h")
        assert sum(path.stat().st_size for path in (cache / "segments").iterdir()) <= 1500
    small = PoolStore(url, register=pools.register, cache=cache / "small", cache_bytes=100)
    with pytest.raises(PoolError, match="more than the cache"):
        small.open("h")


def test_local_folders_are_not_copied_into_the_cache(tmp_path: Path, cache: Path) -> None:
    pools = PoolStore(tmp_path / "pools", cache=cache)
    build(pools)
    pools.open("h")
    assert isinstance(pools.files._fs, LocalFileSystem)
    assert not cache.exists()
