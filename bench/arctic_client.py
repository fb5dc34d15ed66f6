"""Arctic Inference's suffix decoding cache beside our pools: its program in its own environment, as a drafter."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench import arctic_peer
from bench.pool_peers import forest_of
from dare_core.config.settings import PROJECT_DIR
from dare_core.drafts import Context, Forest
from dare_core.engines.peer_process import PeerProcess, running

#: Made by ``make bench-arctic``.
VENV: Final = PROJECT_DIR / ".venv-arctic"


class ArcticCache:
    """A running cache that has seen some texts. Times are the program's own: no JSON, no pipe.

    Attributes:
        build_seconds: it took to see the texts.
    """

    evidence_kinds = 1
    own_evidence = np.zeros(1, np.bool_)

    def __init__(self, process: PeerProcess, texts: Sequence[NDArray[np.int32]]) -> None:
        self._process = process
        self.build_seconds: float = process.ask({"texts": [text.tolist() for text in texts]})["seconds"]

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
        asked = {"contexts": [context.output.tolist() for context in contexts], "max_nodes": max_nodes}
        return self._process.ask(asked)


@contextmanager
def serving_arctic(texts: Sequence[NDArray[np.int32]], log: Path) -> Iterator[ArcticCache]:
    """Start Arctic Inference's cache and show it ``texts``, ``[t]`` int32 each.

    Raises:
        DareError: it does not start; names its log.
    """
    # -P: the folder of the program holds a module `platform`, which numpy would take for Python's own.
    command: list[str | Path] = [VENV / "bin" / "python", "-P", arctic_peer.__file__]
    with running("Arctic Inference", command, log) as process:
        yield ArcticCache(process, texts)
