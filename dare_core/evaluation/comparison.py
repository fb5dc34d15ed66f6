"""Relaxed and int8 texts beside strict ones of the same prompts: how varied, how long, how alike.

Words are those of :func:`dare_core.quality.metrics.bare_words`. Variety is measured over all texts of a group together.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dare_core.quality.metrics import bare_words, ngrams

#: Self-BLEU looks at n-grams up to this length.
_BLEU: Final = 4
#: A group of fewer texts says little of variety; they are counted under one name.
_LEAST_TEXTS: Final = 10
_SMALL_GROUPS: Final = "smaller groups"
#: All texts together.
ALL: Final = "all"


@dataclass(frozen=True)
class Compared:
    """One prompt's texts, by arm.

    Attributes:
        alike: cosine of the embeddings of each arm's text and the strict one.
    """

    kind: str
    entity_id: str
    group: str
    prompt: str
    texts: Mapping[str, str]
    alike: Mapping[str, float]


def compare(
    by_arm: Mapping[str, Sequence[Mapping[str, Any]]], vectors: Mapping[str, NDArray[np.float32]]
) -> tuple[dict[str, Any], list[Compared]]:
    """Compare arms with ``strict``.

    Args:
        by_arm: texts of the same entities in the same order, ``strict`` among them, with ``kind``, ``entity_id``,
            ``group_name``, ``prompt``, ``text`` and the statistics of their decoding.
        vectors: ``[n, width]`` of the texts by arm, of length 1.

    Returns:
        Figures by ``<kind>/<group>`` (``<kind>/all`` for all of a kind) and arm, and the texts side by side. ``alike``
        is the mean cosine with the strict text of the same prompt, ``unlike`` that with the strict text of another
        prompt of the kind, for comparison.
    """
    strict = by_arm["strict"]
    alike = {arm: (vectors[arm] * vectors["strict"]).sum(1) for arm in by_arm}
    members: dict[str, list[int]] = {}
    sizes = Counter((row["kind"], row["group_name"]) for row in strict)
    for place, row in enumerate(strict):
        kind, group = row["kind"], row["group_name"]
        named = group if sizes[kind, group] >= _LEAST_TEXTS else _SMALL_GROUPS
        for name in (ALL, named):
            members.setdefault(f"{kind}/{name}", []).append(place)
    figures = {
        name: {
            arm: _figures([rows[i] for i in places], [strict[i] for i in places], alike[arm][places])
            | {"unlike": _unlike(vectors[arm][places], vectors["strict"][places])}
            for arm, rows in by_arm.items()
        }
        for name, places in sorted(members.items())
    }
    compared = [
        Compared(
            row["kind"],
            row["entity_id"],
            row["group_name"],
            row["prompt"],
            {arm: rows[i]["text"] for arm, rows in by_arm.items()},
            {arm: float(alike[arm][i]) for arm in by_arm},
        )
        for i, row in enumerate(strict)
    ]
    return figures, compared


def distinct(texts: Iterable[Sequence[str]], n: int) -> float:
    """Different n-grams over all n-grams of the texts; 0 where there is none."""
    counts = Counter(ngram for text in texts for ngram in ngrams(text, n))
    return len(counts) / counts.total() if counts else 0.0


def self_bleu(texts: Sequence[Sequence[str]]) -> float:
    """Mean BLEU-4 of each text against all others: 1 where texts are all the same, near 0 where they share nothing.

    As Zhu et al. (Texygen, 2018) define it, with BLEU's clipped counts and brevity penalty. A text without n-grams of
    some length is scored by the shorter ones; one without a shared n-gram of some length scores 0.

    Returns:
        0 with fewer than two texts.
    """
    if len(texts) < 2:
        return 0.0
    lengths = np.array([len(text) for text in texts])
    counts = [[Counter(ngrams(text, n)) for text in texts] for n in range(1, _BLEU + 1)]
    highest = [_two_highest(of_length) for of_length in counts]
    scores = []
    for place in range(len(texts)):
        precisions = []
        for of_length, best in zip(counts, highest, strict=True):
            if not (own := of_length[place]):
                continue
            clipped = sum(min(count, best[ngram][0 if best[ngram][2] != place else 1]) for ngram, count in own.items())
            precisions.append(clipped / own.total())
        if not precisions or min(precisions) == 0:
            scores.append(0.0)
            continue
        others = np.delete(lengths, place)
        length = int(lengths[place])
        closest = int(others[np.lexsort((others, np.abs(others - length)))[0]])
        penalty = 1.0 if length >= closest else exp(1 - closest / length)
        scores.append(penalty * exp(sum(map(log, precisions)) / len(precisions)))
    return float(np.mean(scores))


def _two_highest(counts: Sequence[Counter[tuple[str, ...]]]) -> dict[tuple[str, ...], tuple[int, int, int]]:
    """Of each n-gram the highest count in one text, the highest in another, and which text has the first."""
    highest: dict[tuple[str, ...], tuple[int, int, int]] = {}
    for place, of_text in enumerate(counts):
        for ngram, count in of_text.items():
            first, second, holder = highest.get(ngram, (0, 0, -1))
            if count > first:
                highest[ngram] = count, first, place
            elif count > second:
                highest[ngram] = first, count, holder
    return highest


def _figures(
    rows: Sequence[Mapping[str, Any]], strict: Sequence[Mapping[str, Any]], alike: NDArray[np.float32]
) -> dict[str, float]:
    split = [bare_words(row["text"]) for row in rows]
    tokens = sum(row["new_tokens"] for row in rows)
    return {
        "texts": len(rows),
        "words": round(float(np.mean([len(text) for text in split])), 2),
        "tokens": round(tokens / len(rows), 2),
        "relaxed_token_rate": round(sum(row["relaxed"] for row in rows) / tokens, 4) if tokens else 0.0,
        "distinct_1": round(distinct(split, 1), 4),
        "distinct_2": round(distinct(split, 2), 4),
        "distinct_3": round(distinct(split, 3), 4),
        "self_bleu": round(self_bleu(split), 4),
        "same_text": round(sum(a["text"] == b["text"] for a, b in zip(rows, strict, strict=True)) / len(rows), 4),
        "alike": round(float(alike.mean()), 4),
    }


def _unlike(vectors: NDArray[np.float32], strict: NDArray[np.float32]) -> float:
    """Mean cosine of texts with the strict texts of other prompts."""
    count = len(vectors)
    if count < 2:
        return 0.0
    every = vectors @ strict.T
    return round(float((every.sum() - np.trace(every)) / (count * (count - 1))), 4)
