"""A peer's program in an environment of its own, asked in JSON lines for as long as a block lasts."""

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dare_core.errors import DareError


@dataclass(frozen=True)
class PeerProcess:
    """A program that answers each line on its standard input with one on its standard output.

    Attributes:
        name: what to call it in errors.
        log: where its standard error goes.
        pid: of the process.
    """

    name: str
    log: Path
    pid: int
    _asks: IO[str]
    _answers: IO[str]

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a question.

        Raises:
            DareError: the program ended; names its log.
        """
        with suppress(BrokenPipeError):  # then there is no answer either
            print(json.dumps(question), file=self._asks, flush=True)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line that the program says.

        Raises:
            DareError: the program ended; names its log.
        """
        line = self._answers.readline()
        if not line:
            raise DareError(f"{self.name} ended; its log is {self.log}")
        said: dict[str, Any] = json.loads(line)
        return said


@contextmanager
def running(name: str, command: Sequence[str | Path], log: Path) -> Iterator[PeerProcess]:
    """Start a peer's program, and end it behind the block.

    Args:
        name: what to call it in errors.
        command: the program and its arguments.
        log: file for its standard error, written anew.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield PeerProcess(name, log, process.pid, process.stdin, process.stdout)
        finally:
            process.kill()  # it holds nothing that is worth an orderly end
