"""vLLM beside us: its program in its own environment, for as long as a block lasts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dare_core.config.settings import PROJECT_DIR
from dare_core.engines.peer_process import PeerProcess, running
from dare_core.engines.plain import Run
from dare_core.engines.vllm import launch

#: Made by ``make vllm-env``.
VENV: Final = PROJECT_DIR / ".venv-vllm"


@dataclass(frozen=True)
class VllmPeer:
    """A running vLLM engine.

    Attributes:
        version: of vLLM.
    """

    version: str
    _process: PeerProcess

    def write(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int) -> Run:
        """Greedy texts of the prompts, ``batch_size`` at once.

        Raises:
            DareError: vLLM ended; names its log.
        """
        asked = {"prompts": [list(p) for p in prompts], "max_new_tokens": max_new_tokens, "batch_size": batch_size}
        answer = self._process.ask(asked)
        return Run(answer["texts"], answer["seconds"])


@contextmanager
def serving_vllm(
    model: Path, dtype: str, max_length: int, max_sequences: int, ends: Sequence[int], ngram: int, log: Path
) -> Iterator[VllmPeer]:
    """Start vLLM on ``model``; see :mod:`bench.vllm_peer` for the sizes.

    Raises:
        DareError: it does not start; names its log.
    """
    arguments = {
        "dtype": dtype,
        "max-length": max_length,
        "max-sequences": max_sequences,
        "ngram": ngram,
    }
    options = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    program: list[str | Path] = [VENV / "bin" / "python", "-m", "bench.vllm_peer"]
    command = [*program, model, *options, "--eos", *map(str, ends)]
    with running("vLLM", command, log, launch.this_checkout()) as process:
        yield VllmPeer(process.answer()["version"], process)
