import importlib.util
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import dare_core

#: Drafts from a pool, as numbers, which do not depend on how its index is laid out.
DRAFT = """
import tempfile
import numpy as np
import pyarrow as pa
from dare_core.drafts import Context
from dare_core.pools import Pool, PoolBuilder, PoolDrafter, PoolStore

random = np.random.default_rng(3)
texts = random.integers(0, 9, size=(100, 30)).tolist()
asked = random.integers(0, 9, size=(200, 12), dtype=np.int32)
with tempfile.TemporaryDirectory() as folder:
    store = PoolStore(folder)
    PoolBuilder(store, "model", "tokens", 9).build(pa.table({"group": ["a"] * 100, "token_ids": texts}))
    drafter = PoolDrafter(Pool.open(store, "tokens"))
    for text in asked:
        print(drafter.draft([Context("a", text, 0, len(text))], 16).tokens.tolist())
"""


def drafts(folder: Path) -> list[str]:
    """What a process of its own drafts with the package in a folder, and the machine code that is kept."""
    variables = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", DRAFT]
    return subprocess.run(command, check=True, env=variables, stdout=subprocess.PIPE, text=True).stdout.splitlines()


def test_the_first_drafts_after_a_constant_of_another_module_has_changed_are_right(tmp_path: Path) -> None:
    package = tmp_path / "dare_core"
    shutil.copytree(Path(dare_core.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    before = drafts(tmp_path)
    assert len(before) == 200
    path = package / "pools" / "index.py"
    source = path.read_text()
    assert "STRIDE: Final = 16" in source
    path.write_text(source.replace("STRIDE: Final = 16", "STRIDE: Final = 4"))
    assert drafts(tmp_path) == before


def load(folder: Path, number: int) -> Any:
    """A module of a compiled function that returns a number, under the same name each time."""
    path = folder / f"{number}.py"
    path.write_text(
        f"from dare_core.storage.machine_code import compiled\n\n\n@compiled\ndef function():\n    return {number}\n"
    )
    spec = importlib.util.spec_from_file_location("some_module", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_folders_of_former_sources_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kept"))
    for number in range(10):
        assert load(tmp_path, number).function() == number
    newest = next((tmp_path / "kept").glob("some_module-*/9.*.nbi")).parent
    assert newest.is_dir()
    assert len(list((tmp_path / "kept").iterdir())) == 8


def test_where_nothing_can_be_kept_functions_run_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file" / "below"))
    with caplog.at_level(logging.WARNING):
        assert load(tmp_path, 3).function() == 3
    assert "machine code cannot be kept" in caplog.text
