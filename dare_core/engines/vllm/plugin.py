"""The plugin that vLLM loads into each of its processes (entry point ``vllm.general_plugins``).

Where the proposer is ours, it is asked in place of vLLM's sampler: it has judged the drafts by our rule, and knows what
each text emits. Engines with another proposer, or none, are not touched.
"""

from functools import wraps
from typing import Any


def register() -> None:
    """Have a proposer that has a method ``verify`` say what comes of the logits of each step."""
    import torch
    from vllm.v1.outputs import SamplerOutput  # type: ignore[import-not-found]
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner  # type: ignore[import-not-found]

    if is_registered(GPUModelRunner):  # vLLM may load its plugins more than once
        return
    sample = GPUModelRunner._sample

    @wraps(sample)
    def verified_sample(runner: Any, logits: Any, spec_decode_metadata: Any) -> Any:
        verify = getattr(getattr(runner, "drafter", None), "verify", None)
        if verify is None or logits is None:
            return sample(runner, logits, spec_decode_metadata)
        emitted = verify(runner, logits, spec_decode_metadata)
        return SamplerOutput(torch.from_numpy(emitted).to(logits.device), logprobs_tensors=None)

    GPUModelRunner._sample = verified_sample


def is_registered(runner: Any) -> bool:
    """Whether vLLM's model runner (its class) shows logits to the proposer."""
    return hasattr(runner._sample, "__wrapped__")
