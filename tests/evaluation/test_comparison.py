from math import exp, log

import numpy as np
import pytest

from dare_core.evaluation.comparison import compare, distinct, self_bleu
from dare_core.quality.metrics import bare_words


def test_words_are_letters_and_digits_case_folded() -> None:
    assert bare_words("The film — “Se7en” (1995), a film.") == ["the", "film", "se7en", "1995", "a", "film"]


def test_distinct_n_counts_each_ngram_once_over_all_texts() -> None:
    texts = [["a", "b", "a", "b"], ["a", "b"]]
    assert distinct(texts, 1) == 2 / 6
    assert distinct(texts, 2) == 2 / 4  # ab, ba of ab, ba, ab, ab
    assert distinct([], 2) == 0


def test_self_bleu_is_one_for_equal_texts_and_zero_for_texts_that_share_no_word() -> None:
    text = ["a", "film", "about", "a", "man", "and", "a", "dog"]
    assert self_bleu([text, text, text]) == pytest.approx(1)
    assert self_bleu([text, ["nothing", "here", "is", "like", "it"]]) == 0
    assert self_bleu([text]) == 0


def test_self_bleu_clips_counts_by_the_best_single_other_text_and_punishes_brevity() -> None:
    texts = [["a", "b", "c", "d", "a"], ["a", "b", "c", "d", "e", "f"], ["a", "b", "c", "d", "x", "y"]]
    first = exp(1 - 6 / 5) * exp((log(4 / 5) + log(3 / 4) + log(2 / 3) + log(1 / 2)) / 4)  # the second "a" is too many
    others = exp((log(4 / 6) + log(3 / 5) + log(2 / 4) + log(1 / 3)) / 4)
    assert self_bleu(texts) == pytest.approx((first + 2 * others) / 3)


def rows(texts: list[str]) -> list[dict[str, object]]:
    return [
        {"kind": "item", "entity_id": str(n), "group_name": "1995" if n < 10 else "1996", "prompt": f"p{n}",
         "text": text, "new_tokens": 8, "relaxed": n % 2}
        for n, text in enumerate(texts)
    ]  # fmt: skip


def test_arms_are_compared_by_kind_and_group_and_small_groups_together() -> None:
    texts = [f"film {n} of many films" for n in range(13)]
    random = np.random.default_rng(0).normal(size=(13, 8)).astype(np.float32)
    unit = random / np.linalg.norm(random, axis=1, keepdims=True)
    figures, compared = compare(
        {"strict": rows(texts), "relaxed": rows([*texts[:12], "another one"])},
        {"strict": unit, "relaxed": np.concatenate([unit[:12], -unit[12:]])},
    )
    assert list(figures) == ["item/1995", "item/all", "item/smaller groups"]
    assert [figures[name]["relaxed"]["texts"] for name in figures] == [10, 13, 3]
    assert figures["item/1995"]["relaxed"]["same_text"] == figures["item/1995"]["relaxed"]["alike"] == 1
    assert figures["item/smaller groups"]["relaxed"]["same_text"] == pytest.approx(2 / 3, abs=1e-4)
    assert figures["item/smaller groups"]["relaxed"]["alike"] == pytest.approx(1 / 3, abs=1e-4)
    assert figures["item/all"]["strict"]["unlike"] == pytest.approx((unit @ unit.T).sum() / 156 - 13 / 156, abs=1e-4)
    assert compared[12].texts == {"strict": texts[12], "relaxed": "another one"}
    assert compared[12].alike["relaxed"] == pytest.approx(-1)
