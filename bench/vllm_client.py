"""vLLM beside us: its program in its own environment, for as long as a block lasts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from dare_core import models
from dare_core.config.settings import PROJECT_DIR, Settings
from dare_core.engines.peer_process import PeerProcess, running
from dare_core.engines.plain import Run
from dare_core.engines.vllm import launch

#: Made by ``make vllm-env``.
VENV: Final = PROJECT_DIR / ".venv-vllm"

Speculation = Literal["none", "ngram", "suffix"]

#: Room in the cache beside each sequence's own: whole blocks, of which vLLM's are large on CPUs, and what is drafted.
_SPARE_TOKENS: Final = 512


@dataclass(frozen=True)
class VllmPeer:
    """A running vLLM engine.

    Attributes:
        version: of vLLM.
    """

    version: str
    _process: PeerProcess

    def tell(self, earlier: Sequence[Sequence[int]]) -> None:
        """The texts that suffix decoding drafts from, in every later call of :meth:`write`.

        Raises:
            DareError: vLLM ended; names its log.
        """
        self._process.ask({"earlier": earlier})

    def write(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int) -> Run:
        """Greedy texts of the prompts, ``batch_size`` at once.

        Raises:
            DareError: vLLM ended; names its log.
        """
        asked = {"prompts": [list(p) for p in prompts], "max_new_tokens": max_new_tokens, "batch_size": batch_size}
        answer = self._process.ask(asked)
        return Run(answer["texts"], answer["seconds"])


def has_suffix_decoding() -> bool:
    """Whether Arctic Inference, which vLLM's method ``suffix`` needs, is installed beside it."""
    return any(VENV.glob("lib/python*/site-packages/arctic_inference"))


@contextmanager
def serving_vllm(
    settings: Settings,
    dtype: str,
    max_length: int,
    max_sequences: int,
    log: Path,
    speculation: Speculation = "none",
) -> Iterator[VllmPeer]:
    """Start vLLM on the settings' model; see :mod:`bench.vllm_peer` for the sizes.

    Raises:
        DareError: it does not start; names its log.
    """
    tokens = max_sequences * (max_length + _SPARE_TOKENS)
    cache = tokens * models.cached_numbers(settings) * (4 if dtype == "float32" else 2)
    arguments = {
        "dtype": dtype,
        "max-length": max_length,
        "max-sequences": max_sequences,
        "speculation": speculation,
        "cache-mib": (cache >> 20) + 1,
    }
    options = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
    program: list[str | Path] = [VENV / "bin" / "python", "-m", "bench.vllm_peer"]
    ends = map(str, sorted(models.model_facts(settings).eos_token_ids))
    command = [*program, models.locate(settings), *options, "--eos", *ends]
    with running("vLLM", command, log, launch.this_checkout()) as process:
        yield VllmPeer(process.answer()["version"], process)
