"""From occurrences to a draft tree: what followed, weighed by how alike the texts before it are.

The end of a text is looked up at falling match lengths in every source: the text itself, texts learned in this run,
the group's segments, those of all groups. Each occurrence gets a weight. Each match length leaves part of the weight to
the shorter ones, the more the fewer occurrences there are, so that the occurrences together are a blend of models of
different orders. What followed them is a trie, whose nodes weigh what the occurrences that pass through them do; the
likeliest nodes are the draft tree. Only nodes that get into the tree are looked behind, so the rest of the trie costs
nothing.
"""

from typing import Final

import numpy as np
from numba import carray, njit  # type: ignore[attr-defined]
from numpy.typing import NDArray

from dare_core.pools.index import MAX_MATCH, START, compiled, locate, matching
from dare_core.pools.learned import LinkedTexts, find_linked
from dare_core.pools.mapping import mapped, pointer

#: The longest branch of a draft tree.
MAX_DEPTH: Final = 16
#: Occurrences that a match is counted from, for each source: evenly spread over its segments, the latest elsewhere.
MAX_OCCURRENCES: Final = 64
#: Occurrences in a pool that one in the text itself is worth, and one in a text learned in this run. These two and
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

#: Occurrences that a draft can need: two pools at each match length, the text itself, learned texts, recent tokens.
_MOST: Final = MAX_OCCURRENCES * (2 * MATCH_KINDS + 2) + RECENT_TOKENS
_MOST_NODES: Final = 1 + _MOST * MAX_DEPTH
#: Places of the table that finds a node's child by its token; a power of two above the children a node can have.
_PLACES: Final = 1 << _MOST.bit_length()

#: Where the end of the text occurs: what an occurrence weighs, how many of its kind it stands for, and the next
#: one that passes through the same node, -1 for none.
_OCCURRENCE: Final = np.dtype(
    [("weight", np.float64), ("count", np.float64), ("evidence", np.int32), ("next", np.int32)],
    align=True,
)
#: A node of the trie. ``first`` and ``last`` are occurrences that pass through it; ``place`` is the node's in its tree,
#: -1 for the root.
_NODE: Final = np.dtype(
    [
        ("token", np.int32),
        ("parent", np.int32),
        ("depth", np.int32),
        ("evidence", np.int32),
        ("place", np.int32),
        ("first", np.int32),
        ("last", np.int32),
        ("count", np.float64),
        ("weight", np.float64),
        ("share", np.float64),
        ("path", np.float64),
    ],
    align=True,
)
#: What is found of a context in a segment: the ranks of the match length looked at, and the longest match.
_FOUND: Final = np.dtype([("low", np.int64), ("high", np.int64), ("match", np.int64)], align=True)
#: A node of a forest; the fields of :class:`dare_core.drafts.Forest`.
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


class Workspace:
    """Memory that one thread grows trees in, kept from call to call.

    Compiled code gets it by address, as it gets segments, which spares counting references to it in every loop.

    Args:
        segments: how many segments are searched for a text at most.
    """

    def __init__(self, segments: int) -> None:
        self._arrays = (
            np.empty(_MOST, _OCCURRENCE),
            np.empty((_MOST, MAX_DEPTH), np.int32),
            np.empty(_MOST_NODES, _NODE),
            np.empty(_PLACES, np.int32),
            np.empty(segments, _FOUND),
        )
        self.addresses = np.array([array.ctypes.data for array in self._arrays], np.uint64)
        self.segments = segments


# The functions below loop over arrays that they get one by one, and call others only for many occurrences at once:
# handing arrays to a function costs as much as handling several occurrences.


@compiled
def grow_trees(
    texts: NDArray[np.int32],
    jobs: NDArray[np.int64],
    use_own_text: bool,
    learned: LinkedTexts,
    learned_end: int,
    segments: NDArray[np.void],
    work: NDArray[np.uint64],
    forest: NDArray[np.void],
    ends: NDArray[np.int32],
    max_nodes: int,
) -> None:
    """Write the draft trees that continue some texts into a forest, one behind the other.

    Args:
        texts: the texts, prompt and output, one behind the other, int32.
        jobs: ``[s, 6]``: of each text, its length, how much of that is the prompt, which only the text itself is
            searched for, and where in ``segments`` those of its group, and those of all groups, begin and end.
        use_own_text: whether a text itself is a source.
        learned: texts finished in this run, valid up to ``learned_end``.
        segments: rows of :data:`~dare_core.pools.mapping.MAPPED`.
        work: addresses of a :class:`Workspace`, made for as many segments as are searched for a text.
        forest: ``[s * max_nodes]`` :data:`FOREST_NODE`, to be written.
        ends: ``[s]`` int32, to be written: where each tree ends.
        max_nodes: nodes of a tree at most.
    """
    occurrences = carray(pointer(work[0]), (_MOST,), _OCCURRENCE)
    following = carray(pointer(work[1]), (_MOST, MAX_DEPTH), np.int32)
    nodes = carray(pointer(work[2]), (_MOST_NODES,), _NODE)
    places = carray(pointer(work[3]), (_PLACES,), np.int32)
    begin, end = 0, 0
    for i in range(len(ends)):
        text = texts[begin : begin + jobs[i, 0]]
        begin += jobs[i, 0]
        if max_nodes:
            area = jobs[i, 2:]
            found = carray(pointer(work[4]), (area[1] - area[0] + area[3] - area[2],), _FOUND)
            used = _gather(
                text, jobs[i, 1], use_own_text, learned, learned_end, segments, area, occurrences, following, found
            )
            end = _take_likeliest(occurrences[:used], following, nodes, places, forest, end, max_nodes)
        ends[i] = end


@compiled
def _gather(
    text: NDArray[np.int32],
    prompt_length: int,
    use_own_text: bool,
    learned: LinkedTexts,
    learned_end: int,
    segments: NDArray[np.void],
    area: NDArray[np.int64],
    occurrences: NDArray[np.void],
    following: NDArray[np.int32],
    found: NDArray[np.void],
) -> int:
    """Collect the occurrences of the text's end, each with its weight and what followed; how many there are."""
    context = _context(text, prompt_length)
    own = _find_in_text(text, MAX_OCCURRENCES if use_own_text else 0)
    recalled = find_linked(learned, learned_end, context, MAX_OCCURRENCES)
    in_group = area[1] - area[0]
    in_all = in_group + area[3] - area[2]
    match = max(_longest(own), _longest(recalled))
    for k in range(in_all):
        rank, longest = locate(mapped(segments, _row(area, k)), context)
        found[k].low, found[k].high, found[k].match = rank, rank, longest
        match = max(match, longest)

    used = 0
    rest, searched = 1.0, MAX_MATCH + 1
    while match and rest > NEGLIGIBLE:
        of_group, of_all = 0, 0
        for k in range(in_all):
            if found[k].match >= match:
                inside = (found[k].low, found[k].high)
                low, high = matching(mapped(segments, _row(area, k)), context, match, inside)
                found[k].low, found[k].high = low, high
                if k < in_group:
                    of_group += high - low
                else:
                    of_all += high - low
        total = OWN_WEIGHT * _count(own, match, searched) + LEARNED_WEIGHT * _count(recalled, match, searched)
        total += of_group + of_all
        if total:
            each = rest / (total + LEVEL_ESCAPE)
            rest -= total * each
            kind, begin = _evidence(match), used
            used = _copy_found(following, occurrences, used, text, len(text), own, match, searched)
            begin = _weigh(occurrences, begin, used, OWN_WEIGHT * each, 1, OWN + kind)
            used = _copy_found(following, occurrences, used, learned.tokens, learned_end, recalled, match, searched)
            begin = _weigh(occurrences, begin, used, LEARNED_WEIGHT * each, 1, LEARNED + kind)
            for first, end, of_pool, source in ((0, in_group, of_group, GROUP), (in_group, in_all, of_all, GLOBAL)):
                if of_pool:
                    stands_for = max(1.0, of_pool / MAX_OCCURRENCES)
                    before = 0
                    for k in range(first, end):
                        if found[k].high > found[k].low:
                            index = mapped(segments, _row(area, k))
                            low, high = found[k].low, found[k].high
                            used = _copy_spread(
                                following, occurrences, used, index.tokens, index.order, low, high, stands_for, before
                            )
                            before += high - low
                    begin = _weigh(occurrences, begin, used, each * stands_for, stands_for, source + kind)
        searched, match = match, match // 2
    if use_own_text:
        begin = used
        for i in range(max(0, len(text) - 1 - RECENT_TOKENS), len(text) - 1):
            _copy(following, used, text, i, len(text))
            used += 1
        _weigh(occurrences, begin, used, rest / RECENT_TOKENS, 1, RECENT)
    return used


@compiled
def _row(area: NDArray[np.int64], k: int) -> int:
    """The segment that is the ``k``-th of the group's and then of all groups'."""
    in_group = area[1] - area[0]
    return int(area[0] + k if k < in_group else area[2] + k - in_group)


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


@njit(inline="always")
def _copy(following: NDArray[np.int32], used: int, tokens: NDArray[np.int32], position: int, end: int) -> None:
    """Copy the tokens from ``position`` on; the mark of a text's start ends them."""
    if position + MAX_DEPTH <= end:
        for d in range(MAX_DEPTH):  # of a fixed length, so a few wide moves
            following[used, d] = tokens[position + d]
    else:
        for d in range(end - position):
            following[used, d] = tokens[position + d]
        following[used, end - position] = START


@compiled
def _copy_found(
    following: NDArray[np.int32],
    occurrences: NDArray[np.void],
    used: int,
    tokens: NDArray[np.int32],
    end: int,
    found: NDArray[np.int32],
    match: int,
    below: int,
) -> int:
    """Copy what follows where a text or learned texts match by so many tokens; the occurrences there are then."""
    for i in range(len(found)):
        if match <= found[i, 1] < below:
            _copy(following, used, tokens, found[i, 0], end)
            used += 1
    return used


@compiled
def _copy_spread(
    following: NDArray[np.int32],
    occurrences: NDArray[np.void],
    used: int,
    tokens: NDArray[np.int32],
    order: NDArray[np.int32],
    low: int,
    high: int,
    step: float,
    before: int,
) -> int:
    """Copy what follows at every ``step``-th of a segment's ranks; the occurrences there are then.

    The steps go on from segment to segment: ``before`` ranks were passed in those before this one.
    """
    begin = used
    # In three rounds, so that the reads of a round, each of them a wait for memory, go on side by side.
    taken = int(np.ceil(before / step - 0.5))
    rank = low - before + int((taken + 0.5) * step)
    while rank < high:
        if rank >= low:
            occurrences[used].next = order[rank]
            used += 1
        taken += 1
        rank = low - before + int((taken + 0.5) * step)
    for i in range(begin, used):
        following[i, 0] = tokens[occurrences[i].next]
    for i in range(begin, used):
        _copy(following, i, tokens, occurrences[i].next + 1, len(tokens))
    return used


@compiled
def _weigh(occurrences: NDArray[np.void], begin: int, end: int, weight: float, count: float, evidence: int) -> int:
    """Say what the occurrences from ``begin`` to ``end`` weigh and stand for; ``end``."""
    for i in range(begin, end):
        new = occurrences[i]
        new.weight, new.count, new.evidence = weight, count, evidence
    return end


@njit(inline="always")
def _hand_over(nodes: NDArray[np.void], child: int, last: int, count: float, weight: float) -> None:
    """Add a row of occurrences, of which the last is ``last``, to a child."""
    nodes[child].last = last
    nodes[child].count += count
    nodes[child].weight += weight


@compiled
def _take_likeliest(
    occurrences: NDArray[np.void],
    following: NDArray[np.int32],
    nodes: NDArray[np.void],
    places: NDArray[np.int32],
    forest: NDArray[np.void],
    begin: int,
    max_nodes: int,
) -> int:
    """Write the ``max_nodes`` nodes of the likeliest paths, the likeliest first; the end of the tree."""
    if not len(occurrences):
        return begin
    places[:] = 0
    count = 0.0
    for i in range(len(occurrences)):
        count += occurrences[i].count
        occurrences[i].next = i + 1
    occurrences[len(occurrences) - 1].next = -1
    root = nodes[0]
    root.depth, root.place, root.count, root.weight, root.path, root.first = 0, -1, count, 1, 1, 0
    # The queue keeps its order and no more than what can still be taken. No node is likelier than its parent, so what
    # is taken stays in front, and the queue ends as the tree.
    queue = np.empty(max_nodes, np.int32)
    queued, taken, node, used = 0, 0, 0, 1
    while True:
        # Hand the occurrences that pass through the node on to its children. Many in a row go to the same one.
        children, depth, i = used, nodes[node].depth, nodes[node].first
        child, token, last, count, weight = 0, START, -1, 0.0, 0.0
        while i >= 0 and depth < MAX_DEPTH:
            occurrence, following_one = occurrences[i], occurrences[i].next
            if following[i, depth] >= 0:
                if following[i, depth] != token:
                    if child:
                        _hand_over(nodes, child, last, count, weight)
                    token, count, weight = following[i, depth], 0.0, 0.0
                    place = (token * 40503) & (_PLACES - 1)
                    child = places[place]
                    # The entries of other nodes' children count as none.
                    while child >= children and nodes[child].token != token:
                        place = (place + 1) & (_PLACES - 1)
                        child = places[place]
                    if child < children:
                        child, used = used, used + 1
                        places[place] = child
                        new = nodes[child]
                        new.token, new.parent, new.depth, new.evidence = token, node, depth + 1, occurrence.evidence
                        new.first, new.last, new.count, new.weight = i, -1, 0, 0
                    last = nodes[child].last
                if last >= 0:
                    occurrences[last].next = i
                last = i
                count += occurrence.count
                weight += occurrence.weight
                occurrence.next = -1
            i = following_one
        if child:
            _hand_over(nodes, child, last, count, weight)
        known = nodes[node].count / (nodes[node].count + NODE_ESCAPE)
        for child in range(children, used):
            here = nodes[child]
            here.share = here.weight / nodes[node].weight * known
            here.path = nodes[node].path * here.share
            if queued == max_nodes:
                if nodes[queue[queued - 1]].path >= here.path:
                    continue
                queued -= 1
            place = queued
            while place > taken and nodes[queue[place - 1]].path < here.path:
                queue[place] = queue[place - 1]
                place -= 1
            queue[place] = child
            queued += 1
        if taken == queued:
            return begin + taken
        node = queue[taken]
        here, branch = nodes[node], forest[begin + taken]
        here.place = begin + taken
        branch.token, branch.parent, branch.depth = here.token, nodes[here.parent].place, here.depth
        branch.evidence, branch.share = here.evidence, here.share
        taken += 1
        if taken == max_nodes:
            return begin + taken
