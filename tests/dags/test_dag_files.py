"""The DAG files as Airflow's DAG processor sees them: parsed in a process of their own, with an empty AIRFLOW_HOME."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dare_airflow.local.airflow import DAGS_DIR
from dare_core.config.settings import PROJECT_DIR
from dare_core.stages.request import RunRequest
from tests.support.airflow_process import in_airflow

DOMAINS = ("films", "movies")

DESCRIBE = """
import json, sys, time

import airflow.sdk
from airflow.dag_processing.dagbag import BundleDagBag
from airflow.sdk.exceptions import ParamValidationError

bag = BundleDagBag(sys.argv[1], bundle_path=sys.argv[1])
heavy = ("torch", "transformers", "pyspark", "great_expectations", "pyarrow")
imported = [name for name in heavy if name in sys.modules]


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
                "hours": task.execution_timeout and task.execution_timeout.total_seconds() / 3600,
                "queue": task.queue,
                "downstream": sorted(task.downstream_task_ids),
                "mapped": task.is_mapped,
                "reads": [asset.uri for asset in task.inlets],
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
        "deadline": bool(dag.deadline),
        "follows": [asset.uri for asset in dag.schedule] if isinstance(dag.schedule, list) else dag.schedule,
    }


def decided(error):
    return RETRY_POLICY.evaluate(error, try_number=1, max_tries=2).action.value


from airflow import plugins_manager
from airflow.sdk.exceptions import AirflowTaskTimeout

from dare_core import errors
from dare_airflow.defaults import RETRY_POLICY
from dare_airflow.run_names import folder_name

print(json.dumps({
    "folders": [folder_name(*run) for run in json.loads(sys.argv[3])],
    "retries": {
        name: decided(getattr(errors, name)("")) for name in dir(errors) if name.endswith("Error")
    } | {"MemoryError": decided(MemoryError()), "KeyError": decided(KeyError("a defect")),
         "AirflowTaskTimeout": decided(AirflowTaskTimeout())},
    "errors": bag.import_errors,
    "imported": imported,
    "dags": {dag_id: describe(dag) for dag_id, dag in bag.dags.items()},
    "plugins": [
        [str(plugin["source"]), plugin["fastapi_apps"], plugin["external_views"]]
        for plugin in plugins_manager.get_plugin_info(["source", "fastapi_apps", "external_views"])
        if plugin["name"].startswith("dare")
    ],
    "deadline_references": list(plugins_manager.get_deadline_references_plugins()),
    "accepted": [accepts(*attempt) for attempt in json.loads(sys.argv[2])],
}))
"""

GOOD_PARAMS = [
    ("kinds", ["user"]),
    ("item_limit", None),
    ("item_limit", 1),
    ("user_limit", 16),
    ("verification", "strict"),
    ("top_k", 1),
    ("min_prob", 0),
    ("max_new_tokens", 96),
    ("as_of", None),
    ("allow_deletions", True),
    ("as_of", "1998-04-01T00:00:00Z"),
    ("as_of", "1998-04-01T00:00:00.000+02:00"),
]
BAD_PARAMS = [
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


#: Runs as Airflow calls them: of two DAGs that a schedule starts at one moment, and by hand.
RUNS = [
    ("refresh_knowledge_films", "scheduled__2026-01-01T00:00:00+00:00"),
    ("refresh_knowledge_movies", "scheduled__2026-01-01T00:00:00+00:00"),
    ("refresh_knowledge_movies", "manual__2026-01-01T00:00:00+00:00_x/../.."),
    ("refresh_knowledge_movies", "night-1"),
    ("refresh_knowledge_films", "night-1"),
    ("backfill_knowledge_films", "night-1"),
    *(("refresh_knowledge_movies", f"a{between}b") for between in ":+~"),
    ("refresh_knowledge_movies", "a" * 250),
    ("refresh_knowledge_movies", "a" * 249),
]
#: A second domain, with a schedule of its own.
HOURLY = """
[schedule]
refresh = "@hourly"
"""


def parse(home: Path, **settings: str) -> dict[str, Any]:
    """What a DAG processor with these ``DARE_…`` settings finds in the folder of DAG files."""
    attempts = [("refresh_knowledge_movies", *attempt) for attempt in GOOD_PARAMS + BAD_PARAMS]
    arguments = (str(DAGS_DIR), json.dumps(attempts), json.dumps(RUNS))
    described: dict[str, Any] = in_airflow(DESCRIBE, home, *arguments, **settings)
    return described


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The DAGs of two domains: movies as shipped, and a copy of it that is refreshed hourly."""
    home = tmp_path_factory.mktemp("airflow")
    config = home / "config"
    config.mkdir()
    movies = (PROJECT_DIR / "config" / "movies.toml").read_text("utf-8")
    (config / "movies.toml").write_text(movies, "utf-8")
    (config / "films.toml").write_text(HOURLY + movies, "utf-8")
    return parse(home, DARE_CONFIG_DIR=str(config), DARE_SPARK_HOURS="5")


def test_every_domain_has_its_dags_and_all_files_import_without_error(parsed: dict[str, Any]) -> None:
    assert parsed["errors"] == {}
    templates = ("refresh_knowledge", "rebuild_pools", "backfill_knowledge", "evaluate_features")
    assert set(parsed["dags"]) == {"maintain"} | {f"{name}_{domain}" for name in templates for domain in DOMAINS}


def test_domain_files_that_are_broken_are_import_errors_and_the_other_domains_keep_their_dags(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.mkdir()
    movies = (PROJECT_DIR / "config" / "movies.toml").read_text("utf-8")
    (config / "movies.toml").write_text(movies, "utf-8")
    (config / "books.toml").write_text(movies.replace("[source]", "[source"), "utf-8")
    (config / "films.toml").write_text(movies.replace("[source]", "[sauce]"), "utf-8")
    (config / "songs.toml").write_text(HOURLY.replace("@hourly", "at noon") + movies, "utf-8")
    found = parse(tmp_path, DARE_CONFIG_DIR=str(config))
    templates = ("refresh_knowledge", "rebuild_pools", "backfill_knowledge", "evaluate_features")
    assert set(found["dags"]) == {"maintain"} | {f"{name}_movies" for name in templates}
    assert list(found["errors"]) == ["domain_errors.py"]
    for file, problem in (
        ("books.toml", "not valid TOML"),
        ("films.toml", "sauce: Extra inputs are not permitted"),
        ("songs.toml", "schedule.refresh: "),
    ):
        assert any(file in line and problem in line for line in found["errors"]["domain_errors.py"].splitlines()), file


def test_two_domains_runs_of_one_moment_have_folders_of_their_own_and_no_name_leads_elsewhere(
    parsed: dict[str, Any],
) -> None:
    films, _, by_hand, named, _, _, *alike = parsed["folders"]
    assert re.sub("-[0-9a-f]{8}$", "", films) == "refresh_knowledge_films__scheduled__2026-01-01T00-00-00-00-00"
    assert re.sub("-[0-9a-f]{8}$", "", by_hand) == "refresh_knowledge_movies__manual__2026-01-01T00-00-00-00-00_x-..-.."
    assert named == "refresh_knowledge_movies__night-1"
    assert len(set(parsed["folders"])) == len(RUNS)
    assert len({re.sub("-[0-9a-f]{8}$", "", name) for name in alike}) == 2
    assert all(RunRequest(run_id=name).run_id == name for name in parsed["folders"])


def test_importing_them_brings_in_no_torch_spark_gx_or_arrow(parsed: dict[str, Any]) -> None:
    assert parsed["imported"] == []


def test_airflow_finds_pages_menu_and_deadline_reference_by_entry_point(parsed: dict[str, Any]) -> None:
    plugins = parsed["plugins"]
    assert {source.partition("==")[0] for source, _, _ in plugins} == {"dare-platform"}
    assert [app["url_prefix"] for _, apps, _ in plugins for app in apps] == ["/dare"]
    assert [view["href"] for _, _, views in plugins for view in views] == ["/dare/runs/"]
    assert parsed["deadline_references"] == ["dare_airflow.deadline.RunQueued"]


@pytest.mark.parametrize("template", ["refresh_knowledge", "backfill_knowledge"])
def test_the_stages_follow_one_another_and_generation_is_mapped_in_the_gpu_pool(
    parsed: dict[str, Any], template: str
) -> None:
    tasks = parsed["dags"][f"{template}_movies"]["tasks"]
    order = ["pull", "group", "plan", "generate", "load"]
    last = {"refresh_knowledge": ["report"], "backfill_knowledge": ["next_slice", "report", "slice_loaded"]}[template]
    assert {task: tasks[task]["downstream"] for task in order} == {
        **{stage: [following] for stage, following in pairwise(order)},
        "load": last,
    }
    assert [task for task, details in tasks.items() if details["pool"] == "gpu"] == ["generate"]
    assert [task for task, details in tasks.items() if details["queue"] == "gpu"] == ["generate"]
    assert [task for task, details in tasks.items() if details["mapped"]] == ["generate"]


@pytest.mark.parametrize("template", ["refresh_knowledge", "backfill_knowledge"])
def test_the_report_is_written_whatever_became_of_the_run_and_decides_nothing(
    parsed: dict[str, Any], template: str
) -> None:
    tasks = parsed["dags"][f"{template}_movies"]["tasks"]
    assert [task for task, details in tasks.items() if details["teardown"]] == ["report"]


def test_a_red_stage_makes_a_slice_of_a_backfill_red_though_the_next_one_is_started(parsed: dict[str, Any]) -> None:
    tasks = parsed["dags"]["backfill_knowledge_movies"]["tasks"]
    assert {task for task, details in tasks.items() if not details["downstream"]} == {
        "next_slice",
        "report",
        "slice_loaded",
    }


def test_assets_lead_from_the_source_tables_to_the_features_and_pools_of_a_domain(parsed: dict[str, Any]) -> None:
    refresh, rebuild = (parsed["dags"][f"{name}_films"] for name in ("refresh_knowledge", "rebuild_pools"))
    assert refresh["tasks"]["pull"]["reads"] == ["dare://films/source"]
    assert refresh["tasks"]["group"]["updates"] == refresh["tasks"]["plan"]["reads"] == ["dare://films/entities"]
    assert refresh["tasks"]["generate"]["reads"] == ["dare://films/pools"]
    assert refresh["tasks"]["load"]["updates"] == ["dare://films/knowledge", "dare://films/features"]
    assert rebuild["follows"] == ["dare://films/knowledge"]
    assert rebuild["tasks"]["publish"]["updates"] == ["dare://films/pools"]


def test_a_new_pool_passes_the_gate_before_it_is_published(parsed: dict[str, Any]) -> None:
    tasks = parsed["dags"]["rebuild_pools_movies"]["tasks"]
    assert {task: details["downstream"] for task, details in tasks.items()} == {
        "build": ["gate", "publish"],
        "gate": ["approve", "publish"],
        "approve": ["publish"],
        "publish": [],
    }


def test_features_are_evaluated_weekly_with_the_texts_written_in_the_gpu_pool(parsed: dict[str, Any]) -> None:
    dag = parsed["dags"]["evaluate_features_movies"]
    assert dag["follows"] == "@weekly"
    assert {task: (details["pool"], details["downstream"]) for task, details in dag["tasks"].items()} == {
        "write_texts": ("gpu", ["evaluate"]),
        "evaluate": ("default_pool", []),
    }


def test_a_domain_is_refreshed_on_its_own_schedule_else_on_the_settings(parsed: dict[str, Any]) -> None:
    assert parsed["dags"]["refresh_knowledge_films"]["follows"] == "@hourly"
    assert parsed["dags"]["refresh_knowledge_movies"]["follows"] == "@daily"
    assert parsed["dags"]["backfill_knowledge_films"]["follows"] is None


def test_none_as_schedule_leaves_every_dag_to_people(tmp_path: Path) -> None:
    dags = parse(tmp_path, DARE_REFRESH_SCHEDULE="none", DARE_MAINTAIN_SCHEDULE="none", DARE_EVALUATE_SCHEDULE="none")[
        "dags"
    ]
    assert {dag_id: dag["follows"] for dag_id, dag in dags.items() if not dag_id.startswith("rebuild_pools")} == {
        dag_id: None for dag_id in dags if not dag_id.startswith("rebuild_pools")
    }


def test_a_dag_starts_paused_runs_once_at_a_time_and_explains_itself(parsed: dict[str, Any]) -> None:
    for dag_id, dag in parsed["dags"].items():
        domain = [] if dag_id == "maintain" else [dag_id.rpartition("_")[2]]
        assert (dag["paused"], dag["catchup"], dag["max_active_runs"]) == (True, False, 1), dag_id
        assert (dag["owner"], dag["tags"], dag["doc"]) == ("dare", sorted(["dare", *domain]), True), dag_id


def test_no_task_may_take_for_ever(parsed: dict[str, Any]) -> None:
    hours = {
        (dag_id, task_id): task["hours"]
        for dag_id, dag in parsed["dags"].items()
        for task_id, task in dag["tasks"].items()
    }
    longer = {"pull": 5, "group": 5, "build": 5, "generate": 20, "write_texts": 20, "evaluate": 20, "approve": 192}
    assert hours == {(dag_id, task_id): longer.get(task_id, 6) for dag_id, task_id in hours}


def test_a_refresh_has_a_deadline_and_a_backfill_of_days_has_none(parsed: dict[str, Any]) -> None:
    assert parsed["dags"]["refresh_knowledge_movies"]["deadline"]
    assert not parsed["dags"]["backfill_knowledge_movies"]["deadline"]


@pytest.mark.parametrize(
    "error", ["WarehouseError", "SourceError", "EndpointError", "RunInUseError", "OutOfMemoryError", "MemoryError"]
)
def test_what_may_pass_by_itself_is_tried_again(parsed: dict[str, Any], error: str) -> None:
    assert parsed["retries"][error] == "retry"


@pytest.mark.parametrize(
    "error", ["ModelError", "InputError", "SettingError", "PoolError", "QualityError", "AirflowTaskTimeout"]
)
def test_what_needs_a_person_fails_at_once(parsed: dict[str, Any], error: str) -> None:
    assert parsed["retries"][error] == "fail"


def test_of_a_defect_nobody_knows_so_airflow_s_own_rule_applies(parsed: dict[str, Any]) -> None:
    assert parsed["retries"]["KeyError"] == "default"


@pytest.mark.parametrize("index", range(len(GOOD_PARAMS)), ids=[f"{name}={value}" for name, value in GOOD_PARAMS])
def test_the_form_takes(parsed: dict[str, Any], index: int) -> None:
    assert parsed["accepted"][index]


@pytest.mark.parametrize("index", range(len(BAD_PARAMS)), ids=[f"{name}={value}" for name, value in BAD_PARAMS])
def test_the_form_refuses(parsed: dict[str, Any], index: int) -> None:
    assert not parsed["accepted"][len(GOOD_PARAMS) + index]
