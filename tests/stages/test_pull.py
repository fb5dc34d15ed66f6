"""What a run's pull is asked to read, and what becomes of what it counted; without Spark."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from dare_core.config.settings import Settings
from dare_core.schemas import GONE, PULLED
from dare_core.stages import group, pull
from dare_core.stages.request import RunRequest
from dare_core.storage import run_files
from dare_core.warehouse.entities import watermark

YESTERDAY = datetime.now(UTC) - timedelta(days=1)


class Spark:
    """In place of the program: what it was asked, and counts that it answers."""

    def __init__(self, **counts: int) -> None:
        self.asked: list[str] = []
        self.counts = counts

    def __call__(self, settings: Settings, program: str, arguments: list[str], url: str) -> dict[str, int]:
        self.asked = arguments
        return self.counts


@pytest.fixture
def settings(settings: Settings, warehouse_url: str) -> Settings:
    return Settings.model_validate(settings.model_dump() | {"warehouse_url": warehouse_url})


def pulled(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, spark: Spark, **asked: Any
) -> tuple[list[str], list[str]]:
    """What the program was asked, and what was warned of."""
    monkeypatch.setattr(pull, "submit", spark)
    monkeypatch.setattr(pull, "require_tables", lambda domain, url: None)
    summary = pull.run(settings, RunRequest(run_id="r", **asked))
    return spark.asked, summary["warnings"]


def test_a_run_of_now_takes_rows_as_they_are_read_and_one_of_the_past_does_not(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for as_of, as_read in ((None, True), (datetime.now(UTC) + timedelta(days=3), True), (YESTERDAY, False)):
        asked, _ = pulled(settings, monkeypatch, Spark(), as_of=as_of)
        assert ("--as-read" in asked) == as_read
        assert "--allow-deletions" not in asked
        (settings.run_dir("r") / "pull.json").unlink()  # a new window
    asked, _ = pulled(settings, monkeypatch, Spark(), allow_deletions=True)
    assert "--allow-deletions" in asked


def test_dropped_interactions_are_warned_of_from_a_share_on(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = ({"new_interactions": 100, "dropped_interactions": dropped} for dropped in (9, 10))
    assert pulled(settings, monkeypatch, Spark(**few))[1] == []
    [warning] = pulled(settings, monkeypatch, Spark(**many))[1]
    assert warning == "interactions whose user or item is in no table: 10 of 100 new ones, bound 0.1"


def test_what_a_run_of_the_past_leaves_out_is_warned_of_and_read_again_by_the_next(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"item": 0, "item_later": 3, "user": 0, "user_later": 2, "hidden_interactions": 40}
    _, [warning] = pulled(settings, monkeypatch, Spark(**counts), as_of=YESTERDAY)
    assert warning.startswith("left out, since they changed after ")
    assert warning.endswith(": 3 items, 2 users, 40 entries of histories")
    for kind in ("item", "user"):
        for table, schema in ((kind, PULLED), (f"gone/{kind}", GONE)):
            run_files.write_table(settings.run_dir("r") / "pulled" / table / "0.parquet", schema.empty_table())
    group.run(settings, RunRequest(run_id="r", as_of=YESTERDAY))
    assert watermark(engine, "movies", "item") == YESTERDAY
    assert watermark(engine, "movies", "user") is None  # its histories lack 40 entries
