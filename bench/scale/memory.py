"""How much memory processes have to themselves, by kind."""

from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

#: What a program's name says of a process; the process's own may be any title.
_KINDS: Final = {"python": "python", "java": "driver", "postgres": "server"}


def private_mb(pid: int) -> dict[str, float]:
    """Private memory of a process and its descendants: of the largest Python process, of the largest Java process.

    Private is what the process alone has mapped and touched (USS): what forked workers share counts nowhere.

    Args:
        pid: of the first process; one that has ended has none.
    """
    most: dict[str, float] = {}
    for kind, mb in _family(pid):
        most[kind] = max(mb, most.get(kind, 0.0))
    return most


def server_mb(postmaster: Path) -> dict[str, float]:
    """Private memory of all processes of a PostgreSQL server together; none where it is not on this machine.

    Args:
        postmaster: the server's file ``postmaster.pid``.
    """
    with suppress(OSError, ValueError, IndexError):
        return {"server": sum(mb for _, mb in _family(int(postmaster.read_text().split()[0])))}
    return {}


def _family(pid: int) -> list[tuple[str, float]]:
    found = []
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.Error):
                program = Path(process.exe()).name
                kind = next((kind for name, kind in _KINDS.items() if program.startswith(name)), "other")
                found.append((kind, process.memory_full_info().uss / 1e6))
    return found
