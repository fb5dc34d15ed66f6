"""A segment: some of a group's texts and their index, in one immutable file that readers map into memory.

A group's pool is a base segment and a few recent ones. Adding texts writes one new segment; merging is linear in the
tokens and yields the very bytes that building from all the texts at once would, so it does not matter how texts were
split, by nights or by Spark. Deleting is merging without some texts.

The file, little-endian: a header of 64 bytes (:data:`_HEADER`, with a checksum of itself), then rows
(:data:`TEXT_ROW`), keys (uint64), tokens (int32) and order (int32); see :class:`~dare_core.pools.index.ContextIndex`.
It is named by the SHA-256 of its bytes.
"""

import hashlib
import heapq
import mmap
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dare_core.errors import PoolError
from dare_core.pools.index import (
    KEY_TOKENS,
    START,
    STRIDE,
    ContextIndex,
    index_texts,
    merge_orders,
    with_keys,
)
from dare_core.storage.machine_code import compiled

#: Positions that an int32 can name; each text takes one more than it has tokens.
_MOST_TOKENS: Final = 2**31 - 1
#: What is kept of a text, in the order of the texts. ``text`` and ``entity`` are hashes of its tokens and of whom it is
#: about (0: nobody in particular), so that a pool holds no ids; ``day`` counts from 1970; ``length`` is in tokens.
TEXT_ROW: Final = np.dtype([("text", "<u8"), ("entity", "<u8"), ("length", "<i4"), ("day", "<i4")])

#: Segments of a group at most: a base and eight recent ones.
MOST_SEGMENTS: Final = 9

_MAGIC: Final = b"DAREPOOL"
#: The format that this release writes and reads.
FORMAT: Final = 2
_HEADER: Final = np.dtype(
    [
        ("magic", "S8"),
        ("format", "<u4"),
        ("key_tokens", "<u4"),
        ("texts", "<i8"),
        ("tokens", "<i8"),  # the marks before texts included
        ("reserved", "V28"),
        ("checksum", "<u4"),  # CRC-32 of the bytes before it
    ]
)
assert _HEADER.itemsize == 64


_NONE: Final = np.empty(0, np.uint64)


@dataclass(frozen=True)
class SegmentEntry:
    """A segment as a manifest lists it: its name, and what it holds."""

    sha256: str
    texts: int
    tokens: int
    size: int


@dataclass(frozen=True, eq=False)
class Segment:
    """Texts of one group.

    Attributes:
        rows: ``[texts]`` :data:`TEXT_ROW`, sorted.
        index: the texts' tokens, in the order of the rows, and their order.
    """

    rows: NDArray[np.void]
    index: ContextIndex

    @property
    def texts(self) -> int:
        """Texts in it."""
        return len(self.rows)

    @property
    def tokens(self) -> int:
        """Tokens of those texts."""
        return len(self.index.tokens) - len(self.rows)

    @classmethod
    def build(cls, texts: pa.Table, vocabulary: int) -> "Segment":
        """Index texts. The same texts give the same segment, whatever their order.

        Args:
            texts: column ``token_ids`` (list of integers), and where known ``entity_id`` (string; whom a text is about)
                and ``available_at`` (timestamp; when it was written). Other columns are ignored, empty texts left out.
                A text that is there twice for one entity counts once.
            vocabulary: token ids are below it.

        Raises:
            PoolError: a token id is out of range, or there are too many of them.
        """
        token_ids = texts["token_ids"]
        _check_size((pc.sum(pc.list_value_length(token_ids)).as_py() or 0) + len(token_ids))
        column = token_ids.combine_chunks() if isinstance(token_ids, pa.ChunkedArray) else token_ids
        values = column.flatten().to_numpy(zero_copy_only=False)
        if len(values) and not 0 <= values.min() <= values.max() < vocabulary:
            worst = values.min() if values.min() < 0 else values.max()
            raise PoolError(f"token_ids holds {worst}, which is outside the tokenizer's 0..{vocabulary - 1}")
        values = np.ascontiguousarray(values, np.int32)
        rows = np.zeros(len(column), TEXT_ROW)
        rows["length"] = pc.list_value_length(column).to_numpy(zero_copy_only=False)
        ends = np.cumsum(rows["length"], dtype=np.int64)
        starts = ends - rows["length"]
        whole = values.tobytes()
        rows["text"] = [
            _hash(whole[4 * begin : 4 * end]) for begin, end in zip(starts.tolist(), ends.tolist(), strict=True)
        ]
        if "entity_id" in texts.schema.names:
            rows["entity"] = [entity_hash(entity) if entity else 0 for entity in texts["entity_id"].to_pylist()]
        if "available_at" in texts.schema.names:
            days = pc.floor_temporal(texts["available_at"], unit="day").cast(pa.date32()).cast(pa.int32())
            rows["day"] = pc.fill_null(days, 0).to_numpy(zero_copy_only=False)
        chosen = _sorted(rows)
        chosen = chosen[_first_of_each(rows[chosen]) & (rows["length"][chosen] > 0)]
        tokens = np.empty(int(rows["length"][chosen].sum()) + len(chosen), np.int32)
        _lay_out(values, starts[chosen], rows["length"][chosen], tokens)
        return cls(rows[chosen], index_texts(tokens))

    @classmethod
    def merge(cls, segments: "Sequence[Segment]", keep: Sequence[NDArray[np.bool_]] | None = None) -> "Segment":
        """The segment of the texts of several, in linear time.

        Args:
            segments: what to merge; one is merely thinned out.
            keep: ``[texts]`` bool for each of them: the texts to keep; default: all.

        Raises:
            PoolError: they hold too many tokens.
        """
        if not segments:
            return cls(np.empty(0, TEXT_ROW), index_texts(np.empty(0, np.int32)))
        rows = np.concatenate([segment.rows for segment in segments])
        starts = [np.cumsum(segment.rows["length"] + 1, dtype=np.int64) for segment in segments]
        lengths = [len(segment.index.tokens) for segment in segments]
        begins = np.concatenate([ends - segment.rows["length"] for ends, segment in zip(starts, segments, strict=True)])
        source = np.repeat(np.arange(len(segments)), [segment.texts for segment in segments])
        kept = np.concatenate(keep) if keep is not None else np.ones(len(rows), np.bool_)
        chosen = _sorted(rows)
        chosen = chosen[kept[chosen]]
        chosen = chosen[_first_of_each(rows[chosen])]
        size = rows["length"][chosen].astype(np.int64)
        _check_size(int((size + 1).sum()))
        new_begins = np.cumsum(size + 1) - size
        tokens = np.empty(int((size + 1).sum()), np.int32)
        orders: list[tuple[int, int, NDArray[np.int32]]] = []
        for k, segment in enumerate(segments):
            mine = source[chosen] == k
            moved = np.full(lengths[k], -1, np.int32)
            _move(segment.index.tokens, begins[chosen][mine], size[mine], new_begins[mine], moved, tokens)
            order = np.empty(int((size[mine] + 1).sum()), np.int32)
            _renumber(segment.index.order, moved, order)
            orders.append((len(order), k, order))
        heapq.heapify(orders)
        while len(orders) > 1:  # the shortest first
            (_, k, left), (_, _, right) = heapq.heappop(orders), heapq.heappop(orders)
            merged = np.empty(len(left) + len(right), np.int32)
            merge_orders(tokens, left, right, merged)
            heapq.heappush(orders, (len(merged), k, merged))
        return cls(rows[chosen], with_keys(tokens, orders[0][2]))

    def without(self, entities: NDArray[np.uint64], texts: NDArray[np.uint64] = _NONE) -> NDArray[np.bool_]:
        """``[texts]`` bool: which texts are about none of the entities, and none of some texts that are about nobody.

        Args:
            entities: hashes, see :func:`entity_hash`.
            texts: hashes, see :func:`text_hash`.
        """
        unnamed = (self.rows["entity"] == 0) & np.isin(self.rows["text"], texts)
        kept: NDArray[np.bool_] = ~(np.isin(self.rows["entity"], entities) | unnamed)
        return kept

    def to_bytes(self) -> bytes:
        """The file's bytes."""
        header = np.zeros((), _HEADER)
        header["magic"], header["format"], header["key_tokens"] = _MAGIC, FORMAT, self.index.key_tokens
        header["texts"], header["tokens"] = len(self.rows), len(self.index.tokens)
        header["checksum"] = zlib.crc32(header.tobytes()[:-4])
        parts = (header, self.rows, self.index.keys, self.index.tokens, self.index.order)
        return b"".join(part.tobytes() for part in parts)

    @classmethod
    def of_bytes(cls, data: Any, name: str) -> "Segment":
        """The segment in a file's bytes, or in a mapping of them; nothing is copied.

        Args:
            data: the bytes.
            name: what to call them in errors.

        Raises:
            PoolError: they are no segment, from a newer release, cut short, or their header is damaged.
        """
        if len(data) < _HEADER.itemsize:
            raise PoolError(f"{name} is damaged: it ends within its header")
        header = np.frombuffer(data, _HEADER, 1)[0]
        if header["magic"] != _MAGIC:
            raise PoolError(f"{name} is damaged or no pool segment")
        if header["checksum"] != zlib.crc32(bytes(data[: _HEADER.itemsize - 4])):
            raise PoolError(f"{name} is damaged: its header's checksum is wrong")
        if header["format"] != FORMAT:
            raise PoolError(
                f"{name}: format {header['format']} is not the format {FORMAT} that this release reads; "
                + ("update this installation" if header["format"] > FORMAT else "build the pool again")
            )
        texts, tokens, at = int(header["texts"]), int(header["tokens"]), _HEADER.itemsize
        token, key = np.dtype("<i4"), np.dtype("<u8")
        sizes = ((TEXT_ROW, texts), (key, -(-tokens // STRIDE)), (token, tokens), (token, tokens))
        if not 0 <= texts <= tokens or header["key_tokens"] not in KEY_TOKENS:
            raise PoolError(f"{name} is damaged: its header says what cannot be")
        if at + sum(kind.itemsize * count for kind, count in sizes) != len(data):
            raise PoolError(f"{name} is damaged: it is cut short, or something follows it")
        arrays: list[Any] = []
        for kind, count in sizes:
            arrays.append(np.frombuffer(data, kind, count, at))
            at += count * kind.itemsize
        rows, keys, token_ids, order = arrays
        for array in arrays:
            array.flags.writeable = False
        return cls(rows, ContextIndex(token_ids, order, keys, int(header["key_tokens"])))

    @classmethod
    def map(cls, path: Path) -> "Segment":
        """A segment's file, mapped into memory: what is not searched is not read, and processes share what is.

        Raises:
            PoolError: it is missing or no segment; see :meth:`of_bytes`.
        """
        try:
            with path.open("rb") as file:
                return cls.of_bytes(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), str(path))
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise PoolError(f"{path} cannot be read: {error}") from None


def _check_size(positions: int) -> None:
    if positions > _MOST_TOKENS:
        raise PoolError(
            f"a group's texts would take {positions} positions of a pool's segment, which holds {_MOST_TOKENS}: expire "
            "old texts (`dare pool expire`), or split the group ([grouping] of the domain's file)"
        )


def entity_hash(entity_id: str) -> int:
    """What stands for an entity in :data:`TEXT_ROW`."""
    return _hash(entity_id.encode()) or 1


def text_hash(token_ids: Sequence[int]) -> int:
    """What stands for a text's tokens in :data:`TEXT_ROW`."""
    return _hash(np.asarray(token_ids, np.int32).tobytes())


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _sorted(rows: NDArray[np.void]) -> NDArray[np.int64]:
    """Where the rows come from when they stand in their order: by text, entity and day."""
    return np.lexsort((rows["day"], rows["entity"], rows["text"]))


def _first_of_each(rows: NDArray[np.void]) -> NDArray[np.bool_]:
    """Which of some sorted rows are the first of their text and entity; of texts about nobody, all are."""
    first = np.ones(len(rows), np.bool_)
    same = (rows["text"][1:] == rows["text"][:-1]) & (rows["entity"][1:] == rows["entity"][:-1])
    first[1:] = ~same | (rows["entity"][1:] == 0)
    return first


@compiled
def _lay_out(
    values: NDArray[np.int32], starts: NDArray[np.int64], lengths: NDArray[np.int32], tokens: NDArray[np.int32]
) -> None:
    """Write texts one behind the other, START before each."""
    at = 0
    for k in range(len(starts)):
        tokens[at] = START
        for i in range(lengths[k]):
            tokens[at + 1 + i] = values[starts[k] + i]
        at += lengths[k] + 1


@compiled
def _move(
    old: NDArray[np.int32],
    begins: NDArray[np.int64],
    lengths: NDArray[np.int64],
    new_begins: NDArray[np.int64],
    moved: NDArray[np.int32],
    tokens: NDArray[np.int32],
) -> None:
    """Copy texts, and the mark before each, to their new places, and note where each position went."""
    for k in range(len(begins)):
        for i in range(-1, lengths[k]):
            moved[begins[k] + i] = new_begins[k] + i
            tokens[new_begins[k] + i] = old[begins[k] + i]


@compiled
def _renumber(order: NDArray[np.int32], moved: NDArray[np.int32], out: NDArray[np.int32]) -> None:
    """The order of the positions that were moved, by their new numbers."""
    n = 0
    for position in order:
        if moved[position] >= 0:
            out[n] = moved[position]
            n += 1


def tier(sizes: Sequence[int], most: int) -> int:
    """Where a merge begins: the segments from there on are to be one; at the last one nothing is to be merged.

    A merge takes in an older segment when the newer ones together have grown as large, so that a token takes part in
    about log2(pool / night's texts) merges, and segments at least double from one to the next.

    Args:
        sizes: tokens of a group's segments, the oldest first.
        most: segments that there may be at most.
    """
    begin, newer = len(sizes) - 1, sizes[-1]
    while begin > 0 and (newer >= sizes[begin - 1] or begin >= most):
        begin -= 1
        newer += sizes[begin]
    return begin
