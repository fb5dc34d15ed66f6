"""Where the end of a text occurs in every source, what followed there, and what each occurrence weighs.

The end of a text is looked up at falling match lengths in every source: the text itself, texts learned in this run,
the group's segments, those of all groups. Each match length leaves part of the weight to the shorter ones, the more the
fewer occurrences there are, so that the occurrences together are a blend of models of different orders.

Nearly all of the time is waiting for memory. So a line is asked for as soon as it is known that it will be read, and
read after the next lines have been asked for: first the ranks of all occurrences, then the tokens there.
"""

from typing import Final

import numpy as np
from numba import carray, njit  # type: ignore[attr-defined]
from numpy.typing import NDArray

from dare_core.pools.addresses import MAPPED, mapped, pointer, prefetch
from dare_core.pools.index import MAX_MATCH, START, locate, matching
from dare_core.pools.learned import find_linked, linked_texts
from dare_core.storage.machine_code import compiled

#: The longest branch of a draft tree.
MAX_DEPTH: Final = 16
#: Occurrences that a match is counted from, for each source: evenly spread over its segments, the latest elsewhere.
MAX_OCCURRENCES: Final = 96
#: In pools, shorter matches are counted from a share of that, which is the share of the weight that longer ones left
#: them, but from so many at least: each occurrence is a wait for memory.
LEAST_OCCURRENCES: Final = 8
#: Occurrences in a pool that one in the text itself is worth, and one in a text learned in this run. These two and
#: the next two were chosen by tokens per step on recorded texts, where the shares also come out calibrated.
OWN_WEIGHT: Final = 128.0
LEARNED_WEIGHT: Final = 3.0
#: With so many occurrences, a match length leaves half of the weight to the shorter ones.
LEVEL_ESCAPE: Final = 16.0
#: The last tokens of the text itself, which get the weight that no match claims: names come again.
RECENT_TOKENS: Final = 64
#: Too little weight to look for shorter matches.
NEGLIGIBLE: Final = 0.02

#: Kinds of matches: of 1, 2, 3-4, 5-8, 9-16 tokens.
MATCH_KINDS: Final = MAX_MATCH.bit_length()
#: The kinds of evidence from each source, the best source first, begin here.
OWN, LEARNED, GROUP, GLOBAL, RECENT = range(0, 4 * MATCH_KINDS + 1, MATCH_KINDS)
EVIDENCE_KINDS: Final = RECENT + 1
#: ``[EVIDENCE_KINDS]`` bool: which kinds rest on the text itself.
OWN_EVIDENCE: Final = np.isin(np.arange(EVIDENCE_KINDS), [*range(OWN, LEARNED), RECENT])

#: Occurrences that a draft can need: two pools at each match length, the text itself, learned texts, recent tokens.
MOST: Final = MAX_OCCURRENCES * (2 * MATCH_KINDS + 2) + RECENT_TOKENS

#: Where the end of the text occurs: in which source, and ``at`` which rank there, later where what follows begins; what
#: it weighs, how many of its kind it stands for, and the next one that passes through the same node, -1 for none.
OCCURRENCE: Final = np.dtype(
    [
        ("weight", np.float32),
        ("count", np.float32),
        ("next", np.int32),
        ("at", np.int32),
        ("source", np.int16),
        ("evidence", np.int16),
    ],
    align=True,
)
#: A source: its tokens, and of a segment also its order, the ranks of the match length looked at and the longest match.
SOURCE: Final = np.dtype(
    [
        *MAPPED.descr,
        ("low", np.int64),
        ("high", np.int64),
        ("match", np.int64),
    ],
    align=True,
)
#: The first two sources; a group's segments and then those of all groups follow.
_TEXT, _LEARNED, _SEGMENTS = range(3)


# The functions below loop over arrays that they get one by one, and call others only for many occurrences at once:
# handing arrays to a function costs as much as handling several occurrences.


@compiled
def gather(
    text: NDArray[np.int32],
    prompt_length: int,
    use_own_text: bool,
    learned: NDArray[np.void],
    segments: NDArray[np.void],
    area: NDArray[np.int64],
    occurrences: NDArray[np.void],
    following: NDArray[np.int32],
    sources: NDArray[np.void],
) -> int:
    """Collect the occurrences of the text's end, each with its weight and what followed.

    Args:
        text: prompt and output.
        prompt_length: how much of it is the prompt, which only the text itself is searched for.
        use_own_text: whether the text itself is a source.
        learned: one row of :data:`~dare_core.pools.learned.LEARNED_ROW`.
        segments: rows of :data:`~dare_core.pools.addresses.MAPPED`.
        area: where the segments of the text's group, and those of all groups, begin and end.
        occurrences: ``[MOST]`` :data:`OCCURRENCE`, to be written, as are the next two.
        following: ``[MOST, MAX_DEPTH]``: the tokens behind each; the first that is negative ends them.
        sources: ``[2 + segments searched]`` :data:`SOURCE`.

    Returns:
        How many there are.
    """
    context = _context(text, prompt_length)
    own = _find_in_text(text, MAX_OCCURRENCES if use_own_text else 0)
    sources[_TEXT].tokens, sources[_TEXT].length = text.ctypes.data, len(text)
    linked, learned_end = linked_texts(learned)
    recalled = find_linked(linked, learned_end, context, MAX_OCCURRENCES)
    sources[_LEARNED].tokens, sources[_LEARNED].length = learned[0].tokens, learned_end
    match = max(_longest(own), _longest(recalled))
    end_of_group = _SEGMENTS + area[1] - area[0]
    end_of_all = end_of_group + area[3] - area[2]
    for k in range(_SEGMENTS, end_of_all):
        source = sources[k]
        row = segments[area[0] + k - _SEGMENTS if k < end_of_group else area[2] + k - end_of_group]
        source.tokens, source.order, source.keys = row.tokens, row.order, row.keys
        source.length, source.key_tokens = row.length, row.key_tokens
        rank, longest = locate(mapped(sources, k), context)
        source.low, source.high, source.match = rank, rank, longest
        match = max(match, longest)

    used = 0
    rest, searched = 1.0, MAX_MATCH + 1
    while match and rest > NEGLIGIBLE:
        of_group, of_all = 0, 0
        for k in range(_SEGMENTS, end_of_all):
            source = sources[k]
            if source.match >= match:
                source.low, source.high = matching(mapped(sources, k), context, match, (source.low, source.high))
                if k < end_of_group:
                    of_group += source.high - source.low
                else:
                    of_all += source.high - source.low
        total = OWN_WEIGHT * _count(own, match, searched) + LEARNED_WEIGHT * _count(recalled, match, searched)
        total += of_group + of_all
        if total:
            each = rest / (total + LEVEL_ESCAPE)
            kind = _evidence(match)
            used = _add_found(occurrences, used, _TEXT, own, match, searched, OWN_WEIGHT * each, OWN + kind)
            used = _add_found(
                occurrences, used, _LEARNED, recalled, match, searched, LEARNED_WEIGHT * each, LEARNED + kind
            )
            most = max(LEAST_OCCURRENCES, int(MAX_OCCURRENCES * rest))
            used = _add_spread(occurrences, used, sources, _SEGMENTS, end_of_group, of_group, most, each, GROUP + kind)
            used = _add_spread(occurrences, used, sources, end_of_group, end_of_all, of_all, most, each, GLOBAL + kind)
            rest -= total * each
        searched, match = match, match // 2
    _look_up(occurrences, used, sources)
    if use_own_text:
        for i in range(max(0, len(text) - 1 - RECENT_TOKENS), len(text) - 1):
            used = _add(occurrences, used, _TEXT, i, rest / RECENT_TOKENS, 1, RECENT)
    _copy_following(following, occurrences, used, sources)
    return used


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
def _add(
    occurrences: NDArray[np.void], used: int, source: int, at: int, weight: float, count: float, evidence: int
) -> int:
    """Add an occurrence; how many there are then."""
    new = occurrences[used]
    new.source, new.at, new.weight, new.count, new.evidence = source, at, weight, count, evidence
    return used + 1


@compiled
def _add_found(
    occurrences: NDArray[np.void],
    used: int,
    source: int,
    found: NDArray[np.int32],
    match: int,
    below: int,
    weight: float,
    evidence: int,
) -> int:
    """Add where a text or learned texts match by so many tokens; how many occurrences there are then."""
    for i in range(len(found)):
        if match <= found[i, 1] < below:
            used = _add(occurrences, used, source, found[i, 0], weight, 1, evidence)
    return used


@compiled
def _add_spread(
    occurrences: NDArray[np.void],
    used: int,
    sources: NDArray[np.void],
    first: int,
    end: int,
    total: int,
    most: int,
    weight: float,
    evidence: int,
) -> int:
    """Add ``most`` of the ``total`` occurrences in segments, evenly spread over them as if they were one."""
    step = max(1.0, total / most)
    taken, before = 0, 0
    for k in range(first, end):
        low, high = sources[k].low, sources[k].high
        order = carray(pointer(sources[k].order), (sources[k].length,), np.int32)
        rank = low - before + int((taken + 0.5) * step)
        while rank < high:
            prefetch(order, rank)
            used = _add(occurrences, used, k, rank, weight * step, step, evidence)
            taken += 1
            rank = low - before + int((taken + 0.5) * step)
        before += high - low
    return used


@compiled
def _look_up(occurrences: NDArray[np.void], used: int, sources: NDArray[np.void]) -> None:
    """Turn ranks into positions of what follows."""
    for i in range(used):
        here = occurrences[i]
        if here.source >= _SEGMENTS:
            source = sources[here.source]
            here.at = carray(pointer(source.order), (source.length,), np.int32)[here.at] + 1
            tokens = carray(pointer(source.tokens), (source.length,), np.int32)
            prefetch(tokens, here.at)
            prefetch(tokens, here.at + MAX_DEPTH - 1)


@compiled
def _copy_following(
    following: NDArray[np.int32], occurrences: NDArray[np.void], used: int, sources: NDArray[np.void]
) -> None:
    """Copy what follows each occurrence; the mark of a text's start ends it, and the end of a source."""
    for i in range(used):
        at, source = occurrences[i].at, sources[occurrences[i].source]
        tokens = carray(pointer(source.tokens), (source.length,), np.int32)
        if at + MAX_DEPTH <= source.length:
            for d in range(MAX_DEPTH):  # of a fixed length, so a few wide moves
                following[i, d] = tokens[at + d]
        else:
            for d in range(source.length - at):
                following[i, d] = tokens[at + d]
            following[i, source.length - at] = START
