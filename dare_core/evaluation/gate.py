"""The gate on the verification mode: relaxed stays on only while it costs no more AUC than the bound allows."""

import logging
from dataclasses import replace
from typing import Final

from sqlalchemy import Engine

from dare_core.config.settings import Settings
from dare_core.knowledge.requests import Decoding
from dare_core.warehouse.evaluations import newest_evaluation

#: What a smaller evaluation finds is noise, and decides nothing.
LEAST_SEEDS: Final = 10
LEAST_ENTITIES: Final = 100

log = logging.getLogger(__name__)


def gated(settings: Settings, engine: Engine, domain: str, decoding: Decoding) -> Decoding:
    """``decoding``, or the same in strict mode where the domain's newest evaluation speaks against relaxed.

    An evaluation of :data:`LEAST_SEEDS` seeds and :data:`LEAST_ENTITIES` entities at least counts. It speaks against
    relaxed where the 95% interval of AUC relaxed minus strict reaches below ``-settings.relaxed_auc_bound``. Without
    one nothing speaks against it.
    """
    if decoding.verification != "relaxed":
        return decoding
    found = newest_evaluation(engine, domain, LEAST_SEEDS, LEAST_ENTITIES)
    if found is None or found["auc_delta_low"] >= -settings.relaxed_auc_bound:
        return decoding
    log.warning(
        "domain %s: writing in strict mode, since AUC relaxed minus strict reached down to %.4f on %s, below "
        "-relaxed_auc_bound %.4f; evaluate again, or raise the bound",
        domain, found["auc_delta_low"], found["evaluated_at"].date(), -settings.relaxed_auc_bound,
    )  # fmt: skip
    return replace(decoding, verification="strict")
