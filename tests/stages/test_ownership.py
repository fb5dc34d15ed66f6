"""Whose a run is: one domain's, one request's, and one process's at a time."""

import os
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

from dare_core.config.settings import Settings
from dare_core.errors import InputError, RunInUseError
from dare_core.stages import group, pull
from dare_core.stages.ownership import owning
from dare_core.stages.request import RunRequest
from dare_core.warehouse import leases
from dare_core.warehouse.runs import record_run

ALPHA = RunRequest(run_id="R", domain="movies")


@pytest.fixture
def settings(settings: Settings, warehouse_url: str, engine: Engine) -> Settings:
    return Settings.model_validate(settings.model_dump() | {"warehouse_url": warehouse_url})


@pytest.fixture
def pulls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What Spark was asked to pull."""
    asked: list[Any] = []
    monkeypatch.setattr(pull, "submit", lambda settings, program, arguments, url: asked.append(arguments) or {})
    monkeypatch.setattr(pull, "require_tables", lambda domain, url: None)
    return asked


def leased(engine: Engine) -> tuple[Any, ...]:
    with engine.connect() as connection:
        query = "SELECT domain, owner, expires_at - now() FROM knowledge.run_lease"
        return tuple(connection.execute(text(query)).one())


def test_a_run_of_one_domain_is_refused_to_another_before_anything_is_written(
    settings: Settings, engine: Engine, pulls: list[Any]
) -> None:
    pull.run(settings, ALPHA)
    there = sorted(settings.run_dir("R").rglob("*"))
    for stage in (pull, group):
        with pytest.raises(InputError, match="run R is of domain movies, not of shop: give this run an id of its own"):
            stage.run(settings, RunRequest(run_id="R", domain="shop"))
    assert len(pulls) == 1
    assert sorted(settings.run_dir("R").rglob("*")) == there


def test_a_run_of_an_earlier_release_is_known_by_its_record(
    settings: Settings, engine: Engine, pulls: list[Any]
) -> None:
    began = {"state": "planned", "model": "m", "started_at": datetime.now(UTC), "planned": 5}
    record_run(engine, "R", domain="movies", params=ALPHA.model_dump_json(exclude={"run_id"}), **began)
    with pytest.raises(InputError, match="run R is of domain movies"):
        pull.run(settings, RunRequest(run_id="R", domain="shop"))
    pull.run(settings, ALPHA)
    assert len(pulls) == 1


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"kinds": ("item",)}, r"begun with kinds \['item', 'user'\] and cannot go on with \['item'\]"),
        ({"as_of": datetime(2020, 1, 1, tzinfo=UTC)}, "begun with as_of None and cannot go on with 2020-01-01"),
    ],
)
def test_what_was_pulled_is_not_used_for_another_request(
    settings: Settings, pulls: list[Any], changed: dict[str, Any], says: str
) -> None:
    pull.run(settings, ALPHA)
    with pytest.raises(InputError, match=says):
        pull.run(settings, ALPHA.model_copy(update=changed))
    pull.run(settings, ALPHA.model_copy(update={"max_new_tokens": 8}))  # nothing depends on it yet
    assert len(pulls) == 2


def test_a_run_has_one_owner_at_a_time_and_says_who_and_since_when(settings: Settings, engine: Engine) -> None:
    refused: list[str] = []

    def another() -> None:  # thread, and so another owner
        with pytest.raises(RunInUseError) as error, owning(settings, ALPHA):
            pass
        refused.append(str(error.value))

    with owning(settings, ALPHA):
        with owning(settings, ALPHA):  # a stage within `dare pipeline run`
            thread = threading.Thread(target=another)
            thread.start()
            thread.join()
        assert leased(engine)[1].split()[1] == str(os.getpid())
    assert refused[0].startswith(f"process {os.getpid()} on ")
    assert f"has been at run R since {datetime.now(UTC):%Y-%m-%d}" in refused[0]
    domain, owner, left = leased(engine)
    assert (domain, owner) == ("movies", None)
    assert left < timedelta(0)
    with owning(settings, ALPHA):
        pass


@pytest.mark.parametrize("fate", ["died on this host", "expired on another"])
def test_an_owner_that_is_gone_is_followed(settings: Settings, engine: Engine, fate: str) -> None:
    with owning(settings, ALPHA):
        pass
    child = subprocess.Popen(["true"])
    child.wait()
    owner = f"{leases.new_owner().split()[0]} {child.pid} x" if "this host" in fate else "elsewhere 1 x"
    left = "1 hour" if "this host" in fate else "-1 second"
    with engine.begin() as connection:
        connection.execute(
            text(f"UPDATE knowledge.run_lease SET owner = :owner, expires_at = now() + interval '{left}'"),
            {"owner": owner},
        )
    with owning(settings, ALPHA):
        assert str(os.getpid()) in leased(engine)[1]


def test_an_owner_gives_signs_of_life(settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "LEASE", timedelta(seconds=0.4))
    with owning(settings, ALPHA):
        threading.Event().wait(0.9)
        assert leased(engine)[2] > timedelta(0)


def test_between_two_stages_a_run_waits_until_its_deadline(
    settings: Settings, engine: Engine, pulls: list[Any]
) -> None:
    pull.run(settings, ALPHA)
    _, owner, left = leased(engine)
    assert owner is None
    assert timedelta(hours=settings.deadline_hours) - left < timedelta(minutes=1)
