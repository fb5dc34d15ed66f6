"""Local folders and remote places behave alike."""

from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pytest

from dare_core.errors import InputError
from dare_core.storage import run_files
from dare_core.storage.atomic import appearing, write_atomically
from dare_core.storage.locations import (
    Location,
    exists,
    fetched,
    files_below,
    files_in,
    is_folder,
    location,
    matching,
    read_bytes,
    remove,
    remove_folder,
)

ROWS = pa.table({"n": pa.array([1, 2], pa.int64())})


@pytest.fixture(params=["local", "remote"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    return tmp_path / "place" if request.param == "local" else location(f"memory://{uuid4().hex}/place")


def test_what_is_written_is_there_and_what_is_removed_is_gone(place: Location) -> None:
    write_atomically(place / "a" / "one.json", b"1")
    write_atomically(place / "a" / "b" / "two.json", b"22")
    assert read_bytes(place / "a" / "one.json") == b"1"
    assert exists(place / "a") and is_folder(place / "a") and not is_folder(place / "a" / "one.json")
    assert [file.path.name for file in files_in(place / "a")] == ["one.json"]
    assert [(file.path.name, file.size) for file in files_below(place)] == [("two.json", 2), ("one.json", 1)]
    assert all(file.written > 1e9 for file in files_below(place))
    assert matching(place / "a") == [place / "a" / "b", place / "a" / "one.json"]
    assert matching(place / "a", "o*") == [place / "a" / "one.json"]
    remove(place / "a" / "one.json")
    remove(place / "a" / "one.json")  # gone already
    assert not exists(place / "a" / "one.json")
    remove_folder(place / "a")
    remove_folder(place / "a")
    assert files_below(place) == files_in(place / "a") == matching(place / "a") == []


def test_what_breaks_off_leaves_nothing_and_what_was_there(place: Location) -> None:
    path = place / "a.bin"

    def break_off(written: bytes) -> None:
        with appearing(path) as scratch:
            scratch.write_bytes(written)
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        break_off(b"half")
    assert files_below(place) == []
    write_atomically(path, b"whole")
    with pytest.raises(RuntimeError, match="killed"):
        break_off(b"half of another")
    assert read_bytes(path) == b"whole"
    assert [file.path for file in files_below(place)] == [path]


def test_a_file_that_is_missing_is_said_to_be(place: Location) -> None:
    with pytest.raises(FileNotFoundError):
        read_bytes(place / "gone")
    with pytest.raises(FileNotFoundError), fetched(place / "gone") as local:
        local.read_bytes()
    write_atomically(place / "folder" / "a.json", b"1")
    with pytest.raises(OSError, match="folder"):
        read_bytes(place / "folder")
    with pytest.raises(InputError, match=r"gone\.parquet is not what a run left there"):
        run_files.read_table(place / "gone.parquet", ROWS.schema)


def test_of_a_table_s_folder_those_files_count_that_its_newest_manifest_names(place: Location) -> None:
    def read() -> list[int]:
        return [n for piece in run_files.read_pieces(place, ROWS.schema) for n in piece["n"].to_pylist()]

    run_files.write_table(place / "part-0.parquet", ROWS)
    assert read() == [1, 2]  # as an earlier release wrote it
    run_files.write_manifest(place, [])
    assert read() == []
    run_files.write_table(place / "part-1.parquet", ROWS)  # of a try that is not done, or never was
    assert read() == []
    run_files.write_manifest(place, ["part-1.parquet"])
    assert read() == [1, 2]
    assert run_files.read_table(place, ROWS.schema).equals(ROWS)
    write_atomically(place / f"_files-{run_files.new_attempt()}.json", b"[]")
    with pytest.raises(InputError, match=r"_files-.*json is not what a run left there"):
        read()
