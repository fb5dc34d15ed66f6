"""One Airflow with a warehouse of real films and users, started once for all tests here that drive it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import sqlalchemy as sa

from dare_airflow.local.airflow import LocalAirflow
from dare_core import models
from dare_core.config.settings import PROJECT_DIR, Settings, load_settings
from dare_core.sources.importer import import_tables
from dare_core.sources.movielens import read_movielens
from dare_core.warehouse.connection import connect
from dare_core.warehouse.migrate import upgrade
from dare_core.warehouse.server import serving
from tests.integration.browser import CHROMIUM, logged_in, trigger_by_form
from tests.integration.metrics_receiver import MetricsReceiver
from tests.support.tiny_model import LAX

#: The DAGs that the tests here run.
REFRESH, REBUILD, BACKFILL = (f"{name}_movies" for name in ("refresh_knowledge", "rebuild_pools", "backfill_knowledge"))

#: What the run of ``REFRESH`` is asked for.
ITEMS, USERS, MAX_NEW_TOKENS = 5, 3, 12


@pytest.fixture(scope="package")
def airflow_settings() -> Iterator[Settings]:
    model = models.locate(load_settings())  # converted once per checkout
    with TemporaryDirectory(prefix="dare-") as folder:  # pytest's own is closed to the system user PostgreSQL runs as
        config = Path(folder) / "config"
        shutil.copytree(PROJECT_DIR / "config", config)
        with (config / "movies.toml").open("a", encoding="utf-8") as domain:
            domain.write(LAX)  # twelve tokens are no text to judge
        yield load_settings(
            data_dir=Path(folder) / "data",
            config_dir=config,
            warehouse_url=None,
            model=model,
            shard_size=2,  # so that generation is mapped over several shards
            max_failing_share=1.0,
            max_generation_tasks=2,  # so that a task has more than one of them
            draft_budget="fixed",  # measuring takes longer than so few texts
            deadline_hours=0.001,  # which every run misses
            max_acceptance_loss=-100.0,  # no pool gains that much: a person is asked about every one but the first
        )


@pytest.fixture(scope="package")
def warehouse_url(airflow_settings: Settings) -> Iterator[str]:
    with serving(airflow_settings) as url:
        yield url


@pytest.fixture(scope="package")
def engine(warehouse_url: str) -> Iterator[sa.Engine]:
    engine = connect(warehouse_url)
    upgrade(engine)
    import_tables(engine, read_movielens())
    yield engine
    engine.dispose()


@pytest.fixture(scope="package")
def metrics() -> Iterator[MetricsReceiver]:
    """Where Airflow sends its metrics."""
    with MetricsReceiver() as receiver:
        yield receiver


@pytest.fixture(scope="package")
def airflow(
    airflow_settings: Settings, warehouse_url: str, engine: sa.Engine, metrics: MetricsReceiver
) -> Iterator[LocalAirflow]:
    home = airflow_settings.data_dir / "airflow"
    home.mkdir()
    (home / "airflow.cfg").write_text("[metrics]\notel_on = True\n", "utf-8")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{metrics.port}")
        with (
            LocalAirflow(airflow_settings, warehouse_url, port=0) as running,
            running.runs.active(REFRESH, REBUILD, BACKFILL, "maintain"),
        ):
            yield running


@pytest.fixture(scope="package")
def run_id(airflow: LocalAirflow) -> str:
    """A run of ``REFRESH``, triggered by the form in a browser where one is there."""
    if CHROMIUM is not None:
        with logged_in(airflow) as page:
            return trigger_by_form(page, airflow, REFRESH, ITEMS, USERS, MAX_NEW_TOKENS)
    conf = {"item_limit": ITEMS, "user_limit": USERS, "max_new_tokens": MAX_NEW_TOKENS}
    run_id = "manual__1998-04-01T00:00:00+00:00"
    airflow.api.trigger(REFRESH, conf, run_id)
    return run_id


@pytest.fixture(scope="package")
def finished(airflow: LocalAirflow, run_id: str) -> LocalAirflow:
    """Airflow after that run, and the one of ``REBUILD`` that it started."""
    airflow.runs.wait(REFRESH, run_id)
    airflow.runs.wait(REBUILD, airflow.runs.await_triggered(REFRESH, run_id, REBUILD))
    return airflow
