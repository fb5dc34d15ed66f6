"""``dare evaluate``: arms of texts, click models trained on each from paired seeds, and what the differences are."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from dare_core.config.domains import Domain, domain_names, load_domain
from dare_core.config.settings import Settings
from dare_core.engines.precision import model_precision
from dare_core.errors import InputError
from dare_core.evaluation import arms, texts
from dare_core.evaluation.comparison import Compared, compare
from dare_core.evaluation.control import run_control, write_control
from dare_core.evaluation.examples import ITEM, Examples, Sight, Split, make_examples, make_sight, make_splits
from dare_core.evaluation.inputs import Inputs, Vectors, make_inputs, numbers_of_all, numbers_of_vectors
from dare_core.evaluation.service import Entity, entities_in_service
from dare_core.evaluation.source import SourceRows, read_source
from dare_core.evaluation.statistics import Bootstrap, Tested, interval, smallest_effect
from dare_core.evaluation.texts import MAX_NEW_TOKENS, OnProgress, Texts
from dare_core.evaluation.trials import Logits, of_tests, run_trials
from dare_core.schemas import KINDS
from dare_core.warehouse.evaluations import record_evaluation
from dare_core.warehouse.session import open_warehouse

log = logging.getLogger(__name__)

SEEDS: Final = 20
#: Of the control, whose differences are large.
_CONTROL_SEEDS: Final = 3
#: Of the interactions in the order of time, the share before which the platform wrote about no user.
_SERVICE_SHARE: Final = 0.5
#: The domain that the control is made of.
_SHOP: Final = "shop"

#: What is reported of arms, by key: the first arm's figure minus the second's.
DIFFERENCES: Final[Mapping[str, tuple[str, str]]] = {
    "gain_over_shuffled": ("strict", "shuffled"),
    "auc_gain": ("strict", "none"),
    "auc_over_attributes": ("strict", "attributes"),
    "auc_delta": ("relaxed", "strict"),
    "int8_auc": ("int8", "strict"),
    "auc_nightly": ("nightly", "none"),
}


@dataclass(frozen=True)
class Ground:
    """What a domain is evaluated on.

    Attributes:
        sights: which texts are seen, without delay and nightly.
    """

    domain: Domain
    rows: SourceRows
    entities: list[Entity]
    examples: Examples
    splits: list[Split]
    sights: Mapping[str, Sight]

    @classmethod
    def of(cls, domain: Domain, rows: SourceRows) -> "Ground":
        """Examples, splits and entities of a domain's interactions.

        Raises:
            SettingError: the domain has no section ``[evaluation]``.
            InputError: the interactions are too few.
        """
        examples = make_examples(domain, rows)
        splits = make_splits(domain, examples)
        since = rows.interactions[int(_SERVICE_SHARE * len(rows.interactions))].time
        entities = entities_in_service(domain, rows, since)
        sights = {name: make_sight(rows, examples, entities, name == "nightly") for name in ("no delay", "nightly")}
        return cls(domain, rows, entities, examples, splits, sights)

    def inputs(self, by_arm: Mapping[str, Vectors], splits: Sequence[Split] | None = None) -> dict[str, list[Inputs]]:
        """Of each arm, by split."""
        of_all = numbers_of_all(self.examples)
        found: dict[str, list[Inputs]] = {}
        for arm, vectors in by_arm.items():
            sight = self.sights["nightly" if arm == "nightly" else "no delay"]
            of_vectors = numbers_of_vectors(self.examples, sight, vectors)
            for split in splits or self.splits:
                made = make_inputs(self.examples, split, of_all, sight, vectors, of_vectors)
                blank = made.without_knowledge(of_all.shape[1]) if arm == "none" else made
                found.setdefault(arm, []).append(blank)
        return found

    def coverage(self, sight: Sight) -> dict[str, float]:
        """Which share of the test examples sees a text of its item, and of its user."""
        tests = np.concatenate([np.arange(split.test.start, split.test.stop) for split in self.splits])
        return {kind: round(float((getattr(sight, kind)[tests] > 0).mean()), 4) for kind in KINDS}


def write_texts(settings: Settings, domain_name: str) -> dict[str, Any]:
    """Write whatever text of all arms is not kept yet; returns what had to be written."""
    domain = load_domain(settings, domain_name)
    with open_warehouse(settings) as (_, engine):
        rows = read_source(engine, domain)
    wanted = arms.written_for(arms.choose_arms(settings))
    return texts.write_texts(settings, domain, Ground.of(domain, rows).entities, wanted).generated.summary()


def evaluate(
    settings: Settings,
    domain_name: str,
    seeds: int = SEEDS,
    control: bool = True,
    on_progress: OnProgress = lambda what, done, wanted: None,
    names: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure a domain's arms and store the result in the warehouse.

    Args:
        settings: model, encoder, data folder.
        domain_name: a domain with a section ``[evaluation]``.
        seeds: trainings of the click model on every arm and split, 2 at least.
        control: run the positive control, too, where the domain ``shop`` is configured.
        on_progress: told what is done, how much of it, and of how much.
        names: of the arms; none: all (:func:`~dare_core.evaluation.arms.choose_arms`).

    Returns:
        Differences between arms with 95% intervals (:data:`DIFFERENCES`), the arms' figures, coverage,
        slices, matching, the control, and what was measured on. A figure of an arm that was left out is None.
    """
    if seeds < 2:
        raise InputError(f"{seeds} seed makes no interval; 2 are the least")
    domain = load_domain(settings, domain_name)
    chosen = arms.choose_arms(settings, names)
    with open_warehouse(settings) as (_, engine):
        ground = Ground.of(domain, read_source(engine, domain))
        written = texts.write_texts(settings, domain, ground.entities, arms.written_for(chosen), on_progress)
        shop = load_domain(settings, _SHOP) if control and _SHOP in domain_names(settings) else None
        if shop is not None:
            write_control(settings, shop, on_progress)
        began = time.monotonic()
        result = _measured(settings, ground, chosen, written, seeds, shop, on_progress)
        result["seconds"] = round(time.monotonic() - began, 1)
        _store(engine, settings, result)
    return result


def _measured(
    settings: Settings,
    ground: Ground,
    chosen: Sequence[str],
    written: Texts,
    seeds: int,
    shop: Domain | None,
    on_progress: OnProgress,
) -> dict[str, Any]:
    domain = ground.domain
    assert domain.evaluation is not None
    evaluation = domain.evaluation
    how = evaluation.training
    by_arm = arms.arm_vectors(settings, domain, domain.knowledge.embedded, ground.entities, written.by_arm)
    ordered = {name: by_arm[name] for name in chosen}
    logits = of_tests(
        run_trials(
            ground.inputs(ordered),
            evaluation.click_model,
            seeds,
            how,
            lambda done, wanted: on_progress("training", done, wanted),
        )
    )
    controlled = None
    if shop is not None:
        controlled = run_control(
            settings,
            shop,
            evaluation.click_model,
            _CONTROL_SEEDS,
            how,
            on_progress,
            lambda done, wanted: on_progress("training, control", done, wanted),
        )
    coverage, nightly = (ground.coverage(ground.sights[name]) for name in ("no delay", "nightly"))
    return {
        "domain": domain.name,
        "evaluated_at": datetime.now(UTC).isoformat(),
        **_figures(ground, logits, seeds),
        "user_coverage": coverage["user"],
        "user_coverage_nightly": nightly["user"],
        "item_coverage": coverage["item"],
        "shop_oracle_share": controlled and controlled["share"],
        "control": controlled,
        "matching": _matching(ground, by_arm["strict"]) if "strict" in by_arm else None,
        "click_model": evaluation.click_model,
        "training": how.model_dump(),
        "form": domain.knowledge.embedded,
        "seeds": seeds,
        "texts": {arm: _text_figures(of_arm) for arm, of_arm in written.by_arm.items()},
        "generated": written.generated.summary(),
        "model": settings.model,
        "precision": model_precision(settings),
        "encoder": settings.encoder,
        "max_new_tokens": MAX_NEW_TOKENS,
        "splits": [
            {
                "tests_from": ground.rows.interactions[split.test.start].time.isoformat(),
                "train": split.train.stop,
                "validation": split.validation.stop - split.validation.start,
                "test": split.test.stop - split.test.start,
            }
            for split in ground.splits
        ],
        "entities": {kind: sum(entity.kind == kind for entity in ground.entities) for kind in KINDS},
        "interactions": len(ground.examples),
        "users_share": round(ground.rows.share, 6),
    }


def _figures(ground: Ground, logits: Logits, seeds: int) -> dict[str, Any]:
    """What the logits say of the arms, and of where knowledge helps."""
    from dare_core.evaluation.slices import by_slice, slices

    examples = ground.examples
    bootstrap = Bootstrap(
        [Tested(examples.labels[split.test], examples.fields[split.test, 0]) for split in ground.splits], seeds
    )
    aucs = {arm: bootstrap.aucs(of_arm) for arm, of_arm in logits.items()}
    losses = {arm: bootstrap.log_losses(of_arm) for arm, of_arm in logits.items()}
    found: dict[str, Any] = {}
    for name, (first, second) in DIFFERENCES.items():
        found |= dict(zip((name, f"{name}_low", f"{name}_high"), _over(aucs, first, second), strict=True))
    shuffled = {"strict", "shuffled"} <= aucs.keys()
    return found | {
        "relaxed_keeps_gain": _kept_gain(aucs, "relaxed"),
        "int8_keeps_gain": _kept_gain(aucs, "int8"),
        "smallest_effect": round(smallest_effect(aucs["strict"] - aucs["shuffled"]), 6) if shuffled else None,
        "arms": {
            arm: {
                "auc": round(float(aucs[arm][0]), 6),
                "log_loss": round(float(losses[arm][0]), 6),
                "auc_over_none": _over(aucs, arm, "none"),
                "log_loss_over_none": _over(losses, arm, "none"),
            }
            for arm in logits
        },
        "slices": by_slice(bootstrap, logits, slices(examples, ground.splits)),
    }


def _over(figures: Mapping[str, NDArray[np.float64]], first: str, second: str) -> list[float | None]:
    """By how much the first arm's figure is above the second's, and the interval; None thrice where one is left out."""
    if first not in figures or second not in figures:
        return [None] * 3
    return [round(value, 6) for value in interval(figures[first] - figures[second])]


def _kept_gain(aucs: Mapping[str, NDArray[np.float64]], arm: str) -> float | None:
    """Which share of strict's gain over shuffled an arm has; None where there is none, or an arm is left out."""
    kept, gain = (_over(aucs, first, "shuffled")[0] for first in (arm, "strict"))
    return round(kept / gain, 4) if kept is not None and gain is not None and gain > 0 else None


def _matching(ground: Ground, vectors: Vectors) -> dict[str, float | None]:
    from dare_core.evaluation.matching import recall_of_matching

    places = {
        entity.entity_id: place
        for place, entity in enumerate((one for one in ground.entities if one.kind == "item"), 1)
    }
    item_texts = np.zeros(ground.examples.fields[:, ITEM].max() + 1, np.int64)
    for code, one in zip(ground.examples.fields[:, ITEM], ground.rows.interactions, strict=True):
        item_texts[code] = places.get(one.item, 0)
    return recall_of_matching(ground.examples, ground.splits, ground.sights["no delay"], item_texts, vectors)


def _text_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    tokens = sum(row["new_tokens"] for row in rows)
    return {
        "tokens": tokens,
        "tokens_per_step": round(tokens / sum(row["steps"] for row in rows), 3),
        "relaxed_token_rate": round(sum(row["relaxed"] for row in rows) / tokens, 4),
    }


def _store(engine: Engine, settings: Settings, result: Mapping[str, Any]) -> None:
    names = (
        "domain", "model", "auc_delta_low", "auc_delta_high", "auc_gain", "auc_gain_low", "auc_gain_high", "seeds",
        "int8_auc_low", "int8_auc_high",
    )  # fmt: skip
    record_evaluation(
        engine,
        {
            **{name: result[name] for name in names},
            "evaluated_at": datetime.fromisoformat(result["evaluated_at"]),
            "entities": sum(result["entities"].values()),
            "result": dict(result),
        },
    )
    if result["auc_delta_low"] is not None and result["auc_delta_low"] < -settings.relaxed_auc_bound:
        log.warning(
            "domain %s: AUC with relaxed texts is lower than with strict ones by up to %.4f, more than "
            "relaxed_auc_bound %.4f; plans fall back to strict until an evaluation finds otherwise",
            result["domain"], -result["auc_delta_low"], settings.relaxed_auc_bound,
        )  # fmt: skip
    low, high, bound = result["int8_auc_low"], result["int8_auc_high"], settings.int8_auc_bound
    if low is not None and not -bound <= low <= high <= bound:
        log.warning(
            "domain %s: AUC with int8 texts minus with %s ones is from %.4f to %.4f, not within int8_auc_bound %.4f; "
            "with the setting weights int8 or auto, plans write in %s until an evaluation finds otherwise",
            result["domain"], result["precision"], low, high, bound, result["precision"],
        )  # fmt: skip


def compare_texts(settings: Settings, domain_name: str) -> tuple[dict[str, Any], list[Compared]]:
    """Compare the arms' kept texts; see :func:`dare_core.evaluation.comparison.compare`.

    Raises:
        InputError: the texts were not written yet.
    """
    domain = load_domain(settings, domain_name)
    with open_warehouse(settings) as (_, engine):
        entities = Ground.of(domain, read_source(engine, domain)).entities
    kept = texts.kept_texts(settings, domain, entities)
    if "strict" not in kept or len(kept) < 2:
        raise InputError(
            f"the texts of {len(entities)} entities of domain {domain.name} are not written yet; "
            f"run `dare evaluate --domain {domain.name}` first"
        )
    return compare(
        kept, arms.embed(settings, {arm: [(row["text"],) for row in of_arm] for arm, of_arm in kept.items()})
    )
