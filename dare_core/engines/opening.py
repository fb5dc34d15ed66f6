"""What writes texts: our engine over transformers, or vLLM in an environment of its own, as the settings choose."""

import os
from typing import TYPE_CHECKING, Final, Protocol

from dare_core import models
from dare_core.config.settings import Settings
from dare_core.errors import SettingError
from dare_core.models import ModelFacts
from dare_core.pools import Pool, PoolDrafter

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dare_core.decoding import Engine, EngineConfig, Request, Result
    from dare_core.decoding.engine import OnTokens
    from dare_core.engines.vllm.client import VllmEngine, VllmOptions, VllmServer

#: vLLM is started for texts of a multiple of so many tokens, so that a little longer ones need not start it again.
_LENGTHS: Final = 256
#: Positions of a sequence that vLLM may keep beside its text: its last block's, and those of drafts.
_SPARE: Final = 256
_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}


class AnyEngine(Protocol):
    """What :class:`dare_core.decoding.Engine` and :class:`dare_core.engines.vllm.client.VllmEngine` have in common."""

    @property
    def waiting(self) -> int:
        """See :class:`dare_core.decoding.Engine`."""
        ...

    @property
    def busy(self) -> bool:
        """See :class:`dare_core.decoding.Engine`."""
        ...

    def add(self, requests: "Iterable[Request]") -> None:
        """See :meth:`dare_core.decoding.Engine.add`."""
        ...

    def step(self, on_tokens: "OnTokens | None" = None) -> "list[Result]":
        """See :meth:`dare_core.decoding.Engine.step`; over vLLM one call may make several."""
        ...


class Engines(Protocol):
    """A loaded model, and one engine at a time over it.

    Attributes:
        facts: the model's.
    """

    facts: ModelFacts

    def open(self, config: "EngineConfig", pool: Pool | None, drafts: bool = True) -> AnyEngine:
        """An engine; the one opened before is not to be used any more.

        Args:
            config: sizes and verification.
            pool: what to draft from, beside the texts' own words and those of texts finished before.
            drafts: False decodes plainly.
        """
        ...


class TransformersEngines:
    """Our engine, in this process.

    Raises:
        ModelError: see :func:`dare_core.models.load_model`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._language_model = models.load_model(settings)
        self.facts = ModelFacts(self._language_model.eos_token_ids, self._language_model.context_length)
        self._engine: Engine | None = None

    def open(self, config: "EngineConfig", pool: Pool | None, drafts: bool = True) -> "Engine":
        """See :meth:`Engines.open`.

        Raises:
            ModelError: see :class:`dare_core.decoding.Engine`.
        """
        from dare_core.decoding import Engine

        self._engine = None  # its cache goes before another is allocated
        drafter = PoolDrafter(pool, _learned_tokens(self._settings)) if drafts else None
        self._engine = Engine(self._language_model.model, drafter, config)
        return self._engine


class VllmEngines:
    """vLLM, in a process of its own, which is started when the first engine is opened.

    Raises:
        ModelError: see :func:`dare_core.models.model_facts`.
        SettingError: a setting is in force that vLLM has no use for.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.weights != "model":
            raise SettingError(f"DARE_WEIGHTS={settings.weights} is for our own engine; vLLM has DARE_QUANTIZATION")
        self._settings = settings
        self.facts = models.model_facts(settings)
        self._server: VllmServer | None = None

    def open(self, config: "EngineConfig", pool: Pool | None, drafts: bool = True) -> "VllmEngine":
        """See :meth:`Engines.open`.

        Raises:
            ProgramMissingError, ModelError, PoolError: see :mod:`dare_core.engines.vllm.client`.
        """
        from dare_core.engines.vllm.client import VllmEngine

        server = self._serving(config)
        return VllmEngine(server, pool, config, {"learned_tokens": _learned_tokens(self._settings)} if drafts else None)

    def _serving(self, config: "EngineConfig") -> "VllmServer":
        from dare_core.engines.vllm.client import VllmServer

        if self._server is not None:
            if self._server.options.max_length >= config.max_length:
                return self._server
            self._server.close()
        self._server = VllmServer(vllm_options(self._settings, config.max_length, self.facts.context_length))
        return self._server


def vllm_options(settings: Settings, max_length: int, context_length: int) -> "VllmOptions":
    """How vLLM is to be started for texts of ``max_length`` tokens, prompts included.

    Its cache is what ``cache_gib`` says, or what ``memory_share`` leaves, or else as large as ``batch_size`` needs:
    vLLM itself would take nearly all memory.

    Raises:
        ModelError: the model is not there.
    """
    from dare_core.engines.vllm.client import VllmOptions

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


def load_engines(settings: Settings) -> Engines:
    """The engines that ``settings.engine`` names.

    Raises:
        ModelError, SettingError: see :class:`TransformersEngines` and :class:`VllmEngines`.
    """
    return VllmEngines(settings) if settings.engine == "vllm" else TransformersEngines(settings)


def _learned_tokens(settings: Settings) -> int:
    return 0 if settings.deterministic else settings.learned_tokens
