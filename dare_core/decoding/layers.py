"""Whole decoder layers in one call of the kernels, where a model's layers are of the common kind.

In eager torch a decoder layer is about fifty operators of a few microseconds each, which for a step of few rows cost as
much as its matrix products. Llama's layer (normalise, attend, add; normalise, gated feed-forward, add) is that of most
families. One that looks like it is fused and put to the proof: both must answer the same hidden states alike, else the
layer stays as it is. So a model needs no name here, and one that differs anywhere loses nothing but speed.
"""

import logging
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dare_core.decoding import attention, kernels
from dare_core.decoding.attention import cpu_kernels
from dare_core.decoding.batch import PackedBatch
from dare_core.decoding.kv_cache import CacheShape, KVCache
from dare_core.decoding.weights import PanelLinear, Storage
from dare_core.drafts import Forest

log = logging.getLogger(__name__)

_ACTIVATIONS: Final = {"silu": 0, "swish": 0, "gelu_pytorch_tanh": 1}
#: What fused layers may differ by, of the largest value.
_TOLERANCE: Final = 1e-4
#: The proof's rows: a chain of so many tokens, and a tree of these parents.
_CHAIN: Final = 8
_TREE: Final = (-1, 0, 0, -1)


class FusedLayer(nn.Module):
    """A decoder layer of Llama's form, in float32 on a CPU; or several in a row, of which this is the first.

    Args:
        layer: the original, whose weights it packs.
        asked: what the layer's attention asks for.
        activation: of the gated feed-forward, as the kernels number it.
        storage: how weights are stored.

    Raises:
        AttributeError: the layer has not got the parts.
    """

    def __init__(self, layer: Any, asked: kernels.Attention, activation: int, storage: Storage) -> None:
        super().__init__()
        loaded = kernels.load()
        assert loaded is not None
        self._kernel = loaded.layers
        attend, feed = layer.self_attn, layer.mlp
        norms = [layer.input_layernorm, getattr(attend, "q_norm", None), getattr(attend, "k_norm", None)]
        norms.append(layer.post_attention_layernorm)
        weights = [None if norm is None else norm.weight.detach().contiguous() for norm in norms]
        qkv = [attend.qkv_proj] if hasattr(attend, "qkv_proj") else [attend.q_proj, attend.k_proj, attend.v_proj]
        gate, up = _halves(feed.gate_up_proj) if hasattr(feed, "gate_up_proj") else (feed.gate_proj, feed.up_proj)
        linears = [PanelLinear(parts, storage) for parts in (qkv, [attend.o_proj], [gate], [up], [feed.down_proj])]
        self._kept: list[Any] = [weights, linears]
        self._layers = (kernels.Layer * 1)(
            kernels.Layer(
                asked,
                *(None if weight is None else weight.data_ptr() for weight in weights),
                _epsilon(norms[0]),
                activation,
                *(linear.layer for linear in linears),
            )
        )
        for name in ("attention_type", "layer_type"):  # models ask a layer for its kind of mask
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))

    def kind(self) -> tuple[object, object]:
        """What a model treats its layers differently by."""
        return getattr(self, "attention_type", None), getattr(self, "layer_type", None)

    def take(self, followers: "Sequence[FusedLayer]") -> None:
        """Do the work of the layers behind, too: they pass on what they are given."""
        layers = [layer for one in (self, *followers) for layer in one._layers]
        self._kept += [one._kept for one in followers]
        self._layers = (kernels.Layer * len(layers))(*layers)
        for follower in followers:
            follower._layers = (kernels.Layer * 0)()

    def forward(
        self, hidden_states: Tensor, *_: object, position_embeddings: tuple[Tensor, Tensor], **__: object
    ) -> Tensor:
        """``[1, rows, hidden]`` to the same shape; the batch is the one that attention is served with."""
        if not len(self._layers):
            return hidden_states
        hidden_states = hidden_states.contiguous()
        cosines, sines = (part.contiguous() for part in position_embeddings)
        out = torch.empty_like(hidden_states)
        self._kernel(
            self._layers,
            len(self._layers),
            attention.current().native,
            hidden_states.data_ptr(),
            cosines.data_ptr(),
            sines.data_ptr(),
            cosines.shape[-1],
            out.data_ptr(),
        )
        return out


def _halves(linear: nn.Linear) -> tuple[nn.Linear, nn.Linear]:
    """A layer's first and second half of outputs, on the same weights."""
    halves = []
    weights = linear.weight.detach().chunk(2)
    biases = (None, None) if linear.bias is None else linear.bias.detach().chunk(2)
    for weight, bias in zip(weights, biases, strict=True):
        half = nn.Linear(linear.in_features, len(weight), bias=bias is not None, device="meta")
        half.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            half.bias = nn.Parameter(bias, requires_grad=False)
        halves.append(half)
    return halves[0], halves[1]


def compile_layers(model: PreTrainedModel) -> None:
    """Let torch compile the decoder layers instead: one of them, at the first step, for any number of rows."""
    for layer in model.get_decoder().layers:
        layer.compile(dynamic=True)


@torch.inference_mode()
def fuse_layers(model: PreTrainedModel, shape: CacheShape, storage: Storage = "model") -> int:
    """Replace the decoder layers that can be by fused ones.

    Args:
        model: its attention is :func:`dare_core.decoding.attention.interface.packed_attention` already.
        shape: of its cache.
        storage: how the fused layers' weights are stored. The proof is made with weights as they are.

    Returns:
        How many were replaced.
    """
    loaded = kernels.load()
    layers = getattr(model.get_decoder(), "layers", None)
    config = model.config.get_text_config()
    activation = _ACTIVATIONS.get(str(getattr(config, "hidden_act", None)))
    ours = cpu_kernels.serve(model.device, model.dtype, shape.head_dim)
    if not loaded or not ours or activation is None or not layers:
        return 0
    if isinstance(layers[0], FusedLayer):  # an engine before has taken the model over
        return 0
    fused = 0
    for i, layer in enumerate(layers):
        try:
            if layer.mlp.down_proj.in_features % loaded.lanes:
                break
            expected, asked = _answer(model, layer, i, shape)
            made = FusedLayer(layer, asked[i], activation, "model")
            got, _ = _answer(model, made, i, shape)
        except (AttributeError, KeyError, TypeError, RuntimeError):
            break  # of another form
        if not torch.allclose(got, expected, atol=_TOLERANCE * float(expected.abs().max()), rtol=0):
            break
        layers[i] = made if storage == "model" else FusedLayer(layer, asked[i], activation, storage)
        fused += 1
    # Neighbours that a model treats alike are one call.
    for _, alike in groupby(layers[:fused], FusedLayer.kind):
        first, *behind = alike
        first.take(behind)
    log.debug("%d of %d layers fused", fused, len(layers))
    return fused


def _answer(
    model: PreTrainedModel, layer: nn.Module, index: int, shape: CacheShape
) -> tuple[Tensor, dict[int, kernels.Attention]]:
    """What a layer makes of the proof's rows, and what it asks of attention."""
    parents = np.array(_TREE, np.int32)
    depths = np.array([1, 2, 2, 1], np.int32)
    n = len(parents)
    forest = Forest(
        np.array([0, n], np.int32),
        np.zeros(n, np.int32),
        parents,
        depths,
        np.ones(n, np.float32),
        np.zeros(n, np.int16),
    )
    cache = KVCache(shape, 1, _CHAIN + n, torch.float32, model.device)
    whole = np.ones(1, np.bool_)
    batch = PackedBatch(cache, np.zeros(1, np.int64), np.array([_CHAIN]), whole, forest, model.device)
    rows = torch.randn(
        1, len(batch), model.config.get_text_config().hidden_size, generator=torch.Generator().manual_seed(0)
    )
    positions = batch.positions[None]
    rotation = model.get_decoder().rotary_emb(rows, position_ids=positions)
    with attention.serving(batch):
        answer: Tensor = layer(rows, attention_mask=None, position_ids=positions, position_embeddings=rotation)
    return answer, batch.asked


def _epsilon(norm: Any) -> float:
    return float(norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps)
