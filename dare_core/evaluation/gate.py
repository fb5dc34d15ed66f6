"""The gates on what makes writing cheaper: relaxed verification and int8 stay on only while AUC stays in its bound."""

import logging
from dataclasses import replace
from typing import Final

from sqlalchemy import Engine

from dare_core.config.settings import Settings
from dare_core.engines.precision import INT8, model_precision, precision_of
from dare_core.knowledge.requests import Decoding
from dare_core.warehouse.evaluations import newest_evaluation

#: What a smaller evaluation finds is noise, and decides nothing.
LEAST_SEEDS: Final = 10
LEAST_ENTITIES: Final = 100

log = logging.getLogger(__name__)


def gated(settings: Settings, engine: Engine, domain: str, decoding: Decoding) -> Decoding:
    """``decoding``, in the mode and the precision that the domain's newest evaluations allow.

    An evaluation of :data:`LEAST_SEEDS` seeds and :data:`LEAST_ENTITIES` entities at least counts, if it has the arms
    that are compared. It speaks against relaxed where the 95% interval of AUC relaxed minus strict reaches below
    ``-settings.relaxed_auc_bound``, and against int8 where that of AUC int8 minus strict, of the same model, reaches
    out of ``settings.int8_auc_bound`` on either side. Without one nothing speaks against them, and ``weights = "auto"``
    is not int8.
    """
    return _gated_mode(settings, engine, domain, _gated_precision(settings, engine, domain, decoding))


def _gated_precision(settings: Settings, engine: Engine, domain: str, decoding: Decoding) -> Decoding:
    if settings.weights != "auto" and decoding.precision != INT8:
        return decoding
    found = newest_evaluation(engine, domain, LEAST_SEEDS, LEAST_ENTITIES, "int8_auc_low", decoding.model)
    bound = settings.int8_auc_bound
    passed = found is not None and -bound <= found["int8_auc_low"] and found["int8_auc_high"] <= bound
    if settings.weights == "auto":
        return replace(decoding, precision=precision_of(settings, passed))
    if found is None or passed:
        return decoding
    instead = model_precision(settings)
    log.warning(
        "domain %s: writing in %s, since AUC int8 minus %s was from %.4f to %.4f on %s, not within "
        "int8_auc_bound %.4f; evaluate again, or raise the bound",
        domain, instead, instead, found["int8_auc_low"], found["int8_auc_high"], found["evaluated_at"].date(), bound,
    )  # fmt: skip
    return replace(decoding, precision=instead)


def _gated_mode(settings: Settings, engine: Engine, domain: str, decoding: Decoding) -> Decoding:
    if decoding.verification != "relaxed":
        return decoding
    found = newest_evaluation(engine, domain, LEAST_SEEDS, LEAST_ENTITIES, "auc_delta_low")
    if found is None or found["auc_delta_low"] >= -settings.relaxed_auc_bound:
        return decoding
    log.warning(
        "domain %s: writing in strict mode, since AUC relaxed minus strict reached down to %.4f on %s, below "
        "-relaxed_auc_bound %.4f; evaluate again, or raise the bound",
        domain, found["auc_delta_low"], found["evaluated_at"].date(), -settings.relaxed_auc_bound,
    )  # fmt: skip
    return replace(decoding, verification="strict")
