"""A busy neighbour: a process that keeps one core, or the memory, as busy as it can.

``python -m bench.disturbance spin|stream`` says that it is at it, and ends with whoever started it.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal

Kind = Literal["spin", "stream"]

#: Far more than a processor's caches hold.
_STREAMED_BYTES: Final = 256 << 20
#: Additions between two looks at whether anybody still wants them: milliseconds.
_TURNS: Final = 100_000


@contextmanager
def disturbing(kind: Kind) -> Iterator[int]:
    """Have a process ``spin`` (arithmetic alone) or ``stream`` (copy memory) beside the block; its process id."""
    command = [sys.executable, "-m", "bench.disturbance", kind]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    try:
        process.stdout.readline()  # it is at it
        yield process.pid
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _spin() -> Callable[[], None]:
    def turn() -> None:
        total = 0
        for number in range(_TURNS):
            total += number

    return turn


def _stream() -> Callable[[], None]:
    import numpy as np

    source = np.ones(_STREAMED_BYTES, np.uint8)
    target = np.zeros_like(source)

    def turn() -> None:
        np.copyto(target, source)

    return turn


def main() -> None:
    """Disturb until the process that asked for it is gone."""
    turn = {"spin": _spin, "stream": _stream}[sys.argv[1]]()
    asked_by = os.getppid()
    print("disturbing", flush=True)
    while os.getppid() == asked_by:
        turn()


if __name__ == "__main__":
    main()
