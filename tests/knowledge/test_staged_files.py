"""Files of a run: whole or not there, and a full disk is a sentence."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from dare_core.errors import InputError
from dare_core.storage.run_files import read_parquet, write_table

PROGRAM = """
import resource, sys
from pathlib import Path
import pyarrow as pa
from dare_core.errors import StorageError
from dare_core.storage.run_files import write_json, write_table
folder = Path(sys.argv[1])
write_json(folder / "kept.json", "old")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
for name, write in (
    ("table.parquet", lambda path: write_table(path, pa.table({"n": list(range(100_000))}))),
    ("kept.json", lambda path: write_json(path, "x" * 2000)),
):
    try:
        write(folder / name)
    except StorageError as error:
        print(error)
"""


def test_a_full_disk_is_a_sentence_and_leaves_nothing_but_what_was_there(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True)
    table, kept = done.stdout.splitlines()
    assert table.startswith(f"{tmp_path}/table.parquet cannot be written: File too large; nothing is left of it.")
    assert kept.startswith(f"{tmp_path}/kept.json cannot be written: File too large")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"kept.json": "old"}


def test_a_file_without_a_column_that_is_asked_for_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "part.parquet"
    write_table(path, pa.table({"kind": ["item"]}))
    assert read_parquet(path, ["kind"]).column_names == ["kind"]
    with pytest.raises(InputError, match=r"part\.parquet is not what a run left there: it has no column 'steps'"):
        read_parquet(path, ["kind", "steps"])
