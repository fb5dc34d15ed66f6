"""Every command, with what it needs broken: one line says so, and nobody sees a traceback who did not ask for it."""

import builtins
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import alembic.util
import pytest
import typer

from dare_core.cli.failures import in_words
from dare_core.cli.main import app, main
from dare_core.errors import DareError, WarehouseError

#: What a command is given for what it must have, by the name of the parameter; and what keeps it short, by command.
GIVEN: Final = {
    "prompts": "broken", "out": "out", "knowledge": "broken", "pool": "pool", "kind": "item", "entity": "50",
    "name": "/no-model", "request_id": "r", "domain": "movies", "folder": "backup", "place": "backup",
}  # fmt: skip
BESIDES: Final = {
    "source import": ("--from", "folder"),
    "forget": ("--yes",),
    "airflow setup": ("--url", "http://127.0.0.1:1", "--password", "x"),
    "ui": (),
}
#: Benchmarks come with a checkout alone, and make what they need themselves.
LEFT_OUT: Final = "bench"


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command, with arguments."""
    for name, command in getattr(group, "commands", {}).items():
        if not path and name == LEFT_OUT:
            continue
        if getattr(command, "commands", None):
            yield from commands(command, (*path, name))
            continue
        arguments = [*path, name]
        for parameter in command.params:
            if parameter.required:
                option = [] if parameter.param_type_name == "argument" else [parameter.opts[0]]
                arguments += [*option, GIVEN[parameter.name]]  # a new command whose need is not there says so here
        yield (*arguments, *BESIDES.get(" ".join((*path, name)), ()))


COMMANDS: Final = sorted(commands(typer.main.get_command(app)))


def _raises(error: Exception) -> Callable[..., Any]:
    def refuse(*_: object, **__: object) -> Any:
        raise error

    return refuse


def _full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")
    opened = io.open

    def open_file(file: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
        if set(mode) & set("wax+") and not isinstance(file, int):
            raise full
        return opened(file, mode, *more, **options)

    monkeypatch.setattr(builtins, "open", open_file)
    monkeypatch.setattr(io, "open", open_file)
    for name in ("mkdir", "touch", "rename"):
        monkeypatch.setattr(Path, name, _raises(full))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["dare", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize("broken", ["folder", "table", "server", "model", "disk"])
def test_no_command_shows_a_traceback_whatever_is_broken(
    broken: str,
    tmp_path: Path,
    warehouse_url: str,
    empty_database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken").write_bytes(b"\xff\x00 neither JSON nor Parquet")
    (tmp_path / "folder").mkdir()
    urls = {"server": "postgresql://127.0.0.1:1/none", "table": empty_database_url, "folder": ""}
    monkeypatch.setenv("DARE_DATA_DIR", "/proc/dare" if broken == "folder" else str(tmp_path / "data"))
    monkeypatch.setenv("DARE_WAREHOUSE_URL", urls.get(broken, warehouse_url))
    monkeypatch.setenv("DARE_MODEL", str(tmp_path / "no-model"))
    monkeypatch.setenv("DARE_ENCODER", str(tmp_path / "no-model"))
    # What would take minutes, or stay.
    monkeypatch.setattr("dare_core.warehouse.server._Server.launch", _raises(WarehouseError("not in this test")))
    monkeypatch.setattr("dare_airflow.local.airflow.LocalAirflow.__enter__", _raises(DareError("not in this test")))
    monkeypatch.setattr("dare_airflow.local.airflow.serve_ui", _raises(DareError("not in this test")))
    monkeypatch.setattr("dare_airflow.demo.prepare", _raises(OSError(errno.ENOSPC, "No space left on device")))
    if broken == "disk":
        _full_disk(monkeypatch)
    failed = 0
    for arguments in COMMANDS:
        code = run(monkeypatch, *arguments)
        said = capsys.readouterr().err
        assert code in (0, 1, 2), (arguments, said)
        assert "Traceback" not in said and "Usage:" not in said, (arguments, said)
        if code == 2:
            failed += 1
            assert len([line for line in said.splitlines() if line.startswith("dare: ")]) == 1, (arguments, said)
    assert failed > len(COMMANDS) / 2


def test_every_command_is_walked() -> None:
    names = {" ".join(arguments[:2]) for arguments in COMMANDS}
    assert {"pipeline run", "warehouse upgrade", "pool verify pool"[:11], "airflow setup"} <= names
    assert len(COMMANDS) >= 30


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/data"), "/data: Permission denied; choose a folder"),
        (OSError(errno.EROFS, "Read-only file system", "/data"), "/data: Read-only file system; choose a folder"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "the disk is full, or a limit on files is reached (No space",
        ),
        (
            alembic.util.CommandError("Can't locate revision 'x'"),
            "the warehouse refused to go on: Can't locate revision",
        ),
        (
            RuntimeError("spark-submit pull.py ended with status 1:\nlog\nlog"),
            "RuntimeError: spark-submit pull.py ended",
        ),
        (MemoryError(), "memory is full"),
        (KeyError("x"), "KeyError: 'x'; `dare --debug …` shows where"),
    ],
)
def test_what_nobody_foresaw_is_one_line_and_a_traceback_is_for_those_who_ask(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_words(error).startswith(said) and "\n" not in in_words(error)
    monkeypatch.setattr("dare_core.warehouse.server.stop", _raises(error))
    assert run(monkeypatch, "warehouse", "stop") == 2
    assert capsys.readouterr().err.splitlines() == [f"dare: {in_words(error)}"]
    assert run(monkeypatch, "--debug", "warehouse", "stop") == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err
