"""A preallocated key/value cache with a length per sequence, that keeps the accepted path of a draft tree in place."""

from bisect import insort
from typing import NamedTuple

import torch
from torch import Tensor


class CacheShape(NamedTuple):
    """What a model asks of its cache."""

    layers: int
    kv_heads: int
    head_dim: int


class KVCache:
    """Keys and values of ``slots`` sequences of up to ``capacity`` positions each.

    A slot holds its sequence's committed positions ``[0, length)``. A step writes the rows of its new tokens and draft
    nodes behind them (:meth:`write`, once per layer) and then keeps those that verification let pass (:meth:`keep`).
    """

    def __init__(self, shape: CacheShape, slots: int, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        size = (shape.layers, slots, shape.kv_heads, capacity, shape.head_dim)
        # Zeros, not garbage: attention masks what lies beyond a sequence's length, but a NaN would shine through.
        self._keys = torch.zeros(size, dtype=dtype, device=device)
        self._values = torch.zeros(size, dtype=dtype, device=device)
        self._free = list(range(slots))
        self.lengths = [0] * slots
        self.capacity = capacity

    @property
    def free_slots(self) -> int:
        """How many more sequences can be admitted."""
        return len(self._free)

    def admit(self) -> int:
        """Take an empty slot; the caller has checked :attr:`free_slots`."""
        slot = self._free.pop(0)
        self.lengths[slot] = 0
        return slot

    def release(self, slot: int) -> None:
        """Give a slot back."""
        insort(self._free, slot)  # the lowest slots are used first, so that those in use stay neighbours

    def wipe(self, slot: int) -> None:
        """Clear a slot whose rows may not be finite."""
        self._keys[:, slot] = 0
        self._values[:, slot] = 0

    def write(self, layer: int, slots: Tensor, places: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put rows ``[kv_heads, n, head_dim]`` behind the committed ones, each at its slot and position, ``[n]``."""
        self._keys[layer][slots, :, places] = keys.transpose(0, 1)
        self._values[layer][slots, :, places] = values.transpose(0, 1)

    def read(self, layer: int, slots: slice | Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of some slots, ``[slots, kv_heads, length, head_dim]``; views where a slice names them."""
        return self._keys[layer, slots, :, :length], self._values[layer, slots, :, :length]

    def keep(self, slot: int, rows: list[int]) -> None:
        """Commit the written rows ``rows`` (ascending, relative to the committed length) and forget the others."""
        start, n = self.lengths[slot], len(rows)
        if rows != list(range(n)):
            where = torch.tensor(rows, device=self._keys.device) + start
            self._keys[:, slot, :, start : start + n] = self._keys[:, slot].index_select(2, where)
            self._values[:, slot, :, start : start + n] = self._values[:, slot].index_select(2, where)
        self.lengths[slot] = start + n
