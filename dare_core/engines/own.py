"""Our engine over transformers, in this process."""

from typing import TYPE_CHECKING

from dare_core import models
from dare_core.config.settings import Settings
from dare_core.engines.precision import has_kernels, precision_of, storage_of
from dare_core.engines.protocol import learned_tokens
from dare_core.errors import ModelError
from dare_core.models import ModelFacts
from dare_core.pools import Pool, PoolDrafter

if TYPE_CHECKING:
    from dare_core.decoding import Engine, EngineConfig


class OwnEngines:
    """Our engine, in this process.

    Raises:
        SettingError: see :func:`dare_core.engines.precision.precision_of`.
        ModelError: see :func:`dare_core.models.load_model`; or weights are narrow and our kernels cannot be compiled.
    """

    def __init__(self, settings: Settings) -> None:
        precision_of(settings)  # which refuses what cannot be had, before anything is loaded
        if storage_of(settings) != "model" and not has_kernels():
            raise ModelError(
                f"{settings.weights} weights need our kernels, which are switched off or could not be compiled here; "
                "install a C++ compiler, or set DARE_WEIGHTS=model and plan again"
            )
        self._settings = settings
        self._language_model = models.load_model(settings)
        self.facts = ModelFacts(self._language_model.eos_token_ids, self._language_model.context_length)
        self._engine: Engine | None = None

    def open(self, config: "EngineConfig", pool: Pool | None, drafts: bool = True) -> "Engine":
        """See :meth:`dare_core.engines.protocol.Engines.open`.

        Raises:
            ModelError: see :class:`dare_core.decoding.Engine`.
        """
        from dare_core.decoding import Engine

        self._engine = None  # its cache goes before another is allocated
        drafter = PoolDrafter(pool, learned_tokens(self._settings)) if drafts else None
        self._engine = Engine(self._language_model.model, drafter, config)
        return self._engine
