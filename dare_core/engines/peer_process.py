"""A program in an environment of its own, asked in JSON lines."""

import json
import os
import subprocess
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dare_core.errors import DareError


class PeerProcess:
    """A program that answers each line on its standard input with one on its standard output.

    It ends with :meth:`close`, with this object, or with this process.

    Args:
        name: what to call it in errors.
        command: the program and its arguments.
        log: file for its standard error, written anew.
        variables: of its environment, beside those of this process.
    """

    def __init__(
        self, name: str, command: Sequence[str | Path], log: Path, variables: Mapping[str, str] | None = None
    ) -> None:
        self.name, self.log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **(variables or {})},
            )
        self.close = weakref.finalize(self, _end, self._process)

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a question.

        Raises:
            DareError: the program ended; names its log.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # then there is no answer either
            print(json.dumps(question), file=self._process.stdin, flush=True)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line that the program says.

        Raises:
            DareError: the program ended; names its log.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise DareError(f"{self.name} ended; its log is {self.log}")
        said: dict[str, Any] = json.loads(line)
        return said


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()  # it holds nothing that is worth an orderly end
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with suppress(BrokenPipeError):
            pipe.close()


@contextmanager
def running(
    name: str, command: Sequence[str | Path], log: Path, variables: Mapping[str, str] | None = None
) -> Iterator[PeerProcess]:
    """Start a program, and end it behind the block; arguments as of :class:`PeerProcess`."""
    process = PeerProcess(name, command, log, variables)
    try:
        yield process
    finally:
        process.close()
