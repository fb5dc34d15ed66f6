"""vLLM in an environment of its own, as the settings have it."""

from typing import TYPE_CHECKING

from dare_core import models
from dare_core.config.settings import Settings
from dare_core.engines.precision import precision_of
from dare_core.engines.protocol import learned_tokens
from dare_core.engines.vllm.options import vllm_options
from dare_core.pools import Pool

if TYPE_CHECKING:
    from dare_core.decoding import EngineConfig
    from dare_core.engines.vllm.client import VllmEngine, VllmServer


class VllmEngines:
    """vLLM, in a process of its own, which is started when the first engine is opened.

    Raises:
        ModelError: see :func:`dare_core.models.model_facts`.
        SettingError: a setting is in force that vLLM has no use for.
    """

    def __init__(self, settings: Settings) -> None:
        precision_of(settings)  # which refuses what cannot be had, before anything is loaded
        self._settings = settings
        self.facts = models.model_facts(settings)
        self._server: VllmServer | None = None

    def open(self, config: "EngineConfig", pool: Pool | None, drafts: bool = True) -> "VllmEngine":
        """See :meth:`dare_core.engines.protocol.Engines.open`.

        Raises:
            ProgramMissingError, ModelError, PoolError: see :mod:`dare_core.engines.vllm.client`.
        """
        from dare_core.engines.vllm.client import VllmEngine

        drafter = {"learned_tokens": learned_tokens(self._settings)} if drafts else None
        return VllmEngine(self._serving(config), pool, config, drafter)

    def _serving(self, config: "EngineConfig") -> "VllmServer":
        from dare_core.engines.vllm.client import VllmServer

        if self._server is not None:
            if self._server.options.max_length >= config.max_length:
                return self._server
            self._server.close()
        self._server = VllmServer(vllm_options(self._settings, config.max_length, self.facts.context_length))
        return self._server
