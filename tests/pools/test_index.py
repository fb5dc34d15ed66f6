from hypothesis import given, settings
from hypothesis import strategies as st

from dare_core.pools.index import MAX_MATCH, START, SuffixIndex
from dare_core.pools.trees import MAX_DEPTH, cut_tree

TEXTS = st.lists(st.lists(st.integers(0, 4), max_size=40), max_size=8)
CONTEXT = st.lists(st.integers(-1, 4), min_size=1, max_size=MAX_MATCH)


def occurrences(texts: list[list[int]], pattern: list[int]) -> list[list[int]]:
    """What followed each occurrence of a pattern, the slow way; a text ends at the next one's START."""
    joined = [token for text in texts if text for token in (START, *text)]
    return [
        joined[i + len(pattern) : i + len(pattern) + MAX_DEPTH]
        for i in range(len(joined) - len(pattern) + 1)
        if joined[i : i + len(pattern)] == pattern
    ]


@settings(deadline=None, max_examples=200)
@given(texts=TEXTS, pattern=CONTEXT)
def test_find_counts_every_occurrence(texts: list[list[int]], pattern: list[int]) -> None:
    first, last = SuffixIndex.build(texts).find(pattern)
    assert last - first == len(occurrences(texts, pattern))


@settings(deadline=None, max_examples=200)
@given(texts=TEXTS, context=CONTEXT)
def test_the_longest_suffix_is_found(texts: list[list[int]], context: list[int]) -> None:
    lengths = [n for n in range(1, len(context) + 1) if occurrences(texts, context[-n:])]
    assert SuffixIndex.build(texts).longest_match(context) == max(lengths, default=0)


@settings(deadline=None, max_examples=200)
@given(texts=TEXTS, context=CONTEXT, max_nodes=st.integers(0, 20))
def test_a_tree_holds_only_what_followed_in_some_text(
    texts: list[list[int]], context: list[int], max_nodes: int
) -> None:
    tree = cut_tree([SuffixIndex.build(texts)], context, max_nodes)
    assert len(tree) <= max_nodes
    assert START not in tree.tokens.tolist()
    assert len(
        {(parent, token) for parent, token in zip(tree.parents.tolist(), tree.tokens.tolist(), strict=True)}
    ) == len(tree)
    longest = SuffixIndex.build(texts).longest_match(context)
    following = [rest for n in range(1, longest + 1) for rest in occurrences(texts, context[-n:])]
    for node in range(len(tree)):
        path: list[int] = []
        at = node
        while at >= 0:
            path.insert(0, int(tree.tokens[at]))
            at = int(tree.parents[at])
        assert any(rest[: len(path)] == path for rest in following)


def test_the_most_frequent_continuation_comes_first() -> None:
    index = SuffixIndex.build([[1, 2, 3], [1, 2, 3], [1, 2, 4]])
    tree = cut_tree([index], [1, 2], 2)
    assert tree.tokens.tolist() == [3, 4]
    assert tree.parents.tolist() == [-1, -1]
    assert tree.probabilities[0] > tree.probabilities[1]


def test_the_start_of_a_text_drafts_how_texts_begin() -> None:
    index = SuffixIndex.build([[7, 8, 9], [7, 8, 5], [3]])
    assert cut_tree([index], [START], 2).tokens.tolist() == [7, 8]


def test_a_second_index_fills_what_the_first_leaves_open() -> None:
    group, everything = SuffixIndex.build([[1, 2]]), SuffixIndex.build([[1, 2], [1, 5, 6]])
    assert set(cut_tree([group, everything], [1], 8).tokens.tolist()) == {2, 5, 6}


def test_an_index_of_nothing_drafts_nothing() -> None:
    assert len(cut_tree([SuffixIndex.build([])], [START], 8)) == 0
