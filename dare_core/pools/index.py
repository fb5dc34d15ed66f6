"""The order that a search walks: positions of texts sorted by what stands before them, read backwards.

A drafter asks one question again and again: where did the last tokens of this sequence stand before, and what followed
there? Here a position stands for the text up to it, and positions are sorted by their last token, then the one before
it, and so on through :data:`MAX_MATCH` tokens (colexicographic order, the suffix array of the reversed texts). In that
order all positions that end with the same tokens are neighbours, and those that agree in more tokens lie inside those
that agree in fewer. So one binary search finds the longest match, and every shorter match is found by widening its
range; a suffix array of the texts as they stand needs a search for each length (docs/pools.md compares both).

Every text is preceded by :data:`START`, beyond which no context reaches, so that a search can also ask how texts begin.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dare_core.storage.machine_code import compiled

#: Stands before every text; never a token id.
START: Final = -1
#: The longest run of last tokens that is searched for.
MAX_MATCH: Final = 16
#: Every so many ranks of the order, the key of the rank's context is kept beside it.
STRIDE: Final = 16

#: How many last tokens a key may hold: the smaller the token ids, the more.
KEY_TOKENS: Final = (4, 3, 2)


class ContextIndex(NamedTuple):
    """Texts as one token array, and their positions in colexicographic order. Compiled functions take it as it is.

    Attributes:
        tokens: ``[n]`` int32, read-only, every text preceded by :data:`START`.
        order: ``[n]`` int32, read-only, positions in ``tokens``, ordered by the :data:`MAX_MATCH` tokens that end
            there; equal ones by position.
        keys: ``[ceil(n / STRIDE)]`` uint64, read-only: the contexts of ranks 0, STRIDE, ... as :func:`context_key`
            packs them. Most of a search happens in this small array.
        key_tokens: how many last tokens a key holds.
    """

    tokens: NDArray[np.int32]
    order: NDArray[np.int32]
    keys: NDArray[np.uint64]
    key_tokens: int


def index_texts(tokens: NDArray[np.int32]) -> ContextIndex:
    """Index texts that stand in one array (``[n]`` int32), each preceded by :data:`START`."""
    return with_keys(tokens, colex_order(tokens))


def with_keys(tokens: NDArray[np.int32], order: NDArray[np.int32]) -> ContextIndex:
    """An index whose order is known already."""
    key_tokens = tokens_per_key(int(tokens.max(initial=0)))
    keys = _sampled_keys(tokens, order, key_tokens)
    for array in (
        tokens,
        order,
        keys,
    ):  # as mapped ones are: a writable array is another type, to be compiled for again
        array.flags.writeable = False
    return ContextIndex(tokens, order, keys, key_tokens)


def tokens_per_key(largest: int) -> int:
    """How many tokens, none above ``largest``, a key of 64 bits holds; two more values are needed, and one is spare."""
    return next(n for n in KEY_TOKENS if largest + 3 < 1 << (64 // n))


def colex_order(tokens: NDArray[np.int32]) -> NDArray[np.int32]:
    """Positions ordered by the :data:`MAX_MATCH` tokens that end there, the last token first; equal ones by position.

    Prefix doubling with counting sorts: contexts of twice the length are ordered by ordering their older halves, which
    the last round did, by their newer halves. ``[n]`` int32 in linear time.
    """
    if not len(tokens):
        return np.empty(0, np.int32)
    _, symbols = np.unique(tokens, return_inverse=True) if len(tokens) < _SMALL else (None, tokens + 1)
    reach = _reach(tokens)
    return _double(symbols.astype(np.int32), reach)


#: Below so many tokens the alphabet is made dense first, which is cheaper than counting a whole vocabulary.
_SMALL: Final = 4096


@compiled
def _reach(tokens: NDArray[np.int32]) -> NDArray[np.uint8]:
    """How many tokens of a context there are before a position, up to MAX_MATCH: those back to the text's START."""
    reach = np.empty(len(tokens), np.uint8)
    seen = 0
    for i in range(len(tokens)):
        seen = 0 if tokens[i] == START else min(seen + 1, MAX_MATCH)
        reach[i] = seen
    return reach


@compiled
def _double(symbols: NDArray[np.int32], reach: NDArray[np.uint8]) -> NDArray[np.int32]:
    n = len(symbols)
    # Contexts of one token: a counting sort. A context's rank is the place of the first that equals it.
    starts = np.zeros(symbols.max() + 2, np.int32)
    for i in range(n):
        starts[symbols[i] + 1] += 1
    for symbol in range(1, len(starts)):
        starts[symbol] += starts[symbol - 1]
    rank, order, ordered = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.int32)
    for i in range(n):
        rank[i] = starts[symbols[i]]
    for i in range(n):
        order[starts[symbols[i]]] = i
        starts[symbols[i]] += 1
    following = np.empty(n, np.int32)
    new_rank = np.empty(n, np.int32)
    length = 1
    while length < MAX_MATCH:
        for i in range(n):
            following[i] = i
        # The older half of the context at i is the context at i - length; where the text began in between there is
        # none, and it comes first.
        for i in range(n):
            if reach[i] < length:
                place = following[rank[i]]
                following[rank[i]] = place + 1
                ordered[place] = i
        for k in range(n):
            i = order[k] + length
            if i < n and reach[i] >= length:
                place = following[rank[i]]
                following[rank[i]] = place + 1
                ordered[place] = i
        first, distinct, newer_before, older_before = 0, 0, -1, -1
        for k in range(n):
            i = ordered[k]
            newer, older = rank[i], rank[i - length] if reach[i] >= length else -1
            if newer != newer_before or older != older_before:
                first, newer_before, older_before = k, newer, older
                distinct += 1
            new_rank[i] = first
        order, ordered = ordered, order
        rank, new_rank = new_rank, rank
        if distinct == n:
            break
        length *= 2
    return order


@compiled
def _sampled_keys(tokens: NDArray[np.int32], order: NDArray[np.int32], key_tokens: int) -> NDArray[np.uint64]:
    keys = np.empty((len(order) + STRIDE - 1) // STRIDE, np.uint64)
    for k in range(len(keys)):
        keys[k] = context_key(tokens, order[k * STRIDE], key_tokens)
    return keys


@compiled
def context_key(tokens: NDArray[np.int32], position: int, key_tokens: int) -> np.uint64:
    """The last tokens up to a position in one number that sorts as they do: last token first, 0 beyond START.

    Tokens too large for a key, which no indexed text holds, come last.
    """
    bits = np.uint64(64 // key_tokens)
    largest = (np.uint64(1) << bits) - np.uint64(1)
    key = np.uint64(0)
    for k in range(key_tokens):
        key <<= bits
        if position - k >= 0:
            token = tokens[position - k]
            key |= min(np.uint64(token + 2), largest)
            if token == START:
                key <<= bits * np.uint64(key_tokens - 1 - k)
                break
    return key


@compiled
def compare_contexts(
    tokens: NDArray[np.int32], position: int, others: NDArray[np.int32], at: int, length: int
) -> tuple[int, int]:
    """How the ``length`` tokens up to ``position`` stand to those up to ``others[at]``, and how many are equal.

    Returns:
        -1, 0 or 1 for before, equal or behind; a context ends with the START of its text.
    """
    for k in range(length):
        if k > at or k > position:
            return (0 if k > at else -1), k
        token, other = tokens[position - k], others[at - k]
        if token != other:
            return (-1 if token < other else 1), k
        if token == START:
            return 0, k + 1
    return 0, length


@compiled
def locate(index: ContextIndex, context: NDArray[np.int32]) -> tuple[int, int]:
    """Where a context belongs in the order, and its longest match.

    Args:
        index: what is searched.
        context: ``[c]`` int32, ``c`` <= :data:`MAX_MATCH`: the last tokens of a sequence, from START on where it began
            with fewer.

    Returns:
        The first rank that is not before the context, and how many of its last tokens occur in a row.
    """
    n, last = len(index.order), len(context) - 1
    key = context_key(context, last, index.key_tokens)
    low = max(0, (_first_key(index.keys, key) - 1) * STRIDE)
    beyond = key + np.uint64(1)
    high = min(n, _first_key(index.keys, beyond) * STRIDE) if beyond else n
    while low < high:
        middle = (low + high) // 2
        order, _ = compare_contexts(index.tokens, index.order[middle], context, last, len(context))
        if order < 0:
            low = middle + 1
        else:
            high = middle
    match = 0
    for rank in range(max(0, low - 1), min(n, low + 1)):
        _, equal = compare_contexts(index.tokens, index.order[rank], context, last, len(context))
        match = max(match, equal)
    return low, match


@compiled
def matching(index: ContextIndex, context: NDArray[np.int32], length: int, inside: tuple[int, int]) -> tuple[int, int]:
    """The ranks whose last ``length`` tokens are those of the context.

    Args:
        index: what is searched.
        context: as in :func:`locate`.
        length: at least 1.
        inside: a range that is known to belong to them, from a longer match, or empty at the rank that
            :func:`locate` found.
    """
    if length <= index.key_tokens:
        bits = np.uint64(64 // index.key_tokens) * np.uint64(index.key_tokens - length)
        key = (context_key(context, len(context) - 1, index.key_tokens) >> bits) << bits
        first = _first_key(index.keys, key)
        beyond = _first_key(index.keys, key + (np.uint64(1) << bits))
        low, high = max(0, (first - 1) * STRIDE), min(inside[0], first * STRIDE)
        low = _bisect(index, context, length, low, high, False)
        low_end, high_end = max(inside[1], (beyond - 1) * STRIDE), min(len(index.order), beyond * STRIDE)
        return low, _bisect(index, context, length, low_end, high_end, True)
    low, step = inside[0], 1
    while low > 0:
        probe = max(0, low - step)
        if not _matches(index, probe, context, length):
            low = _bisect(index, context, length, probe + 1, low, False)
            break
        low = probe
        step *= 2
    high, step, n = inside[1], 1, len(index.order)
    while high < n:
        probe = min(n - 1, high + step - 1)
        if not _matches(index, probe, context, length):
            high = _bisect(index, context, length, high, probe, True)
            break
        high = probe + 1
        step *= 2
    return low, high


@compiled
def _bisect(index: ContextIndex, context: NDArray[np.int32], length: int, low: int, high: int, after: bool) -> int:
    """Where the ranks that match begin, or with ``after`` end; those that do not all lie on that side of them."""
    while low < high:
        middle = (low + high) // 2
        if _matches(index, middle, context, length) == after:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def _matches(index: ContextIndex, rank: int, context: NDArray[np.int32], length: int) -> bool:
    _, equal = compare_contexts(index.tokens, index.order[rank], context, len(context) - 1, length)
    return equal == length


@compiled
def _first_key(keys: NDArray[np.uint64], key: np.uint64) -> int:
    """The first sampled rank whose key is not below ``key``."""
    low, high = 0, len(keys)
    while low < high:
        middle = (low + high) // 2
        if keys[middle] < key:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def merge_orders(
    tokens: NDArray[np.int32], left: NDArray[np.int32], right: NDArray[np.int32], out: NDArray[np.int32]
) -> None:
    """Merge two parts of an order over the same tokens into ``out``, in linear time."""
    i, j, k = 0, 0, 0
    while i < len(left) and j < len(right):
        order, _ = compare_contexts(tokens, left[i], tokens, right[j], MAX_MATCH)
        if order < 0 or (order == 0 and left[i] < right[j]):
            out[k] = left[i]
            i += 1
        else:
            out[k] = right[j]
            j += 1
        k += 1
    out[k : k + len(left) - i] = left[i:]
    k += len(left) - i
    out[k : k + len(right) - j] = right[j:]
