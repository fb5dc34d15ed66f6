"""``dare evaluate``: arms of texts, click models trained on each from paired seeds, and what the differences are."""

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from dare_core.config.domains import Domain, load_domain
from dare_core.config.settings import Settings
from dare_core.embedding.forms import describe
from dare_core.errors import InputError
from dare_core.evaluation import data, texts
from dare_core.evaluation.comparison import Compared, compare
from dare_core.evaluation.data import Entity, SourceRows
from dare_core.evaluation.texts import MAX_NEW_TOKENS, WRITTEN_ARMS, OnProgress, Texts
from dare_core.schemas import KINDS
from dare_core.warehouse.evaluations import record_evaluation
from dare_core.warehouse.session import open_warehouse

log = logging.getLogger(__name__)

#: Entities that texts are written about, the same for every arm.
ENTITIES: Final = 360
SEEDS: Final = 20
#: The click model that the headline figures and the gate go by: the paper's default.
HEADLINE: Final = "din"

#: Arms by name, with what they are called. ``none`` and ``attributes`` are not written by a language model.
ARM_LABELS: Final[Mapping[str, str]] = {
    "none": "no knowledge",
    "attributes": "attributes alone, embedded",
    **{arm.name: arm.label for arm in WRITTEN_ARMS},
}


def write_texts(settings: Settings, domain_name: str, entities: int = ENTITIES) -> dict[str, Any]:
    """Write whatever text of an arm is not kept yet; returns what had to be written."""
    domain = load_domain(settings, domain_name)
    with open_warehouse(settings) as (_, engine):
        rows = data.read_source(engine, domain)
    chosen = data.choose_entities(domain, rows, entities)
    return texts.write_texts(settings, domain, chosen).generated.summary()


def evaluate(
    settings: Settings,
    domain_name: str,
    seeds: int = SEEDS,
    entities: int = ENTITIES,
    on_progress: OnProgress = lambda what, done, wanted: None,
) -> dict[str, Any]:
    """Measure a domain's arms and store the result in the warehouse.

    Args:
        settings: model, encoder, data folder.
        domain_name: a domain with a section ``[evaluation]``.
        seeds: trainings of every click model on every arm, 2 at least.
        entities: to write about.
        on_progress: told what is done, how much of it, and of how much.

    Returns:
        The headline figures ``auc_delta*`` (relaxed minus strict) and ``auc_gain*`` (strict minus none), which are of
        the click model ``HEADLINE``; ``click_models`` with every arm's figures; ``texts``; and what was measured on.
    """
    if seeds < 2:
        raise InputError(f"{seeds} seed makes no interval; 2 are the least")
    domain = load_domain(settings, domain_name)
    with open_warehouse(settings) as (_, engine):
        rows = data.read_source(engine, domain)
        chosen = data.choose_entities(domain, rows, entities)
        split = data.make_split(domain, rows, chosen)
        written = texts.write_texts(settings, domain, chosen, on_progress)
        scores = _scores(settings, domain, chosen, split, written, seeds, on_progress)
        result = _result(settings, domain, rows, chosen, split, written, scores, seeds)
        _store(engine, settings, result)
    return result


Scores = Mapping[str, Mapping[str, Sequence[Any]]]


def _scores(
    settings: Settings,
    domain: Domain,
    chosen: Sequence[Entity],
    split: data.Split,
    written: Texts,
    seeds: int,
    on_progress: OnProgress,
) -> Scores:
    """Scores by click model and arm, one a seed."""
    from dare_core.evaluation.models import MODEL_NAMES
    from dare_core.evaluation.training import train_and_test

    vectors = _vectors(settings, domain, chosen, written)
    scores: dict[str, dict[str, list[Any]]] = {name: {arm: [] for arm in ARM_LABELS} for name in MODEL_NAMES}
    done, wanted = 0, seeds * len(MODEL_NAMES) * len(ARM_LABELS)
    for seed in range(seeds):
        for model_name in MODEL_NAMES:
            for arm in ARM_LABELS:
                # Without texts, whose they are does not matter.
                of_arm = vectors["strict" if arm == "none" else arm]
                scores[model_name][arm].append(train_and_test(split, of_arm, model_name, seed, arm != "none"))
                done += 1
                on_progress("training", done, wanted)
    return scores


def _vectors(settings: Settings, domain: Domain, chosen: Sequence[Entity], written: Texts) -> dict[str, Any]:
    by_arm = {name: [row["text"] for row in rows] for name, rows in written.by_arm.items()}
    by_arm["attributes"] = [describe(domain, entity.kind, entity.attributes) for entity in chosen]
    kinds = np.array([entity.kind for entity in chosen])
    encoded = encode(settings, by_arm)
    return {arm: {kind: matrix[kinds == kind] for kind in KINDS} for arm, matrix in encoded.items()}


def encode(settings: Settings, by_arm: Mapping[str, Sequence[str]]) -> dict[str, NDArray[np.float32]]:
    """``[n, width]`` vectors of texts by arm; a text that several arms have is embedded once."""
    from dare_core.embedding.encoder import Encoder

    places: dict[str, int] = {}
    for of_arm in by_arm.values():
        for text in of_arm:
            places.setdefault(text, len(places))
    matrix = Encoder.load(settings).encode(list(places)).values.to_numpy().reshape(len(places), -1)
    return {arm: matrix[[places[text] for text in of_arm]] for arm, of_arm in by_arm.items()}


def _result(
    settings: Settings,
    domain: Domain,
    rows: SourceRows,
    chosen: Sequence[Entity],
    split: data.Split,
    written: Texts,
    scores: Scores,
    seeds: int,
) -> dict[str, Any]:
    from dare_core.evaluation.statistics import paired

    aucs = {arm: [score.auc for score in of_arm] for arm, of_arm in scores[HEADLINE].items()}
    delta, gain = paired(aucs["relaxed"], aucs["strict"]), paired(aucs["strict"], aucs["none"])
    return {
        "domain": domain.name,
        "evaluated_at": datetime.now(UTC).isoformat(),
        "auc_delta": round(delta.mean, 6),
        "auc_delta_low": round(delta.low, 6),
        "auc_delta_high": round(delta.high, 6),
        "auc_gain": round(gain.mean, 6),
        "auc_gain_low": round(gain.low, 6),
        "auc_gain_high": round(gain.high, 6),
        "auc_gain_arm": "strict",
        "click_model": HEADLINE,
        "seeds": seeds,
        "click_models": {name: {arm: _arm_figures(by_arm, arm) for arm in by_arm} for name, by_arm in scores.items()},
        "texts": {arm: _text_figures(of_arm) for arm, of_arm in written.by_arm.items()},
        "generated": written.generated.summary(),
        "model": settings.model,
        "encoder": settings.encoder,
        "max_new_tokens": MAX_NEW_TOKENS,
        "split_at": split.moment.isoformat(),
        "train": len(split.train),
        "test": len(split.test),
        "entities": {kind: sum(entity.kind == kind for entity in chosen) for kind in KINDS},
        "test_share_with_text": {
            kind: round(float((split.test.texts[:, column] > 0).mean()), 4) for column, kind in enumerate(KINDS)
        },
        "interactions": len(rows.interactions),
    }


def _arm_figures(by_arm: Mapping[str, Sequence[Any]], arm: str) -> dict[str, Any]:
    from dare_core.evaluation.statistics import paired

    def column(name: str, figure: str) -> list[float]:
        return [getattr(score, figure) for score in by_arm[name]]

    return {
        "auc": round(float(np.mean(column(arm, "auc"))), 6),
        "log_loss": round(float(np.mean(column(arm, "log_loss"))), 6),
    } | {
        f"{figure}_minus_{other}": [round(value, 6) for value in paired(column(arm, figure), column(other, figure))]
        for figure in ("auc", "log_loss")
        for other in ("none", "strict")
        if other != arm
    }


def _text_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    tokens = sum(row["new_tokens"] for row in rows)
    return {
        "tokens": tokens,
        "tokens_per_step": round(tokens / sum(row["steps"] for row in rows), 3),
        "relaxed_token_rate": round(sum(row["relaxed"] for row in rows) / tokens, 4),
    }


def _store(engine: Engine, settings: Settings, result: Mapping[str, Any]) -> None:
    names = ("domain", "model", "auc_delta_low", "auc_delta_high", "auc_gain", "auc_gain_low", "auc_gain_high", "seeds")
    record_evaluation(
        engine,
        {
            **{name: result[name] for name in names},
            "evaluated_at": datetime.fromisoformat(result["evaluated_at"]),
            "entities": sum(result["entities"].values()),
            "result": dict(result),
        },
    )
    if result["auc_delta_low"] < -settings.relaxed_auc_bound:
        log.warning(
            "domain %s: AUC with relaxed texts is lower than with strict ones by up to %.4f, more than "
            "relaxed_auc_bound %.4f; plans fall back to strict until an evaluation finds otherwise",
            result["domain"], -result["auc_delta_low"], settings.relaxed_auc_bound,
        )  # fmt: skip


def compare_texts(
    settings: Settings, domain_name: str, entities: int = ENTITIES
) -> tuple[dict[str, Any], list[Compared]]:
    """Compare the arms' kept texts; see :func:`dare_core.evaluation.comparison.compare`.

    Raises:
        InputError: the strict texts, or all others, were not written yet.
    """
    domain = load_domain(settings, domain_name)
    with open_warehouse(settings) as (_, engine):
        rows = data.read_source(engine, domain)
    chosen = data.choose_entities(domain, rows, entities)
    kept = texts.kept_texts(settings, domain, chosen)
    if "strict" not in kept or len(kept) < 2:
        raise InputError(
            f"the texts of {len(chosen)} entities of domain {domain.name} are not written yet; "
            f"run `dare evaluate --domain {domain.name} --entities {entities}` first"
        )
    return compare(kept, encode(settings, {arm: [row["text"] for row in of_arm] for arm, of_arm in kept.items()}))
