"""``dare evaluate`` as a whole, on a part of MovieLens, with a small random model and the real encoder."""

import json
from pathlib import Path

import pytest
from sqlalchemy import Engine

from dare_core.config.settings import Settings
from dare_core.errors import InputError
from dare_core.evaluation import run, texts
from dare_core.evaluation.run import ARM_LABELS
from dare_core.reports.evaluation_charts import draw_evaluation
from dare_core.sources.importer import import_tables
from dare_core.sources.movielens import read_movielens
from dare_core.warehouse.evaluations import newest_evaluation
from tests.support.tiny_model import save_tiny_model


@pytest.fixture
def settings(tmp_path: Path, warehouse_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A warehouse of 4,000 ratings, in the order of time."""
    monkeypatch.setattr(texts, "MAX_NEW_TOKENS", 12)
    tables = read_movielens()
    metadata = tables["ratings"].schema.metadata
    early = tables["ratings"].sort_by("rated_at").slice(0, 4000)
    import_tables(engine, {**tables, "ratings": early.replace_schema_metadata(metadata)})
    return Settings(
        data_dir=tmp_path / "data",
        warehouse_url=warehouse_url,
        model=str(save_tiny_model(tmp_path / "tiny")),
        draft_budget="fixed",
    )


def test_an_evaluation_is_measured_stored_drawn_and_compared(
    settings: Settings, engine: Engine, tmp_path: Path
) -> None:
    assert run.write_texts(settings, "movies", entities=6)["texts"] > 0
    result = run.evaluate(settings, "movies", seeds=2, entities=6)
    assert result["generated"]["texts"] == 0  # the task before has written them
    assert result["train"] + result["test"] == 4000
    for arms in result["click_models"].values():
        assert set(arms) == set(ARM_LABELS)
        for arm, figures in arms.items():
            assert 0.4 < figures["auc"] < 1
            assert ("auc_minus_none" in figures) == (arm != "none")
    strict = result["click_models"]["din"]["strict"]
    assert strict["auc_minus_none"] == [result[key] for key in ("auc_gain", "auc_gain_low", "auc_gain_high")]
    relaxed = result["click_models"]["din"]["relaxed"]
    assert relaxed["auc_minus_strict"] == [result[key] for key in ("auc_delta", "auc_delta_low", "auc_delta_high")]
    stored = newest_evaluation(engine, "movies", seeds=2, entities=6)
    assert stored is not None
    assert stored["result"] == json.loads(json.dumps(result))
    assert stored["auc_delta_low"] == result["auc_delta_low"]

    draw_evaluation(result, tmp_path / "chart.svg")
    assert (tmp_path / "chart.svg").stat().st_size > 0

    figures, compared = run.compare_texts(settings, "movies", entities=6)
    assert figures["item/all"]["strict"]["alike"] == pytest.approx(1, abs=1e-3)
    assert len(compared) == 6


def test_texts_that_were_not_written_cannot_be_compared(settings: Settings) -> None:
    with pytest.raises(InputError, match="dare evaluate --domain movies --entities 6"):
        run.compare_texts(settings, "movies", entities=6)


def test_one_seed_is_refused(settings: Settings) -> None:
    with pytest.raises(InputError, match="2 are the least"):
        run.evaluate(settings, "movies", seeds=1)
