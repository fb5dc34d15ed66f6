"""Arms of texts, written by the engine itself with a small random model."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from dare_core.evaluation.data import Entity, SourceRows, choose_entities

from dare_core.config.domains import Domain
from dare_core.config.settings import Settings
from dare_core.evaluation import texts
from dare_core.evaluation.texts import WRITTEN_ARMS, kept_texts, write_texts
from tests.support.tiny_model import save_tiny_model

ENTITIES = 6
#: What the arm that is refreshed begins with are the texts of the relaxed arm.
ALL_TEXTS = ENTITIES * (len(WRITTEN_ARMS) - 1 + sum(arm.refreshes for arm in WRITTEN_ARMS))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def settings(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(texts, "MAX_NEW_TOKENS", 12)
    return Settings(data_dir=tmp_path, model=str(model), checkpoint_seconds=1e-6, draft_budget="fixed")


@pytest.fixture
def entities(movies: Domain, rows: SourceRows) -> list[Entity]:
    return choose_entities(movies, rows, ENTITIES)


def test_every_arm_writes_about_the_same_entities_in_their_order(
    settings: Settings, movies: Domain, entities: list[Entity]
) -> None:
    written = write_texts(settings, movies, entities)
    assert list(written.by_arm) == [arm.name for arm in WRITTEN_ARMS]
    for rows in written.by_arm.values():
        assert [(row["kind"], row["entity_id"]) for row in rows] == [(one.kind, one.entity_id) for one in entities]
        assert len({row["prompt"] for row in rows}) == ENTITIES
    assert len({row["request_id"] for rows in written.by_arm.values() for row in rows}) == 4 * ENTITIES
    assert written.generated.texts == ALL_TEXTS
    assert sum(row["relaxed"] for row in written.by_arm["strict"]) == 0


def test_what_is_kept_is_not_written_again(settings: Settings, movies: Domain, entities: list[Entity]) -> None:
    first = write_texts(settings, movies, entities)
    again = write_texts(settings, movies, entities)
    assert again.generated.texts == 0
    assert again.by_arm == first.by_arm == kept_texts(settings, movies, entities)


def test_a_try_that_was_cut_off_goes_on_where_it_stopped(
    settings: Settings, movies: Domain, entities: list[Entity]
) -> None:
    first = write_texts(settings, movies, entities)
    parts = sorted((settings.data_dir / "evaluation" / "movies" / "texts").glob("*.parquet"))
    lost = sum(pq.read_metadata(part).num_rows for part in parts[::2])
    for part in parts[::2]:
        part.unlink()
    again = write_texts(settings, movies, entities)
    assert again.generated.texts == lost > 0
    assert again.by_arm["strict"] == [
        {**row, **{name: new[name] for name in ("steps", "drafted", "accepted", "seconds")}}
        for row, new in zip(first.by_arm["strict"], again.by_arm["strict"], strict=True)
    ]


def test_an_arm_of_which_a_text_is_missing_is_not_handed_out_as_kept(
    settings: Settings, movies: Domain, entities: list[Entity]
) -> None:
    write_texts(settings, movies, entities[1:])
    assert kept_texts(settings, movies, entities) == {}


def test_a_refresh_drafts_from_what_the_arm_wrote_before(
    settings: Settings, movies: Domain, entities: list[Entity]
) -> None:
    """With its own text in the pool, a text takes few steps; learned texts and its own words are the same for both."""
    written = write_texts(settings.model_copy(update={"learned_tokens": 0}), movies, entities)
    steps = {name: sum(row["steps"] for row in rows) for name, rows in written.by_arm.items()}
    assert steps["refreshed"] < 0.8 * steps["relaxed"]
