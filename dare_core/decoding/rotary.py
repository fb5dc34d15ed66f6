"""Up to which length a model's rotary positions are the same whatever else is in the batch."""

from typing import Any


def rotary_limit(config: Any) -> int | None:
    """Positions from which on a model's rotary scaling depends on the longest text of its batch; None if it never does.

    transformers chooses the frequencies of ``longrope`` (Phi-3 and 4) and ``dynamic`` by the largest position of a
    forward pass, and cached keys keep those that were chosen then.

    Args:
        config: the model's.
    """
    config = config.get_text_config()
    parameters = getattr(config, "rope_parameters", None) or {}
    layers = [each for each in parameters.values() if isinstance(each, dict)] or [parameters]  # a set by kind of layer
    limits = []
    for each in layers:
        kind = str(each.get("rope_type", ""))
        if kind == "longrope":
            limits.append(each.get("original_max_position_embeddings") or config.max_position_embeddings)
        elif "dynamic" in kind:
            limits.append(config.max_position_embeddings)
    return min(limits, default=None)
