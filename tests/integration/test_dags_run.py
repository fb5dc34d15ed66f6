"""The DAGs, run by a real scheduler over a handful of real entities; what came of it is read by SQL."""

import time
from typing import Any

import pytest
import sqlalchemy as sa

from dare_airflow.local.airflow import LocalAirflow
from dare_airflow.run_names import folder_name
from dare_core.config.settings import Settings
from dare_core.operations.alerts import read_alerts
from tests.integration.conftest import BACKFILL, ITEMS, MAX_NEW_TOKENS, REBUILD, REFRESH, USERS
from tests.support.airflow_tasks import clear, respond

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

TABLES = ("entity", "knowledge", "knowledge_embedding", "quarantine")


@pytest.fixture(scope="module")
def backfilled(finished: LocalAirflow) -> list[str]:
    """Run ids of the first two slices of a backfill of items."""
    conf = {"item_limit": 2, "kinds": ["item"], "max_new_tokens": MAX_NEW_TOKENS}
    finished.api.trigger(BACKFILL, conf, "cold")
    finished.runs.wait(BACKFILL, "cold")
    finished.runs.wait(BACKFILL, "cold__slice-2")
    finished.api.pause(BACKFILL, True)  # two will do
    return ["cold", "cold__slice-2"]


def await_state(airflow: LocalAirflow, run_id: str, task_id: str, state: str) -> None:
    deadline = time.monotonic() + 300
    while {task.task_id: task.state for task in airflow.api.tasks(REBUILD, run_id)}[task_id] != state:
        airflow.check()
        assert time.monotonic() < deadline, f"{task_id} is not {state}"
        time.sleep(1)


def scalar(engine: sa.Engine, statement: str, **parameters: object) -> Any:
    with engine.connect() as connection:
        return connection.execute(sa.text(statement), parameters).scalar_one()


def contents(engine: sa.Engine) -> dict[str, str]:
    """A digest of every row, by table."""
    digest = "SELECT md5(coalesce(string_agg(row::text, '|' ORDER BY row::text), '')) FROM knowledge.{} row"
    return {table: scalar(engine, digest.format(table)) for table in TABLES}


def test_every_entity_of_the_source_is_in_the_warehouse_with_a_group(finished: LocalAirflow, engine: sa.Engine) -> None:
    for kind, table in (("item", "items"), ("user", "users")):
        grouped = "SELECT count(*) FROM knowledge.entity WHERE kind = :kind AND group_name <> ''"
        assert scalar(engine, grouped, kind=kind) == scalar(engine, f"SELECT count(*) FROM source.{table}")


def test_the_texts_asked_for_are_loaded_with_their_vectors_or_quarantined(
    finished: LocalAirflow, run_id: str, engine: sa.Engine
) -> None:
    run_name = folder_name(REFRESH, run_id)  # the run as a folder and in the warehouse
    with engine.connect() as connection:
        run = connection.execute(
            sa.text("SELECT * FROM knowledge.generation_run WHERE run_id = :run_id"), {"run_id": run_name}
        ).one()
    assert (run.state, run.planned, run.failed) == ("loaded", ITEMS + USERS, 0)
    assert run.loaded + run.quarantined == ITEMS + USERS
    assert 0 < run.new_tokens <= (ITEMS + USERS) * MAX_NEW_TOKENS

    loaded = "SELECT count(*) FROM knowledge.knowledge WHERE run_id = :run_id AND valid_to IS NULL"
    assert scalar(engine, loaded, run_id=run_name) == run.loaded
    embedded = (
        "SELECT count(*) FROM knowledge.knowledge JOIN knowledge.knowledge_embedding USING (request_id) "
        "WHERE run_id = :run_id"
    )
    assert scalar(engine, embedded, run_id=run_name) == run.loaded


def test_the_loaded_texts_become_the_current_pools(finished: LocalAirflow, engine: sa.Engine) -> None:
    texts = "SELECT count(*) FROM knowledge.knowledge WHERE kind = :kind"
    pooled = "SELECT coalesce(sum(texts), 0) FROM knowledge.pool_version WHERE kind = :kind AND is_current"
    for kind in ("item", "user"):
        assert scalar(engine, pooled, kind=kind) == scalar(engine, texts, kind=kind)


def test_a_run_that_misses_its_deadline_raises_an_alert(
    finished: LocalAirflow, run_id: str, airflow_settings: Settings
) -> None:
    assert ("deadline missed", REFRESH, run_id) in [
        (alert["alert"], alert["dag_id"], alert["run_id"]) for alert in read_alerts(airflow_settings)
    ]


def expect_deadlines_again(engine: sa.Engine) -> None:
    """In Airflow's database, that no run has missed its deadline yet."""
    airflow = sa.create_engine(engine.url.set(database="airflow"))
    with airflow.begin() as connection:
        moved = sa.text("UPDATE deadline SET missed = false, deadline_time = now() + interval '1 day'")
        assert connection.execute(moved).rowcount
    airflow.dispose()


def test_running_the_load_again_changes_nothing_though_the_deadline_is_to_come(
    finished: LocalAirflow, run_id: str, engine: sa.Engine
) -> None:
    before = contents(engine)
    expect_deadlines_again(engine)
    clear(finished.api, REFRESH, run_id, "load")
    finished.runs.wait(REFRESH, run_id)
    load = next(task for task in finished.api.tasks(REFRESH, run_id) if task.task_id == "load")
    assert (load.state, load.try_number) == ("success", 2)
    assert contents(engine) == before


def test_a_backfill_writes_slice_after_slice_about_entities_that_have_no_text_yet(
    backfilled: list[str], engine: sa.Engine
) -> None:
    names = [folder_name(BACKFILL, run_id) for run_id in backfilled]
    with engine.connect() as connection:
        runs = connection.execute(
            sa.text("SELECT run_id, state, planned FROM knowledge.generation_run WHERE run_id = ANY(:runs) ORDER BY 1"),
            {"runs": names},
        ).all()
    assert [tuple(run) for run in runs] == [(run_id, "loaded", 2) for run_id in names]
    asked = "SELECT count(DISTINCT (kind, entity_id)) FROM knowledge.{} WHERE run_id = ANY(:runs)"
    answered = sum(scalar(engine, asked.format(table), runs=names) for table in ("knowledge", "quarantine"))
    assert answered == 2 * len(backfilled)


def test_a_pool_that_gains_too_little_is_published_when_a_person_approves(
    finished: LocalAirflow, backfilled: list[str], engine: sa.Engine
) -> None:
    current = "SELECT version FROM knowledge.pool_version WHERE kind = 'item' AND is_current"
    before = scalar(engine, current)
    run_id = finished.runs.await_triggered(BACKFILL, backfilled[0], REBUILD)
    await_state(finished, run_id, "approve", "awaiting_input")
    assert scalar(engine, current) == before

    respond(finished.api, REBUILD, run_id, "approve", "Approve")
    finished.runs.wait(REBUILD, run_id)
    assert scalar(engine, current) != before


def test_the_house_is_kept_in_order(finished: LocalAirflow, backfilled: list[str]) -> None:
    finished.api.trigger("maintain", {}, "tidy")
    finished.runs.wait("maintain", "tidy")
    tasks = {task.task_id: task.state for task in finished.api.tasks("maintain", "tidy")}
    expire = ("expire_pools", "expire_runs", "expire_data_docs", "expire_files")
    assert tasks == dict.fromkeys((*expire, "retry_quarantine", "analyse_tables", "check_indexes"), "success")
