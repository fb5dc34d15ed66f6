"""Programs on this machine: started with a log, ended with all that they started; signals and ports."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final

import psutil

_STOP_SECONDS: Final = 12.0
_STOP_TRIES: Final = 3
_LOG_LINES: Final = 25

Process = subprocess.Popen[bytes]


def start(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    *,
    folder: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> Process:
    """Start a program in a session of its own, so that Ctrl-C reaches us alone and :func:`family` finds all of it.

    Args:
        command: program and arguments.
        environment: all of its variables.
        log: takes standard output and standard error.
        folder: in which it starts; ours when None.
        pass_fds: file descriptors that the program and whatever it starts inherit.
    """
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=tuple(pass_fds),
        )


def with_log(what: str, log: Path) -> str:
    """What happened, and the end of a process's log."""
    tail = log.read_text("utf-8", errors="replace").splitlines()[-_LOG_LINES:]
    return "\n".join([f"{what}; the end of {log}:", *tail])


def end(*generations: Sequence[Process]) -> None:
    """End processes and all that they started, one generation after the other: SIGTERM, and at last SIGKILL."""
    ours: set[psutil.Process] = set()
    roots = [root for generation in generations for root in generation]
    try:
        for generation in generations:
            started = family(generation)
            ours |= started
            _terminate(started)
    finally:  # LocalExecutor's workers ignore SIGTERM; and a second Ctrl-C lands here at once
        signal_all(ours | family(roots), signal.SIGKILL)
        for root in roots:
            root.wait()


def family(roots: Sequence[Process]) -> set[psutil.Process]:
    """The processes, their descendants, and whatever else lives in their sessions (its parent may have died)."""
    sessions = {root.pid for root in roots}
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if os.getsid(process.pid) in sessions:
                found |= {process, *process.children(recursive=True)}
    return found


def _terminate(processes: set[psutil.Process]) -> None:
    """SIGTERM, more than once: Python may lose one, and the scheduler waits for its tasks until the second."""
    for _ in range(_STOP_TRIES):
        signal_all(processes, signal.SIGTERM)
        _, alive = psutil.wait_procs(processes, timeout=_STOP_SECONDS / _STOP_TRIES)
        if not alive:
            return


def signal_all(processes: set[psutil.Process], number: signal.Signals) -> None:
    """Send a signal; processes that have ended are fine."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit while the block lasts, so that ``with`` blocks are left in order."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    former = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def free_port() -> int:
    """A port of loopback that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    """Whether the API server could listen on this port of loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the API server does
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
