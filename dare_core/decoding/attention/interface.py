"""How a model's forward reaches the backends: transformers' ``AttentionInterface``, and an operator behind it.

The batch does not go through the model's forward: :func:`serving` says which one is meant, and the operator
``dare::attention``, which to a compiler is as opaque as a matrix product, looks it up.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from dare_core.decoding import kernels
from dare_core.decoding.attention.backends import choose
from dare_core.decoding.batch import PackedBatch
from dare_core.errors import ModelError

#: What transformers knows it by.
NAME: Final = "dare_packed"

#: Of layers that see everything.
NO_WINDOW: Final = 1 << 62

#: What models hand their attention that changes nothing here: positions are the batch's, keys are cached by it.
_UNUSED: Final = frozenset({"position_ids", "cache_position", "use_cache"})

_current: ContextVar[PackedBatch] = ContextVar("_current")


@contextmanager
def serving(batch: PackedBatch) -> Iterator[None]:
    """The batch that the model's forward, called meanwhile, is of."""
    token = _current.set(batch)
    try:
        yield
    finally:
        _current.reset(token)


def forward(model: nn.Module, batch: PackedBatch) -> Tensor:
    """Logits ``[wanted rows, vocabulary]`` of a batch: see :attr:`PackedBatch.logit_rows`."""
    with serving(batch):
        logits: Tensor = model(
            input_ids=batch.tokens[None],
            position_ids=batch.positions[None],
            use_cache=False,
            logits_to_keep=batch.logit_rows,
        ).logits[0]
    return logits


def current() -> PackedBatch:
    """The batch that is served."""
    return _current.get()


def prepare(model: nn.Module) -> None:
    """Number the attention modules by tensors, so that a compiler takes all layers for one and compiles it once."""
    for module in model.modules():
        if isinstance(layer := getattr(module, "layer_idx", None), int):
            module.dare_layer = torch.tensor(layer)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    softcap: float | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **further: object,
) -> tuple[Tensor, None]:
    """Attention of every sequence to its own cache slot, inside :func:`serving`.

    Args:
        module: an attention module that :func:`prepare` has seen.
        query: ``[1, heads, rows, head_dim]``.
        key, value: ``[1, kv_heads, rows, head_dim]``, written to the cache here.

    Returns:
        ``[1, rows, heads, head_dim]`` and no weights, as transformers expects.

    Raises:
        ModelError: the model asks its attention for more than this; names it.
    """
    asked = {name for name, value in further.items() if value is not None and value is not False}
    unknown = sorted(asked - _UNUSED)
    if attention_mask is not None:
        unknown.append("attention_mask")
    if dropout:
        unknown.append("dropout")
    if is_causal is False:
        unknown.append("is_causal=False")
    if unknown:
        raise ModelError(f"its attention asks for {', '.join(unknown)}, which ours does not know")
    if key.shape != value.shape or query.shape[3] != key.shape[3]:
        widths = ", ".join(
            f"{name} {part.shape[3]}" for name, part in (("queries", query), ("keys", key), ("values", value))
        )
        raise ModelError(f"its attention has heads of several widths ({widths}), where our cache keeps one")
    out = torch.ops.dare.attention(
        query[0], key[0], value[0], module.dare_layer, scaling, softcap or 0.0, sliding_window or NO_WINDOW
    )
    return out[None], None


_operators: Final = torch.library.Library("dare", "FRAGMENT")  # type: ignore[no-untyped-call]
_operators.define(  # type: ignore[no-untyped-call]
    "attention(Tensor query, Tensor key, Tensor value, Tensor layer, float scale, float softcap, int window) -> Tensor"
)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, layer: Tensor, scaling: float, softcap: float, window: int
) -> Tensor:
    batch, (heads, _, head_dim) = current(), query.shape
    if batch.head_shape != (key.shape[0], head_dim):
        raise ModelError(
            f"its attention has {key.shape[0]} heads of keys, {head_dim} wide, where its config promises "
            f"{batch.head_shape[0]} of {batch.head_shape[1]}"
        )
    asked = kernels.Attention(int(layer), heads, key.shape[0], head_dim, window, scaling, softcap)
    batch.asked[asked.layer] = asked
    return choose(query.device, query.dtype, head_dim)(batch, asked, query, key, value)


_operators.impl("attention", _attend, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]


@torch.library.register_fake("dare::attention", lib=_operators)  # type: ignore[untyped-decorator]
def _attention_shape(query: Tensor, *_: object) -> Tensor:
    heads, rows, head_dim = query.shape
    return query.new_empty(rows, heads, head_dim)


AttentionInterface.register(NAME, packed_attention)
