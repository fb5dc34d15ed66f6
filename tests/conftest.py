"""A PostgreSQL server for the whole session, and a fresh migrated database for each test that asks for one."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from xdist.scheduler import LoadScopeScheduling

from dare_core.settings import Settings
from dare_core.warehouse.connection import connect
from dare_core.warehouse.migrate import upgrade
from dare_core.warehouse.server import database_url, serving, stop

_numbers = count(1)


class _ByFile(LoadScopeScheduling):
    """Shares out whole files, and the files that share an Airflow as one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "integration" if "/integration/" in file else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByFile:
    """Which of ``make test``'s workers runs which tests."""
    return _ByFile(config, log)


@contextmanager
def _database(server_url: str, template: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    server = connect(server_url)
    with server.connect().execution_options(isolation_level="AUTOCOMMIT") as administrator:
        administrator.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield database_url(server_url, name)
        finally:
            administrator.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    server.dispose()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with a data folder of the test's own and no warehouse URL."""
    return Settings(data_dir=tmp_path / "data", warehouse_url=None)


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The session's embedded server."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("server"), warehouse_url=None)
    try:
        with serving(settings) as url:
            yield url
    finally:
        stop(settings)  # also when a test has asked for it to stay up


@pytest.fixture(scope="session")
def template_url(server_url: str) -> str:
    """A migrated database that the tests' databases are copied from."""
    url = database_url(server_url, "template_warehouse")
    engine = connect(url)
    upgrade(engine)
    engine.dispose()
    return url


@pytest.fixture
def empty_database_url(server_url: str) -> Iterator[str]:
    """A database with nothing in it."""
    with _database(server_url, "template0") as url:
        yield url


@pytest.fixture
def warehouse_url(server_url: str, template_url: str) -> Iterator[str]:
    """A migrated database of the test's own."""
    with _database(server_url, "template_warehouse") as url:
        yield url


@pytest.fixture
def engine(warehouse_url: str) -> Iterator[Engine]:
    """An engine for ``warehouse_url``."""
    engine = connect(warehouse_url)
    yield engine
    engine.dispose()
