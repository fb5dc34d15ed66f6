"""Tree attention over a packed batch, registered with transformers' ``AttentionInterface``.

All sequences' new rows go through the model side by side as one ``[1, rows]`` batch; attention alone tells them apart.
Each sequence's rows attend to its own cached positions and, within the step, to themselves and their ancestors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from dare_core.decoding.kv_cache import KVCache

NAME: Final = "dare_packed"

#: Segments of up to so many rows are attended in one call, padded to the longest; longer ones, prompts, one by one.
_SHORT: Final = 80


@dataclass(frozen=True, eq=False)
class Segment:
    """One sequence's rows in the packed batch.

    Attributes:
        slot: its cache slot.
        first_row: where its ``n`` rows begin in the batch.
        cached: committed positions, all of them visible but for a sliding window.
        depths: ``[n]`` distance of each row from the first one, in positions.
        visible: ``[n, n]`` bool, which of the step's own rows each row sees.
    """

    slot: int
    first_row: int
    cached: int
    depths: NDArray[np.int64]
    visible: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.depths)


class PackedBatch:
    """What attention needs to know of a step; handed through the model's forward as the keyword ``packed_batch``.

    Attributes:
        positions: ``[rows]`` position ids.
        groups: the segments, gathered into calls of scaled dot-product attention.
    """

    def __init__(self, cache: KVCache, segments: Sequence[Segment], device: torch.device) -> None:
        self.cache = cache
        self.positions = _tensor(np.concatenate([segment.cached + segment.depths for segment in segments]), device)
        self._slots = _tensor(np.repeat([s.slot for s in segments], [len(s) for s in segments]), device)
        self._places = _tensor(np.concatenate([s.cached + np.arange(len(s)) for s in segments]), device)
        short = [segment for segment in segments if len(segment) <= _SHORT]
        long = [[segment] for segment in segments if len(segment) > _SHORT]
        self.groups = [_Group(sorted(part, key=lambda s: s.slot), device) for part in (short, *long) if part]

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Put all rows' keys and values ``[kv_heads, rows, head_dim]`` behind their sequences' committed ones."""
        self.cache.write(layer, self._slots, self._places, keys, values)


class _Group:
    """Segments that are attended in one call: ``s`` of them, padded to ``n`` rows and ``length`` cache positions."""

    def __init__(self, segments: Sequence[Segment], device: torch.device) -> None:
        self._segments = segments
        self._device = device
        self._n = max(map(len, segments))
        self.length = max(segment.cached + len(segment) for segment in segments)
        slots = [segment.slot for segment in segments]
        together = slots == list(range(slots[0], slots[0] + len(slots)))
        # Neighbouring slots are a view of the cache; others have to be gathered.
        self.slots = slice(slots[0], slots[-1] + 1) if together else _tensor(np.array(slots), device)
        padded = np.zeros((len(segments), self._n), np.int64)
        real = np.zeros((len(segments), self._n), np.bool_)
        for i, segment in enumerate(segments):
            padded[i, : len(segment)] = np.arange(segment.first_row, segment.first_row + len(segment))
            real[i, : len(segment)] = True
        self._padded_rows = _tensor(padded.ravel(), device)
        self.rows = _tensor(padded[real], device)
        self._real = _tensor(np.flatnonzero(real), device)
        self._masks: dict[int | None, Tensor] = {}

    def queries(self, query: Tensor, kv_heads: int) -> Tensor:
        """``[heads, rows, head_dim]`` of the batch to ``[s, kv_heads, heads / kv_heads * n, head_dim]``.

        Query heads that share a KV head become further query rows of it, so that nothing is copied per head.
        """
        heads, _, head_dim = query.shape
        picked = query.index_select(1, self._padded_rows)
        apart = picked.view(kv_heads, heads // kv_heads, len(self._segments), self._n, head_dim)
        return apart.permute(2, 0, 1, 3, 4).reshape(len(self._segments), kv_heads, -1, head_dim)

    def unpadded(self, attended: Tensor, heads: int) -> Tensor:
        """The inverse for attention's output: ``[len(rows), heads, head_dim]``, in the order of :attr:`rows`."""
        s, kv_heads, _, head_dim = attended.shape
        apart = attended.view(s, kv_heads, heads // kv_heads, self._n, head_dim)
        return apart.permute(0, 3, 1, 2, 4).reshape(s * self._n, heads, head_dim).index_select(0, self._real)

    def mask(self, query_groups: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive ``[s, 1, query_groups * n, length]``, made once per step and window."""
        if window not in self._masks:
            hidden = np.ones((len(self._segments), self._n, self.length), np.bool_)
            for i, segment in enumerate(self._segments):
                n, cached = len(segment), segment.cached
                hidden[i, :n, :cached] = False
                hidden[i, :n, cached : cached + n] = ~segment.visible
                if window is not None:
                    keys = np.concatenate([np.arange(cached), cached + segment.depths])
                    hidden[i, :n, : cached + n] |= (cached + segment.depths)[:, None] - keys >= window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=self._device)
            mask.masked_fill_(_tensor(hidden, self._device), torch.finfo(dtype).min)
            self._masks[window] = mask.repeat(1, query_groups, 1)[:, None]
        return self._masks[window]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    packed_batch: PackedBatch,
    scaling: float,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention of every segment to its own cache slot.

    Args:
        query: ``[1, heads, rows, head_dim]``.
        key, value: ``[1, kv_heads, rows, head_dim]``, written to the cache here.

    Returns:
        ``[1, rows, heads, head_dim]`` and no weights, as transformers expects.
    """
    layer: int = module.layer_idx  # type: ignore[assignment]
    heads, kv_heads = query.shape[1], key.shape[1]
    packed_batch.write(layer, key[0], value[0])
    out = query.new_empty(query.shape[2], heads, value.shape[3])
    for group in packed_batch.groups:
        keys, values = packed_batch.cache.read(layer, group.slots, group.length)
        queries = group.queries(query[0], kv_heads)
        mask = group.mask(heads // kv_heads, sliding_window, query.dtype)
        if softcap is None:
            attended = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scaling)
        else:
            scores = torch.tanh(queries @ keys.transpose(2, 3) * (scaling / softcap)) * softcap + mask
            attended = scores.softmax(-1, dtype=torch.float32).to(values.dtype) @ values
        out[group.rows] = group.unpadded(attended, heads)
    return out[None], None


def _tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)


AttentionInterface.register(NAME, packed_attention)
