"""What tasks decide, asked in a process of its own."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine

from dare_airflow.setup import connection_fields
from dare_core.warehouse.runs import record_run
from tests.support.airflow_process import in_airflow

DECIDE = """
import json
import os
import tempfile
from types import SimpleNamespace

os.environ["DARE_DATA_DIR"] = tempfile.mkdtemp()

from dare_airflow import backfill
from dare_airflow.backfill import slice_after
from dare_core.config.settings import load_settings
from dare_core.errors import QualityError
from dare_core.operations.alerts import read_alerts
from dare_core.stages import order
from dare_airflow.pools import gate, kinds_of
from dare_airflow.run_reports import RunReport


def loads(*kinds):
    return [SimpleNamespace(extra={"kinds": list(each)}) for each in kinds]


def candidates(**falling):
    return {kind: {"falls": falls} for kind, falls in falling.items()}


def stopped():
    def lost(settings, request):
        raise QualityError("81% of the texts were lost")

    dag = SimpleNamespace(dag_id="backfill_knowledge_films")
    order.slice_ended, backfill.settings, backfill.run_request = lost, load_settings, lambda domain: None
    backfill.get_current_context = lambda: {"dag": dag, "run_id": "cold", "params": {}}
    try:
        backfill.next_slice.function("films")
    except QualityError as error:
        return [str(error), *read_alerts(load_settings())]


run = SimpleNamespace(dag_id="refresh_knowledge_films", run_id="scheduled__2026-01-01T00:00:00+00:00")
form = {"kinds": ["item"]}
print(json.dumps({
    "kinds": [kinds_of(loads(["user"], ["item", "user"]), form), kinds_of(loads(["user"]), form), kinds_of([], form)],
    "report": [RunReport().get_link(None, ti_key=run)],
    "gate": [gate.function(candidates(item=False, user=user)) for user in (True, False)] + [gate.function({})],
    "stopped": stopped(),
    "slices": [slice_after("cold", {"item_limit": 2, "slice": 1}), slice_after("cold__slice-2", {"slice": 2})],
}))
"""

LIST_RUNS = """
import json, os, sys
from pathlib import Path

from dare_airflow.installation import settings
from dare_airflow.run_reports import listed_runs

found = [run.run_id for run in listed_runs()]
del os.environ["AIRFLOW_CONN_DARE_WAREHOUSE"]
try:
    listed_runs()
    said = ""
except Exception as error:
    said = f"{type(error).__name__}: {error}"
os.environ["DARE_ENGINE"] = "endpoint"
key = settings().endpoint_key.get_secret_value()
print(json.dumps([found, said, Path(os.environ["DARE_DATA_DIR"]).exists(), key]))
"""


def test_pages_read_the_warehouse_of_airflows_connection_and_start_no_server(
    tmp_path: Path, warehouse_url: str, engine: Engine
) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    record_run(engine, "monday", domain="movies", state="planned", params="{}", model="m", planned=1, started_at=now)
    connection = json.dumps(connection_fields(warehouse_url))
    variables = {
        "AIRFLOW_CONN_DARE_WAREHOUSE": connection,
        "AIRFLOW_CONN_DARE_ENDPOINT": json.dumps({"conn_type": "http", "password": "sk-secret"}),
        "DARE_DATA_DIR": str(tmp_path / "data"),
    }
    found, said, started, key = in_airflow(LIST_RUNS, tmp_path, **variables)
    assert found == ["monday"]
    assert said.startswith("WarehouseError: no warehouse is known here: set DARE_WAREHOUSE_URL, or")
    assert not started
    assert key == "sk-secret"  # of the endpoint, likewise


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[object]]:
    found: dict[str, list[object]] = in_airflow(DECIDE, tmp_path_factory.mktemp("airflow"))
    return found


def test_pools_are_rebuilt_of_the_kinds_that_were_loaded_each_once_else_of_the_forms(
    decided: dict[str, list[object]],
) -> None:
    assert decided["kinds"] == [["item", "user"], ["user"], ["item"]]


def test_a_person_is_asked_where_any_candidate_falls_behind_and_nothing_follows_where_none_was_built(
    decided: dict[str, list[object]],
) -> None:
    assert decided["gate"] == ["approve", "publish", []]


def test_the_next_slice_has_the_same_form_and_the_next_number_in_its_name(decided: dict[str, list[object]]) -> None:
    assert decided["slices"] == [
        ["cold__slice-2", {"item_limit": 2, "slice": 2}],
        ["cold__slice-3", {"slice": 3}],
    ]


def test_the_button_of_a_run_leads_to_the_report_in_its_folder(decided: dict[str, list[object]]) -> None:
    [link] = decided["report"]
    assert str(link).startswith("/dare/runs/refresh_knowledge_films__scheduled__2026-01-01T00-00-00-00-00-")
    assert str(link).endswith("/report.html")


def test_a_backfill_that_lost_too_much_says_why_and_raises_an_alert(decided: dict[str, list[object]]) -> None:
    said, alert = decided["stopped"]
    assert said == "81% of the texts were lost"
    assert isinstance(alert, dict)
    del alert["at"]
    assert alert == {
        "alert": "backfill stopped", "dag_id": "backfill_knowledge_films", "run_id": "cold", "reason": said
    }  # fmt: skip
