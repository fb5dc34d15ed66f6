"""What a draft tree should be, in plain Python: slow, and no compiled code is used."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from dare_core.pools import occurrences
from dare_core.pools.index import MAX_MATCH, START
from dare_core.pools.trees import NODE_ESCAPE

Path = tuple[int, ...]


@dataclass
class Node:
    """What is known of one path."""

    evidence: int
    weight: float = 0.0
    count: float = 0.0


@dataclass
class Trie:
    """Every path that followed an occurrence of the text's end."""

    nodes: dict[Path, Node] = field(default_factory=lambda: {(): Node(-1, 1.0)})

    def insert(self, following: Sequence[int], weight: float, count: float, evidence: int) -> None:
        """Add what followed an occurrence, up to the end of its text."""
        self.nodes[()].count += count
        for depth in range(1, min(len(following), occurrences.MAX_DEPTH) + 1):
            if following[depth - 1] < 0:
                break
            node = self.nodes.setdefault(tuple(following[:depth]), Node(evidence))
            node.weight += weight
            node.count += count

    def share(self, path: Path) -> float:
        """How likely a path's last token is once the others are there."""
        parent = self.nodes[path[:-1]]
        return self.nodes[path].weight / parent.weight * parent.count / (parent.count + NODE_ESCAPE)

    def probability(self, path: Path) -> float:
        """How likely the whole path is."""
        return self.probability(path[:-1]) * self.share(path) if path else 1.0


def match_before(tokens: Sequence[int], end: int, context: Sequence[int]) -> int:
    """How many of the last tokens of ``context`` stand before ``tokens[end]``."""
    match = 0
    while match < min(end, len(context), MAX_MATCH) and tokens[end - 1 - match] == context[-1 - match]:
        match += 1
    return match


def in_index(texts: Sequence[Sequence[int]], pattern: Sequence[int]) -> list[list[int]]:
    """What followed each occurrence of a pattern in a segment's texts, in the order of the index."""
    tokens = [token for text in texts if text for token in (START, *text)]
    ends = [i for i in range(len(pattern) - 1, len(tokens)) if tokens[i + 1 - len(pattern) : i + 1] == list(pattern)]
    ends.sort(key=lambda i: backwards(tokens, i))
    return [tokens[i + 1 :] for i in ends]


def backwards(tokens: Sequence[int], position: int) -> list[int]:
    """The tokens up to a position, the last first, back to the start of their text or as far as any search looks."""
    read = []
    for token in tokens[position::-1][:MAX_MATCH] if position else tokens[:1]:
        read.append(token)
        if token == START:
            break
    return read


def grow_trie(
    prompt: Sequence[int],
    output: Sequence[int],
    own_text: bool,
    learned: Sequence[int],
    group: Sequence[Sequence[Sequence[int]]],
    everything: Sequence[Sequence[Sequence[int]]],
) -> Trie:
    """The trie of a text from all its sources; pools are lists of segments, segments lists of texts."""
    text, context = [*prompt, *output], [START, *output][-MAX_MATCH:]
    own = [(text[i:], match_before(text, i, text)) for i in range(len(text) - 1, 0, -1)]
    own = [(following, match) for following, match in own if match][: occurrences.MAX_OCCURRENCES] if own_text else []
    recalled = [(learned[i:], match_before(learned, i, context)) for i in range(len(learned), 0, -1)]
    recalled = [(following, match) for following, match in recalled if match >= min(2, len(context))]
    in_pools = [
        n for n in range(1, len(context) + 1) for texts in (*group, *everything) if in_index(texts, context[-n:])
    ]
    match = max([*in_pools, *(match for _, match in own + recalled)], default=0)

    trie, rest, searched = Trie(), 1.0, MAX_MATCH + 1
    while match and rest > occurrences.NEGLIGIBLE:
        kind = (match - 1).bit_length()
        found = [
            (occurrences.OWN, occurrences.OWN_WEIGHT, [following for following, n in own if match <= n < searched]),
            (
                occurrences.LEARNED,
                occurrences.LEARNED_WEIGHT,
                [following for following, n in recalled if match <= n < searched],
            ),
        ]
        if match <= len(context):
            found += [
                (occurrences.GROUP, 1.0, [f for texts in group for f in in_index(texts, context[-match:])]),
                (occurrences.GLOBAL, 1.0, [f for texts in everything for f in in_index(texts, context[-match:])]),
            ]
        total = sum(weight * len(followings) for _, weight, followings in found)
        each = rest / (total + occurrences.LEVEL_ESCAPE)
        most = max(occurrences.LEAST_OCCURRENCES, int(occurrences.MAX_OCCURRENCES * rest))
        rest -= each * total
        for source, weight, followings in found:
            looked_at = most if source in (occurrences.GROUP, occurrences.GLOBAL) else occurrences.MAX_OCCURRENCES
            step = max(1.0, len(followings) / looked_at)
            for i in range(min(len(followings), looked_at)):
                trie.insert(followings[int((i + 0.5) * step)], weight * each * step, step, source + kind)
        searched, match = match, match // 2
    if own_text:
        for i in range(max(0, len(text) - 1 - occurrences.RECENT_TOKENS), len(text) - 1):
            trie.insert(text[i:], rest / occurrences.RECENT_TOKENS, 1, occurrences.RECENT)
    return trie
