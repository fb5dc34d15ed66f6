"""How vLLM is started."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dare_core import models
from dare_core.config.settings import Settings

_SERVER: Final = "dare_core.engines.vllm.server"
#: The longest path that is drafted.
_DRAFT_TOKENS: Final = 16
#: vLLM is started for texts of a multiple of so many tokens, so that a little longer ones need not start it again.
_LENGTHS: Final = 256
#: Positions of a sequence that vLLM may keep beside its text: its last block's, and those of drafts.
_SPARE: Final = 256
_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class VllmOptions:
    """How vLLM is started.

    Attributes:
        python: the interpreter of vLLM's environment.
        model: hub id or folder.
        dtype: of weights and arithmetic.
        max_length: prompt and new tokens of one sequence at most.
        max_sequences: decoded at once, at most; the proposer's step costs are measured for one and for as many.
        log: file for what vLLM has to say.
        compiled: folder for what Numba compiles there; its version is another than ours.
        cache_bytes: memory for keys and values; None: as vLLM finds it.
        trust_remote_code: run code that a model repository brings along.
        tensor_parallel_size: accelerators that share the model.
        memory_share: of an accelerator's memory, for weights, keys and values; None: vLLM's default.
        quantization: one of vLLM's methods; None: as the model's config says.
    """

    python: Path
    model: str
    dtype: str
    max_length: int
    max_sequences: int
    log: Path
    compiled: Path
    cache_bytes: int | None = None
    trust_remote_code: bool = False
    tensor_parallel_size: int = 1
    memory_share: float | None = None
    quantization: str | None = None

    def command(self) -> list[str | Path]:
        """The server's program and its arguments."""
        words: list[str | Path] = [self.python, "-m", _SERVER, self.model]
        given = {
            "dtype": self.dtype,
            "max-length": self.max_length,
            "max-sequences": self.max_sequences,
            "draft-tokens": _DRAFT_TOKENS,
            "cache-bytes": self.cache_bytes,
            "tensor-parallel-size": self.tensor_parallel_size,
            "memory-share": self.memory_share,
            "quantization": self.quantization,
        }
        words += [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
        return [*words, "--trust-remote-code"] if self.trust_remote_code else words


def vllm_options(settings: Settings, max_length: int, context_length: int) -> VllmOptions:
    """How vLLM is to be started for texts of ``max_length`` tokens, prompts included.

    Its cache is what ``cache_gib`` says, or what ``memory_share`` leaves, or else as large as ``batch_size`` needs:
    vLLM itself would take nearly all memory.

    Raises:
        ModelError: the model is not there.
    """
    folder = settings.data_dir / "vllm"
    max_length = min(-(-max_length // _LENGTHS) * _LENGTHS, context_length)
    cache_bytes = int(settings.cache_gib * 2**30) if settings.cache_gib else None
    if cache_bytes is None and settings.memory_share is None:
        each = models.cached_numbers(settings) * _BYTES[settings.dtype]
        cache_bytes = settings.batch_size * (max_length + _SPARE) * each
    return VllmOptions(
        python=settings.vllm_python,
        model=models.locate(settings),
        dtype=settings.dtype,
        max_length=max_length,
        max_sequences=settings.batch_size,
        log=folder / f"{os.getpid()}.log",
        compiled=folder / "compiled",
        cache_bytes=cache_bytes,
        trust_remote_code=settings.trust_remote_code,
        tensor_parallel_size=settings.tensor_parallel_size,
        memory_share=settings.memory_share,
        quantization=settings.quantization,
    )
