"""The DAG files as Airflow's DAG processor sees them: parsed in a process of their own, with an empty AIRFLOW_HOME."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DAGS = Path(__file__).parents[2] / "dags"

DESCRIBE = """
import json, sys

from airflow.dag_processing.dagbag import DagBag
from airflow.sdk.exceptions import ParamValidationError

bag = DagBag(sys.argv[1])
imported = [name for name in ("torch", "transformers", "pyspark", "great_expectations") if name in sys.modules]


def accepts(dag_id, name, value):
    try:
        bag.dags[dag_id].params.get_param(name).resolve(value)
    except ParamValidationError:
        return False
    return True


def describe(dag):
    return {
        "tasks": {
            task.task_id: {
                "pool": task.pool,
                "downstream": sorted(task.downstream_task_ids),
                "mapped": task.is_mapped,
                "teardown": task.is_teardown,
                "updates": [asset.uri for asset in task.outlets],
            }
            for task in dag.tasks
        },
        "params": list(dag.params),
        "paused": dag.is_paused_upon_creation,
        "catchup": dag.catchup,
        "max_active_runs": dag.max_active_runs,
        "tags": sorted(dag.tags),
        "owner": dag.owner,
        "doc": bool(dag.doc_md),
        "follows": [asset.uri for asset in dag.schedule] if isinstance(dag.schedule, list) else dag.schedule,
    }


print(json.dumps({
    "errors": bag.import_errors,
    "imported": imported,
    "dags": {dag_id: describe(dag) for dag_id, dag in bag.dags.items()},
    "accepted": [accepts(*attempt) for attempt in json.loads(sys.argv[2])],
}))
"""

GOOD_PARAMS = [
    ("domain", "books_2"),
    ("kinds", ["user"]),
    ("item_limit", None),
    ("item_limit", 1),
    ("user_limit", 16),
    ("verification", "strict"),
    ("top_k", 1),
    ("min_prob", 0),
    ("max_new_tokens", 96),
    ("as_of", None),
    ("as_of", "1998-04-01T00:00:00Z"),
    ("as_of", "1998-04-01T00:00:00.000+02:00"),
]
BAD_PARAMS = [
    ("domain", "../secrets"),
    ("domain", ""),
    ("kinds", []),
    ("kinds", ["film"]),
    ("kinds", ["item", "item"]),
    ("item_limit", 0),
    ("item_limit", 1.5),
    ("user_limit", -1),
    ("verification", "lenient"),
    ("top_k", 0),
    ("min_prob", 1.1),
    ("max_new_tokens", 0),
    ("as_of", "yesterday"),
    ("as_of", "1998-04-01"),
]


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("airflow")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "DARE_"))}
    environment |= {"AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    attempts = [("refresh_knowledge", *attempt) for attempt in GOOD_PARAMS + BAD_PARAMS]
    program = subprocess.run(
        [sys.executable, "-c", DESCRIBE, str(DAGS), json.dumps(attempts)],
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
    )
    described: dict[str, Any] = json.loads(program.stdout.splitlines()[-1])
    return described


def test_both_files_import_without_error(parsed: dict[str, Any]) -> None:
    assert parsed["errors"] == {}
    assert set(parsed["dags"]) == {"refresh_knowledge", "rebuild_pools"}


def test_importing_them_brings_in_no_torch_spark_or_gx(parsed: dict[str, Any]) -> None:
    assert parsed["imported"] == []


def test_the_stages_follow_one_another_and_generation_is_mapped_in_the_gpu_pool(parsed: dict[str, Any]) -> None:
    tasks = parsed["dags"]["refresh_knowledge"]["tasks"]
    order = ["pull", "group", "plan", "generate", "validate", "embed", "load", "report"]
    assert {task: details["downstream"] for task, details in tasks.items()} == {
        stage: [following] if following else [] for stage, following in zip(order, [*order[1:], None], strict=True)
    }
    assert {task for task, details in tasks.items() if details["pool"] == "gpu"} == {"generate"}
    assert {task for task, details in tasks.items() if details["mapped"]} == {"generate"}


def test_the_report_is_written_whatever_became_of_the_run_and_decides_nothing(parsed: dict[str, Any]) -> None:
    tasks = parsed["dags"]["refresh_knowledge"]["tasks"]
    assert [task for task, details in tasks.items() if details["teardown"]] == ["report"]


def test_loaded_knowledge_starts_the_rebuilding_of_pools(parsed: dict[str, Any]) -> None:
    assert parsed["dags"]["refresh_knowledge"]["tasks"]["load"]["updates"] == ["dare://knowledge/"]
    assert parsed["dags"]["rebuild_pools"]["follows"] == ["dare://knowledge/"]
    assert list(parsed["dags"]["rebuild_pools"]["tasks"]) == ["rebuild"]


@pytest.mark.parametrize("dag_id", ["refresh_knowledge", "rebuild_pools"])
def test_a_dag_starts_paused_runs_once_at_a_time_and_explains_itself(parsed: dict[str, Any], dag_id: str) -> None:
    dag = parsed["dags"][dag_id]
    assert (dag["paused"], dag["catchup"], dag["max_active_runs"]) == (True, False, 1)
    assert (dag["owner"], dag["tags"], dag["doc"]) == ("dare", ["dare"], True)


@pytest.mark.parametrize("index", range(len(GOOD_PARAMS)), ids=[f"{name}={value}" for name, value in GOOD_PARAMS])
def test_the_form_takes(parsed: dict[str, Any], index: int) -> None:
    assert parsed["accepted"][index]


@pytest.mark.parametrize("index", range(len(BAD_PARAMS)), ids=[f"{name}={value}" for name, value in BAD_PARAMS])
def test_the_form_refuses(parsed: dict[str, Any], index: int) -> None:
    assert not parsed["accepted"][len(GOOD_PARAMS) + index]
