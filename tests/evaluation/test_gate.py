import logging
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine

from dare_core.config.settings import Settings
from dare_core.evaluation.gate import LEAST_ENTITIES, LEAST_SEEDS, gated
from dare_core.knowledge.requests import Decoding
from dare_core.warehouse.evaluations import record_evaluation

RELAXED = Decoding("m", "hash", "relaxed", 2, 0.1, 16)
NOW = datetime(2026, 1, 5, tzinfo=UTC)


def record(engine: Engine, delta_low: float, day: int = 0, domain: str = "movies", **size: int) -> None:
    figures = dict.fromkeys(("auc_delta_high", "auc_gain", "auc_gain_low", "auc_gain_high"), 0.0)
    row = {"domain": domain, "evaluated_at": NOW + timedelta(days=day), "model": "m"}
    size = {"entities": LEAST_ENTITIES, "seeds": LEAST_SEEDS, **size}
    record_evaluation(engine, {**row, **size, **figures, "auc_delta_low": delta_low, "result": {"seeds": 2}})


def test_without_an_evaluation_relaxed_stays_on(settings: Settings, engine: Engine) -> None:
    assert gated(settings, engine, "movies", RELAXED) == RELAXED


@pytest.mark.parametrize(("delta_low", "mode"), [(-0.0019, "relaxed"), (0.01, "relaxed"), (-0.0021, "strict")])
def test_relaxed_stays_on_while_its_auc_is_within_the_bound_of_strict(
    settings: Settings, engine: Engine, delta_low: float, mode: str
) -> None:
    record(engine, delta_low)
    assert gated(settings, engine, "movies", RELAXED).verification == mode


def test_falling_back_is_said_with_the_figure_and_what_to_do(
    settings: Settings, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    record(engine, -0.03)
    with caplog.at_level(logging.WARNING):
        gated(settings, engine, "movies", RELAXED)
    assert "strict" in caplog.text
    assert "-0.03" in caplog.text
    assert "relaxed_auc_bound" in caplog.text


def test_the_newest_evaluation_of_the_domain_counts(settings: Settings, engine: Engine) -> None:
    record(engine, -0.03, day=0)
    record(engine, 0.0, day=7)
    record(engine, -0.03, day=9, domain="films")
    assert gated(settings, engine, "movies", RELAXED).verification == "relaxed"
    assert gated(settings, engine, "films", RELAXED).verification == "strict"


@pytest.mark.parametrize("size", [{"seeds": LEAST_SEEDS - 1}, {"entities": LEAST_ENTITIES - 1}])
def test_an_evaluation_that_is_too_small_decides_nothing(
    settings: Settings, engine: Engine, size: dict[str, int]
) -> None:
    record(engine, 0.0)
    record(engine, -0.03, day=7, **size)
    assert gated(settings, engine, "movies", RELAXED).verification == "relaxed"


def test_strict_stays_strict(settings: Settings, engine: Engine) -> None:
    record(engine, 0.5)
    strict = Decoding("m", "hash", "strict", 2, 0.1, 16)
    assert gated(settings, engine, "movies", strict) == strict


def test_the_bound_is_a_setting(settings: Settings, engine: Engine) -> None:
    record(engine, -0.03)
    lenient = settings.model_copy(update={"relaxed_auc_bound": 0.05})
    assert gated(lenient, engine, "movies", RELAXED) == RELAXED
