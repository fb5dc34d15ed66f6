"""From occurrences to a draft tree: what followed, weighed by how alike the texts before it are.

The end of a text is looked up at falling match lengths in every source: the text itself, texts learned in this run,
the group's index, the index of all groups. What followed each occurrence goes into one trie, whose nodes hold weights.
Each match length leaves part of the weight to the shorter ones, the more the fewer occurrences there are, so that the
trie is a blend of models of different orders. The likeliest nodes of the trie are the draft tree.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from dare_core.pools.index import MAX_MATCH, START, SuffixIndex, compiled, find, longest_match
from dare_core.pools.learned import LinkedTexts, find_linked

#: The longest branch of a draft tree.
MAX_DEPTH: Final = 16
#: Occurrences that a match is counted from, for each source: evenly spread over an index, the latest elsewhere.
MAX_OCCURRENCES: Final = 64
#: Occurrences in an index that one in the text itself is worth, and one in a text learned in this run. These two and
#: the next three were chosen by tokens per step on recorded texts, where the shares also come out calibrated.
OWN_WEIGHT: Final = 128.0
LEARNED_WEIGHT: Final = 3.0
#: With so many occurrences, a match length leaves half of the weight to the shorter ones.
LEVEL_ESCAPE: Final = 16.0
#: With so many occurrences, half of what follows a node is none of its children.
NODE_ESCAPE: Final = 0.3
#: The last tokens of the text itself, which get the weight that no match claims: names come again.
RECENT_TOKENS: Final = 64
#: Too little weight to look for shorter matches.
NEGLIGIBLE: Final = 0.02

#: Kinds of matches: of 1, 2, 3-4, 5-8, 9-16 tokens.
MATCH_KINDS: Final = MAX_MATCH.bit_length()
#: The kinds of evidence from each source, the best source first, begin here.
OWN, LEARNED, GROUP, GLOBAL, RECENT = range(0, 4 * MATCH_KINDS + 1, MATCH_KINDS)
EVIDENCE_KINDS: Final = RECENT + 1

#: A node of the trie. ``child`` and ``sibling`` are 0 for none; ``place`` is the node's in the forest, -1 for the root.
TRIE_NODE: Final = np.dtype(
    [
        ("token", np.int32),
        ("parent", np.int32),
        ("child", np.int32),
        ("sibling", np.int32),
        ("depth", np.int32),
        ("evidence", np.int32),
        ("place", np.int32),
        ("count", np.float64),
        ("weight", np.float64),
        ("share", np.float64),
        ("path", np.float64),
    ],
    align=True,
)
#: A node of the forest; the fields of :class:`dare_core.drafts.Forest`.
FOREST_NODE: Final = np.dtype(
    [
        ("token", np.int32),
        ("parent", np.int32),
        ("depth", np.int32),
        ("evidence", np.int16),
        ("share", np.float32),
    ],
    align=True,
)
#: Nodes that a trie can need: two indexes at each match length, the text itself, learned texts, recent tokens.
TRIE_NODES: Final = 1 + MAX_DEPTH * (MAX_OCCURRENCES * (2 * MATCH_KINDS + 2) + RECENT_TOKENS)


@compiled
def grow_tree(
    text: NDArray[np.int32],
    prompt_length: int,
    use_own_text: bool,
    learned: LinkedTexts,
    learned_end: int,
    group: SuffixIndex,
    everything: SuffixIndex,
    trie: NDArray[np.void],
    forest: NDArray[np.void],
    begin: int,
    max_nodes: int,
) -> int:
    """Write the draft tree that continues a text into a forest.

    Args:
        text: ``[t]`` int32, prompt and output.
        prompt_length: tokens of the prompt, which only the text itself is searched for.
        use_own_text: whether the text itself is a source.
        learned: texts finished in this run, valid up to ``learned_end``.
        group: the first index to search; may be empty, as the others may.
        everything: the second.
        trie: ``[TRIE_NODES]`` :data:`TRIE_NODE`, to work in.
        forest: ``[f]`` :data:`FOREST_NODE`, free from ``begin`` on.
        max_nodes: nodes of the tree at most.

    Returns:
        The end of the tree in the forest.
    """
    context = _context(text, prompt_length)
    own = _find_in_text(text, MAX_OCCURRENCES if use_own_text else 0)
    recalled = find_linked(learned, learned_end, context, MAX_OCCURRENCES)
    group_match, global_match = longest_match(group, context), longest_match(everything, context)
    match = max(group_match, global_match, _longest(own), _longest(recalled))

    trie[0].child, trie[0].depth, trie[0].place, trie[0].count, trie[0].weight, trie[0].path = 0, 0, -1, 0, 1, 1
    used = 1
    rest, searched = 1.0, MAX_MATCH + 1
    while match and rest > NEGLIGIBLE:
        pattern = context[max(0, len(context) - match) :]
        in_group = find(group, pattern) if match <= group_match else (0, 0)
        in_all = find(everything, pattern) if match <= global_match else (0, 0)
        occurrences = OWN_WEIGHT * _count(own, match, searched) + LEARNED_WEIGHT * _count(recalled, match, searched)
        occurrences += in_group[1] - in_group[0] + in_all[1] - in_all[0]
        if occurrences:
            each = rest / (occurrences + LEVEL_ESCAPE)
            rest -= occurrences * each
            kind, weight = _evidence(match), OWN_WEIGHT * each
            used = _insert_found(trie, used, text, len(text), own, match, searched, weight, OWN + kind)
            end, weight = learned_end, LEARNED_WEIGHT * each
            used = _insert_found(trie, used, learned.tokens, end, recalled, match, searched, weight, LEARNED + kind)
            used = _insert_range(trie, used, group, in_group, match, each, GROUP + kind)
            used = _insert_range(trie, used, everything, in_all, match, each, GLOBAL + kind)
        searched, match = match, match // 2
    if use_own_text:
        for i in range(max(0, len(text) - 1 - RECENT_TOKENS), len(text) - 1):
            used = _insert(trie, used, text, i, len(text), rest / RECENT_TOKENS, 1, RECENT)
    return _take_likeliest(trie, forest, begin, max_nodes)


@compiled
def _context(text: NDArray[np.int32], prompt_length: int) -> NDArray[np.int32]:
    """The last :data:`MAX_MATCH` tokens of START and the output."""
    if len(text) - prompt_length >= MAX_MATCH:
        return text[len(text) - MAX_MATCH :]
    context = np.empty(len(text) - prompt_length + 1, np.int32)
    context[0] = START
    context[1:] = text[prompt_length:]
    return context


@compiled
def _find_in_text(text: NDArray[np.int32], most: int) -> NDArray[np.int32]:
    """Where the text's end occurs earlier in it, the latest first: ``[n, 2]``, what follows where, and match length."""
    found = np.empty((most, 2), np.int32)
    n, last = 0, len(text) - 1
    for i in range(last - 1, -1, -1):
        if n == most:
            break
        if text[i] == text[last]:
            match = 1
            while match < MAX_MATCH and match <= i and text[i - match] == text[last - match]:
                match += 1
            found[n, 0], found[n, 1] = i + 1, match
            n += 1
    return found[:n]


@compiled
def _longest(found: NDArray[np.int32]) -> int:
    longest = 0
    for i in range(len(found)):
        longest = max(longest, found[i, 1])
    return longest


@compiled
def _count(found: NDArray[np.int32], match: int, below: int) -> int:
    n = 0
    for i in range(len(found)):
        n += match <= found[i, 1] < below
    return n


@compiled
def _evidence(match: int) -> int:
    kind = 0
    while 1 << kind < match:
        kind += 1
    return kind


@compiled
def _insert_found(
    trie: NDArray[np.void],
    used: int,
    tokens: NDArray[np.int32],
    end: int,
    found: NDArray[np.int32],
    match: int,
    below: int,
    each: float,
    evidence: int,
) -> int:
    for i in range(len(found)):
        if match <= found[i, 1] < below:
            used = _insert(trie, used, tokens, found[i, 0], end, each, 1, evidence)
    return used


@compiled
def _insert_range(
    trie: NDArray[np.void],
    used: int,
    index: SuffixIndex,
    found: tuple[int, int],
    match: int,
    each: float,
    evidence: int,
) -> int:
    n = found[1] - found[0]
    sample = min(n, MAX_OCCURRENCES)
    for i in range(sample):
        position = index.suffixes[found[0] + (2 * i + 1) * n // (2 * sample)] + match
        used = _insert(trie, used, index.tokens, position, len(index.tokens), each * n / sample, n / sample, evidence)
    return used


@compiled
def _insert(
    trie: NDArray[np.void],
    used: int,
    tokens: NDArray[np.int32],
    position: int,
    end: int,
    weight: float,
    count: float,
    evidence: int,
) -> int:
    """Add what follows at ``position``, up to the end of its text; the nodes of the trie that are then in use."""
    node = 0
    trie[0].count += count
    for i in range(position, min(position + MAX_DEPTH, end)):
        token = tokens[i]
        if token < 0:
            break
        child = trie[node].child
        while child and trie[child].token != token:
            child = trie[child].sibling
        if not child:
            child, used = used, used + 1
            new = trie[child]
            new.token, new.parent, new.depth, new.evidence = token, node, trie[node].depth + 1, evidence
            new.child, new.sibling, new.count, new.weight = 0, trie[node].child, 0, 0
            trie[node].child = child
        trie[child].count += count
        trie[child].weight += weight
        node = child
    return used


@compiled
def _take_likeliest(trie: NDArray[np.void], forest: NDArray[np.void], begin: int, max_nodes: int) -> int:
    """Write the ``max_nodes`` nodes of the likeliest paths, the likeliest first; the end of the tree."""
    # The queue keeps its order and no more than what can still be taken. No node is likelier than its parent, so what
    # is taken stays in front, and the queue ends as the tree.
    queue = np.empty(max_nodes, np.int32)
    queued, taken, node = 0, 0, 0
    while True:
        parent = trie[node]
        known = parent.count / (parent.count + NODE_ESCAPE)
        child = parent.child
        while child:
            trie[child].share = trie[child].weight / parent.weight * known
            trie[child].path = parent.path * trie[child].share
            queued = _enqueue(trie, queue, queued, taken, child)
            child = trie[child].sibling
        if taken == queued:
            return begin + taken
        node = queue[taken]
        trie[node].place = begin + taken
        branch = forest[begin + taken]
        branch.token, branch.parent, branch.depth = trie[node].token, trie[trie[node].parent].place, trie[node].depth
        branch.evidence, branch.share = trie[node].evidence, trie[node].share
        taken += 1


@compiled
def _enqueue(trie: NDArray[np.void], queue: NDArray[np.int32], queued: int, taken: int, node: int) -> int:
    """Put a node behind the likelier ones, where there is room; the length of the queue then."""
    place = queued
    while place > taken and trie[queue[place - 1]].path < trie[node].path:
        place -= 1
    if place == len(queue):
        return queued
    queued = min(queued + 1, len(queue))
    for i in range(queued - 1, place, -1):
        queue[i] = queue[i - 1]
    queue[place] = node
    return queued
