"""``dare evaluate`` as a whole, on a part of MovieLens, with a small random model and the real encoder."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sqlalchemy import Engine

from dare_core.config.domains import ClickTraining, Domain, load_domain
from dare_core.config.settings import Settings
from dare_core.errors import InputError
from dare_core.evaluation import control, run, texts
from dare_core.evaluation.arms import LABELS
from dare_core.evaluation.run import DIFFERENCES
from dare_core.reports.evaluation_charts import draw_evaluation
from dare_core.sources.importer import import_tables
from dare_core.sources.movielens import read_movielens
from dare_core.warehouse.evaluations import newest_evaluation
from tests.support.tiny_model import save_tiny_model

FILMS, RATINGS = 25, 1500


def quick(settings: Settings, name: str) -> Domain:
    """As it is shipped, but trained for a moment, and with users written about early."""
    domain = load_domain(settings, name)
    changed = {"first_events": 8, "training": ClickTraining(epochs=2)}
    evaluation = domain.evaluation and domain.evaluation.model_copy(update=changed)
    return domain.model_copy(update={"evaluation": evaluation})


@pytest.fixture
def settings(tmp_path: Path, warehouse_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A warehouse of the films that are rated most and their first ratings, and a small shop for the control."""
    monkeypatch.setattr(texts, "MAX_NEW_TOKENS", 6)
    monkeypatch.setattr(control, "_PRODUCTS", 20)
    monkeypatch.setattr(control, "_CUSTOMERS", 40)
    monkeypatch.setattr(run, "load_domain", quick)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})  # processes take longer to start than to train
    tables = read_movielens()
    metadata = tables["ratings"].schema.metadata
    counts = pc.value_counts(tables["ratings"]["item_id"]).to_pylist()
    most = sorted(counts, key=lambda counted: -counted["counts"])[:FILMS]
    films = pa.array([counted["values"] for counted in most])
    few = {name: tables[name].filter(pc.is_in(tables[name]["item_id"], films)) for name in ("items", "ratings")}
    ratings = few["ratings"].sort_by("rated_at").slice(0, RATINGS).replace_schema_metadata(metadata)
    import_tables(engine, {"users": tables["users"], "items": few["items"], "ratings": ratings})
    return Settings(
        data_dir=tmp_path / "data",
        warehouse_url=warehouse_url,
        model=str(save_tiny_model(tmp_path / "tiny")),
        draft_budget="fixed",
        device="cpu",
    )


def test_an_evaluation_is_measured_stored_drawn_and_compared(
    settings: Settings, engine: Engine, tmp_path: Path
) -> None:
    assert run.write_texts(settings, "movies")["texts"] > 0
    told: list[tuple[str, int, int]] = []
    result = run.evaluate(settings, "movies", seeds=2, on_progress=lambda *step: told.append(step))
    assert result["generated"]["texts"] == 0  # the task before has written them
    assert ("training", 42, 42) in told  # of seven arms, three splits and two seeds
    assert ("training, control", 27, 27) in told
    assert list(result["arms"]) == list(LABELS)
    for figures in result["arms"].values():
        assert 0.4 < figures["auc"] < 1
        assert 0.3 < figures["log_loss"] < 1
    for name, (first, second) in DIFFERENCES.items():
        of_first, of_second = (result["arms"][arm]["auc"] for arm in (first, second))
        assert result[name] == pytest.approx(of_first - of_second, abs=2e-6)
        assert result[f"{name}_low"] <= result[name] <= result[f"{name}_high"]
        if second == "none":
            interval = [result[key] for key in (name, f"{name}_low", f"{name}_high")]
            assert result["arms"][first]["auc_over_none"] == interval
    assert {"relaxed_keeps_gain", "int8_keeps_gain", "smallest_effect", "shop_oracle_share"} <= result.keys()
    assert result["seconds"] > 0
    assert result["item_coverage"] == 1
    assert 0 < result["user_coverage_nightly"] < result["user_coverage"] < 1
    assert result["shop_oracle_share"] == result["control"]["share"]
    assert result["matching"]["k"] == 50
    assert result["interactions"] == RATINGS
    assert result["entities"]["item"] == FILMS
    assert sum(split["test"] for split in result["splits"]) == pytest.approx(0.3 * RATINGS, abs=30)

    size = sum(result["entities"].values())
    stored = newest_evaluation(engine, "movies", 2, size, "int8_auc_low", settings.model)
    assert stored is not None
    assert stored["result"] == json.loads(json.dumps(result, allow_nan=False))
    for key in ("auc_gain", "auc_gain_low", "auc_delta_low", "auc_delta_high", "int8_auc_low", "int8_auc_high"):
        assert stored[key] == result[key]

    draw_evaluation(result, tmp_path / "chart.svg")
    assert (tmp_path / "chart.svg").stat().st_size > 0

    figures, compared = run.compare_texts(settings, "movies")
    assert figures["item/all"]["strict"]["alike"] == pytest.approx(1, abs=1e-3)
    assert len(compared) == sum(result["entities"].values())


def test_some_arms_alone_give_their_figures_and_none_of_the_others(
    settings: Settings, engine: Engine, tmp_path: Path
) -> None:
    result = run.evaluate(settings, "movies", 2, control=False, names=["strict", "int8", "shuffled"])
    assert list(result["arms"]) == ["shuffled", "strict", "int8"]
    assert set(result["texts"]) == {"strict", "int8"}
    assert result["precision"] == "fp32"
    arms = {name: of_arm["auc"] for name, of_arm in result["arms"].items()}
    assert result["int8_auc"] == pytest.approx(arms["int8"] - arms["strict"], abs=2e-6)
    assert result["int8_auc_low"] <= result["int8_auc"] <= result["int8_auc_high"]
    if (gain := arms["strict"] - arms["shuffled"]) > 1e-3:
        assert result["int8_keeps_gain"] == pytest.approx((arms["int8"] - arms["shuffled"]) / gain, abs=0.01)
    for missing in ("auc_gain", "auc_delta_low", "auc_nightly_high", "relaxed_keeps_gain", "shop_oracle_share"):
        assert result[missing] is None
    assert result["arms"]["strict"]["auc_over_none"] == [None] * 3
    assert newest_evaluation(engine, "movies", 2, 1, "auc_delta_low") is None
    assert newest_evaluation(engine, "movies", 2, 1, "int8_auc_low") is not None

    known = run.evaluate(settings, "movies", 2, control=False, names=["none", "int8"])
    assert known["generated"]["texts"] == 0
    assert (known["int8_auc"], known["matching"], known["slices"]) == (None, None, {})
    draw_evaluation(known, tmp_path / "chart.svg")


def test_texts_that_were_not_written_cannot_be_compared(settings: Settings) -> None:
    with pytest.raises(InputError, match="run `dare evaluate --domain movies` first"):
        run.compare_texts(settings, "movies")


def test_one_seed_is_refused(settings: Settings) -> None:
    with pytest.raises(InputError, match="2 are the least"):
        run.evaluate(settings, "movies", seeds=1)
