import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dare_core.config.settings import Settings
from dare_core.operations.alerts import deadline_missed, expire_alerts, raise_alert, read_alerts
from dare_core.storage.atomic import write_atomically
from dare_core.storage.locations import matching, remove_folder


@pytest.fixture(params=["local", "remote"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    storage = f"memory://{uuid.uuid4().hex}" if request.param == "remote" else None
    settings = Settings(data_dir=tmp_path / "data", storage=storage, keep_alert_days=3)
    yield settings
    remove_folder(settings.shared)


def name(age: timedelta) -> str:
    return f"{datetime.now(UTC) - age:%Y%m%dT%H%M%S.%fZ}-{uuid.uuid4().hex[:8]}.json"


def test_a_missed_deadline_is_logged_and_seen_by_every_machine_of_the_storage(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DARE_DATA_DIR", str(settings.data_dir))
    if settings.storage is not None:
        monkeypatch.setenv("DARE_STORAGE", settings.storage)
    for run_id in ("monday", "tuesday"):
        deadline_missed(12.0, {"dag_run": {"dag_id": "refresh_knowledge_movies", "dag_run_id": run_id}})
    assert "refresh_knowledge_movies tuesday has not ended within 12 hours" in caplog.text
    shared = str(settings.shared)
    seen = read_alerts(Settings(data_dir=tmp_path / "of another machine", storage=shared))
    assert [alert["run_id"] for alert in seen] == ["monday", "tuesday"]
    assert {(alert["alert"], alert["hours"]) for alert in seen} == {("deadline missed", 12.0)}


def test_alerts_of_release_0_1_0_are_read_and_expire_too(settings: Settings) -> None:
    assert read_alerts(settings) == []
    assert expire_alerts(settings) == {"removed": 0, "left": 0}
    young = (datetime.now(UTC) - timedelta(days=2)).isoformat(timespec="seconds")
    lines = [json.dumps({"at": at, "alert": at}) for at in ("2020-01-01T00:00:00+00:00", young)]
    file = settings.data_dir / "alerts.jsonl"
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join([lines[0], "no alert", lines[1], ""]))
    raise_alert(settings, "new")
    assert [alert["alert"] for alert in read_alerts(settings)] == ["2020-01-01T00:00:00+00:00", young, "new"]
    assert expire_alerts(settings) == {"removed": 1, "left": 3}
    assert [alert["alert"] for alert in read_alerts(settings)] == [young, "new"]
    assert file.read_text() == f"no alert\n{lines[1]}\n"


def test_alerts_expire_by_when_they_were_raised_and_what_is_no_alert_stays(settings: Settings) -> None:
    folder = settings.shared / "alerts"
    names = [name(timedelta(days=4)), name(timedelta(days=2)), "notes.json"]
    for each in names:
        write_atomically(folder / each, b"{}", durable=False)
    assert expire_alerts(settings) == {"removed": 1, "left": 1}
    assert {path.name for path in matching(folder)} == set(names[1:])
    assert expire_alerts(settings) == {"removed": 0, "left": 1}
