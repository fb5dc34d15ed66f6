"""Airflow's components on this machine, started and stopped as one."""

import fcntl
import json
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from pydantic import SecretStr
from sqlalchemy import func, select

from dare_airflow.client import AirflowApi, AirflowError
from dare_airflow.local import processes
from dare_airflow.local.environment import HOST, USER, password_file, variables
from dare_airflow.local.processes import Process
from dare_airflow.runs import DagRuns
from dare_airflow.setup import set_up
from dare_core.config.settings import PROJECT_DIR, Settings
from dare_core.errors import SettingError
from dare_core.warehouse.connection import connect
from dare_core.warehouse.server import database_url, serving

DAGS_DIR: Final = PROJECT_DIR / "dags"

_DATABASE: Final = "airflow"
_CLAIM: Final = 0x0DA12E  # the advisory lock, in that database, of the one Airflow that may use it

#: Airflow's processes by name, and the arguments of ``airflow`` that start them.
Components = Mapping[str, Sequence[str]]

COMPONENTS: Final[Components] = {
    "scheduler": ("scheduler", "--skip-serve-logs"),  # its log server would listen on every interface
    "dag_processor": ("dag-processor",),
    "api_server": ("api-server",),
}
_START_SECONDS: Final = 240.0
_POLL_SECONDS: Final = 1.0


class LocalAirflow:
    """Airflow's processes for as long as a ``with`` block lasts.

    Entering returns when every component is healthy and Airflow is set up; leaving, by whatever exception, ends
    the components and everything they started: task processes, Spark and its JVM.

    Args:
        settings: tasks see exactly these, through ``DARE_…`` variables.
        warehouse_url: libpq URL of a running server; Airflow's metadata goes to database ``airflow`` on it.
        port: of the API server; ``settings.airflow_port`` when None, any free one when 0.
        dags_dir: the folder of DAG files.
        scheduled: whether the DAGs follow their schedules, or run only when they are triggered.
        components: the processes to start.
        environment: variables of theirs, over the ones that are set here.
        own: variables of one component alone, by its name, over all others.

    Attributes:
        home: ``AIRFLOW_HOME``, with the components' logs.
        processes: the components that were started, by name.
        api: a session of user ``admin``.
        runs: the runs of the DAGs.

    Raises (on entering):
        SettingError: the port is taken.
        AirflowError: an Airflow uses this data folder or this warehouse's server already, or a component did not start;
            then the message ends with its log.
    """

    def __init__(
        self,
        settings: Settings,
        warehouse_url: str,
        *,
        port: int | None = None,
        dags_dir: Path = DAGS_DIR,
        scheduled: bool = False,
        components: Components = COMPONENTS,
        environment: Mapping[str, str] | None = None,
        own: Callable[[str], Mapping[str, str]] = lambda name: {},
    ) -> None:
        self.home = settings.data_dir.resolve() / "airflow"
        self._settings = settings
        self._warehouse_url = warehouse_url
        self._port = settings.airflow_port if port is None else port
        self._dags_dir = dags_dir
        self._scheduled = scheduled
        self._components = components
        self._overrides = environment or {}
        self._own = own
        self.processes: dict[str, Process] = {}
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def url(self) -> str:
        """Where the UI and the REST API are."""
        return f"http://{HOST}:{self._port}"

    @property
    def password(self) -> str:
        """The password of user ``admin``, made once per data folder."""
        passwords: dict[str, str] = json.loads(password_file(self.home).read_text("utf-8"))
        return passwords[USER]

    def start(self, name: str, arguments: Sequence[str]) -> None:
        """Start one more component."""
        command = [sys.executable, "-m", "airflow", *arguments]
        inherited = (self._held.fileno(),)
        self.processes[name] = processes.start(
            command, self.variables_of(name), self._log_file(name), pass_fds=inherited
        )

    def variables_of(self, name: str) -> dict[str, str]:
        """All variables of a component."""
        return {**self._environment, **self._own(name)}

    def check(self) -> None:
        """Raise AirflowError when a component has ended."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                raise self._failure(f"Airflow's {name} ended with status {process.returncode}", name)

    def _start(self) -> None:
        (self.home / "logs").mkdir(parents=True, exist_ok=True)
        self._held = self._lock()
        if self._port == 0:
            self._port = processes.free_port()
        elif not processes.is_free(self._port):
            raise SettingError(
                f"setting airflow_port (DARE_AIRFLOW_PORT) is {self._port}: another program listens on that port"
            )
        self._write_password()
        database = database_url(self._warehouse_url, _DATABASE)
        self._claim(database)
        self._environment = variables(
            self._settings,
            self._warehouse_url,
            home=self.home,
            database=database,
            port=self._port,
            dags_dir=self._dags_dir,
            scheduled=self._scheduled,
            overrides=self._overrides,
        )
        self.start("db_migrate", ("db", "migrate"))
        if self.processes["db_migrate"].wait() != 0:
            raise self._failure("Airflow could not prepare its database", "db_migrate")
        del self.processes["db_migrate"]
        self._started_at = datetime.now(UTC)
        for name, arguments in self._components.items():
            self.start(name, arguments)
        self._held.write(" ".join(str(process.pid) for process in self.processes.values()))
        self._held.flush()
        self.api = AirflowApi(self.url, USER, self.password)
        self._cleanup.callback(self.api.close)
        self.runs = DagRuns(self.api, self._dags_dir, self._started_at, self.check)
        self._await_health()
        set_up(self.api, self._settings.model_copy(update={"warehouse_url": SecretStr(self._warehouse_url)}))

    def _lock(self) -> IO[str]:
        """Held by this process and, through inheritance, by every component until the last has ended."""
        lock = self._cleanup.enter_context((self.home / "lock").open("a+", encoding="ascii"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise AirflowError(
                f"an Airflow runs on {self.home} already (processes {lock.read() or 'starting'}); "
                "stop it, or choose another data folder with DARE_DATA_DIR"
            ) from None
        lock.truncate(0)
        return lock

    def _claim(self, database: str) -> None:
        """Keep out an Airflow of another data folder: its scheduler would run our tasks with its own settings."""
        engine = connect(database)
        self._cleanup.callback(engine.dispose)
        connection = self._cleanup.enter_context(engine.connect().execution_options(isolation_level="AUTOCOMMIT"))
        if not connection.execute(select(func.pg_try_advisory_lock(_CLAIM))).scalar_one():
            raise AirflowError(
                f"the Airflow of another data folder uses database {_DATABASE} on the warehouse's server; "
                "stop it, or choose another server with DARE_WAREHOUSE_URL"
            )

    def _write_password(self) -> None:
        file = password_file(self.home)
        if not file.exists():  # written before Airflow would, which prints the password it makes
            file.touch(mode=0o600)
            file.write_text(json.dumps({USER: secrets.token_urlsafe(16)}), "utf-8")

    def _await_health(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        sick = set(self._components)
        while sick:
            self.check()
            if time.monotonic() > deadline:
                name = min(sick)
                raise self._failure(f"Airflow's {name} was not healthy after {_START_SECONDS:.0f} s", name)
            time.sleep(_POLL_SECONDS / 2)
            with suppress(AirflowError):  # not listening yet
                health = self.api.health()
                sick = {name for name in self._components if name in health and not self._beats(name, health[name])}

    def _beats(self, name: str, health: dict[str, Any]) -> bool:
        heartbeat = health[f"latest_{name}_heartbeat"]  # one from before our start is a former process's
        return health["status"] == "healthy" and datetime.fromisoformat(heartbeat) >= self._started_at

    def _log_file(self, component: str) -> Path:
        return self.home / "logs" / f"{component}.log"

    def _failure(self, what: str, component: str) -> AirflowError:
        return AirflowError(processes.with_log(what, self._log_file(component)))

    def _stop(self) -> None:
        try:
            # Those that run tasks first: the tasks' last words go through the API server.
            first = [process for name, process in self.processes.items() if name not in ("api_server", "dag_processor")]
            processes.end(first, list(self.processes.values()))
        finally:
            self.processes.clear()
            self._cleanup.close()


def serve_ui(settings: Settings) -> None:
    """Run warehouse and Airflow until Ctrl-C; prints where the UI is and how to log in.

    Raises:
        SettingError, AirflowError, WarehouseError: something did not start, or ended on its own.
    """
    with processes.exit_on_signals(), serving(settings) as warehouse_url:
        print("Starting Airflow …", flush=True)
        with LocalAirflow(settings, warehouse_url, scheduled=True) as airflow:
            print(f"Airflow:  {airflow.url}\nuser:     {USER}\npassword: {airflow.password}", flush=True)
            print("Ctrl-C stops it.", flush=True)
            with suppress(KeyboardInterrupt):
                while True:
                    time.sleep(_POLL_SECONDS)
                    airflow.check()
