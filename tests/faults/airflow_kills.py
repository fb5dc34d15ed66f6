"""Kill every task of a refresh and of the pool build in a real Airflow, over and over, and compare what is left.

    python -m tests.faults.airflow_kills --work DIR --times 5

One run of each DAG. The process of a running task is killed (SIGKILL) at a random instant and the task is cleared, so
many times; then it may come through, and the next task has its turn. The measure is what the same stages leave
undisturbed and without Airflow. Results are appended to ``DIR/results.jsonl``, as those of the crash matrix are.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Final

import psutil

from bench.kills import process_of
from dare_airflow.local.airflow import LocalAirflow
from dare_core.config.settings import Settings
from dare_core.errors import DareError
from dare_core.warehouse.server import serving, start, stop
from tests.faults.crash_matrix import Matrix, Try
from tests.faults.stages import DOMAIN, RUN
from tests.support.airflow_tasks import clear
from tests.support.inventory import compare

REFRESH, REBUILD = f"refresh_knowledge_{DOMAIN}", f"rebuild_pools_{DOMAIN}"
#: The tasks that are killed, by DAG, in their order.
TASKS: Final = {
    REFRESH: ("pull", "group", "plan", "generate", "load"),
    REBUILD: ("build", "publish"),
}
#: The stages of tasks that are called otherwise.
_STAGES: Final = {"build": "pool_build"}
_RUN_ID: Final = "killed"
_POLL: Final = 0.1
#: A task is killed within so many seconds of its beginning, or within this share of the time that its stage takes in a
#: process of its own, if that is less: Airflow has imported much before.
_WITHIN: Final = 8.0
_SHARE: Final = 0.4
_LONGEST: Final = 900.0


def kill_tasks(work: Path, times: int) -> list[Try]:
    """Run both DAGs, kill each of their tasks so often, and compare.

    Returns:
        For every kill a try; what is lost, doubled or half-written at the end stands at each.
    """
    work.mkdir(parents=True, exist_ok=True)
    work.chmod(0o755)
    server = Settings(data_dir=work / "server", warehouse_url=None)
    chance = random.Random("kills through Airflow")
    with serving(server):
        try:
            matrix = Matrix(work, server, start(server))
            matrix.prepare()
            matrix.installation.put_back("pull")
            # That of an earlier call is encrypted with a key that went with the data folder.
            matrix.installation.administer("DROP DATABASE IF EXISTS airflow WITH (FORCE)")
            settings = matrix.installation.settings().model_copy(update={"max_acceptance_loss": 1.0})
            kills = {}
            with (
                LocalAirflow(settings, matrix.installation.database, port=0) as airflow,
                airflow.runs.active(REFRESH, REBUILD),
            ):
                assert RUN.as_of is not None
                airflow.api.trigger(REFRESH, {"as_of": RUN.as_of.isoformat()}, _RUN_ID)
                run_id = _RUN_ID
                for dag_id, tasks in TASKS.items():
                    if dag_id == REBUILD:
                        run_id = airflow.runs.await_triggered(REFRESH, _RUN_ID, REBUILD)
                    for task_id in tasks:
                        within = min(_WITHIN, _SHARE * matrix.durations[_STAGES.get(task_id, task_id)])
                        kills[task_id] = _kill(airflow, dag_id, run_id, task_id, times, within, chance)
                        print(f"{task_id}: killed {kills[task_id]} times", flush=True)
                    airflow.runs.wait(dag_id, run_id)
            difference = compare(matrix.reference, matrix.inventory())
            half = [f"{count} rows of {name} differ" for name, count in difference.changed.items()]
            half += matrix.unfinished()
        finally:
            stop(server)
    return [
        Try(f"airflow:{task_id}", number, True, -9, dict(difference.lost), dict(difference.doubled), half)
        for task_id, count in kills.items()
        for number in range(1, count + 1)
    ]


def _kill(
    airflow: LocalAirflow, dag_id: str, run_id: str, task_id: str, times: int, within: float, chance: random.Random
) -> int:
    """Kill a task's process ``times`` times, clearing the task after each; returns how often it could be.

    A task that comes through is cleared too, and killed sooner.
    """
    killed, deadline = 0, time.monotonic() + _LONGEST
    while killed < times and time.monotonic() < deadline:
        airflow.check()
        mine = [task for task in airflow.api.tasks(dag_id, run_id) if task.task_id == task_id]
        if mine and all(task.state == "success" for task in mine):
            within /= 2  # it came through: next time it is killed sooner
            clear(airflow.api, dag_id, run_id, task_id)
            continue
        running = [process_of(airflow, dag_id, run_id, task) for task in mine if task.state == "running"]
        process = next(filter(None, running), None)
        if process is None:
            time.sleep(_POLL)
            continue
        with suppress(psutil.Error):
            process.wait(chance.uniform(0, within))
        with suppress(psutil.Error):
            if process.is_running():
                process.kill()
                killed += 1
                _clear(airflow, dag_id, run_id, task_id)
    return killed


def _clear(airflow: LocalAirflow, dag_id: str, run_id: str, task_id: str) -> None:
    """Let a killed task run again, as soon as Airflow has noticed its end."""
    while any(task.state == "running" for task in airflow.api.tasks(dag_id, run_id) if task.task_id == task_id):
        airflow.check()
        time.sleep(_POLL)
    clear(airflow.api, dag_id, run_id, task_id)


def main(argv: Sequence[str] | None = None) -> int:
    """The program; exit status 1 where anything is lost, doubled or half-written, or too few kills came through."""
    parser = argparse.ArgumentParser(prog="airflow_kills", description="Kill every task in Airflow, and count.")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything, results included")
    parser.add_argument("--times", type=int, default=5, help="of every task")
    given = parser.parse_args(argv)
    work: Path = given.work.resolve()
    try:
        tries = kill_tasks(work, given.times)
    except DareError as error:
        print(f"airflow_kills: {error}", file=sys.stderr)
        return 2
    (work / "results.jsonl").write_text("".join(json.dumps(asdict(tried)) + "\n" for tried in tries), "utf-8")
    wrong = [tried for tried in tries if tried.lost or tried.doubled or tried.half_written]
    for tried in wrong[:1]:
        print(json.dumps(asdict(tried)))
    return int(bool(wrong) or len(tries) < given.times * sum(map(len, TASKS.values())))


if __name__ == "__main__":
    sys.exit(main())
