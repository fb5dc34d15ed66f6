"""A positive control: the made-up shop, whose customers' tastes are known.

A click model tells what a customer bought from what was drawn at random at the same moment. The *oracle* is the same
model, told whether the customer's true tastes favour the product's category. Knowledge is of the products alone, so
tastes must show in what a customer bought. Where it gains nothing though tastes decide, the evaluation is blind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dare_core.config.domains import ClickModelName, ClickTraining, Domain, Evaluation
from dare_core.config.settings import Settings
from dare_core.evaluation.arms import arm_vectors
from dare_core.evaluation.examples import make_examples, make_sight, make_splits
from dare_core.evaluation.inputs import make_inputs, numbers_of_all, numbers_of_vectors
from dare_core.evaluation.service import Entity, entities_in_service
from dare_core.evaluation.source import Interaction, SourceRows
from dare_core.evaluation.statistics import auc
from dare_core.evaluation.texts import STRICT, OnProgress, Texts, write_texts
from dare_core.evaluation.trials import OnTrial, of_tests, run_trials
from dare_core.sources.shop import CATEGORIES, favours, make_shop, tastes

_PRODUCTS: Final = 400
_CUSTOMERS: Final = 1500
_SEED: Final = 18
_UNTIL: Final = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Shop:
    """The control's shop: what was bought, beside what was not, and what the oracle knows.

    Attributes:
        domain: the shop's, with an evaluation of its own.
        rows: with an interaction of value 0 for each purchase: a product at random.
        entities: the products.
    """

    domain: Domain
    rows: SourceRows
    entities: list[Entity]


def make_control(shop: Domain) -> Shop:
    """The same shop each time.

    Args:
        shop: the domain ``shop``.
    """
    domain = shop.model_copy(update={"evaluation": Evaluation(positive_from=1)})
    tables = make_shop(_PRODUCTS, _CUSTOMERS, _SEED, _UNTIL)
    items = {row["product_id"]: row for row in tables["shop_products"].to_pylist()}
    users = {row["customer_id"]: row for row in tables["shop_customers"].to_pylist()}
    bought = sorted(
        Interaction(row["purchased_at"], row["customer_id"], row["product_id"], float(row["quantity"]))
        for row in tables["shop_purchases"].to_pylist()
    )
    entities = entities_in_service(domain, SourceRows(items, {}, bought), bought[0].time)
    products = sorted(items)
    drawn = np.random.default_rng(_SEED).integers(len(products), size=len(bought))
    left = [one._replace(item=products[place], value=0.0) for one, place in zip(bought, drawn, strict=True)]
    return Shop(domain, SourceRows(items, users, sorted([*bought, *left])), entities)


def write_control(settings: Settings, shop: Domain, on_progress: OnProgress) -> Texts:
    """Write the strict texts that the control needs, as far as they are not kept."""
    made = make_control(shop)
    return write_texts(settings, made.domain, made.entities, (STRICT,), on_progress)


def run_control(
    settings: Settings,
    shop: Domain,
    model_name: ClickModelName,
    seeds: int,
    how: ClickTraining,
    on_progress: OnProgress,
    on_trial: OnTrial,
) -> dict[str, Any]:
    """Which share of the oracle's gain over no knowledge the knowledge reaches.

    Returns:
        ``auc`` by arm, ``oracle_gain``, ``knowledge_gain`` and ``share``.
    """
    made = make_control(shop)
    texts = write_texts(settings, made.domain, made.entities, (STRICT,), on_progress)
    vectors = arm_vectors(settings, made.domain, made.domain.knowledge.embedded, made.entities, texts.by_arm)["strict"]
    examples = make_examples(made.domain, made.rows)
    sight = make_sight(made.rows, examples, made.entities, nightly=False)
    of_all, of_vectors = numbers_of_all(examples), numbers_of_vectors(examples, sight, vectors)
    told = np.column_stack([of_all, _favoured(made.rows)])
    splits = make_splits(made.domain, examples)
    inputs: dict[str, list[Any]] = {"none": [], "strict": [], "oracle": []}
    for split in splits:
        strict, oracle = (make_inputs(examples, split, one, sight, vectors, of_vectors) for one in (of_all, told))
        inputs["strict"].append(strict)
        inputs["none"].append(strict.without_knowledge(of_all.shape[1]))
        inputs["oracle"].append(oracle.without_knowledge(told.shape[1]))
    logits = of_tests(run_trials(inputs, model_name, seeds, how, on_trial))
    labels = [examples.labels[split.test] for split in splits]
    return _shares({arm: _mean_auc(labels, of_arm) for arm, of_arm in logits.items()})


def _favoured(rows: SourceRows) -> NDArray[np.float32]:
    """``[n, 2]``, 1 where the product's category is one that the customer's main, or second, taste favours."""
    numbers = {name: number for number, name in enumerate(CATEGORIES)}
    categories = np.array([numbers[rows.items[one.item]["category"]] for one in rows.interactions])
    customers = np.array([int(one.user[1:]) for one in rows.interactions])
    return np.column_stack([favours(taste, categories) for taste in tastes(customers, _SEED)]).astype(np.float32)


def _mean_auc(labels: Sequence[NDArray[np.float32]], logits: Sequence[NDArray[np.float32]]) -> float:
    """Over splits and seeds."""
    return float(np.mean([auc(of_split, one) for of_split, ones in zip(labels, logits, strict=True) for one in ones]))


def _shares(aucs: Mapping[str, float]) -> dict[str, Any]:
    oracle, knowledge = (aucs[arm] - aucs["none"] for arm in ("oracle", "strict"))
    return {
        "auc": {arm: round(value, 6) for arm, value in aucs.items()},
        "oracle_gain": round(oracle, 6),
        "knowledge_gain": round(knowledge, 6),
        "share": round(knowledge / oracle, 4) if oracle > 0 else None,
    }
