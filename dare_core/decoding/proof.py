"""A model is proved before it writes: packed rows of ours must get the logits that its own eager attention gives.

Attention functions are handed whatever a model's attention needs beside queries, keys and values, and models differ in
what that is. So no list of families is kept: a few tokens go through the model both ways, several sequences at once, a
chain that was read before and a tree behind it, and the same with sliding windows that are shorter than the text.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from dare_core.decoding import attention
from dare_core.decoding.batch import PackedBatch
from dare_core.decoding.kv_cache import CacheShape, KVCache
from dare_core.drafts import Forest
from dare_core.errors import ModelError, is_out_of_memory

#: How far a row's logits may be from eager's, of the largest of these, counted from their mean. In narrow types the
#: median row counts: rounding may send a token to another expert.
TOLERANCES: Final = {torch.float32: 2e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}

#: The sequences: tokens read in a step before, tokens fed in the proved step, and the tree's parents behind them.
_SEQUENCES: Final[Sequence[tuple[int, int, tuple[int, ...]]]] = ((5, 1, (-1, 0, -1)), (2, 2, (-1,)))
#: Shorter than the longest of them.
_WINDOW: Final = 4


@torch.inference_mode()
def prove(model: PreTrainedModel, shape: CacheShape) -> None:
    """Leave the model's attention replaced by ours, once both have given the same logits; no weight is changed.

    Args:
        model: whose weights are as they were loaded.
        shape: of its cache.

    Raises:
        ModelError: they have not; names the model, and what differs.
    """
    if getattr(model, "dare_proved", False):  # by the engine that took it over before
        model.set_attn_implementation(attention.NAME)
        return
    config = model.config.get_text_config()
    window = _window(config, getattr(config, "sliding_window", None))
    try:
        _compare(model, shape, "")
        if window > _WINDOW and window != attention.NO_WINDOW:
            with _narrowed(model, config, window):
                _compare(model, shape, f" with a sliding window of {_WINDOW}")
    except ModelError as error:
        raise ModelError(f"{_name(model)} cannot be decoded by our engine: {error}; {_INSTEAD}") from error
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ModelError(
            f"{_name(model)} cannot be decoded by our engine: several texts packed into one batch do not go through it "
            f"({type(error).__name__}: {reason}); {_INSTEAD}"
        ) from error
    model.dare_proved = True


_INSTEAD: Final = "use another model, or DARE_ENGINE=vllm"


def _name(model: PreTrainedModel) -> str:
    return " ".join(filter(None, [type(model).__name__, model.name_or_path]))


def _compare(model: PreTrainedModel, shape: CacheShape, where: str) -> None:
    tokens = np.random.default_rng(0).integers(
        0, model.get_input_embeddings().num_embeddings, (len(_SEQUENCES), 16), np.int32
    )
    model.set_attn_implementation("eager")
    expected = _eager(model, tokens)
    model.set_attn_implementation(attention.NAME)
    attention.prepare(model)
    got, asked = _packed(model, shape, tokens)
    _check_windows(model, asked)
    error = (got - expected).abs() / (expected - expected.mean(-1, keepdim=True)).abs().max()
    rows = error.nan_to_num(nan=torch.inf).masked_fill(got.isnan() & expected.isnan(), 0).amax(-1)
    off = float(rows.max() if model.dtype == torch.float32 else rows.median())
    most = TOLERANCES.get(model.dtype, TOLERANCES[torch.bfloat16])
    if off > most:
        raise ModelError(
            f"its logits{where} are not those of its eager attention: off by {off:.2g} of the largest, where {most:g} "
            "is allowed"
        )


def _eager(model: PreTrainedModel, tokens: NDArray[np.int32]) -> Tensor:
    """``[rows, vocabulary]`` float32: every path to a leaf read as a text of its own."""
    paths: list[list[int]] = []
    rows: list[tuple[int, int]] = []  # of each logit row the path that it lies on, and where
    for sequence, (read, fed, parents) in zip(tokens.tolist(), _SEQUENCES, strict=True):
        base, drafted = sequence[: read + fed], sequence[read + fed :]
        of_node: dict[int, list[int]] = {-1: []}
        for node, parent in enumerate(parents):
            of_node[node] = [*of_node[parent], drafted[node]]
        leaves = [node for node in of_node if node not in parents]
        for path in of_node.values():
            leaf = next(i for i, leaf in enumerate(leaves) if of_node[leaf][: len(path)] == path)
            rows.append((len(paths) + leaf, len(base) + len(path) - 1))
        paths += [base + of_node[leaf] for leaf in leaves]
    width = max(map(len, paths))
    ids = torch.tensor([path + [path[-1]] * (width - len(path)) for path in paths], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits
    return torch.stack([logits[place] for place in rows]).float()


def _packed(model: PreTrainedModel, shape: CacheShape, tokens: NDArray[np.int32]) -> tuple[Tensor, dict[int, int]]:
    """The same rows of one packed batch; and the window that each layer asked for."""
    cache = KVCache(shape, len(_SEQUENCES), tokens.shape[1], model.dtype, model.device)
    cache.tokens[:] = tokens
    reads, feds = (np.array(column) for column in list(zip(*_SEQUENCES, strict=True))[:2])
    slots, whole = np.arange(len(_SEQUENCES)), np.ones(len(_SEQUENCES), np.bool_)
    attention.forward(model, PackedBatch(cache, slots, reads, whole, Forest.empty(len(slots)), model.device))
    cache.lengths[:] = reads
    batch = PackedBatch(cache, slots, feds, whole, _forest(tokens), model.device)
    logits = attention.forward(model, batch)
    return logits.float(), {layer: asked.window for layer, asked in batch.asked.items()}


def _forest(tokens: NDArray[np.int32]) -> Forest:
    offsets, nodes = [0], []
    parents: list[int] = []
    depths: list[int] = []
    for sequence, (read, fed, of_tree) in zip(tokens, _SEQUENCES, strict=True):
        begin = offsets[-1]
        for parent in of_tree:
            parents.append(parent if parent < 0 else begin + parent)
            depths.append(1 if parent < 0 else depths[begin + parent] + 1)
        nodes.append(sequence[read + fed : read + fed + len(of_tree)])
        offsets.append(begin + len(of_tree))
    n = offsets[-1]
    return Forest(
        np.array(offsets, np.int32),
        np.concatenate(nodes),
        np.array(parents, np.int32),
        np.array(depths, np.int32),
        np.ones(n, np.float32),
        np.zeros(n, np.int16),
    )


def _check_windows(model: PreTrainedModel, asked: dict[int, int]) -> None:
    """See that attention is told of every window: some models leave it to the mask, or to the cache of ``generate``."""
    config = model.config.get_text_config()
    for layer, cached in enumerate(DynamicCache(config=model.config).layers):
        window = _window(
            config, getattr(cached, "sliding_window", None) if getattr(cached, "is_sliding", False) else None
        )
        told = _window(config, asked.get(layer))
        if window != told:
            names = ["none" if each == attention.NO_WINDOW else str(each) for each in (window, told)]
            raise ModelError(
                f"the sliding window of layer {layer} is {names[0]} by its config, but its attention is told {names[1]}"
            )


def _window(config: Any, window: int | None) -> int:
    """A window that is shorter than the longest text, or none."""
    return window if window and window < config.max_position_embeddings else attention.NO_WINDOW


@contextmanager
def _narrowed(model: PreTrainedModel, config: Any, window: int) -> Iterator[None]:
    """Sliding windows of :data:`_WINDOW` positions instead of ``window``."""
    holders = [config, *(m for m in model.modules() if getattr(m, "sliding_window", None) == window)]
    for holder in holders:
        holder.sliding_window = _WINDOW
    try:
        yield
    finally:
        for holder in holders:
            holder.sliding_window = window
