"""Both DAGs, run by a real scheduler over a handful of real entities; what came of it is read by SQL."""

from typing import Any

import pytest
import sqlalchemy as sa

from dare_core.local_airflow import LocalAirflow
from tests.integration.conftest import REBUILD, REFRESH

pytestmark = pytest.mark.integration

ITEMS, USERS, MAX_NEW_TOKENS = 3, 2, 12
RUN_ID = "manual__1998-04-01T00:00:00+00:00"
RUN_NAME = "manual__1998-04-01T00-00-00-00-00"  # the run as a folder and in the warehouse
TABLES = ("entity", "knowledge", "knowledge_embedding", "quarantine")


@pytest.fixture(scope="module")
def finished(airflow: LocalAirflow) -> LocalAirflow:
    """Airflow after one run of each DAG."""
    conf = {"item_limit": ITEMS, "user_limit": USERS, "max_new_tokens": MAX_NEW_TOKENS}
    airflow.api.trigger(REFRESH, conf, RUN_ID)
    airflow.wait(REFRESH, RUN_ID)
    airflow.wait(REBUILD, airflow.await_triggered(REFRESH, RUN_ID, REBUILD))
    return airflow


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
    finished: LocalAirflow, engine: sa.Engine
) -> None:
    with engine.connect() as connection:
        run = connection.execute(
            sa.text("SELECT * FROM knowledge.generation_run WHERE run_id = :run_id"), {"run_id": RUN_NAME}
        ).one()
    assert (run.state, run.planned, run.failed) == ("loaded", ITEMS + USERS, 0)
    assert run.loaded + run.quarantined == ITEMS + USERS
    assert 0 < run.new_tokens <= (ITEMS + USERS) * MAX_NEW_TOKENS

    loaded = "SELECT count(*) FROM knowledge.knowledge WHERE run_id = :run_id AND valid_to IS NULL"
    assert scalar(engine, loaded, run_id=RUN_NAME) == run.loaded
    embedded = (
        "SELECT count(*) FROM knowledge.knowledge JOIN knowledge.knowledge_embedding USING (request_id) "
        "WHERE run_id = :run_id"
    )
    assert scalar(engine, embedded, run_id=RUN_NAME) == run.loaded


def test_the_loaded_texts_become_the_current_pools(finished: LocalAirflow, engine: sa.Engine) -> None:
    texts = "SELECT count(*) FROM knowledge.knowledge WHERE kind = :kind"
    pooled = "SELECT coalesce(sum(texts), 0) FROM knowledge.pool_version WHERE kind = :kind AND is_current"
    for kind in ("item", "user"):
        assert scalar(engine, pooled, kind=kind) == scalar(engine, texts, kind=kind)


def test_running_the_load_again_changes_nothing(finished: LocalAirflow, engine: sa.Engine) -> None:
    before = contents(engine)
    finished.api.clear(REFRESH, RUN_ID, "load")
    finished.wait(REFRESH, RUN_ID)
    load = next(task for task in finished.api.tasks(REFRESH, RUN_ID) if task.task_id == "load")
    assert (load.state, load.try_number) == ("success", 2)
    assert contents(engine) == before
