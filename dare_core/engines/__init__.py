"""What writes texts: our own engine over transformers, vLLM in an environment of its own, or a server elsewhere.

vLLM's processes import this package too, before Numba may be loaded (see :mod:`dare_core.engines.vllm`), so whatever is
imported here is imported where it is used.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dare_core.config.settings import Settings
    from dare_core.engines.protocol import Engines


def load_engines(settings: "Settings") -> "Engines":
    """The engines that ``settings.engine`` names, with their model.

    Raises:
        ModelError, SettingError: see :class:`~dare_core.engines.own.OwnEngines`,
            :class:`~dare_core.engines.vllm.engines.VllmEngines` and
            :class:`~dare_core.engines.endpoint.engine.EndpointEngines`.
    """
    if settings.engine == "vllm":
        from dare_core.engines.vllm.engines import VllmEngines

        return VllmEngines(settings)
    if settings.engine == "endpoint":
        from dare_core.engines.endpoint.engine import EndpointEngines

        return EndpointEngines(settings)
    from dare_core.engines.own import OwnEngines

    return OwnEngines(settings)
