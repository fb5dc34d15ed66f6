"""The plugin that vLLM loads into each of its processes (entry point ``vllm.general_plugins``).

In greedy verification vLLM accepts a draft token that is the argmax of the target's logits. So it suffices to show the
proposer the logits before the unchanged sampler sees them: where our rule lets another token pass, the proposer makes
it the argmax. Engines with another proposer, or none, are not touched.
"""

from functools import wraps
from typing import Any


def register() -> None:
    """Have a proposer that has a method ``verify`` look at the logits of each step."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner  # type: ignore[import-not-found]

    if is_registered(GPUModelRunner):  # vLLM may load its plugins more than once
        return
    sample = GPUModelRunner._sample

    @wraps(sample)
    def verified_sample(runner: Any, logits: Any, spec_decode_metadata: Any) -> Any:
        verify = getattr(getattr(runner, "drafter", None), "verify", None)
        if verify is not None and logits is not None:
            if spec_decode_metadata is not None and not spec_decode_metadata.max_spec_len:
                spec_decode_metadata = None  # nothing was drafted: vLLM's sampler alone does, and is quicker
            verify(runner, logits, spec_decode_metadata)
        return sample(runner, logits, spec_decode_metadata)

    GPUModelRunner._sample = verified_sample


def is_registered(runner: Any) -> bool:
    """Whether vLLM's model runner (its class) shows logits to the proposer."""
    return hasattr(runner._sample, "__wrapped__")
