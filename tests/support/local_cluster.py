"""The shape of an installation on several machines, as processes on loopback.

What docker-compose.yml runs in containers runs here side by side: PostgreSQL over TCP, Redis, an object store, a Spark
master and two workers, and Airflow with CeleryExecutor, of whose two workers one serves only the queue ``gpu``. Both
take Airflow's settings from docker/cluster.env and their secrets from files. Every process has a data folder of its
own, in ``cluster/machines/``. ``make cluster-test`` proves the shape with it.
"""

import os
import shutil
import signal
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import redis

from dare_airflow.local import processes
from dare_airflow.local.airflow import COMPONENTS, Components, LocalAirflow
from dare_airflow.local.processes import Process, free_port, with_log
from dare_core.config.settings import PROJECT_DIR, Settings
from dare_core.errors import DareError, ProgramMissingError
from dare_core.sources.spark_submit import require_java
from dare_core.warehouse.roles import create_roles
from dare_core.warehouse.server import serving_on_loopback
from scripts.make_secrets import make_secrets
from tests.support.object_store import USER, ObjectStore, object_store

HOST: Final = "127.0.0.1"

#: What compose gives to every Airflow service.
CLUSTER_ENV: Final = PROJECT_DIR / "docker" / "cluster.env"

#: Below a cluster's folder: the data folders of its processes, each by the name of one.
MACHINES: Final = "machines"

#: The arguments of ``airflow`` that start a worker; its log server would listen on every interface.
_CELERY_WORKER: Final = ("celery", "worker", "--skip-serve-logs", "--without-gossip")

_SPARK_WORKERS: Final = 2
#: Of all that Spark starts: programs of a minute would spend it compiling Java with the second compiler.
_SPARK_ENV: Final = {"SPARK_LOCAL_IP": HOST, "JDK_JAVA_OPTIONS": "-XX:TieredStopAtLevel=1"}
_START_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.2


class ClusterError(DareError):
    """A service of the local cluster did not start."""


def celery_worker(queue: str, name: str, concurrency: int = 1) -> Sequence[str]:
    """The arguments of ``airflow`` for a worker of one queue; no two that run may share a name."""
    return (*_CELERY_WORKER, "--queues", queue, "--celery-hostname", name, "--concurrency", str(concurrency))


_COMPONENTS: Final[Components] = {
    **COMPONENTS,
    "triggerer": ("triggerer", "--skip-serve-logs"),
    "worker_cpu": celery_worker("default", "cpu", concurrency=2),
    "worker_gpu": celery_worker("gpu", "gpu"),
}


@dataclass(frozen=True)
class LocalCluster:
    """A running cluster. ``airflow`` starts and kills components, Celery workers among them."""

    airflow: LocalAirflow
    settings: Settings  # as the tasks see them, but for the warehouse's URL
    warehouse_url: str
    spark_ui: str
    store: ObjectStore

    @property
    def machines(self) -> Path:
        """The folder of all processes' data folders."""
        return self.settings.data_dir.resolve() / "cluster" / MACHINES

    def spark_status(self) -> dict[str, Any]:
        """See :func:`spark_status`."""
        return spark_status(self.spark_ui)


def lose(airflow: LocalAirflow, name: str) -> None:
    """End a component and all that it started by SIGKILL, as a machine that loses power does."""
    process = airflow.processes.pop(name)
    processes.signal_all(processes.family([process]), signal.SIGKILL)
    process.wait()


@contextmanager
def local_cluster(settings: Settings, environment: Mapping[str, str]) -> Iterator[LocalCluster]:
    """Run every service for as long as the block lasts.

    Ports are chosen, and secrets made, the first time that a data folder is used so; they lie in ``cluster/`` there.

    Args:
        settings: tasks see these, but for the warehouse's URL, Spark's master and the storage, which are the cluster's
            own, and for the data folder, of which each process has one.
        environment: variables of Airflow's processes, over those of docker/cluster.env.

    Raises:
        ProgramMissingError: there is no ``redis-server``, no Swift, or no Java.
        ClusterError, WarehouseError, AirflowError: a service did not start; says why.
    """
    require_java()
    home = settings.data_dir.resolve() / "cluster"
    secrets = home / "secrets"
    make_secrets(secrets, postgres=f"{HOST}:{free_port()}", redis=f"{HOST}:{free_port()}", store_user=USER)
    warehouse_url = (secrets / "dare_warehouse_url").read_text("ascii")
    with ExitStack() as running:
        password = (secrets / "postgres_password").read_text("ascii")
        running.enter_context(serving_on_loopback(settings, urlsplit(warehouse_url).port or 0, password))
        create_roles(secrets)
        running.enter_context(_redis(home, secrets))
        spark_conf = _spark_conf(home, secrets)
        master, spark_ui = running.enter_context(spark_cluster(home, spark_conf))
        password = (secrets / "object_store_password").read_text("ascii")
        store = running.enter_context(object_store(secret_key=password))
        variables = {
            **_cluster_env(secrets),
            "AWS_ENDPOINT_URL": store.endpoint,
            "DARE_WAREHOUSE_URL": "",  # the secret of that name holds it
            **_SPARK_ENV,
            "SPARK_CONF_DIR": str(spark_conf),
            **environment,
        }
        settings = settings.model_copy(update={"spark_master": master, "storage": variables["DARE_STORAGE"]})
        airflow = LocalAirflow(
            settings,
            warehouse_url,
            port=0,
            components=_COMPONENTS,
            environment=variables,
            own=lambda name: _machine(home, name),
        )
        yield LocalCluster(running.enter_context(airflow), settings, warehouse_url, spark_ui, store)


def _machine(home: Path, name: str) -> dict[str, str]:
    """The variables of a process that tell it which folder is its own."""
    folder = home / MACHINES / name
    folder.mkdir(parents=True, exist_ok=True)
    return {"DARE_DATA_DIR": str(folder)}


def _cluster_env(secrets: Path) -> dict[str, str]:
    lines = (line.strip() for line in CLUSTER_ENV.read_text("utf-8").splitlines())
    pairs = (line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return {name: value.replace("/run/secrets", str(secrets)) for name, value in pairs}


@contextmanager
def _redis(home: Path, secrets: Path) -> Iterator[None]:
    program = shutil.which("redis-server")
    if program is None:
        raise ProgramMissingError("there is no redis-server on PATH; install it: sudo apt-get install redis-server")
    url = (secrets / "celery_broker_url").read_text("ascii")
    arguments = [str(secrets / "redis.conf"), "--port", str(urlsplit(url).port), "--bind", HOST, "--save", ""]
    with _process(home, "redis", [program, *arguments]) as (process, log), redis.Redis.from_url(url) as client:

        def answers() -> bool:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False

        _await("redis", process, log, answers)
        yield


def _spark_conf(home: Path, secrets: Path) -> Path:
    """A folder of Spark's settings: the secret ones, and as many partitions as tables of this size are worth."""
    folder = home / "spark_conf"
    folder.mkdir(mode=0o700, exist_ok=True)
    given = (secrets / "spark-defaults.conf").read_text("ascii")
    (folder / "spark-defaults.conf").write_text(f"{given}spark.sql.shuffle.partitions {_SPARK_WORKERS}\n", "ascii")
    return folder


@contextmanager
def spark_cluster(home: Path, conf: Path) -> Iterator[tuple[str, str]]:
    """Spark's master and two workers for as long as the block lasts.

    Args:
        home: folder for their logs; ``spark_worker_0`` and ``spark_worker_1`` there are the workers' own.
        conf: folder of Spark's settings.

    Yields:
        The master's URL, and that of its page.

    Raises:
        ClusterError: they did not start; ends with the master's log.
    """
    port, web_port = free_port(), free_port()
    url, page = f"spark://{HOST}:{port}", f"http://{HOST}:{web_port}"
    programs = sysconfig.get_path("scripts")
    program = [str(Path(programs) / "spark-class")]  # asks the python on PATH where Spark is
    path = os.pathsep.join((programs, os.environ.get("PATH", os.defpath)))
    deploy = "org.apache.spark.deploy"
    with ExitStack() as running:

        def start(name: str, *arguments: str) -> tuple[Process, Path]:
            environment = {**_SPARK_ENV, **_machine(home, name), "PATH": path, "SPARK_CONF_DIR": str(conf)}
            return running.enter_context(_process(home, name, [*program, *arguments], environment))

        def workers_are_there() -> bool:
            try:
                return bool(spark_status(page)["aliveworkers"] == _SPARK_WORKERS)
            except httpx.HTTPError:
                return False

        master = start(
            "spark_master",
            *(f"{deploy}.master.Master", "--host", HOST, "--port", str(port), "--webui-port", str(web_port)),
        )
        for number in range(_SPARK_WORKERS):
            name = f"spark_worker_{number}"
            start(
                name,
                *(f"{deploy}.worker.Worker", "--host", HOST, "--webui-port", "0", "--cores", "1", "--memory", "1g"),
                *("--work-dir", str(home / name), url),
            )
        _await("spark_master", *master, workers_are_there)
        yield url, page


def spark_status(page: str) -> dict[str, Any]:
    """What a Spark master's page says of it: workers, applications."""
    answer = httpx.get(f"{page}/json/", timeout=5, trust_env=False).raise_for_status()  # 404 while the master starts
    status: dict[str, Any] = answer.json()
    return status


@contextmanager
def _process(
    home: Path, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
) -> Iterator[tuple[Process, Path]]:
    """A service and its log for as long as the block lasts; all that it started ends with it."""
    log = home / f"{name}.log"
    inherited = {variable: value for variable, value in os.environ.items() if variable != "SPARK_HOME"}
    process = processes.start(command, {**inherited, **(environment or {})}, log, folder=home)
    try:
        yield process, log
    finally:
        processes.end([process])


def _await(name: str, process: Process, log: Path, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not ready():
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline:
            what = f"ended with status {process.returncode}" if ended else f"was not ready in {_START_SECONDS:.0f} s"
            raise ClusterError(with_log(f"{name} {what}", log))
        time.sleep(_POLL_SECONDS)
