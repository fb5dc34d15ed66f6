"""For a whole session one PostgreSQL server and one Spark; for a test a fresh migrated database, and rows for it."""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from sqlalchemy import Engine, make_url
from xdist.scheduler import LoadScopeScheduling

from dare_core import schemas
from dare_core.config.settings import Settings
from dare_core.warehouse import server
from dare_core.warehouse.connection import connect
from dare_core.warehouse.migrate import upgrade
from dare_core.warehouse.server import database_url, serving, stop

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_numbers = count(1)
_MOMENT = datetime(1998, 1, 1, tzinfo=UTC)


#: What takes longest, the longest first.
_LONG = ("/integration/", "/faults/", "/spark_jobs/", "/test_operate_doc.py", "/decoding/", "/bench/")
#: Tests that share something that takes long to start, an Airflow or a Spark, by what it is.
_TOGETHER = {"/integration/": "airflow", "/spark_jobs/": "spark", "/stages/test_shop_days.py": "spark"}


class _ByFile(LoadScopeScheduling):
    """Shares out whole files, and those of ``_TOGETHER`` as one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((what for part, what in _TOGETHER.items() if part in file), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByFile:
    """Which of ``make test``'s workers runs which tests."""
    return _ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest is begun first, so that no worker is left alone with it."""

    def place(item: pytest.Item) -> int:
        return next((place for place, part in enumerate(_LONG) if part in item.nodeid), len(_LONG))

    items.sort(key=place)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How long each folder's tests took, so that a change can say what it added."""
    spent: dict[str, float] = defaultdict(float)
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if isinstance(report, pytest.TestReport):
            folder = report.nodeid.split("/")[1] if report.nodeid.count("/") > 1 else "tests"
            spent[folder] += report.duration
    terminalreporter.section("seconds by folder, of all workers")
    for folder, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        terminalreporter.write_line(f"{seconds:8.1f}  {folder}")


@contextmanager
def _database(server_url: str, template: str) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    administration = connect(server_url)
    with administration.connect().execution_options(isolation_level="AUTOCOMMIT") as administrator:
        administrator.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield database_url(server_url, name)
        finally:
            administrator.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    administration.dispose()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with a data folder of the test's own and no warehouse URL."""
    return Settings(data_dir=tmp_path / "data", warehouse_url=None)


@pytest.fixture(scope="session", autouse=True)
def no_fsync() -> Iterator[None]:
    """Nobody waits for a disk, neither here nor the servers that are started: nothing need outlive a loss of power."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: None)
        patched.setitem(server._OPTIONS, "fsync", "off")
        patched.setattr(server, "_CLUSTER_OPTIONS", (*server._CLUSTER_OPTIONS, "--no-sync"))
        yield


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


@pytest.fixture(scope="session")
def copied_database(server_url: str) -> Callable[[str], AbstractContextManager[str]]:
    """Copies a database, by its URL, for as long as a block lasts; nobody may be connected to the original."""
    return lambda original: _database(server_url, str(make_url(original).database))


@pytest.fixture(scope="session")
def empty_database(server_url: str) -> Callable[[], AbstractContextManager[str]]:
    """Makes databases with nothing in them, for as long as a block lasts."""
    return lambda: _database(server_url, "template0")


@pytest.fixture
def empty_database_url(empty_database: Callable[[], AbstractContextManager[str]]) -> Iterator[str]:
    """A database with nothing in it."""
    with empty_database() as url:
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


@pytest.fixture(scope="session")
def spark() -> "Iterator[SparkSession]":
    """A session of Spark's, for a handful of rows."""
    from spark_jobs.session import open_session

    session = open_session()
    # Derby, the driver that Spark brings along, would write its log into the working directory.
    session._jvm.java.lang.System.setProperty("derby.stream.error.file", os.devnull)
    session.conf.set("spark.sql.codegen.wholeStage", False)  # compiling takes longer than a handful of rows
    session.conf.set("spark.sql.codegen.factoryMode", "NO_CODEGEN")
    session.conf.set("spark.sql.shuffle.partitions", 1)
    yield session
    session.stop()


@pytest.fixture
def submit_here(spark: "SparkSession") -> Callable[[Settings, str, Sequence[str], str], dict[str, Any]]:
    """What :func:`dare_core.sources.spark_submit.submit` does, but in ``spark``, without a Java of its own."""

    def submit(settings: Settings, program: str, arguments: Sequence[str], warehouse_url: str) -> dict[str, Any]:
        module = import_module(f"spark_jobs.{program}")
        results: list[Any] = []
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("DARE_WAREHOUSE_URL", warehouse_url)
            patched.setattr(module, "run", lambda job: results.append(job(spark)))
            module.main(arguments)
        [result] = results
        found: dict[str, Any] = json.loads(json.dumps(result))
        return found

    return submit


def _entities(rows: Sequence[dict[str, Any]]) -> pa.Table:
    usual = {
        "domain": "movies",
        "kind": "item",
        "group_name": "Drama",
        "attributes": '{"title": "Heat"}',
        "data_as_of": _MOMENT,
        "events": 1,
    }
    return pa.Table.from_pylist([{**usual, **row} for row in rows], schemas.ENTITY)


def _knowledge(rows: Sequence[dict[str, Any]]) -> pa.Table:
    usual = {
        "domain": "movies", "kind": "item", "group_name": "Drama", "prompt": "What is it?", "prompt_token_ids": [1, 2],
        "dropped_history": 0, "epoch": 0, "data_as_of": _MOMENT, "text": "A film.",
        "token_ids": [5, 6, 7], "text_hash": "h",
        "finish_reason": "stop", "framework": "kar", "model": "m", "tokenizer_hash": "t", "verification": "relaxed",
        "top_k": 2, "min_prob": 0.1, "max_new_tokens": 96, "pool_version": None, "run_id": "run-1",
        "available_at": datetime(2026, 1, 1, tzinfo=UTC), "prompt_tokens": 2, "new_tokens": 30, "steps": 10,
        "drafted": 40,
        "accepted": 20, "relaxed": 3, "seconds": 1.5,
    }  # fmt: skip
    return pa.Table.from_pylist([{**usual, **row} for row in rows], schemas.KNOWLEDGE)


def _embeddings(request_ids: Sequence[str]) -> pa.Table:
    """Unit vectors in a half circle, in the order of the ids: neighbours in the list are neighbours in space."""
    angles = np.linspace(0, np.pi / 2, max(len(request_ids), 2))[: len(request_ids)]
    vectors = np.zeros((len(request_ids), schemas.EMBEDDING_WIDTH), np.float32)
    vectors[:, 0], vectors[:, 1] = np.cos(angles), np.sin(angles)
    return pa.table(
        [
            list(request_ids),
            ["minilm"] * len(request_ids),
            ["answer"] * len(request_ids),
            pa.FixedSizeListArray.from_arrays(vectors.ravel(), schemas.EMBEDDING_WIDTH),
        ],
        schema=schemas.KNOWLEDGE_EMBEDDING,
    )


@pytest.fixture
def entity_rows() -> Callable[[Sequence[dict[str, Any]]], pa.Table]:
    """Rows of ENTITY; what a row leaves out has a usual value."""
    return _entities


@pytest.fixture
def knowledge_rows() -> Callable[[Sequence[dict[str, Any]]], pa.Table]:
    """Rows of KNOWLEDGE; what a row leaves out has a usual value."""
    return _knowledge


@pytest.fixture
def embedding_rows() -> Callable[[Sequence[str]], pa.Table]:
    """Rows of KNOWLEDGE_EMBEDDING, one per request."""
    return _embeddings


@pytest.fixture(scope="session")
def rows_of() -> dict[str, Callable[[Sequence[Any]], pa.Table]]:
    """The three above by the table that their rows are of."""
    return {"entity": _entities, "knowledge": _knowledge, "embedding": _embeddings}
