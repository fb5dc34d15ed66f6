"""A preallocated key/value cache with a length per sequence, that keeps the accepted path of a draft tree in place."""

from bisect import insort
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from dare_core.errors import ModelError, is_out_of_memory


class CacheShape(NamedTuple):
    """What a model asks of its cache."""

    layers: int
    kv_heads: int
    head_dim: int

    def slot_bytes(self, capacity: int, dtype: torch.dtype) -> int:
        """Bytes of one sequence's keys and values at ``capacity`` positions."""
        return 2 * self.layers * self.kv_heads * capacity * self.head_dim * dtype.itemsize

    @classmethod
    def of(cls, model: PreTrainedModel) -> "CacheShape":
        """What a model asks.

        Raises:
            ModelError: its attention cannot be replaced, or its cache is not one tensor shape per layer.
        """
        config = model.config.get_text_config()
        if not getattr(model, "_supports_attention_backend", False):
            raise ModelError(
                f"{type(model).__name__} does not route its attention through transformers' attention interface; use "
                "another model, or DARE_ENGINE=vllm"
            )
        if set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
            raise ModelError(
                f"{type(model).__name__} has layers other than full and sliding attention: {config.layer_types}; use "
                "another model, or DARE_ENGINE=vllm"
            )
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return cls(config.num_hidden_layers, kv_heads, head_dim)


class KVCache:
    """Keys and values of ``slots`` sequences of up to ``capacity`` positions each.

    A slot holds its sequence's committed tokens ``[0, length)``. A step writes the rows of its new tokens and draft
    nodes behind them (:meth:`write`, once per layer) and then keeps those that verification let pass (:meth:`move`). A
    released slot's tokens stay until another sequence takes it, so that a prompt which begins alike can copy them
    (:meth:`admit`).
    """

    def __init__(self, shape: CacheShape, slots: int, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        size = (shape.layers, slots, capacity, shape.kv_heads, shape.head_dim)
        # Zeros, not garbage: attention masks what lies beyond a sequence's length, but a NaN would shine through.
        self._keys = torch.zeros(size, dtype=dtype, device=device)
        self._values = torch.zeros(size, dtype=dtype, device=device)
        self._free = list(range(slots))
        #: ``[slots, capacity]`` int32: the tokens behind the committed positions, and what the engine puts after them.
        self.tokens = np.zeros((slots, capacity), np.int32)
        #: ``[slots]`` int64: committed positions.
        self.lengths = np.zeros(slots, np.int64)
        self.capacity = capacity
        self.head_shape = shape.kv_heads, shape.head_dim

    @classmethod
    def allocate(
        cls, model: PreTrainedModel, shape: CacheShape, slots: int, capacity: int, most_bytes: int | None
    ) -> "KVCache":
        """A model's cache of ``slots`` sequences, or of as many as memory has room for.

        Args:
            model: tells precision and device.
            shape: what it asks.
            slots: wanted.
            capacity: positions of each.
            most_bytes: of memory to use; None sets no limit.

        Raises:
            ModelError: ``most_bytes`` does not suffice for one sequence.
        """
        if most_bytes is not None:
            each = shape.slot_bytes(capacity, model.dtype)
            slots = min(slots, most_bytes // each)
            if not slots:
                raise ModelError(
                    f"a cache of {most_bytes} bytes holds no sequence of {capacity} positions, which takes {each}"
                )
        while True:
            try:
                return cls(shape, slots, capacity, model.dtype, model.device)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or slots == 1:
                    raise
                slots //= 2

    @property
    def free_slots(self) -> int:
        """How many more sequences can be admitted."""
        return len(self._free)

    def admit(self, prompt: NDArray[np.int32]) -> int:
        """Take a slot for a sequence that begins with ``prompt``, which becomes its ``tokens``.

        What the prompt shares with the beginning of any slot's committed tokens is copied and counts as committed, but
        for the prompt's last token, whose logits are still wanted. The caller has checked :attr:`free_slots`.
        """
        slot = self._free.pop(0)
        shared = self._shared_lengths(prompt)
        donor = slot if shared[slot] == shared.max() else int(shared.argmax())
        length = int(shared[donor])
        if length and donor != slot:
            self._keys[:, slot, :length] = self._keys[:, donor, :length]
            self._values[:, slot, :length] = self._values[:, donor, :length]
        self.tokens[slot, : len(prompt)] = prompt
        self.lengths[slot] = length
        return slot

    def _shared_lengths(self, prompt: NDArray[np.int32]) -> NDArray[np.int64]:
        differs = self.tokens[:, : len(prompt) - 1] != prompt[:-1]
        alike = np.where(differs.any(axis=1), differs.argmax(axis=1), len(prompt) - 1) if len(prompt) > 1 else 0
        return np.minimum(alike, self.lengths)

    def release(self, slot: int) -> None:
        """Give a slot back."""
        insort(self._free, slot)  # the lowest slots are used first, so that those in use stay neighbours

    def wipe(self, slot: int, begin: int = 0) -> None:
        """Clear a slot, whose rows may not be finite, from position ``begin`` on."""
        self._keys[:, slot, begin:] = 0
        self._values[:, slot, begin:] = 0
        self.lengths[slot] = min(begin, self.lengths[slot])

    def write(self, layer: int, places: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put rows ``[kv_heads, n, head_dim]`` at their ``places``, ``[n]``: slot x capacity + position."""
        self._keys[layer].flatten(0, 1).index_copy_(0, places, keys.transpose(0, 1))
        self._values[layer].flatten(0, 1).index_copy_(0, places, values.transpose(0, 1))

    def native(self) -> tuple[int, int, int, int]:
        """Slots, capacity, and the addresses of all keys and values."""
        return len(self.lengths), self.capacity, self._keys.data_ptr(), self._values.data_ptr()

    def read(self, layer: int, slots: slice | Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of some slots, ``[slots, kv_heads, length, head_dim]``; views where a slice names them."""
        keys, values = self._keys[layer, slots, :length], self._values[layer, slots, :length]
        return keys.transpose(1, 2), values.transpose(1, 2)

    def move(self, sources: NDArray[np.int64], targets: NDArray[np.int64]) -> None:
        """Copy rows, all at once, from their places to others: ``[n]`` slot x capacity + position."""
        if len(sources):
            from_, to = (torch.from_numpy(part).to(self._keys.device) for part in (sources, targets))
            for rows in (self._keys.flatten(1, 2), self._values.flatten(1, 2)):
                rows.index_copy_(1, to, rows.index_select(1, from_))
