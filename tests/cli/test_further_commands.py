"""Commands that packages beside the library add, and those that a checkout has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from dare_core.cli import bench
from dare_core.errors import InputError

ENTRY_POINTS = """
[dare.commands]
broken = dare_broken_commands:app
working = dare_working_commands:app
"""
WORKING = """
import typer

app = typer.Typer()


@app.command()
def greet() -> None:
    print("good day")
"""


def test_an_entry_point_that_cannot_be_imported_is_one_line_and_all_other_commands_stay(tmp_path: Path) -> None:
    metadata = tmp_path / "dare_commands-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: dare-commands\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    (tmp_path / "dare_broken_commands.py").write_text("raise RuntimeError('of another\\nrelease \x1b[31m')")
    (tmp_path / "dare_working_commands.py").write_text(WORKING)
    ran = subprocess.run(
        [sys.executable, "-m", "dare_core.cli", "greet"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, "good day\n")
    [line] = [line for line in ran.stderr.splitlines() if "broken" in line]
    assert line.startswith("dare: entry point broken = dare_broken_commands:app adds no commands: RuntimeError: ")
    assert line.endswith("of another release \N{REPLACEMENT CHARACTER}[31m")
    assert len(ran.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["bench"], ["bench", "decode", "--batch", "16"], ["bench", "--json"]])
def test_benchmarks_outside_a_checkout_say_where_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str]
) -> None:
    monkeypatch.setattr(bench, "PROJECT_DIR", tmp_path)
    app = typer.Typer()
    app.command("generate")(lambda: None)
    bench.add_to(app)
    refused = CliRunner().invoke(app, arguments).exception
    assert isinstance(refused, InputError)
    assert "in a checkout of the source" in str(refused)
