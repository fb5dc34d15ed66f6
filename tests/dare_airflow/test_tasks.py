"""What tasks decide, asked in a process of its own."""

import pytest

from tests.support.airflow_process import in_airflow

DECIDE = """
import json
from types import SimpleNamespace

from dare_airflow.backfill import slice_after
from dare_airflow.pools import gate, kinds_of
from dare_airflow.run_reports import RunReport


def loads(*kinds):
    return [SimpleNamespace(extra={"kinds": list(each)}) for each in kinds]


def candidates(**falling):
    return {kind: {"falls": falls} for kind, falls in falling.items()}


run = SimpleNamespace(dag_id="refresh_knowledge_films", run_id="scheduled__2026-01-01T00:00:00+00:00")
form = {"kinds": ["item"]}
print(json.dumps({
    "kinds": [kinds_of(loads(["user"], ["item", "user"]), form), kinds_of(loads(["user"]), form), kinds_of([], form)],
    "report": [RunReport().get_link(None, ti_key=run)],
    "gate": [gate.function(candidates(item=False, user=user)) for user in (True, False)],
    "slices": [slice_after("cold", {"item_limit": 2, "slice": 1}), slice_after("cold__slice-2", {"slice": 2})],
}))
"""


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[object]]:
    found: dict[str, list[object]] = in_airflow(DECIDE, tmp_path_factory.mktemp("airflow"))
    return found


def test_pools_are_rebuilt_of_the_kinds_that_were_loaded_each_once_else_of_the_forms(
    decided: dict[str, list[object]],
) -> None:
    assert decided["kinds"] == [["item", "user"], ["user"], ["item"]]


def test_a_person_is_asked_where_any_candidate_falls_behind(decided: dict[str, list[object]]) -> None:
    assert decided["gate"] == ["approve", "publish"]


def test_the_next_slice_has_the_same_form_and_the_next_number_in_its_name(decided: dict[str, list[object]]) -> None:
    assert decided["slices"] == [
        ["cold__slice-2", {"item_limit": 2, "slice": 2}],
        ["cold__slice-3", {"slice": 3}],
    ]


def test_the_button_of_a_run_leads_to_the_report_in_its_folder(decided: dict[str, list[object]]) -> None:
    [link] = decided["report"]
    assert str(link).startswith("/dare/runs/refresh_knowledge_films__scheduled__2026-01-01T00-00-00-00-00-")
    assert str(link).endswith("/report.html")
