"""A preallocated key/value cache with a length per sequence, that keeps the accepted path of a draft tree in place.

What prompts have in common at their beginning is held once.
"""

import weakref
from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from dare_core.decoding import kernels
from dare_core.errors import ModelError, is_out_of_memory

#: Beginnings of prompts that are held once: so many at most, and no shorter ones.
_PREFIXES: Final = 4
_SHORTEST: Final = 16
#: Prompts still to come that a beginning is compared with.
_COMPARED: Final = 64
#: Of what a prompt could have in common with those, a prefix that holds this much serves.
_ENOUGH: Final = 0.75


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


@dataclass(eq=False)
class _Prefix:
    """What prompts begin with.

    Attributes:
        slot: that holds it.
        tokens: of it.
        is_read: the model has read them.
        reader: the sequence that reads them.
        users: the sequences that begin with them.
    """

    slot: int
    tokens: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    is_read: bool = False
    reader: int | None = None
    users: set[int] = field(default_factory=set)

    def forget(self) -> None:
        """Let no further prompt begin with it."""
        self.tokens, self.is_read, self.reader = self.tokens[:0], False, None


def _common(beginning: NDArray[np.int32], prompt: NDArray[np.int32]) -> int:
    """With how many of these tokens a prompt begins; its last one does not count."""
    length = min(len(beginning), len(prompt) - 1)
    differs = beginning[:length] != prompt[:length]
    return int(differs.argmax()) if differs.any() else max(length, 0)


class KVCache:
    """Keys and values of ``slots`` sequences of up to ``capacity`` positions each.

    A slot holds its sequence's committed tokens ``[0, length)``. A step writes the rows of its new tokens and draft
    nodes behind them (once per layer) and then keeps those that verification let pass (:meth:`move`).

    Positions before ``shared`` are not in the slot but in that of a prefix, which all sequences that begin alike read.
    The first of them writes it; the others are admitted when it has. Where there are no prefixes, a prompt that begins
    like any slot's committed tokens copies them; a released slot's stay until another sequence takes it. What prompts
    have in common beyond a prefix is copied, too.

    Args:
        prefixes: slots for beginnings of prompts.

    Attributes:
        tokens: ``[slots, capacity]`` int32: the tokens behind the committed positions, and what the engine puts after.
        lengths: ``[slots]`` int64: committed positions.
        prefixes, shared: ``[slots]`` int64: of each, the slot that holds its first positions, and how many.
    """

    def __init__(
        self,
        shape: CacheShape,
        slots: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        prefixes: int = 0,
    ) -> None:
        size = (shape.layers, slots + prefixes, capacity, shape.kv_heads, shape.head_dim)
        # Zeros, not garbage: attention masks what lies beyond a sequence's length, but a NaN would shine through.
        self._keys = torch.zeros(size, dtype=dtype, device=device)
        self._values = torch.zeros(size, dtype=dtype, device=device)
        self._free = list(range(slots))
        self.tokens = np.zeros((slots, capacity), np.int32)
        self.lengths = np.zeros(slots, np.int64)
        self.prefixes, self.shared = np.arange(slots), np.zeros(slots, np.int64)
        self.capacity = capacity
        self.head_shape = shape.kv_heads, shape.head_dim
        self._held = [_Prefix(slots + i) for i in range(prefixes)]
        weakref.finalize(self, kernels.settle).atexit = False

    @classmethod
    def allocate(
        cls,
        model: PreTrainedModel,
        shape: CacheShape,
        slots: int,
        capacity: int,
        most_bytes: int | None,
        holds_prefixes: bool = False,
    ) -> "KVCache":
        """A model's cache of ``slots`` sequences, or of as many as memory has room for.

        Args:
            model: tells precision and device.
            shape: what it asks.
            slots: wanted.
            capacity: positions of each.
            most_bytes: of memory to use; None sets no limit.
            holds_prefixes: attention reads what prompts have in common from one place.

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
            prefixes = min(_PREFIXES, slots // _PREFIXES) if holds_prefixes else 0
            try:
                return cls(
                    shape, slots - (prefixes if most_bytes else 0), capacity, model.dtype, model.device, prefixes
                )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or slots == 1:
                    raise
                slots //= 2

    @property
    def free_slots(self) -> int:
        """How many more sequences can be admitted."""
        return len(self._free)

    def admit(self, prompt: NDArray[np.int32], others: Iterable[NDArray[np.int32]] = ()) -> int | None:
        """Take a slot for a sequence that begins with ``prompt``, which becomes its ``tokens``.

        What the prompt shares with others counts as committed if the model has read it, but for the prompt's last
        token, whose logits are still wanted. The caller has checked :attr:`free_slots`.

        Args:
            prompt: ``[n]`` int32.
            others: prompts still to come; what they have in common with this one is held once, too.

        Returns:
            The slot; None while another sequence reads what this one begins with: ask again after a step.
        """
        prefix, shared = self._prefix_of(prompt, others) if self._held else (None, 0)
        if prefix and prefix.reader is not None:
            return None
        slot = self._free.pop(0)
        length, is_reader = (shared, False) if prefix and prefix.is_read else (0, prefix is not None)
        if not is_reader:
            alike = self._shared_lengths(prompt)
            alike[self.shared > length] = 0  # what lies in a prefix is not copied
            donor = slot if alike[slot] == alike.max() else int(alike.argmax())
            if (end := int(alike[donor])) > length:
                if donor != slot:
                    self._keys[:, slot, length:end] = self._keys[:, donor, length:end]
                    self._values[:, slot, length:end] = self._values[:, donor, length:end]
                length = end
        if prefix:
            prefix.users.add(slot)
            prefix.reader = slot if is_reader else None
        self.prefixes[slot], self.shared[slot] = prefix.slot if prefix else slot, shared
        self.tokens[slot, : len(prompt)] = prompt
        self.lengths[slot] = length
        return slot

    def _prefix_of(
        self, prompt: NDArray[np.int32], others: Iterable[NDArray[np.int32]]
    ) -> tuple["_Prefix | None", int]:
        """The prefix that a prompt begins with, one that is still to be read if need be, and with how much of it."""
        best = max(self._held, key=lambda held: _common(held.tokens, prompt))
        common = _common(best.tokens, prompt)
        # As much of it as saves the most over all.
        each = sorted((_common(other, prompt) for other in islice(others, _COMPARED)), reverse=True)
        worth = max(each, key=lambda length: length * sum(other >= length for other in each), default=0)
        unused = [held for held in self._held if not held.users]
        if common < _ENOUGH * worth and worth >= _SHORTEST and unused:
            renewed = unused[0]
            renewed.tokens, renewed.is_read = prompt[:worth].copy(), False
            self._held.append(self._held.pop(self._held.index(renewed)))  # the last to be renewed again
            return renewed, worth
        return (best, common) if common >= _SHORTEST else (None, 0)

    def _shared_lengths(self, prompt: NDArray[np.int32]) -> NDArray[np.int64]:
        differs = self.tokens[:, : len(prompt) - 1] != prompt[:-1]
        alike = np.where(differs.any(axis=1), differs.argmax(axis=1), len(prompt) - 1) if len(prompt) > 1 else 0
        return np.minimum(alike, self.lengths)

    def commit(self, slot: int, length: int) -> None:
        """Say that a sequence's positions up to ``length`` are as they shall be. A prefix among them is others' too."""
        self.lengths[slot] = length
        for prefix in self._held:
            if prefix.reader == slot and length >= len(prefix.tokens):
                prefix.is_read, prefix.reader = True, None

    def release(self, slot: int) -> None:
        """Give a slot back."""
        insort(self._free, slot)  # the lowest slots are used first, so that those in use stay neighbours
        for prefix in self._held:
            prefix.users.discard(slot)
            if prefix.reader == slot:
                prefix.forget()

    def wipe(self, slot: int, begin: int = 0) -> None:
        """Clear a slot, whose rows may not be finite, from position ``begin`` on."""
        self._keys[:, slot, begin:] = 0
        self._values[:, slot, begin:] = 0
        self.lengths[slot] = min(begin, self.lengths[slot])
        for prefix in self._held:
            if slot in prefix.users and begin < self.shared[slot]:
                prefix.forget()

    def write(self, layer: int, places: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put rows ``[kv_heads, n, head_dim]`` at their ``places``, ``[n]``: slot x capacity + position."""
        self._keys[layer].flatten(0, 1).index_copy_(0, places, keys.transpose(0, 1))
        self._values[layer].flatten(0, 1).index_copy_(0, places, values.transpose(0, 1))

    def native(self) -> tuple[int, int, int, int]:
        """Slots, prefixes' included, capacity, and the addresses of all keys and values."""
        return self._keys.shape[1], self.capacity, self._keys.data_ptr(), self._values.data_ptr()

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
