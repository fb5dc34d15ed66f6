"""A step's rows as one packed batch: where every sequence's rows lie, and which of them see each other.

All sequences' new rows go through the model side by side as one ``[1, rows]`` batch; attention alone tells them apart.
A sequence's rows are a chain of tokens that the model has not seen yet and the nodes of a draft tree behind it. They
attend to the sequence's committed positions and, within the step, to themselves and their ancestors.
"""

from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dare_core.decoding import kernels
from dare_core.decoding.kv_cache import KVCache
from dare_core.drafts import Forest
from dare_core.storage.machine_code import compiled

#: Slots between neighbours that are read along, masked, so that a view of the cache serves instead of a copy.
_LARGEST_SPAN: Final = 2.0
#: Rows that one thread works on at a time.
_TASK_ROWS: Final = 8


class PackedBatch:
    """One step's rows, and what attention needs to know of them.

    Args:
        cache: where the sequences' keys and values are, and their tokens.
        slots: ``[s]`` int64, ascending: the sequences' slots.
        chains: ``[s]`` int64: how many tokens behind the committed ones each sequence feeds, at least one.
        emitting: ``[s]`` bool: whether the logits at the chain's end are wanted.
        forest: the draft trees behind them.
        device: where the model is.

    Attributes:
        tokens, positions: ``[rows]`` on the device.
        logit_rows: ``[emitting + nodes]`` on the device: per sequence the row of its chain's end, then its nodes'.
    """

    def __init__(
        self,
        cache: KVCache,
        slots: NDArray[np.int64],
        chains: NDArray[np.int64],
        emitting: NDArray[np.bool_],
        forest: Forest,
        device: torch.device,
    ) -> None:
        sizes = chains + forest.sizes
        first_rows = np.concatenate([[0], np.cumsum(sizes)])
        cached = cache.lengths[slots]
        rows = np.empty((3, first_rows[-1]), np.int64)
        logit_rows = np.empty(emitting.sum() + len(forest), np.int64)
        _lay_out(
            cache.tokens, slots, cached, chains, emitting, first_rows, forest.offsets, forest.tokens, forest.depths,
            rows, logit_rows,
        )  # fmt: skip
        self.tokens, self.positions, self._places = _tensor(rows, device)
        self.logit_rows = _tensor(logit_rows, device)
        self._cache, self._forest = cache, forest
        self._device, self._layout = device, (slots, cached, chains, first_rows, forest)
        #: ``[s, 8]`` int64 per sequence: slot, committed positions, chain, rows, first row, first node; the slot that
        #: holds its first positions for all that begin alike, and how many these are.
        self.sequences = np.stack(
            [
                slots, cached, chains, sizes, first_rows[:-1], forest.offsets[:-1],
                cache.prefixes[slots], cache.shared[slots],
            ],
            axis=1,
        )  # fmt: skip

        #: Of the cache: heads of keys, and how wide they are.
        self.head_shape = cache.head_shape
        #: By layer, what was asked of attention in this step, but by fused layers.
        self.asked: dict[int, kernels.Attention] = {}

    @cached_property
    def native(self) -> kernels.Batch:
        """What the kernels take."""
        stretches, tasks = self.tasks
        return kernels.Batch(
            len(self),
            len(self.sequences),
            len(tasks) - 1,
            *self._cache.native(),
            self.sequences.ctypes.data,
            stretches.ctypes.data,
            tasks.ctypes.data,
            self._forest.parents.ctypes.data,
            self._forest.depths.ctypes.data,
        )

    @cached_property
    def tasks(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """What one thread works on at a time: up to so many rows, of one sequence or of several that begin alike.

        Returns:
            Stretches ``[n, 3]`` int64: sequence, its first row and the end; and ``[t + 1]`` int64: task *i* is the
            stretches from its *i*-th number up to the next.
        """
        prefixes, shared = self.sequences[:, 6], self.sequences[:, 7]
        alike = np.where(shared > 0, prefixes * self._cache.capacity + shared, -1)
        order = np.argsort(alike, kind="stable")
        most = len(self) // _TASK_ROWS + 2 * len(order)
        stretches, tasks = np.empty((most, 3), np.int64), np.zeros(most + 1, np.int64)
        n, t = _deal(self.sequences, alike, order, stretches, tasks)
        return stretches[:n], tasks[: t + 1]

    @cached_property
    def groups(self) -> "list[Group]":
        """How torch's own kernels take them: sequences that write in one call, padded to the largest tree; prompts are
        long and go one by one."""
        single = self.sequences[:, 2] == 1
        parts = [np.flatnonzero(single)] if single.any() else []
        parts += [np.array([i]) for i in np.flatnonzero(~single)]
        return [Group(part, *self._layout, self._device) for part in parts]

    def __len__(self) -> int:
        return len(self.tokens)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Put all rows' keys and values ``[kv_heads, rows, head_dim]`` behind their sequences' committed ones."""
        self._cache.write(layer, self._places, keys, values)

    def read(self, layer: int, group: "Group") -> tuple[Tensor, Tensor]:
        """Keys and values that a group attends to."""
        return self._cache.read(layer, group.slots, group.length)


class Group:
    """Sequences that are attended in one call: ``s`` of them, padded to ``n`` rows and ``length`` cache positions."""

    def __init__(
        self,
        members: NDArray[np.int64],
        slots: NDArray[np.int64],
        cached: NDArray[np.int64],
        chains: NDArray[np.int64],
        first_rows: NDArray[np.int64],
        forest: Forest,
        device: torch.device,
    ) -> None:
        self._device = device
        sizes = (first_rows[1:] - first_rows[:-1])[members]
        taken = slots[members]
        span = int(taken[-1] - taken[0]) + 1
        if span <= _LARGEST_SPAN * len(members):
            self._s, places = span, taken - taken[0]
            self.slots: slice | Tensor = slice(int(taken[0]), int(taken[-1]) + 1)
        else:
            self._s, places = len(members), np.arange(len(members))
            self.slots = _tensor(taken, device)
        self._n = int(sizes.max())
        self.length = int((cached[members] + sizes).max())
        # Every real row of the padded [s, n] block, and the batch's row that belongs there.
        real = np.concatenate([place * self._n + np.arange(size) for place, size in zip(places, sizes, strict=True)])
        rows = np.concatenate([first_rows[i] + np.arange(size) for i, size in zip(members, sizes, strict=True)])
        padded_rows = np.zeros(self._s * self._n, np.int64)
        padded_rows[real] = rows
        self._unpadded = len(rows) == len(padded_rows) == first_rows[-1]  # trees of one size: the batch as it lies
        self._padded_rows, self._real, self.rows = (_tensor(part, device) for part in (padded_rows, real, rows))
        self._layout = (
            members, places, cached, chains, forest.offsets, forest.parents, forest.depths,
        )  # fmt: skip
        self._masks: dict[int, Tensor] = {}

    def queries(self, query: Tensor, kv_heads: int) -> Tensor:
        """``[heads, rows, head_dim]`` of the batch to ``[s, kv_heads, heads / kv_heads * n, head_dim]``.

        Query heads that share a KV head become further query rows of it, so that nothing is copied per head.
        """
        heads, _, head_dim = query.shape
        picked = query if self._unpadded else query.index_select(1, self._padded_rows)
        apart = picked.view(kv_heads, heads // kv_heads, self._s, self._n, head_dim)
        return apart.permute(2, 0, 1, 3, 4).reshape(self._s, kv_heads, -1, head_dim)

    def unpadded(self, attended: Tensor, heads: int) -> Tensor:
        """The inverse for attention's output: ``[len(rows), heads, head_dim]``, in the order of :attr:`rows`."""
        s, kv_heads, _, head_dim = attended.shape
        apart = attended.view(s, kv_heads, heads // kv_heads, self._n, head_dim)
        rows = apart.permute(0, 3, 1, 2, 4).reshape(s * self._n, heads, head_dim)
        return rows if self._unpadded else rows.index_select(0, self._real)

    def mask(self, query_groups: int, window: int, dtype: torch.dtype) -> Tensor:
        """Additive ``[s, 1, query_groups * n, length]``, made once per step and window."""
        if window not in self._masks:
            hidden = np.ones((self._s, self._n, self.length), np.bool_)
            _show(hidden, *self._layout, window)
            mask = torch.zeros(hidden.shape, dtype=dtype, device=self._device)
            mask.masked_fill_(_tensor(hidden, self._device), torch.finfo(dtype).min)
            self._masks[window] = mask.repeat(1, query_groups, 1)[:, None]
        return self._masks[window]


@compiled
def _deal(sequences, alike, order, stretches, tasks):  # type: ignore[no-untyped-def]
    """Fill ``stretches`` and ``tasks``; how many there are of each."""
    n, t, room, like = 0, 0, 0, -1
    for i in order:
        begin = 0
        while begin < sequences[i, 3]:
            if not room or alike[i] < 0 or alike[i] != like:
                t += n > 0
                tasks[t] = n
                room, like = _TASK_ROWS, alike[i]
            end = min(begin + room, sequences[i, 3])
            stretches[n, 0], stretches[n, 1], stretches[n, 2] = i, begin, end
            n += 1
            room -= end - begin
            begin = end
    tasks[t + 1] = n
    return n, t + 1


@compiled
def _lay_out(  # type: ignore[no-untyped-def]
    table, slots, cached, chains, emitting, first_rows, offsets, node_tokens, depths, rows, logit_rows
):
    """Fill ``rows`` (token, position and place in the cache of every row) and ``logit_rows``."""
    wanted = 0
    for i in range(len(slots)):
        slot, row = slots[i], first_rows[i]
        for j in range(chains[i]):
            rows[0, row + j] = table[slot, cached[i] + j]
            rows[1, row + j] = cached[i] + j
        row += chains[i]
        if emitting[i]:
            logit_rows[wanted] = row - 1
            wanted += 1
        last = cached[i] + chains[i] - 1
        for node in range(offsets[i], offsets[i + 1]):
            rows[0, row] = node_tokens[node]
            rows[1, row] = last + depths[node]
            logit_rows[wanted] = row
            wanted += 1
            row += 1
        for j in range(first_rows[i], row):
            rows[2, j] = slot * table.shape[1] + cached[i] + j - first_rows[i]


@compiled
def _show(  # type: ignore[no-untyped-def]
    hidden, members, places, cached, chains, offsets, parents, depths, window
):
    """Clear ``hidden`` ``[s, n, length]`` where a row sees a cache position: nearer than ``window`` and before it."""
    for m in range(len(members)):
        i, place = members[m], places[m]
        begin, chain = cached[i], chains[i]
        for j in range(chain):
            for k in range(max(0, begin + j - window + 1), begin + j + 1):
                hidden[place, j, k] = False
        last = begin + chain - 1
        first = offsets[i]
        for node in range(first, offsets[i + 1]):
            row, position = chain + node - first, last + depths[node]
            for k in range(max(0, position - window + 1), last + 1):
                hidden[place, row, k] = False
            ancestor = node
            while ancestor >= 0 and position - (last + depths[ancestor]) < window:
                hidden[place, row, begin + chain + ancestor - first] = False
                ancestor = parents[ancestor]


def _tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)
