from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dare_core.pools.index import MAX_MATCH, START, ContextIndex, index_texts, locate, matching, tokens_per_key
from tests.pools.reference import backwards

# Few tokens, so that they match; large ones, so that a key holds fewer of them.
TOKEN = st.sampled_from([0, 1, 2, 3, 70_000, 2_500_000])
TEXTS = st.lists(st.lists(TOKEN, max_size=40), max_size=8)
SMALL = st.lists(st.lists(st.integers(0, 3), max_size=40), max_size=8)


def joined(texts: list[list[int]]) -> list[int]:
    return [token for text in texts if text for token in (START, *text)]


def indexed(texts: list[list[int]]) -> ContextIndex:
    return index_texts(np.array(joined(texts), np.int32))


def context_of(output: list[int]) -> NDArray[np.int32]:
    return np.array([START, *output][-MAX_MATCH:], np.int32)


def occurrences(texts: list[list[int]], pattern: list[int]) -> list[int]:
    """Where a pattern ends, the slow way."""
    tokens, n = joined(texts), len(pattern)
    return [i for i in range(n - 1, len(tokens)) if tokens[i + 1 - n : i + 1] == pattern]


@settings(deadline=None, max_examples=300)
@given(texts=TEXTS | SMALL)
def test_positions_are_ordered_by_what_stands_before_them_read_backwards(texts: list[list[int]]) -> None:
    index, tokens = indexed(texts), joined(texts)
    assert index.tokens.tolist() == tokens
    assert sorted(index.order.tolist()) == list(range(len(tokens)))
    contexts = [(backwards(tokens, position), position) for position in index.order.tolist()]
    assert all(one < next_one for one, next_one in pairwise(contexts))


def test_long_repetitions_and_large_alphabets_are_ordered_too() -> None:
    texts = [[7] * 5000, list(range(5000)), [7] * 30, [1, 2] * 1000]
    index, tokens = indexed(texts), joined(texts)
    contexts = [(backwards(tokens, position), position) for position in index.order.tolist()]
    assert all(one < next_one for one, next_one in pairwise(contexts))


@settings(deadline=None, max_examples=500)
@given(texts=TEXTS | SMALL, output=st.lists(TOKEN, max_size=40), data=st.data())
def test_the_longest_match_is_found_and_every_shorter_one_around_it(
    texts: list[list[int]], output: list[int], data: st.DataObject
) -> None:
    if texts and texts[0] and data.draw(st.booleans()):
        output = [*output, *texts[0][: data.draw(st.integers(1, len(texts[0])))]]
    index, context = indexed(texts), context_of(output)
    rank, match = locate(index, context)
    lengths = [n for n in range(1, len(context) + 1) if occurrences(texts, context[-n:].tolist())]
    assert match == max(lengths, default=0)
    inside = (rank, rank)
    for length in range(match, 0, -1):
        if data.draw(st.booleans()):  # a search skips lengths
            inside = matching(index, context, length, inside)
            found = sorted(index.order[inside[0] : inside[1]].tolist())
            assert found == occurrences(texts, context[-length:].tolist())


@pytest.mark.parametrize(
    ("largest", "tokens"), [(0, 4), (49_151, 4), (65_532, 4), (65_533, 3), (128_255, 3), (1 << 22, 2)]
)
def test_a_key_holds_as_many_tokens_as_fit(largest: int, tokens: int) -> None:
    assert tokens_per_key(largest) == tokens
