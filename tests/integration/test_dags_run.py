"""Both DAGs, run by a real scheduler over a handful of real entities; what came of it is read by SQL."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import sqlalchemy as sa

from dare_core import models
from dare_core.local_airflow import LocalAirflow
from dare_core.settings import Settings, load_settings
from dare_core.sources.importer import import_tables
from dare_core.sources.movielens import read_movielens
from dare_core.warehouse.connection import connect
from dare_core.warehouse.migrate import upgrade
from dare_core.warehouse.server import serving

pytestmark = pytest.mark.integration

ITEMS, USERS, MAX_NEW_TOKENS = 3, 2, 12
RUN_ID = "manual__1998-04-01T00:00:00+00:00"
RUN_NAME = "manual__1998-04-01T00-00-00-00-00"  # the run as a folder and in the warehouse
TABLES = ("entity", "knowledge", "knowledge_embedding", "quarantine")


@pytest.fixture(scope="module")
def settings() -> Iterator[Settings]:
    model = models.locate(load_settings())  # converted once per checkout
    with TemporaryDirectory(prefix="dare-") as folder:  # pytest's own is closed to the system user PostgreSQL runs as
        yield load_settings(
            data_dir=Path(folder),
            warehouse_url=None,
            model=model,
            shard_size=2,  # so that generation is mapped over three shards
            max_failing_share=1.0,  # twelve tokens are no text to judge
        )


@pytest.fixture(scope="module")
def warehouse_url(settings: Settings) -> Iterator[str]:
    with serving(settings) as url:
        yield url


@pytest.fixture(scope="module")
def engine(warehouse_url: str) -> Iterator[sa.Engine]:
    engine = connect(warehouse_url)
    upgrade(engine)
    import_tables(engine, read_movielens())
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def airflow(settings: Settings, warehouse_url: str, engine: sa.Engine) -> Iterator[LocalAirflow]:
    with (
        LocalAirflow(settings, warehouse_url, port=0) as running,
        running.active("refresh_knowledge", "rebuild_pools"),
    ):
        yield running


@pytest.fixture(scope="module")
def finished(airflow: LocalAirflow) -> LocalAirflow:
    """Airflow after one run of each DAG."""
    conf = {"item_limit": ITEMS, "user_limit": USERS, "max_new_tokens": MAX_NEW_TOKENS}
    airflow.api.trigger("refresh_knowledge", conf, RUN_ID)
    airflow.wait("refresh_knowledge", RUN_ID)
    airflow.wait("rebuild_pools", airflow.await_triggered("refresh_knowledge", RUN_ID, "rebuild_pools"))
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
    embedded = "SELECT count(*) FROM knowledge.knowledge JOIN knowledge.knowledge_embedding USING (request_id)"
    assert scalar(engine, embedded) == run.loaded


def test_the_loaded_texts_become_the_current_pools(finished: LocalAirflow, engine: sa.Engine) -> None:
    texts = "SELECT count(*) FROM knowledge.knowledge WHERE kind = :kind"
    pooled = "SELECT coalesce(sum(texts), 0) FROM knowledge.pool_version WHERE kind = :kind AND is_current"
    for kind in ("item", "user"):
        assert scalar(engine, pooled, kind=kind) == scalar(engine, texts, kind=kind)


def test_running_the_load_again_changes_nothing(finished: LocalAirflow, engine: sa.Engine) -> None:
    before = contents(engine)
    finished.api.clear("refresh_knowledge", RUN_ID, "load")
    finished.wait("refresh_knowledge", RUN_ID)
    load = next(task for task in finished.api.tasks("refresh_knowledge", RUN_ID) if task.task_id == "load")
    assert (load.state, load.try_number) == ("success", 2)
    assert contents(engine) == before
