"""Airflow on this machine: its processes, started and stopped as one.

The demo, ``make ui`` and the integration test use it; production has an Airflow of its own. Airflow is never imported:
its components are child processes (scheduler with LocalExecutor, DAG processor, API server on loopback), its metadata a
database beside the warehouse.
"""

import fcntl
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Final, Self

import psutil
from pydantic import SecretStr
from sqlalchemy import func, select

from dare_airflow.client import AirflowApi, AirflowError, OnProgress, RunFailedError, TaskState
from dare_airflow.setup import set_up
from dare_core.config.settings import PROJECT_DIR, Settings
from dare_core.errors import SettingError
from dare_core.warehouse.connection import connect
from dare_core.warehouse.server import database_url, serving

DAGS_DIR: Final = PROJECT_DIR / "dags"
USER: Final = "admin"

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
_PARSE_SECONDS: Final = 20.0  # for all files
_STOP_SECONDS: Final = 12.0
_STOP_TRIES: Final = 3
_POLL_SECONDS: Final = 1.0
_LOG_LINES: Final = 25


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
    ) -> None:
        self.home = settings.data_dir.resolve() / "airflow"
        self._settings = settings
        self._warehouse_url = warehouse_url
        self._port = settings.airflow_port if port is None else port
        self._dags_dir = dags_dir
        self._scheduled = scheduled
        self._components = components
        self._overrides = environment or {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
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
        return f"http://127.0.0.1:{self._port}"

    @property
    def password(self) -> str:
        """The password of user ``admin``, made once per data folder."""
        passwords: dict[str, str] = json.loads(self._password_file.read_text("utf-8"))
        return passwords[USER]

    def start(self, name: str, arguments: Sequence[str]) -> None:
        """Start one more component."""
        with self._log_file(name).open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "airflow", *arguments],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us alone, and _stop() finds the session's processes
                pass_fds=(self._held.fileno(),),
            )

    def kill(self, name: str) -> None:
        """End a component and all that it started by SIGKILL, as a machine that loses power does."""
        process = self._processes.pop(name)
        signal_all(family([process]), signal.SIGKILL)
        process.wait()

    def check(self) -> None:
        """Raise AirflowError when a component has ended."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise self._failure(f"Airflow's {name} ended with status {process.returncode}", name)

    def scheduler(self) -> psutil.Process:
        """The scheduler; the tasks' processes are its descendants."""
        return psutil.Process(self._processes["scheduler"].pid)

    def process_of(self, dag_id: str, run_id: str, task: TaskState) -> psutil.Process | None:
        """The process in which a task runs; None when it has not begun or has ended."""
        title = f"airflow worker -- {self.api.task_instance_id(dag_id, run_id, task)}"
        for process in self.scheduler().children(recursive=True):
            with suppress(psutil.Error):
                if " ".join(process.cmdline()).strip() == title:
                    return process
        return None

    @contextmanager
    def active(self, *dag_ids: str, timeout: float = 120) -> Iterator[None]:
        """Let these DAGs run for as long as the block lasts.

        Runs that an earlier, interrupted block left behind are marked as failed first, and whatever still runs at the
        end of this one too; then the DAGs are paused again.

        Args:
            dag_ids: the DAGs, all of which must be parsed within ``timeout`` seconds.

        Raises:
            AirflowError: a DAG file cannot be imported, or does not define the DAG.
        """
        for dag_id in dag_ids:
            self._await_parsed(dag_id, timeout)
            self._fail_active_runs(dag_id)
        try:
            for dag_id in dag_ids:
                self.api.pause(dag_id, False)
            yield
        finally:
            with suppress(AirflowError):  # the failure that ended the block is the one to tell
                for dag_id in dag_ids:
                    self.api.pause(dag_id, True)
                    self._fail_active_runs(dag_id)

    def wait(
        self,
        dag_id: str,
        run_id: str,
        on_progress: OnProgress = lambda tasks: None,
        poll: float = _POLL_SECONDS,
    ) -> None:
        """Wait for a run's success; ``on_progress`` sees its tasks every ``poll`` seconds.

        Raises:
            RunFailedError: the run failed; names the task and shows the end of its log.
            AirflowError: a component ended meanwhile.
        """
        while True:
            self.check()
            state = self.api.run_state(dag_id, run_id)
            tasks = self.api.tasks(dag_id, run_id)
            on_progress(tasks)
            if state == "success":
                return
            if state == "failed":
                raise RunFailedError(self._explain(dag_id, run_id, tasks))
            time.sleep(poll)

    def await_triggered(self, dag_id: str, run_id: str, consumer: str, timeout: float = 60) -> str:
        """Wait for the run of DAG ``consumer`` that this run's asset events start; returns its run id.

        Raises:
            AirflowError: none came within ``timeout`` seconds, or a component ended meanwhile.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            self.check()
            for triggered_dag, triggered_run in self.api.triggered_runs(dag_id, run_id):
                if triggered_dag == consumer:
                    return triggered_run
            time.sleep(_POLL_SECONDS)
        raise AirflowError(f"{dag_id} {run_id} started no run of {consumer} within {timeout:.0f} s")

    def _start(self) -> None:
        (self.home / "logs").mkdir(parents=True, exist_ok=True)
        self._held = self._lock()
        if self._port == 0:
            self._port = free_port()
        elif not _is_free(self._port):
            raise SettingError(
                f"setting airflow_port (DARE_AIRFLOW_PORT) is {self._port}: another program listens on that port"
            )
        self._write_password()
        database = database_url(self._warehouse_url, _DATABASE)
        self._claim(database)
        self._environment = self._variables(database)
        self.start("db_migrate", ("db", "migrate"))
        if self._processes["db_migrate"].wait() != 0:
            raise self._failure("Airflow could not prepare its database", "db_migrate")
        del self._processes["db_migrate"]
        self._started_at = datetime.now(UTC)
        for name, arguments in self._components.items():
            self.start(name, arguments)
        self._held.write(" ".join(str(process.pid) for process in self._processes.values()))
        self._held.flush()
        self.api = AirflowApi(self.url, USER, self.password)
        self._cleanup.callback(self.api.close)
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

    def _variables(self, database: str) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
        loopback = ",".join(filter(None, (inherited.get("NO_PROXY") or inherited.get("no_proxy"), "127.0.0.1")))
        metadata = re.sub(r"^[^:]+", "postgresql+psycopg", database)
        settings = self._settings.model_dump(mode="json", exclude={"warehouse_url", "data_dir"}, exclude_none=True)
        variables: dict[str, str] = {
            **inherited,
            **{f"DARE_{name.upper()}": str(value) for name, value in settings.items()},
            "DARE_DATA_DIR": str(self._settings.data_dir.resolve()),
            "DARE_WAREHOUSE_URL": self._warehouse_url,  # tasks never start a server
            **({} if self._scheduled else {"DARE_REFRESH_SCHEDULE": "none", "DARE_MAINTAIN_SCHEDULE": "none"}),
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
            "NO_PROXY": loopback,
            "no_proxy": loopback,
            "AIRFLOW_HOME": str(self.home),
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(self._port),
            "AIRFLOW__API__WORKERS": "1",
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(64),  # shared by the components, new at every start
            "AIRFLOW__CORE__DAGS_FOLDER": str(self._dags_dir),
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__PARALLELISM": "4",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self._password_file),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
            "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": metadata,
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC": metadata,
            "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(self.home / "logs"),
            "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
        }
        for name in self._overrides:  # Airflow would read the value, and never run the command that another one is from
            variables.pop(name.removesuffix("_CMD"), None)
        return {**variables, **self._overrides}

    @property
    def _password_file(self) -> Path:
        return self.home / "passwords.json"

    def _write_password(self) -> None:
        if not self._password_file.exists():  # written before Airflow would, which prints the password it makes
            self._password_file.touch(mode=0o600)
            self._password_file.write_text(json.dumps({USER: secrets.token_urlsafe(16)}), "utf-8")

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

    def _await_parsed(self, dag_id: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        excused = deadline  # another file may be broken, and this DAG's be parsed after it
        while (parsed_at := self.api.parsed_at(dag_id)) is None or parsed_at < self._started_at:
            self.check()
            if errors := self.api.import_errors(since=self._started_at):
                excused = min(excused, time.monotonic() + _PARSE_SECONDS)
            if errors and time.monotonic() >= excused:
                raise AirflowError(f"a DAG file in {self._dags_dir} cannot be imported:\n{errors[0]}")
            if time.monotonic() > deadline:
                raise AirflowError(f"no DAG {dag_id} was found in {self._dags_dir} within {timeout:.0f} s")
            time.sleep(_POLL_SECONDS)

    def _fail_active_runs(self, dag_id: str) -> None:
        for run_id in self.api.active_runs(dag_id):
            self.api.fail_run(dag_id, run_id)

    def _explain(self, dag_id: str, run_id: str, tasks: Sequence[TaskState]) -> str:
        for task in tasks:
            if task.state == "failed":
                name = task.task_id if task.map_index < 0 else f"{task.task_id}[{task.map_index}]"
                return f"{dag_id} {run_id}: task {name} failed:\n{self.api.log_tail(dag_id, run_id, task)}"
        return f"{dag_id} {run_id} failed before any of its tasks did"

    def _log_file(self, component: str) -> Path:
        return self.home / "logs" / f"{component}.log"

    def _failure(self, what: str, component: str) -> AirflowError:
        return AirflowError(with_log(what, self._log_file(component)))

    def _stop(self) -> None:
        try:
            # Those that run tasks first: the tasks' last words go through the API server.
            first = [
                process for name, process in self._processes.items() if name not in ("api_server", "dag_processor")
            ]
            end(first, list(self._processes.values()))
        finally:
            self._processes.clear()
            self._cleanup.close()


def serve_ui(settings: Settings) -> None:
    """Run warehouse and Airflow until Ctrl-C; prints where the UI is and how to log in.

    Raises:
        SettingError, AirflowError, WarehouseError: something did not start, or ended on its own.
    """
    with exit_on_signals(), serving(settings) as warehouse_url:
        print("Starting Airflow …", flush=True)
        with LocalAirflow(settings, warehouse_url, scheduled=True) as airflow:
            print(f"Airflow:  {airflow.url}\nuser:     {USER}\npassword: {airflow.password}", flush=True)
            print("Ctrl-C stops it.", flush=True)
            with suppress(KeyboardInterrupt):
                while True:
                    time.sleep(_POLL_SECONDS)
                    airflow.check()


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit while the block lasts, so that ``with`` blocks are left in order."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    former = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def with_log(what: str, log: Path) -> str:
    """What happened, and the end of a process's log."""
    tail = log.read_text("utf-8", errors="replace").splitlines()[-_LOG_LINES:]
    return "\n".join([f"{what}; the end of {log}:", *tail])


def end(*generations: Sequence[subprocess.Popen[bytes]]) -> None:
    """End processes and all that they started, one generation after the other: SIGTERM, and at last SIGKILL."""
    ours: set[psutil.Process] = set()
    roots = [root for generation in generations for root in generation]
    try:
        for generation in generations:
            started = family(generation)
            ours |= started
            _terminate(started)
    finally:  # LocalExecutor's workers ignore SIGTERM; and a second Ctrl-C lands here at once
        signal_all(ours | family(roots), signal.SIGKILL)
        for root in roots:
            root.wait()


def family(roots: Sequence[subprocess.Popen[bytes]]) -> set[psutil.Process]:
    """The processes, their descendants, and whatever else lives in their sessions (its parent may have died)."""
    sessions = {root.pid for root in roots}
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if os.getsid(process.pid) in sessions:
                found |= {process, *process.children(recursive=True)}
    return found


def _terminate(processes: set[psutil.Process]) -> None:
    """SIGTERM, more than once: Python may lose one, and the scheduler waits for its tasks until the second."""
    for _ in range(_STOP_TRIES):
        signal_all(processes, signal.SIGTERM)
        _, alive = psutil.wait_procs(processes, timeout=_STOP_SECONDS / _STOP_TRIES)
        if not alive:
            return


def signal_all(processes: set[psutil.Process], number: signal.Signals) -> None:
    """Send a signal; processes that have ended are fine."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def free_port() -> int:
    """A port of loopback that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the API server does
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
