from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dare_core.evaluation.examples import ITEM, USER, Examples, Sight, Split
from dare_core.evaluation.matching import K, recall_of_matching

from .conftest import unit_vectors

USERS, TASTES, OF_TASTE = 40, 4, 60
ITEMS = TASTES * OF_TASTE


def planted(seed: int = 0) -> tuple[Examples, Split, dict[str, Any]]:
    """Users like what is of their taste, each item as seldom as the others; texts say the taste."""
    random = np.random.default_rng(seed)
    known, tests = 30, 8
    rows = []
    for moment in range(known + tests):
        for user in range(USERS):
            own = random.random() < 0.8
            taste = user % TASTES if own else random.integers(TASTES)
            item = taste * OF_TASTE + random.integers(OF_TASTE)
            rows.append((moment, 1 + user, 1 + item, float(taste == user % TASTES)))
    moments, users, items, labels = (np.array(column) for column in zip(*rows, strict=True))
    nothing = np.full((len(rows), 1), -1)
    examples = Examples(moments, np.stack([users, items], 1), nothing, nothing, labels.astype(np.float32))
    start = known * USERS
    split = Split(slice(start), slice(start, start), slice(start, len(rows)))
    of_taste = unit_vectors(TASTES, 32, seed=seed)
    noise = 0.05 * unit_vectors(ITEMS, 32, seed=seed + 1)
    item_vectors = of_taste[np.arange(ITEMS) // OF_TASTE] + noise
    vectors = {
        "item": item_vectors / np.linalg.norm(item_vectors, axis=1, keepdims=True),
        "user": of_taste[np.arange(USERS) % TASTES],
    }
    sight = Sight(items, users, nothing, nothing)
    return examples, split, {"sight": sight, "item_texts": np.arange(ITEMS + 1), "vectors": vectors}


def test_matching_finds_what_users_go_on_to_like_where_texts_say_their_taste_and_items_are_equally_popular() -> None:
    examples, split, asked = planted()
    found = recall_of_matching(examples, [split], **asked)
    assert found["users"] == USERS
    assert found["k"] == K
    assert found["match"] > 0.9
    assert found["match"] > found["popularity"] + 0.4
    assert found["item_knn"] > found["popularity"] + 0.2  # who liked the same tells the taste, too
    assert recall_of_matching(examples, [split, split], **asked) == {**found, "users": 2 * USERS}


def test_texts_of_others_match_no_better_than_chance() -> None:
    examples, split, asked = planted()
    vectors = {**asked["vectors"], "user": np.roll(asked["vectors"]["user"], 1, axis=0)}
    assert recall_of_matching(examples, [split], **{**asked, "vectors": vectors})["match"] < 0.15


def test_recall_is_the_share_of_new_likes_among_the_best_that_were_not_met() -> None:
    examples, split, asked = planted(3)
    found = recall_of_matching(examples, [split], **asked)
    users, items, likes = examples.fields[:, USER], examples.fields[:, ITEM], examples.labels > 0
    start = split.test.start
    recalls = []
    for user in range(1, USERS + 1):
        met = set(items[:start][users[:start] == user])
        offered = [item for item in range(1, ITEMS + 1) if item in set(items[:start]) and item not in met]
        wanted = set(items[start:][(users[start:] == user) & likes[start:]]) & set(offered)
        scores = {item: asked["vectors"]["item"][item - 1] @ asked["vectors"]["user"][user - 1] for item in offered}
        best = sorted(offered, key=lambda item: -scores[item])[:K]
        recalls.append(len(wanted & set(best)) / len(wanted))
    assert found["match"] == pytest.approx(np.mean(recalls), abs=1e-4)


def test_items_that_were_met_are_not_offered_and_liking_them_again_does_not_count() -> None:
    """A user met 60 items that match best; the one that is new comes after them."""
    count = 62
    items = np.array([*range(1, count), *range(1, count), count, 1, count])
    users = np.array([*[1] * (count - 1), *[2] * count, 1, 1])
    times = np.arange(len(items))
    labels = np.ones(len(items), np.float32)
    nothing = np.full((len(items), 1), -1)
    examples = Examples(times, np.stack([users, items], 1), nothing, nothing, labels)
    start = len(items) - 2
    split = Split(slice(start), slice(start, start), slice(start, len(items)))
    line = np.linspace(0, 1, count, dtype=np.float32)
    vectors = {"item": np.stack([1 - line, line], 1), "user": np.array([[1, 0]], np.float32)}
    sight = Sight(items, np.where(users == 1, 1, 0), nothing, nothing)
    found = recall_of_matching(examples, [split], sight, np.arange(count + 1), vectors)
    assert found == {"match": 1, "popularity": 1, "item_knn": 1, "users": 1, "k": K}


def test_who_has_no_text_no_like_or_nothing_new_is_left_out_and_nobody_is_no_number() -> None:
    examples, split, asked = planted()
    sight = replace(asked["sight"], user=np.where(asked["sight"].user <= 10, 0, asked["sight"].user))
    assert recall_of_matching(examples, [split], **{**asked, "sight": sight})["users"] == USERS - 10
    disliked = replace(examples, labels=np.where(examples.fields[:, USER] <= 5, 0, examples.labels))
    assert recall_of_matching(disliked, [split], **asked)["users"] == USERS - 5
    without = recall_of_matching(examples, [split], **{**asked, "item_texts": np.zeros(ITEMS + 1, np.int64)})
    assert without == {"match": None, "popularity": None, "item_knn": None, "users": 0, "k": K}
