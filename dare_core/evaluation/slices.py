"""Where knowledge helps: by how often the item was met, how long the user is known, and cold starts."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dare_core.evaluation.examples import ITEM, USER, Examples, Split
from dare_core.evaluation.statistics import Bootstrap, interval
from dare_core.evaluation.trials import Logits

_RARE: Final = 20
_FREQUENT: Final = 100
#: Fewer test examples, over all splits, say nothing.
_LEAST: Final = 200


def slices(examples: Examples, splits: Sequence[Split]) -> dict[str, list[NDArray[np.bool_]]]:
    """By name and split, which test examples belong to a slice."""
    found: dict[str, list[NDArray[np.bool_]]] = {}
    for split in splits:
        users, items = (examples.fields[:, column] for column in (USER, ITEM))
        known = slice(split.test.start)
        met = np.bincount(items[known], minlength=items.max() + 1)[items[split.test]]
        user_known = np.isin(users[split.test], users[known])
        age = (examples.met[split.test] >= 0).sum(1)  # interactions before; INTERACTIONS at most
        of_split = {
            "item never met": met == 0,
            f"item met 1 to {_RARE - 1} times": (met > 0) & (met < _RARE),
            f"item met {_RARE} to {_FREQUENT - 1} times": (met >= _RARE) & (met < _FREQUENT),
            f"item met {_FREQUENT} times or more": met >= _FREQUENT,
            "user's first 10 interactions": age < 10,
            "user's 11th to 50th": (age >= 10) & (age < 50),
            "user's 51st and later": age >= 50,
            "user not in training": ~user_known,
            "user in training": user_known,
        }
        for name, rows in of_split.items():
            found.setdefault(name, []).append(rows)
    return found


def by_slice(
    bootstrap: Bootstrap, logits: Logits, parts: Mapping[str, Sequence[NDArray[np.bool_]]]
) -> dict[str, dict[str, Any]]:
    """AUC of strict texts in each slice, and its difference to the other arms there are, with 95% intervals."""
    if "strict" not in logits:
        return {}
    compared = [arm for arm in ("none", "shuffled", "attributes", "strict") if arm in logits]
    found: dict[str, dict[str, Any]] = {}
    for name, rows in parts.items():
        count = int(sum(of_split.sum() for of_split in rows))
        if count < _LEAST:
            continue
        aucs = {arm: bootstrap.aucs(logits[arm], rows) for arm in compared}
        if np.isnan(aucs["strict"][0]):  # likes alone, or none
            continue
        found[name] = {"examples": count, "auc": round(float(aucs["strict"][0]), 6)} | {
            f"over_{arm}": [round(value, 6) for value in interval(aucs["strict"] - of_arm)]
            for arm, of_arm in aucs.items()
            if arm != "strict"
        }
    return found
