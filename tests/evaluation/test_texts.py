"""Arms of texts, written by the engine itself with a small random model."""

import uuid
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dare_core.config.domains import Domain
from dare_core.config.settings import Settings
from dare_core.evaluation import texts
from dare_core.evaluation.service import Entity, entities_in_service
from dare_core.evaluation.source import SourceRows
from dare_core.evaluation.texts import STRICT, WRITTEN_ARMS, kept_texts, write_texts
from dare_core.storage.locations import files_in, remove_folder
from tests.support.tiny_model import save_tiny_model

from .conftest import ITEMS, hour


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def settings(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(texts, "MAX_NEW_TOKENS", 12)
    return Settings(data_dir=tmp_path, model=str(model), checkpoint_seconds=1e-6, draft_budget="fixed", device="cpu")


@pytest.fixture
def entities(soon: Domain, rows: SourceRows) -> list[Entity]:
    """Three items, a user, and another one's first two versions."""
    found = entities_in_service(soon, rows, hour(40))
    users = [one for one in found[ITEMS:] if one.entity_id in ("u0", "u1")]
    return [*found[:3], users[0], *[one for one in users if one.entity_id == "u1"][:2]]


def test_every_arm_writes_about_the_same_entities_in_their_order(
    settings: Settings, soon: Domain, entities: list[Entity]
) -> None:
    written = write_texts(settings, soon, entities, WRITTEN_ARMS)
    assert list(written.by_arm) == [arm.name for arm in WRITTEN_ARMS] == ["strict", "relaxed", "int8"]
    for rows in written.by_arm.values():
        assert [(row["kind"], row["entity_id"]) for row in rows] == [(one.kind, one.entity_id) for one in entities]
        assert len({row["prompt"] for row in rows}) == len(entities)  # also of one user's versions
    assert len({row["request_id"] for rows in written.by_arm.values() for row in rows}) == 3 * len(entities)
    assert written.generated.texts == 3 * len(entities)
    assert sum(row["relaxed"] for row in written.by_arm["strict"]) == 0


def test_what_is_kept_is_not_written_again(settings: Settings, soon: Domain, entities: list[Entity]) -> None:
    first = write_texts(settings, soon, entities, WRITTEN_ARMS)
    again = write_texts(settings, soon, entities, WRITTEN_ARMS)
    assert again.generated.texts == 0
    assert again.by_arm == first.by_arm == kept_texts(settings, soon, entities)


def test_texts_on_the_shared_storage_stay_young_while_they_are_used_and_are_rewritten_once_a_day(
    settings: Settings, soon: Domain, entities: list[Entity], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = settings.model_copy(update={"storage": f"memory://{uuid.uuid4().hex}"})
    folder = shared.evaluation_dir(soon.name)
    first = write_texts(shared, soon, entities[:2], (STRICT,))
    write_texts(shared, soon, entities[2:3], (STRICT,))
    written = {file.path: file.written for file in files_in(folder)}
    assert kept_texts(shared, soon, entities[:2]) == first.by_arm
    assert {file.path: file.written for file in files_in(folder)} == written
    monkeypatch.setattr(texts, "_DAY", 0.0)
    elsewhere = shared.model_copy(update={"data_dir": tmp_path / "of another machine"})
    assert kept_texts(elsewhere, soon, entities[:2]) == first.by_arm
    assert [file.written > written[file.path] for file in files_in(folder)].count(False) == 1
    assert kept_texts(elsewhere, soon, entities[:2]) == first.by_arm
    remove_folder(shared.shared)


def test_an_arm_can_be_written_alone_and_the_others_later(
    settings: Settings, soon: Domain, entities: list[Entity]
) -> None:
    alone = write_texts(settings, soon, entities, (STRICT,))
    assert list(alone.by_arm) == list(kept_texts(settings, soon, entities)) == ["strict"]
    both = write_texts(settings, soon, entities, WRITTEN_ARMS)
    assert both.by_arm["strict"] == alone.by_arm["strict"]
    assert both.generated.texts == 2 * len(entities)


def test_a_try_that_was_cut_off_goes_on_where_it_stopped(
    settings: Settings, soon: Domain, entities: list[Entity]
) -> None:
    first = write_texts(settings, soon, entities, WRITTEN_ARMS)
    parts = sorted((settings.data_dir / "evaluation" / "movies" / "texts").glob("*.parquet"))
    lost = sum(pq.read_metadata(part).num_rows for part in parts[::2])
    for part in parts[::2]:
        part.unlink()
    again = write_texts(settings, soon, entities, WRITTEN_ARMS)
    assert again.generated.texts == lost > 0
    assert again.by_arm["strict"] == [
        {**row, **{name: new[name] for name in ("steps", "drafted", "accepted", "seconds")}}
        for row, new in zip(first.by_arm["strict"], again.by_arm["strict"], strict=True)
    ]


def test_an_arm_of_which_a_text_is_missing_is_not_handed_out_as_kept(
    settings: Settings, soon: Domain, entities: list[Entity]
) -> None:
    write_texts(settings, soon, entities[1:], WRITTEN_ARMS)
    assert kept_texts(settings, soon, entities) == {}


def test_the_settings_weights_change_no_arm_s_precision(
    settings: Settings, soon: Domain, entities: list[Entity]
) -> None:
    first = write_texts(settings, soon, entities, WRITTEN_ARMS)
    for weights in ("int8", "auto"):
        again = write_texts(settings.model_copy(update={"weights": weights}), soon, entities, WRITTEN_ARMS)
        assert again.generated.texts == 0
        assert again.by_arm == first.by_arm
    assert [row["text"] for row in first.by_arm["int8"]] != [row["text"] for row in first.by_arm["strict"]]
    assert sum(row["relaxed"] for row in first.by_arm["int8"]) == 0
