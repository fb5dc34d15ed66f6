from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dare_core.pools.index import MAX_MATCH, START, SuffixIndex, find, longest_match

TEXTS = st.lists(st.lists(st.integers(0, 4), max_size=40), max_size=8)
CONTEXT = st.lists(st.integers(-1, 4), min_size=1, max_size=MAX_MATCH)


def joined(texts: list[list[int]]) -> list[int]:
    return [token for text in texts if text for token in (START, *text)]


def occurrences(texts: list[list[int]], pattern: list[int]) -> list[int]:
    """Where a pattern begins, the slow way."""
    tokens = joined(texts)
    return [i for i in range(len(tokens) - len(pattern) + 1) if tokens[i : i + len(pattern)] == pattern]


@settings(deadline=None, max_examples=200)
@given(texts=TEXTS)
def test_suffixes_are_ordered_by_as_many_tokens_as_are_searched_for(texts: list[list[int]]) -> None:
    index = SuffixIndex.build(texts)
    assert index.tokens.tolist() == joined(texts)
    assert sorted(index.suffixes.tolist()) == list(range(len(index.tokens)))
    suffixes = [index.tokens[position : position + MAX_MATCH].tolist() for position in index.suffixes]
    assert all(one <= next_one for one, next_one in pairwise(suffixes))


@settings(deadline=None, max_examples=300)
@given(texts=TEXTS, pattern=CONTEXT)
def test_every_occurrence_is_found_and_nothing_else(texts: list[list[int]], pattern: list[int]) -> None:
    index = SuffixIndex.build(texts)
    first, last = find(index, np.array(pattern, np.int32))
    assert sorted(index.suffixes[first:last].tolist()) == occurrences(texts, pattern)


@settings(deadline=None, max_examples=300)
@given(texts=TEXTS, context=CONTEXT)
def test_the_longest_suffix_is_found(texts: list[list[int]], context: list[int]) -> None:
    lengths = [n for n in range(1, len(context) + 1) if occurrences(texts, context[-n:])]
    assert longest_match(SuffixIndex.build(texts), np.array(context, np.int32)) == max(lengths, default=0)
