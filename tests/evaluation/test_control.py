from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from dare_core.config.domains import Domain, load_domain
from dare_core.config.settings import load_settings
from dare_core.evaluation import control
from dare_core.evaluation.control import _CUSTOMERS, _PRODUCTS, _SEED, Shop, _shares, make_control
from dare_core.sources.shop import tastes

#: Categories that a taste buys more from than from others, by number.
CATEGORIES = ("kitchen", "outdoor", "electronics", "garden", "sports", "toys", "home office", "beauty", "pets")


@pytest.fixture(scope="module")
def shop() -> Domain:
    return load_domain(load_settings(), "shop")


@pytest.fixture(scope="module")
def made(shop: Domain) -> Shop:
    return make_control(shop)


def test_the_shop_is_the_same_each_time(shop: Domain, made: Shop) -> None:
    again = make_control(shop)
    assert again.rows == made.rows
    assert again.entities == made.entities


def test_beside_each_purchase_something_at_random_was_left_at_the_same_moment(made: Shop) -> None:
    interactions = made.rows.interactions
    assert len(made.rows.items) == _PRODUCTS
    assert len(made.rows.users) == _CUSTOMERS
    assert all(one.time <= following.time for one, following in pairwise(interactions))
    bought = Counter((one.time, one.user) for one in interactions if one.value > 0)
    left = Counter((one.time, one.user) for one in interactions if one.value == 0)
    assert bought == left
    offered = Counter(one.item for one in interactions if one.value == 0)
    assert len(offered) == _PRODUCTS
    assert max(offered.values()) < 3 * len(interactions) / 2 / _PRODUCTS  # whatever sells


def test_texts_are_written_about_every_product_and_nobody(made: Shop) -> None:
    assert [one.entity_id for one in made.entities] == sorted(made.rows.items)
    assert {one.kind for one in made.entities} == {"item"}


def test_customers_buy_what_their_tastes_favour_and_what_was_left_does_not_depend_on_them(made: Shop) -> None:
    numbers = np.array([int(one.user[1:]) for one in made.rows.interactions])
    mains, seconds = tastes(numbers, _SEED)

    def favoured(taste: int) -> set[str]:
        return {CATEGORIES[n] for n in (taste, (taste + 1) % len(CATEGORIES), 6 + taste // 2)}

    share = {}
    for liked in (True, False):
        found = [
            made.rows.items[one.item]["category"] in favoured(main) | favoured(second)
            for one, main, second in zip(made.rows.interactions, mains, seconds, strict=True)
            if (one.value > 0) == liked
        ]
        share[liked] = np.mean(found)
    assert share[True] > 0.8
    assert share[False] < 0.65


def test_the_share_is_of_the_oracle_s_gain_over_no_knowledge() -> None:
    found = _shares({"none": 0.6, "strict": 0.65, "oracle": 0.8})
    assert found == {
        "auc": {"none": 0.6, "strict": 0.65, "oracle": 0.8},
        "oracle_gain": 0.2,
        "knowledge_gain": 0.05,
        "share": 0.25,
    }
    assert _shares({"none": 0.6, "strict": 0.65, "oracle": 0.6})["share"] is None


def test_an_auc_is_the_mean_over_splits_and_seeds() -> None:
    labels = [np.array([0, 1], np.float32), np.array([1, 0], np.float32)]
    right, wrong = np.array([0, 1], np.float32), np.array([1, 0], np.float32)
    assert control._mean_auc(labels, [np.stack([right, wrong]), np.stack([wrong, wrong])]) == 0.75
