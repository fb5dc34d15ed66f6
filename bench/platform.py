"""What the platform adds to the engine, and whether it loses anything: ``dare bench platform``.

Each part works in a temporary folder of its own, with a warehouse and, where it needs one, an Airflow of its own.
"""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

from bench.kills import kill_workers
from bench.no_change import bench_no_change
from bench.shards import bench_shards
from dare_airflow.local.airflow import DAGS_DIR, LocalAirflow
from dare_airflow.local.processes import exit_on_signals
from dare_core import models
from dare_core.config.settings import Settings
from dare_core.errors import DareError
from dare_core.knowledge import shards
from dare_core.knowledge.shards import Plan
from dare_core.knowledge.worker import PlannedWriter
from dare_core.sources.importer import import_tables
from dare_core.sources.movielens import read_movielens
from dare_core.warehouse.connection import connect
from dare_core.warehouse.migrate import upgrade
from dare_core.warehouse.server import serving

OnProgress = Callable[[str], None]

_REFRESH: Final = "refresh_knowledge_movies"
_RUN_ID: Final = "bench"

#: Each kill wants a part that was not there before it; these make parts quickly, of few texts.
_KILLED: Final[dict[str, Any]] = {"batch_size": 4, "checkpoint_seconds": 1, "shard_size": 16, "draft_budget": "fixed"}
_KILLED_TOKENS: Final = 96
_ITEMS_PER_KILL: Final = 10

#: Beside an engine that wants every core: Airflow's defaults look for work every second and at DAG files every 30.
_SPARING: Final = {
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "5",
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "300",
}
_POLL_SECONDS: Final = 30.0  # each look at a run costs the API server what the engine then lacks

_IMPORTS: Final = 3  # of each DAG file; the median counts

#: Prints what Airflow's own statistics say of the DAG files in a folder, or of one of them.
_IMPORT: Final = """
import json, sys

from airflow.dag_processing.dagbag import BundleDagBag

folder, *file = sys.argv[1:]
bag = BundleDagBag(folder, bundle_path=folder, collect_dags=False)
bag.collect_dags(file[0] if file else folder)
seconds = {stat.file: stat.duration.total_seconds() for stat in bag.dagbag_stats}
print(json.dumps({"seconds": seconds, "errors": bag.import_errors}))
"""


@dataclass(frozen=True)
class Size:
    """How much work the parts do.

    Attributes:
        shards: that a scheduler works off.
        entities: items that texts are written about through Airflow and by the bare engine.
        kills: of a generation task.
    """

    shards: int = 10_000
    entities: int = 640
    kills: int = 5


def bench_platform(
    settings: Settings, only: Sequence[str] = (), size: Size | None = None, on_progress: OnProgress = lambda what: None
) -> dict[str, Any]:
    """Measure the parts, one after the other.

    Args:
        settings: the model's and the engine's count; folders and warehouse are the bench's own.
        only: names of :data:`PARTS`; all where empty.
        size: how much work they do.
        on_progress: told what is being done.

    Returns:
        The figures of the parts, and ``machine`` with ``load``: the processes that wanted a core in the minute before.

    Raises:
        DareError: a run failed, or something did not start.
        SystemExit: SIGTERM or SIGHUP came; what the bench had started has ended.
    """
    result: dict[str, Any] = {"machine": _machine()}
    here = settings.model_copy(update={"model": models.locate(settings), "max_failing_share": 1.0})
    with exit_on_signals():
        for name, part in PARTS.items():
            if name in only or not only:
                on_progress(name)
                result |= part(here, size or Size(), on_progress)
    return result


def _machine() -> dict[str, Any]:
    cpus = Path("/proc/cpuinfo")
    names = [line for line in cpus.read_text().splitlines() if line.startswith("model name")] if cpus.exists() else []
    processor = names[0].partition(":")[2].strip() if names else platform.processor()
    return {"processor": processor, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}


def _measure_no_change(settings: Settings, size: Size, on_progress: OnProgress) -> dict[str, Any]:
    with _own_folder(settings) as here:
        return bench_no_change(here)


def _measure_shards(settings: Settings, size: Size, on_progress: OnProgress) -> dict[str, Any]:
    return bench_shards(settings, size.shards, on_progress)


def _measure_kills(settings: Settings, size: Size, on_progress: OnProgress) -> dict[str, Any]:
    items = (size.kills + 1) * _ITEMS_PER_KILL
    conf = {"kinds": ["item"], "item_limit": items, "max_new_tokens": _KILLED_TOKENS}
    with _own_folder(settings, **_KILLED) as here, _airflow(here) as airflow:
        return kill_workers(airflow, here, _REFRESH, _RUN_ID, conf, size.kills, on_progress)


def _measure_dag_import(settings: Settings, size: Size, on_progress: OnProgress) -> dict[str, Any]:
    return dag_import(settings, DAGS_DIR)


def dag_import(settings: Settings, folder: Path) -> dict[str, Any]:
    """Import every DAG file of a folder, each time in a process of its own, as Airflow's DAG processor does.

    Returns:
        ``dag_import_s``: the slowest file's; ``dag_import_files``: the median of each, in seconds.

    Raises:
        DareError: a file cannot be imported.
    """
    with TemporaryDirectory(prefix="dare-airflow-") as home:
        files = _import(settings, Path(home), folder)
        seconds = {
            file: round(median(_import(settings, Path(home), folder, file)[file] for _ in range(_IMPORTS)), 3)
            for file in sorted(files)
        }
    return {"dag_import_s": max(seconds.values()), "dag_import_files": seconds}


def _import(settings: Settings, home: Path, folder: Path, *file: str) -> dict[str, float]:
    """Seconds by file, as Airflow's statistics have them."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    ended = subprocess.run(
        [sys.executable, "-c", _IMPORT, str(folder), *(str(folder / name) for name in file)],
        env=inherited
        | {
            "AIRFLOW_HOME": str(home),
            "DARE_CONFIG_DIR": str(settings.config_dir),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise DareError(f"Airflow could not look at the DAG files in {folder}:\n{ended.stderr}")
    found = json.loads(ended.stdout.splitlines()[-1])
    if found["errors"]:
        raise DareError(f"DAG files in {folder} cannot be imported: {found['errors']}")
    seconds: dict[str, float] = found["seconds"]
    return seconds


def _measure_airflow_vs_engine(settings: Settings, size: Size, on_progress: OnProgress) -> dict[str, Any]:
    """The same shards by a generation task and by a writer that has loaded the model already.

    All are one shard, as they would be once the model's speed was measured: the work of one task, for minutes. Without
    the probe of plain decoding, which a run makes once for each kind, however many shards it has.
    """
    with _own_folder(settings, shard_size=size.entities, probe_share=0.0) as here:
        on_progress(f"{size.entities} texts through Airflow")
        with _airflow(here, _SPARING) as airflow:
            airflow.api.trigger(_REFRESH, {"kinds": ["item"], "item_limit": size.entities}, _RUN_ID)
            airflow.runs.wait(_REFRESH, _RUN_ID, poll=_POLL_SECONDS)
            tasks = [task for task in airflow.api.tasks(_REFRESH, _RUN_ID) if task.task_id == "generate"]
        run_dir = here.run_dir(_RUN_ID)
        plan = shards.read_plan(run_dir)
        names = [shard.name for shard in plan.shards]
        task_tokens = sum(shards.read_staged(run_dir, names)[0]["new_tokens"].to_pylist())
        task_seconds = sum(task.seconds or 0.0 for task in tasks)
        on_progress("the same texts by the bare engine")
        bare_tokens, bare_seconds = write_bare(here, plan)
        return {
            "airflow_vs_engine": round((task_tokens / task_seconds) / (bare_tokens / bare_seconds), 3),
            "airflow_tokens_per_s": round(task_tokens / task_seconds, 1),
            "engine_tokens_per_s": round(bare_tokens / bare_seconds, 1),
            "airflow_tokens": task_tokens,
            "engine_tokens": bare_tokens,
            "airflow_tasks": len(tasks),
            "airflow_task_s": round(task_seconds, 1),
            "airflow_task_engine_s": round(shards.engine_seconds(run_dir, names), 1),
            "airflow_task_load_s": round(shards.load_seconds(run_dir, names), 1),
            "airflow_options": _SPARING,
        }


def write_bare(settings: Settings, plan: Plan) -> tuple[int, float]:
    """Tokens, and the engine's seconds, of a plan's shards, written by this process as a worker would and not kept.

    Args:
        settings: of the run.
        plan: whose shards are of one kind, as is their pool.
    """
    writer = PlannedWriter(settings, plan)
    run_dir = settings.run_dir(plan.run_id)
    rows = [row for shard in plan.shards for row in shards.read_requests(run_dir, shard.name).to_pylist()]
    longest = max(len(row["prompt_token_ids"]) for row in rows)
    results = writer.write(rows, plan.shards[0].kind, plan.shards[0].pool_version, longest, len(rows))
    return sum(result.statistics.new_tokens for result in results), writer.seconds


@contextmanager
def _own_folder(settings: Settings, **changed: Any) -> Iterator[Settings]:
    """Settings with a data folder for as long as the block lasts."""
    with TemporaryDirectory(prefix="dare-platform-") as folder:
        yield settings.model_copy(update={"data_dir": Path(folder), "warehouse_url": None, **changed})


@contextmanager
def _airflow(settings: Settings, environment: Mapping[str, str] | None = None) -> Iterator[LocalAirflow]:
    """An Airflow over MovieLens in which the movies' refresh is active."""
    with serving(settings) as url:
        engine = connect(url)
        upgrade(engine)
        import_tables(engine, read_movielens())
        engine.dispose()
        with LocalAirflow(settings, url, port=0, environment=environment) as airflow, airflow.runs.active(_REFRESH):
            yield airflow


Part = Callable[[Settings, Size, OnProgress], dict[str, Any]]

#: What ``--only`` chooses from.
PARTS: Final[dict[str, Part]] = {
    "no_change": _measure_no_change,
    "dag_import": _measure_dag_import,
    "kills": _measure_kills,
    "shards": _measure_shards,
    "airflow_vs_engine": _measure_airflow_vs_engine,
}
