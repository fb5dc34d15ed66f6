"""A database for one benchmark, and how work in it is timed."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine

from dare_airflow.local.processes import exit_on_signals
from dare_core.config.settings import Settings
from dare_core.warehouse.connection import connect
from dare_core.warehouse.migrate import upgrade
from dare_core.warehouse.server import database_url, serving


class Scratch:
    """A database of the benchmark's own."""

    def __init__(self, settings: Settings, url: str, engine: Engine) -> None:
        self.settings, self.url, self.engine = settings, url, engine


@contextmanager
def scratch_database(settings: Settings) -> Iterator[Scratch]:
    """An empty database of the newest schema, and in it a schema ``bench``; dropped in the end."""
    with exit_on_signals(), serving(settings) as server:
        name = f"dare_bench_{os.getpid()}"
        url = database_url(server, name)
        engine = connect(url)
        try:
            upgrade(engine)
            with engine.begin() as connection:
                connection.exec_driver_sql("CREATE SCHEMA bench")
            yield Scratch(settings, url, engine)
        finally:
            engine.dispose()
            administrator = connect(server)
            with administrator.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
            administrator.dispose()


def timed(engine: Engine, work: Callable[[], Any]) -> float:
    """Seconds, of a server that has nothing left to write from before."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("CHECKPOINT")
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
