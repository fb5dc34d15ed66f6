"""Arctic Inference's suffix decoding cache beside our pools: its program in its own environment, as a drafter."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from dare_core.bench import arctic_peer
from dare_core.bench.pool_peers import forest_of
from dare_core.drafts import Context, Forest
from dare_core.errors import DareError
from dare_core.settings import PROJECT_DIR

#: Made by ``make bench-arctic``.
VENV: Final = PROJECT_DIR / ".venv-arctic"


class ArcticCache:
    """A running cache that has seen some texts. Times are the program's own: no JSON, no pipe.

    Attributes:
        build_seconds: it took to see the texts.
    """

    evidence_kinds = 1

    def __init__(self, texts: Sequence[NDArray[np.int32]], asks: IO[str], answers: IO[str], log: Path) -> None:
        self._asks, self._answers, self._log = asks, answers, log
        self.build_seconds: float = self._ask({"texts": [text.tolist() for text in texts]})["seconds"]

    def resolve(self, group: str) -> str | None:
        """There are no groups."""
        return group

    def learn(self, context: Context, trusted: NDArray[np.bool_]) -> None:
        """Nothing is learned."""

    def draft(self, contexts: Sequence[Context], max_nodes: int) -> Forest:
        """The likeliest nodes behind the suffix that the cache chooses.

        Raises:
            DareError: the program ended; names its log.
        """
        trees: list[list[tuple[int, int, int, float]]] = []
        for tokens, parents, paths in self._drafts(contexts, max_nodes)["trees"]:
            depths: list[int] = []
            for parent in parents:
                depths.append(1 if parent < 0 else depths[parent] + 1)
            trees.append(list(zip(tokens, parents, depths, paths, strict=True)))
        return forest_of(trees)

    def seconds_of_each(self, contexts: Sequence[Context], max_nodes: int) -> list[float]:
        """What it took from Python to draft behind each, one after the other."""
        seconds: list[float] = self._drafts(contexts, max_nodes)["seconds"]
        return seconds

    def _drafts(self, contexts: Sequence[Context], max_nodes: int) -> dict[str, Any]:
        return self._ask({"contexts": [context.output.tolist() for context in contexts], "max_nodes": max_nodes})

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        try:
            print(json.dumps(question), file=self._asks, flush=True)
            line = self._answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise DareError(f"Arctic Inference ended; its log is {self._log}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def serving_arctic(texts: Sequence[NDArray[np.int32]], log: Path) -> Iterator[ArcticCache]:
    """Start Arctic Inference's cache and show it ``texts``, ``[t]`` int32 each.

    Raises:
        DareError: it does not start; names its log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [VENV / "bin" / "python", arctic_peer.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield ArcticCache(texts, process.stdin, process.stdout, log)
        finally:
            process.kill()  # it holds nothing that is worth an orderly end
