"""A generation task that is killed in mid shard, over and over: is anything lost, is anything written twice?"""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import psutil

from dare_airflow.client import TaskState, run_path
from dare_airflow.local.airflow import LocalAirflow
from dare_core.config.settings import Settings
from dare_core.errors import DareError
from dare_core.knowledge import shards

OnProgress = Callable[[str], None]

#: Seconds between looks at a run.
_POLL: Final = 0.5


def kill_workers(
    airflow: LocalAirflow,
    settings: Settings,
    dag_id: str,
    run_id: str,
    conf: dict[str, Any],
    kills: int = 5,
    on_progress: OnProgress = lambda what: None,
) -> dict[str, Any]:
    """Run a refresh, kill a generation task's process (SIGKILL) ``kills`` times in mid shard, and count the texts.

    Args:
        airflow: a running one, in which the DAG is active; its tasks see ``settings``.
        settings: with ``checkpoint_seconds`` short enough for parts to be written between kills.
        dag_id: `refresh_knowledge_<domain>`.
        run_id: a name for a folder, too.
        conf: the form's fields; the run must last long enough to be killed so often.
        kills: how often.
        on_progress: told of every kill.

    Returns:
        ``kills``; ``kill_entities`` asked for; ``kill_missing``: those of which there is neither a text nor a failure;
        ``kill_doubled``: texts written more than once; ``kill_resumed``: requests that a later try found answered.

    Raises:
        RunFailedError: the run failed.
        DareError: it ended before it was killed often enough.
    """
    run_dir = settings.run_dir(run_id)
    airflow.api.trigger(dag_id, conf, run_id)
    seen = 0
    for number in range(kills):
        seen = _kill_one(airflow, settings, dag_id, run_id, seen)
        on_progress(f"kill {number + 1} of {kills}, after {seen} parts")
    airflow.runs.wait(dag_id, run_id)
    names = [shard.name for shard in shards.read_plan(run_dir).shards]
    asked = {request for name in names for request in shards.read_requests(run_dir, name)["request_id"].to_pylist()}
    written, failed = shards.read_staged(run_dir, names)
    times = Counter(written["request_id"].to_pylist())
    manifests = [shards.read_manifest(run_dir / "staged" / name) or {} for name in names]
    return {
        "kills": kills,
        "kill_entities": len(asked),
        "kill_missing": len(asked - set(times) - set(failed["request_id"].to_pylist())),
        "kill_doubled": sum(count - 1 for count in times.values()),
        "kill_resumed": sum(manifest.get("resumed", 0) for manifest in manifests),
    }


def _kill_one(airflow: LocalAirflow, settings: Settings, dag_id: str, run_id: str, seen: int) -> int:
    """Kill a generation task as soon as there are more parts than ``seen``, its work not being done."""
    while True:
        airflow.check()
        if airflow.api.run_state(dag_id, run_id) in ("success", "failed"):
            raise DareError(f"{dag_id} {run_id} ended before it could be killed again; ask it for more texts")
        for task in airflow.api.tasks(dag_id, run_id):
            if task.task_id == "generate" and task.state == "running":
                parts = len(list((settings.run_dir(run_id) / "staged").glob("*/part-*.parquet")))
                process = process_of(airflow, dag_id, run_id, task)
                if process is not None and parts > seen:
                    process.kill()
                    return parts
        time.sleep(_POLL)


def process_of(airflow: LocalAirflow, dag_id: str, run_id: str, task: TaskState) -> psutil.Process | None:
    """The process in which a task runs; None when it has not begun or has ended."""
    path = f"{run_path(dag_id, run_id)}/taskInstances/{task.task_id}"
    instance = airflow.api.call("GET", path if task.map_index < 0 else f"{path}/{task.map_index}")
    title = f"airflow worker -- {instance['id']}"
    for process in psutil.Process(airflow.processes["scheduler"].pid).children(recursive=True):
        with suppress(psutil.Error):
            if " ".join(process.cmdline()).strip() == title:
                return process
    return None
