"""Attention by our own kernels (``kernels/attention.h``): every sequence's own rows and positions, none padded."""

import torch
from torch import Tensor

from dare_core.decoding import kernels
from dare_core.decoding.batch import PackedBatch


def serve(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the kernels are there, and made for such a model: float32, on a CPU, its heads whole vectors."""
    if device.type != "cpu" or dtype != torch.float32:
        return False
    loaded = kernels.load()
    return loaded is not None and head_dim % loaded.lanes == 0


def attend(batch: PackedBatch, asked: kernels.Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """See :class:`~dare_core.decoding.attention.backends.Backend`."""
    loaded = kernels.load()
    assert loaded is not None
    parts = [part if part.stride(2) == 1 else part.contiguous() for part in (query, key, value)]
    out = query.new_empty(query.shape[1], query.shape[0], query.shape[2])
    rows = [kernels.Rows(part.data_ptr(), *part.stride()[:2]) for part in parts]
    loaded.attention(asked, batch.native, *rows, out.data_ptr())
    return out
