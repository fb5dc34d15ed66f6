"""From occurrences to a draft tree: what followed, weighed by how alike the texts before it are.

What followed the occurrences that :mod:`~dare_core.pools.occurrences` gathers is a trie, whose nodes weigh what the
occurrences that pass through them do; the likeliest nodes are the draft tree. Only nodes that get into the tree are
looked behind, so the rest of the trie costs nothing.
"""

from typing import Any, Final

import numpy as np
from numba import carray, njit  # type: ignore[attr-defined]
from numpy.typing import NDArray

from dare_core.pools.addresses import MAPPED, pointer
from dare_core.pools.index import START
from dare_core.pools.learned import LEARNED_ROW, LearnedTexts
from dare_core.pools.occurrences import MAX_DEPTH, MOST, OCCURRENCE, SOURCE, gather
from dare_core.storage.machine_code import compiled

#: With so many occurrences, half of what follows a node is none of its children. Chosen as the weights of occurrences.
NODE_ESCAPE: Final = 0.3

_MOST_NODES: Final = 1 + MOST * MAX_DEPTH
#: Places of the table that finds a node's child by its token; a power of two above the children a node can have.
_PLACES: Final = 1 << MOST.bit_length()
_NODE_BITS: Final = (1 << 32) - 1
#: A line of the processor's cache, which what follows an occurrence fills.
_LINE: Final = 64

#: A node of the trie. ``first`` and ``last`` are occurrences that pass through it; ``parent`` is the parent's place in
#: the forest, -1 for the root.
_NODE: Final = np.dtype(
    [
        ("token", np.int32),
        ("first", np.int32),
        ("last", np.int32),
        ("count", np.float32),
        ("weight", np.float32),
        ("share", np.float32),
        ("path", np.float32),
        ("parent", np.int32),
        ("depth", np.int16),
        ("evidence", np.int16),
    ],
    align=True,
)


class Workspace:
    """Memory that one thread grows trees in, kept from call to call.

    Compiled code gets it by address, as it gets segments, which spares counting references to it in every loop, and
    finding out what each array is at every call.

    Args:
        segments: how many segments are searched for a text at most.
    """

    def __init__(self, segments: int) -> None:
        self._arrays = [
            _aligned(np.dtype(kind), count)
            for kind, count in (
                (OCCURRENCE, MOST),
                (np.int32, MOST * MAX_DEPTH),
                (SOURCE, 2 + segments),
                (_NODE, _MOST_NODES),
                (np.int32, _PLACES),
            )
        ]
        self.addresses = np.array([array.ctypes.data for array in self._arrays], np.uint64)
        self.segments = segments


def addresses_of(learned: LearnedTexts, segments: NDArray[np.void]) -> NDArray[np.uint64]:
    """What :func:`grow_trees` gets to know by address; who hands it over keeps both alive."""
    return np.array([learned.row.ctypes.data, segments.ctypes.data], np.uint64)


def _aligned(kind: np.dtype[Any], count: int) -> NDArray[np.uint8]:
    """Memory for an array, beginning with a line."""
    memory = np.zeros(kind.itemsize * count + _LINE, np.uint8)
    begin = -memory.ctypes.data % _LINE
    return memory[begin : begin + kind.itemsize * count]


@compiled
def grow_trees(
    texts: NDArray[np.int32],
    jobs: NDArray[np.int64],
    use_own_text: bool,
    known: NDArray[np.uint64],
    work: NDArray[np.uint64],
    nodes: NDArray[np.int32],
    shares: NDArray[np.float32],
    evidence: NDArray[np.int16],
    ends: NDArray[np.int32],
    max_nodes: int,
) -> None:
    """Write the draft trees that continue some texts, one behind the other.

    Args:
        texts: the texts, prompt and output, one behind the other, int32.
        jobs: ``[s, 6]``: of each text, its length, how much of that is the prompt, which only the text itself is
            searched for, and where among the segments those of its group, and those of all groups, begin and end.
        use_own_text: whether a text itself is a source.
        known: addresses of a row of texts finished in this run (:data:`~dare_core.pools.learned.LEARNED_ROW`), and of
            the segments (:data:`~dare_core.pools.addresses.MAPPED`).
        work: addresses of a :class:`Workspace`, made for as many segments as are searched for a text.
        nodes: ``[3, s * max_nodes]`` int32, to be written: tokens, parents and depths of a
            :class:`~dare_core.drafts.Forest`.
        shares: ``[s * max_nodes]`` float32, to be written: the forest's shares.
        evidence: ``[s * max_nodes]`` int16, to be written: the forest's evidence.
        ends: ``[s]`` int32, to be written: where each tree ends.
        max_nodes: nodes of a tree at most.
    """
    occurrences = carray(pointer(work[0]), (MOST,), OCCURRENCE)
    following = carray(pointer(work[1]), (MOST, MAX_DEPTH), np.int32)
    trie = carray(pointer(work[3]), (_MOST_NODES,), _NODE)
    places = carray(pointer(work[4]), (_PLACES,), np.int32)
    learned = carray(pointer(known[0]), (1,), LEARNED_ROW)
    begin, end = 0, 0
    for i in range(len(ends)):
        text = texts[begin : begin + jobs[i, 0]]
        begin += jobs[i, 0]
        if max_nodes:
            area = jobs[i, 2:]
            sources = carray(pointer(work[2]), (2 + area[1] - area[0] + area[3] - area[2],), SOURCE)
            segments = carray(pointer(known[1]), (max(area[1], area[3]),), MAPPED)
            used = gather(text, jobs[i, 1], use_own_text, learned, segments, area, occurrences, following, sources)
            end = _take_likeliest(occurrences[:used], following, trie, places, nodes, shares, evidence, end, max_nodes)
        ends[i] = end


@njit(inline="always")
def _hand_over(trie: NDArray[np.void], child: int, last: int, count: float, weight: float) -> None:
    """Add a row of occurrences, of which the last is ``last``, to a child."""
    trie[child].last = last
    trie[child].count += count
    trie[child].weight += weight


@njit(inline="always")
def _queued(path: float, node: int) -> np.uint64:
    """A node in one number that sorts as its path's probability does; of equal ones, the earlier node comes first."""
    return (np.uint64(np.float32(path).view(np.uint32)) << np.uint64(32)) | np.uint64(_NODE_BITS - node)


@njit(inline="always")
def _node_of(queued: np.uint64) -> int:
    return _NODE_BITS - int(queued & np.uint64(_NODE_BITS))


@compiled
def _take_likeliest(
    occurrences: NDArray[np.void],
    following: NDArray[np.int32],
    trie: NDArray[np.void],
    places: NDArray[np.int32],
    nodes: NDArray[np.int32],
    shares: NDArray[np.float32],
    evidence: NDArray[np.int16],
    begin: int,
    max_nodes: int,
) -> int:
    """Write the ``max_nodes`` nodes of the likeliest paths, the likeliest first; the end of the tree."""
    if not len(occurrences):
        return begin
    places[:] = 0
    total = 0.0
    for i in range(len(occurrences)):
        total += occurrences[i].count
        occurrences[i].next = i + 1
    occurrences[len(occurrences) - 1].next = -1
    root = trie[0]
    root.depth, root.count, root.weight, root.path, root.first = 0, total, 1, 1, 0
    # The queue keeps its order and no more than what can still be taken. No node is likelier than its parent, so what
    # is taken stays in front, and the queue ends as the tree.
    queue = np.empty(max_nodes, np.uint64)
    queued, taken, node, used = 0, 0, 0, 1
    while True:
        # Hand the occurrences that pass through the node on to its children. Many in a row go to the same one.
        children, depth, i = used, trie[node].depth, trie[node].first
        if depth == MAX_DEPTH:
            i = -1
        place_of_node = begin + taken - 1 if taken else -1
        child, token, last, count, weight = 0, START, -1, 0.0, 0.0
        while i >= 0:
            here, here_token, here_next = occurrences[i], following[i, depth], occurrences[i].next
            if here_token >= 0:
                if here_token != token:
                    if child:
                        _hand_over(trie, child, last, count, weight)
                    token, count, weight = here_token, 0.0, 0.0
                    place = (token * 40503) & (_PLACES - 1)
                    child = places[place]
                    # The entries of other nodes' children count as none.
                    while child >= children and trie[child].token != token:
                        place = (place + 1) & (_PLACES - 1)
                        child = places[place]
                    if child < children:
                        child, used = used, used + 1
                        places[place] = child
                        new = trie[child]
                        new.token, new.parent = token, place_of_node
                        new.depth, new.evidence = depth + 1, here.evidence
                        new.first, new.last, new.count, new.weight = i, -1, 0, 0
                    last = trie[child].last
                if last >= 0:
                    occurrences[last].next = i
                last = i
                count += here.count
                weight += here.weight
                here.next = -1
            i = here_next
        if child:
            _hand_over(trie, child, last, count, weight)
        parent = trie[node]
        known = parent.count / (parent.count + NODE_ESCAPE) / parent.weight
        path = parent.path
        for child in range(children, used):
            new = trie[child]
            new.share = new.weight * known
            new.path = path * new.share
            mine = _queued(new.path, child)
            if queued == max_nodes:
                if queue[queued - 1] >= mine:
                    continue
                queued -= 1
            place = queued
            while place > taken and queue[place - 1] < mine:
                queue[place] = queue[place - 1]
                place -= 1
            queue[place] = mine
            queued += 1
        if taken == queued:
            return begin + taken
        node = _node_of(queue[taken])
        likeliest, k = trie[node], begin + taken
        nodes[0, k], nodes[1, k], nodes[2, k] = likeliest.token, likeliest.parent, likeliest.depth
        shares[k], evidence[k] = likeliest.share, likeliest.evidence
        taken += 1
        if taken == max_nodes:
            return begin + taken
