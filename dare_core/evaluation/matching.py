"""Does ``features.match`` find what users go on to like? Its recall, beside popularity and item-kNN."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dare_core.evaluation.examples import ITEM, USER, Examples, Sight, Split
from dare_core.evaluation.inputs import Vectors

#: Items that are asked for.
K: Final = 50


def recall_of_matching(
    examples: Examples, splits: Sequence[Split], sight: Sight, item_texts: NDArray[np.int64], vectors: Vectors
) -> dict[str, float | None]:
    """Mean recall at K over users: of what a user likes in a split's tests, and had not met, how much is among K items.

    Users have a text before the tests, a like among what is known, and a like in the tests. Items are those with a text
    that somebody met before.

    Args:
        examples: of all interactions.
        splits: whose tests are asked about.
        sight: which texts are seen.
        item_texts: by item code, the place of its text from 1; 0 for none.
        vectors: of the texts.

    Returns:
        ``match``, ``popularity`` and ``item_knn`` (cosine of who liked the items), None where there is no such user;
        and how many ``users``.
    """
    recalls: dict[str, list[float]] = {"match": [], "popularity": [], "item_knn": []}
    users, items = examples.fields[:, USER], examples.fields[:, ITEM]
    for split in splits:
        known, test = slice(split.test.start), split.test
        liked = np.zeros((users.max() + 1, items.max() + 1), np.float32)
        met = liked.copy()
        likes = examples.labels > 0
        met[users[known], items[known]] = 1
        liked[users[known][likes[known]], items[known][likes[known]]] = 1
        offered = (met.sum(0) > 0) & (item_texts > 0)
        alike = _cosines(liked)
        for user in np.unique(users[test]):
            rows = test.start + np.flatnonzero(users[test] == user)
            wanted = np.unique(items[rows][likes[rows]])
            wanted = wanted[offered[wanted] & (met[user, wanted] == 0)]
            text = sight.user[rows[0]]
            if not len(wanted) or not text or not liked[user].any():
                continue
            scores: Mapping[str, NDArray[np.float32]] = {
                "match": vectors["item"][item_texts - 1] @ vectors["user"][text - 1],
                "popularity": liked.sum(0),
                "item_knn": alike @ liked[user],
            }
            allowed = offered & (met[user] == 0)
            for name, of_items in scores.items():
                best = np.argsort(np.where(allowed, -of_items, np.inf), kind="stable")[:K]
                recalls[name].append(float(np.isin(wanted, best).mean()))
    count = len(recalls["match"])
    means = {name: round(float(np.mean(found)), 4) if found else None for name, found in recalls.items()}
    return {**means, "users": count, "k": K}


def _cosines(liked: NDArray[np.float32]) -> NDArray[np.float32]:
    """``[items, items]``, of who liked them; none with itself."""
    columns = liked / np.maximum(np.linalg.norm(liked, axis=0), 1)
    found = columns.T @ columns
    np.fill_diagonal(found, 0)
    return np.asarray(found, np.float32)
