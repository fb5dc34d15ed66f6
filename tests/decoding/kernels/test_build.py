"""How the kernels come to be: compiled once, kept, and done without where that fails."""

import logging
import shutil
from pathlib import Path

import pytest

from dare_core.decoding import kernels
from dare_core.decoding.kernels import build

load = kernels.load.__wrapped__  # without the memory of earlier calls


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "dare"


@pytest.mark.skipif(kernels.load() is None, reason="no C++ compiler")
def test_they_are_compiled_once_and_kept_whole(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load() is not None
    [library] = cache.iterdir()
    made = library.stat().st_mtime_ns
    monkeypatch.setenv("PATH", "")  # nothing to compile with any more
    assert load() is not None
    assert library.stat().st_mtime_ns == made


def test_a_change_in_any_source_is_compiled_anew(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = shutil.copytree(Path(build.__file__).parent, tmp_path / "sources")
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nwhile [ $# -gt 1 ]; do shift; done; touch "$1"\n')  # makes what -o, the last, names
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(build, "_FOLDER", sources)
    made = {build.built(), build.built()}
    texts = [path for path in sources.iterdir() if path.suffix in {".h", ".cpp"}]
    for path in texts:
        path.write_text(path.read_text() + "\n")
        made.add(build.built())
    assert len(made) == 1 + len(texts)
    assert made == set(cache.iterdir())


def test_without_a_compiler_a_warning_says_so_and_torchs_kernels_serve(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with caplog.at_level(logging.WARNING):
        assert load() is None
    assert "no C++ compiler on PATH" in caplog.text


def test_a_compiler_that_fails_leaves_nothing_behind(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "false")
    with caplog.at_level(logging.WARNING):
        assert load() is None
    assert "slower" in caplog.text
    assert not list(cache.iterdir())


def test_they_can_be_switched_off(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DARE_KERNELS", "0")
    assert load() is None
    assert not cache.exists()
