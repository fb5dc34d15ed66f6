import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from dare_core.drafts import Context, Forest
from dare_core.pools import GLOBAL_GROUP, Pool, PoolBuilder, PoolDrafter, PoolStore
from dare_core.pools.index import START
from dare_core.pools.occurrences import EVIDENCE_KINDS, GLOBAL, LEARNED, OWN, RECENT
from dare_core.pools.segments import Segment
from dare_core.schemas import POOL_TEXT
from tests.pools.reference import grow_trie

TOKENS = st.lists(st.integers(0, 4), max_size=30)
TEXTS = st.lists(TOKENS, max_size=6)

Text = Sequence[int]


def pool(folder: Path, **groups: Sequence[Text]) -> Pool:
    rows = [(group, list(text)) for group, texts in groups.items() for text in texts]
    table = {"group": [group for group, _ in rows], "token_ids": [text for _, text in rows]}
    store = PoolStore(folder)
    PoolBuilder(store, "model", "hash", 1000).build(pa.table(table, schema=POOL_TEXT))
    return Pool.open(store, "hash")


def in_order(segments: Sequence[Sequence[Text]]) -> list[list[Text]]:
    """Segments with their texts in the order of their files."""
    ordered = []
    for texts in segments:
        segment = Segment.build(pa.table({"token_ids": pa.array(texts, pa.list_(pa.int32()))}), 1000)
        tokens, found = segment.index.tokens.tolist(), []
        for length in segment.rows["length"].tolist():
            found.append(tokens[1 : 1 + length])
            tokens = tokens[1 + length :]
        ordered.append(found)
    return ordered


def context(output: Text, prompt: Text = (), group: str = "Drama") -> Context:
    tokens = np.array([*prompt, *output, 77, 77], np.int32)  # room for what the engine will append
    return Context(group, tokens, len(prompt), len(prompt) + len(output))


def learn(drafter: PoolDrafter, text: Text, untrusted: Sequence[int] = ()) -> None:
    trusted = np.ones(len(text), np.bool_)
    trusted[list(untrusted)] = False
    drafter.learn(context(text), trusted)


def paths(forest: Forest) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for token, parent in zip(forest.tokens.tolist(), forest.parents.tolist(), strict=True):
        found.append((token,) if parent < 0 else (*found[parent], token))
    return found


def tree_of(drafter: PoolDrafter, output: Text, max_nodes: int = 64, **of: Text) -> set[tuple[int, ...]]:
    return set(paths(drafter.draft([context(output, **of)], max_nodes)))


@settings(deadline=None, max_examples=300)
@given(
    drama=TEXTS,
    other=TEXTS,
    learned=st.lists(st.lists(st.integers(0, 4), max_size=12), max_size=4),
    prompt=TOKENS,
    output=TOKENS,
    max_nodes=st.integers(0, 40),
    own_text=st.booleans(),
)
def test_a_tree_is_the_likeliest_part_of_what_the_sources_know(
    drama: list[list[int]],
    other: list[list[int]],
    learned: list[list[int]],
    prompt: list[int],
    output: list[int],
    max_nodes: int,
    own_text: bool,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        drafter = PoolDrafter(pool(Path(folder), Drama=drama, Other=other), use_own_text=own_text)
        for text in learned:
            learn(drafter, text)
        forest = drafter.draft([context(output, prompt)], max_nodes)
    remembered = [token for text in learned for token in (START, *text)]
    everything = in_order([drama + other])
    trie = grow_trie(prompt, output, own_text, remembered, in_order([drama]), everything)
    drafted = paths(forest)
    probabilities = [trie.probability(path) for path in drafted]
    likeliest = sorted((trie.probability(path) for path in trie.nodes if path), reverse=True)

    assert np.allclose(probabilities, likeliest[:max_nodes], rtol=1e-5, atol=0)
    assert np.allclose(forest.shares, [trie.share(path) for path in drafted], rtol=1e-5)
    assert forest.evidence.tolist() == [trie.nodes[path].evidence for path in drafted]
    assert forest.depths.tolist() == [len(path) for path in drafted]
    assert len(set(drafted)) == len(drafted)


def test_the_trees_of_several_texts_stand_side_by_side(tmp_path: Path) -> None:
    drafter = PoolDrafter(pool(tmp_path, Drama=[[1, 2, 3, 4]], Horror=[[1, 7, 8]]), use_own_text=False)
    contexts = [context([1, 2]), context([9]), context([1], group="Horror")]
    alone = [drafter.draft([one], 3) for one in contexts]
    forest = drafter.draft(contexts, 3)
    assert forest.sizes.tolist() == [2, 0, 3]
    assert forest.tokens.tolist() == [3, 4, *alone[2].tokens.tolist()]
    assert forest.parents[:2].tolist() == [-1, 0]
    assert [parent for parent in forest.parents[2:].tolist() if parent >= 0] == [2]
    assert {array.dtype.name for array in (forest.offsets, forest.tokens, forest.parents, forest.depths)} == {"int32"}
    assert (forest.shares.dtype, forest.evidence.dtype) == (np.float32, np.int16)


def test_what_follows_most_often_comes_first_and_nothing_is_certain(tmp_path: Path) -> None:
    drafter = PoolDrafter(pool(tmp_path, Drama=[[1, 2, 3], [1, 2, 3], [1, 2, 4]]))
    forest = drafter.draft([context([1, 2])], 2)
    assert forest.tokens.tolist() == [3, 4]
    assert forest.parents.tolist() == [-1, -1]
    assert 1 > forest.shares[0] > forest.shares[1] > 0


def test_a_longer_match_outweighs_a_more_frequent_shorter_one(tmp_path: Path) -> None:
    drafter = PoolDrafter(pool(tmp_path, Drama=[[1, 2, 3, 4, 5], *[[9, 4, 6]] * 3] * 8), use_own_text=False)
    assert drafter.draft([context([1, 2, 3, 4])], 1).tokens.tolist() == [5]


def test_a_new_text_is_drafted_as_texts_begin_whatever_its_prompt_ends_with(tmp_path: Path) -> None:
    drafter = PoolDrafter(pool(tmp_path, Drama=[[7, 8, 9], [7, 8, 5], [3]]), use_own_text=False)
    assert drafter.draft([context([], prompt=[8])], 2).tokens.tolist() == [7, 8]


def test_a_group_that_the_pool_lacks_is_drafted_from_all_groups(tmp_path: Path) -> None:
    drafter = PoolDrafter(pool(tmp_path, Drama=[[1, 2]], Horror=[[1, 3]]))
    assert drafter.resolve("Western") == GLOBAL_GROUP
    assert tree_of(drafter, [1], group="Western") == {(2,), (3,)}


def test_the_group_alone_or_all_groups_alone_can_be_searched(tmp_path: Path) -> None:
    both = pool(tmp_path, Drama=[[1, 2]], Horror=[[1, 3]])
    assert tree_of(PoolDrafter(both), [1]) == {(2,), (3,)}
    assert tree_of(PoolDrafter(both, use_global=False), [1]) == {(2,)}
    ungrouped = PoolDrafter(both, grouped=False)
    assert ungrouped.resolve("Drama") == GLOBAL_GROUP
    assert tree_of(ungrouped, [1]) == {(2,), (3,)}
    assert min(ungrouped.draft([context([1])], 8).evidence) >= GLOBAL


def test_without_a_pool_the_text_itself_is_drafted_from_prompt_included() -> None:
    drafter = PoolDrafter(None)
    assert drafter.resolve("Drama") is None
    forest = drafter.draft([context([9, 5, 6], prompt=[5, 6, 7, 8])], 2)
    assert forest.tokens.tolist() == [7, 8]
    assert forest.evidence.tolist() == [OWN + 1, OWN + 1]  # by a match of two tokens
    assert len(PoolDrafter(None, use_own_text=False).draft([context([1, 1, 1])], 8)) == 0


def test_where_nothing_matches_the_latest_tokens_of_the_text_are_drafted_last() -> None:
    forest = PoolDrafter(None).draft([context([3], prompt=[1, 2])], 8)
    assert set(paths(forest)) == {(1,), (1, 2), (1, 2, 3), (2,), (2, 3)}
    assert set(forest.evidence.tolist()) == {RECENT}
    assert RECENT < EVIDENCE_KINDS == PoolDrafter.evidence_kinds
    own = set(np.flatnonzero(PoolDrafter.own_evidence))
    assert own == {*range(OWN, LEARNED), RECENT}, "of pools and learned texts nothing is the text's own"


def test_a_finished_text_is_drafted_from_in_every_group() -> None:
    drafter = PoolDrafter(None, use_own_text=False)
    learn(drafter, [1, 2, 3, 4])
    forest = drafter.draft([context([1, 2], group="Western")], 8)
    assert paths(forest) == [(3,), (3, 4)]
    assert forest.evidence.tolist() == [LEARNED + 2, LEARNED + 2]  # START, 1, 2
    assert tree_of(drafter, []) == {(1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)}


def test_a_text_is_learned_apart_from_the_next() -> None:
    drafter = PoolDrafter(None, use_own_text=False)
    learn(drafter, [1, 2])
    learn(drafter, [3, 4])
    assert tree_of(drafter, [1, 2]) == set()


def test_tokens_that_passed_by_relaxation_are_learned_too() -> None:
    drafter = PoolDrafter(None, use_own_text=False)
    learn(drafter, [1, 2, 3, 9, 9, 4, 5, 6], untrusted=[3, 4])
    assert (3, 9, 9, 4) in tree_of(drafter, [1, 2])


def test_many_occurrences_are_counted_from_some_that_are_evenly_spread(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    texts = random.integers(0, 3, size=(60, 30)).tolist()
    drafter = PoolDrafter(pool(tmp_path, Drama=texts), use_own_text=False)
    for text in random.integers(0, 3, size=(20, 12)).tolist():
        forest = drafter.draft([context(text)], 40)
        trie = grow_trie([], text, False, [], in_order([texts]), in_order([texts]))
        likeliest = sorted((trie.probability(path) for path in trie.nodes if path), reverse=True)
        assert np.allclose([trie.probability(path) for path in paths(forest)], likeliest[:40], rtol=1e-5, atol=0)
