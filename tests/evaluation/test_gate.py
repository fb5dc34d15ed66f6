import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine

from dare_core.config.settings import Settings
from dare_core.evaluation.gate import LEAST_ENTITIES, LEAST_SEEDS, gated
from dare_core.knowledge.requests import Decoding
from dare_core.warehouse.evaluations import record_evaluation

RELAXED = Decoding("m", "hash", "relaxed", 2, 0.1, 16)
NOW = datetime(2026, 1, 5, tzinfo=UTC)


def record(engine: Engine, delta_low: float | None, day: int = 0, domain: str = "movies", **size: float | str) -> None:
    figures = dict.fromkeys(("auc_delta_high", "auc_gain", "auc_gain_low", "auc_gain_high"), 0.0)
    row = {"domain": domain, "evaluated_at": NOW + timedelta(days=day), "model": "m"}
    sizes = {"entities": LEAST_ENTITIES, "seeds": LEAST_SEEDS, **size}
    record_evaluation(engine, {**row, **sizes, **figures, "auc_delta_low": delta_low, "result": {"seeds": 2}})


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


INT8 = Decoding("m", "hash", "strict", 2, 0.1, 16, "int8")
FP32 = replace(INT8, precision="fp32")


def with_weights(settings: Settings, weights: str) -> Settings:
    return settings.model_copy(update={"weights": weights, "device": "cpu"})


@pytest.mark.parametrize(
    ("low", "high", "precision"),
    [(-0.001, 0.001, "int8"), (-0.0021, 0.001, "fp32"), (-0.001, 0.0021, "fp32"), (None, None, None)],
)
def test_int8_stays_on_unless_an_evaluation_puts_its_auc_outside_the_bound_and_auto_is_int8_only_inside(
    settings: Settings, engine: Engine, low: float | None, high: float | None, precision: str | None
) -> None:
    if low is not None and high is not None:
        record(engine, None, int8_auc_low=low, int8_auc_high=high)
    named, auto = with_weights(settings, "int8"), with_weights(settings, "auto")
    assert gated(named, engine, "movies", INT8).precision == (precision or "int8")
    assert gated(auto, engine, "movies", FP32).precision == (precision or "fp32")
    assert gated(settings, engine, "movies", FP32) == FP32  # weights = "model"


def test_an_evaluation_of_some_arms_decides_about_these_alone(settings: Settings, engine: Engine) -> None:
    record(engine, -0.03)
    record(engine, None, day=7, int8_auc_low=-0.001, int8_auc_high=0.001)
    record(engine, 0.0, day=9)
    auto = with_weights(settings, "auto")
    assert gated(auto, engine, "movies", RELAXED) == replace(RELAXED, precision="int8")
    record(engine, -0.03, day=10)
    record(engine, None, day=11, int8_auc_low=-0.1, int8_auc_high=0.001)
    assert gated(auto, engine, "movies", RELAXED) == replace(RELAXED, verification="strict")


def test_an_evaluation_of_another_model_says_nothing_of_this_one_s_int8(settings: Settings, engine: Engine) -> None:
    record(engine, None, int8_auc_low=0.0, int8_auc_high=0.0)
    other = replace(FP32, model="n")
    assert gated(with_weights(settings, "auto"), engine, "movies", other) == other


def test_auto_is_int8_only_where_our_engine_writes_in_it(settings: Settings, engine: Engine) -> None:
    record(engine, None, int8_auc_low=0.0, int8_auc_high=0.0)
    for elsewhere in ({"device": "cuda"}, {"dtype": "bfloat16"}, {"engine": "vllm"}):
        found = gated(with_weights(settings, "auto").model_copy(update=elsewhere), engine, "movies", FP32)
        assert found.precision == ("bf16" if "dtype" in elsewhere else "fp32")


def test_leaving_int8_is_said_with_the_figures_and_what_to_do(
    settings: Settings, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    record(engine, None, int8_auc_low=-0.04, int8_auc_high=0.001)
    with caplog.at_level(logging.WARNING):
        gated(with_weights(settings, "int8"), engine, "movies", INT8)
    for said in ("writing in fp32", "-0.0400 to 0.0010", "int8_auc_bound"):
        assert said in caplog.text
