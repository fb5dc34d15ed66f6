import json

import pytest

from dare_core.config.settings import load_settings
from dare_core.operations.alerts import deadline_missed


def test_a_missed_deadline_is_logged_and_kept_in_the_data_folder(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DARE_DATA_DIR", str(tmp_path))
    for run_id in ("monday", "tuesday"):
        deadline_missed(12.0, {"dag_run": {"dag_id": "refresh_knowledge_movies", "dag_run_id": run_id}})
    lines = (load_settings().data_dir / "alerts.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["run_id"] for line in lines] == ["monday", "tuesday"]
    assert "refresh_knowledge_movies tuesday has not ended within 12 hours" in caplog.text
