"""The signature that every backend of attention has, and the choice between them."""

from typing import Protocol

import torch
from torch import Tensor

from dare_core.decoding import kernels
from dare_core.decoding.attention import cpu_kernels, torch_kernels
from dare_core.decoding.batch import PackedBatch


class Backend(Protocol):
    """Writes a layer's new keys and values into the cache and attends to what every row sees of it."""

    def __call__(
        self, batch: PackedBatch, asked: kernels.Attention, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """Attend in one layer.

        Args:
            batch: the step's rows, and where the cache has their sequences.
            asked: the layer, its heads, its window, and how it scores.
            query: ``[heads, rows, head_dim]``.
            key, value: ``[kv_heads, rows, head_dim]`` of the same type and device.

        Returns:
            ``[rows, heads, head_dim]``, contiguous.
        """
        ...


def choose(device: torch.device, dtype: torch.dtype, head_dim: int) -> Backend:
    """The fastest backend on this machine for a model on ``device``, in ``dtype``, with heads ``head_dim`` wide."""
    return cpu_kernels.attend if cpu_kernels.serve(device, dtype, head_dim) else torch_kernels.attend


def holds_prefixes(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the backend for such a model reads what sequences begin with from one place."""
    return cpu_kernels.serve(device, dtype, head_dim)
