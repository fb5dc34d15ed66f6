import socket
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest

from dare_airflow.client import AirflowError, TaskState
from dare_airflow.local import processes
from dare_airflow.local.airflow import LocalAirflow
from dare_airflow.runs import RunFailedError
from dare_core.config.settings import Settings, load_settings
from dare_core.errors import SettingError
from dare_core.warehouse.server import serving

DAG_FILE = """
from airflow.sdk import Asset, Param, dag, task

MADE = Asset("dare://made")

@dag(schedule=None, params={"parts": Param(2, type="integer", minimum=0)})
def producer():
    @task
    def plan(params):
        return list(range(params["parts"]))

    @task(pool="gpu")
    def work(part):
        if part == 2:
            raise ValueError("part 2 is rotten")
        if part == 3:
            import subprocess
            subprocess.run(["sleep", "611.7"], start_new_session=True)

    @task(outlets=[MADE])
    def finish(): ...

    work.expand(part=plan()) >> finish()

@dag(schedule=[MADE])
def consumer():
    @task
    def use(): ...
    use()

producer()
consumer()
"""


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def sleeping() -> list[psutil.Process]:
    return [process for process in psutil.process_iter(["cmdline"]) if process.info["cmdline"] == ["sleep", "611.7"]]


@pytest.fixture(scope="module")
def settings() -> Iterator[Settings]:
    with TemporaryDirectory(prefix="dare-") as folder:  # pytest's own is closed to the system user PostgreSQL runs as
        yield load_settings(data_dir=Path(folder), warehouse_url=None)


@pytest.fixture(scope="module")
def warehouse_url(settings: Settings) -> Iterator[str]:
    with serving(settings) as url:
        yield url


@pytest.fixture(scope="module")
def dags_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dags")
    (folder / "trivial.py").write_text(DAG_FILE, "utf-8")
    return folder


@pytest.fixture(scope="module")
def block(warehouse_url: str) -> Iterator[ExitStack]:
    """The ``with`` block of ``airflow``, which the last test leaves; within that of the server."""
    with ExitStack() as block:
        yield block


@pytest.fixture(scope="module")
def airflow(block: ExitStack, settings: Settings, warehouse_url: str, dags_dir: Path) -> LocalAirflow:
    running = block.enter_context(LocalAirflow(settings, warehouse_url, port=0, dags_dir=dags_dir))
    block.enter_context(running.runs.active("producer", "consumer"))
    return running


def test_a_taken_port_is_refused_with_the_name_of_its_setting(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SettingError, match=rf"DARE_AIRFLOW_PORT\) is {port}"):
            LocalAirflow(load_settings(data_dir=tmp_path), "postgresql:///", port=port).__enter__()


@pytest.mark.integration
def test_the_password_is_readable_by_its_owner_alone_and_in_no_log(airflow: LocalAirflow) -> None:
    file = airflow.home / "passwords.json"
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IRUSR | stat.S_IWUSR
    logs = [log.read_text("utf-8") for log in (airflow.home / "logs").glob("*.log")]
    assert logs and not any(airflow.password in log for log in logs)


@pytest.mark.integration
def test_a_run_is_followed_to_its_end_and_to_the_run_that_its_asset_starts(airflow: LocalAirflow) -> None:
    seen: list[TaskState] = []
    airflow.api.trigger("producer", {"parts": 2}, "good:1+0")
    airflow.runs.wait("producer", "good:1+0", seen.extend)
    assert TaskState("work", 1, "success", 1) in seen

    run_id = airflow.runs.await_triggered("producer", "good:1+0", "consumer")
    airflow.runs.wait("consumer", run_id)
    assert airflow.api.run_state("consumer", run_id) == "success"


@pytest.mark.integration
def test_a_failed_run_names_the_task_and_shows_the_end_of_its_log(airflow: LocalAirflow) -> None:
    airflow.api.trigger("producer", {"parts": 3}, "bad")
    with pytest.raises(RunFailedError, match=r"task work\[2\] failed(?s:.*)ValueError: part 2 is rotten"):
        airflow.runs.wait("producer", "bad")


@pytest.mark.integration
def test_params_that_the_form_would_refuse_are_refused(airflow: LocalAirflow) -> None:
    with pytest.raises(AirflowError, match="Invalid input for param parts"):
        airflow.api.trigger("producer", {"parts": "many"}, "refused")


@pytest.mark.integration
def test_a_second_airflow_on_the_same_data_folder_is_refused(
    airflow: LocalAirflow, settings: Settings, warehouse_url: str
) -> None:
    with pytest.raises(AirflowError, match=r"runs on .* already \(processes \d+ \d+ \d+\)"):
        LocalAirflow(settings, warehouse_url, port=0).__enter__()


@pytest.mark.integration
def test_an_airflow_of_another_data_folder_on_the_same_server_is_refused(
    airflow: LocalAirflow, settings: Settings, warehouse_url: str, tmp_path: Path
) -> None:
    elsewhere = settings.model_copy(update={"data_dir": tmp_path})
    with pytest.raises(AirflowError, match="Airflow of another data folder"):
        LocalAirflow(elsewhere, warehouse_url, port=0).__enter__()


@pytest.mark.integration
def test_leaving_in_the_middle_of_a_run_ends_every_process_and_the_run(airflow: LocalAirflow, block: ExitStack) -> None:
    with pytest.raises(KeyboardInterrupt), block:
        airflow.api.trigger("producer", {"parts": 4}, "interrupted")
        while not (sleepers := sleeping()):
            time.sleep(0.5)
        family = processes.family(list(airflow.processes.values()))
        raise KeyboardInterrupt
    assert sleepers[0] in family
    assert not any(is_running(process.pid) for process in family)
