"""Many shards through a real scheduler: what it takes when there are more of them than tasks may be mapped.

Everything is the pipeline's own (plan, assignments, the worker with its parts and manifests) but the model: a stand-in
answers every request with one token, so that the figures are Airflow's and the worker's.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, cast

import psutil
import pyarrow as pa

from dare_airflow.local.airflow import LocalAirflow
from dare_core.config.settings import Settings, load_settings
from dare_core.knowledge import shards, worker
from dare_core.knowledge.costs import Estimate
from dare_core.knowledge.requests import Decoding
from dare_core.knowledge.shards import Plan, Shard
from dare_core.schemas import REQUEST, Kind
from dare_core.stages import plan
from dare_core.stages.request import RunRequest
from dare_core.storage import run_files
from dare_core.warehouse.server import serving

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dare_airflow.client import TaskState
    from dare_core.decoding import Result

OnProgress = Callable[[str], None]

DAG_ID: Final = "work_off_shards"
RUN_ID: Final = "bench"
_REQUESTS: Final = 2  # per shard

_DAG_FILE: Final = """
from airflow.sdk import dag, task


@dag(schedule=None)
def work_off_shards():
    @task
    def plan():
        from bench.shards import assignments

        return assignments()

    @task(pool="gpu", retries=2)
    def generate(assignment):
        from bench.shards import work_off

        return work_off(assignment)

    generate.expand(assignment=plan())


work_off_shards()
"""


def bench_shards(
    settings: Settings, count: int = 10_000, on_progress: OnProgress = lambda what: None
) -> dict[str, Any]:
    """Plan ``count`` shards and have a scheduler of its own work them off, in a temporary folder.

    Returns:
        ``shards_finished``: those with a manifest and every request answered once; ``shards_tasks``: that they were
        mapped over; ``shards_scheduler_mb``: the most memory of the scheduler's own process; ``shards_s``: from
        triggering to the end of the run.

    Raises:
        AirflowError: Airflow did not start, or the run failed.
    """
    with TemporaryDirectory(prefix="dare-shards-") as folder:  # the system user PostgreSQL runs as may enter it
        here = settings.model_copy(update={"data_dir": Path(folder) / "data", "warehouse_url": None, "accelerators": 4})
        dags = Path(folder) / "dags"
        dags.mkdir()
        (dags / "shards.py").write_text(_DAG_FILE, "utf-8")
        on_progress(f"planning {count} shards")
        plan = _plan(here, count)
        with (
            serving(here) as url,
            LocalAirflow(here, url, port=0, dags_dir=dags) as airflow,
            airflow.runs.active(DAG_ID),
        ):
            scheduler, most = psutil.Process(airflow.processes["scheduler"].pid), 0

            def watch(tasks: "Sequence[TaskState]") -> None:
                nonlocal most
                most = max(most, scheduler.memory_info().rss)

            on_progress("working them off")
            started = time.monotonic()
            airflow.api.trigger(DAG_ID, {}, RUN_ID)
            airflow.runs.wait(DAG_ID, RUN_ID, watch)
            seconds = time.monotonic() - started
            tasks = [task for task in airflow.api.tasks(DAG_ID, RUN_ID) if task.task_id == "generate"]
        return {
            "shards_finished": sum(_is_finished(here, shard) for shard in plan.shards),
            "shards_tasks": len(tasks),
            "shards_scheduler_mb": round(most / 2**20),
            "shards_s": round(seconds, 1),
        }


def assignments() -> list[dict[str, int]]:
    """What the bench's DAG maps its tasks over."""
    return plan.assignments(load_settings(), RunRequest(run_id=RUN_ID))


def work_off(assignment: dict[str, int]) -> dict[str, int]:
    """What a task of the bench's DAG does."""
    settings = load_settings()
    plan = shards.read_plan(settings.run_dir(RUN_ID))
    assigned = plan.shards[assignment["first"] : assignment["end"]]
    return {"shards": len(worker.work_off(settings, plan, assigned, lambda settings, plan: _StandIn()))}


def _plan(settings: Settings, count: int) -> Plan:
    run_dir = settings.run_dir(RUN_ID)
    now = datetime.now(UTC)
    rows = [
        {
            "request_id": f"{number:032x}",
            "domain": "bench",
            "kind": "item",
            "entity_id": str(number),
            "group_name": "all",
            "prompt": "?",
            "prompt_token_ids": [1],
            "dropped_history": 0,
            "epoch": 0,
            "data_as_of": now,
        }
        for number in range(count * _REQUESTS)
    ]
    plan = Plan(
        run_id=RUN_ID,
        domain="bench",
        framework="kar",
        decoding=Decoding("stand-in", "stand-in", "strict", 1, 0.0, 1),
        started_at=now,
        shards=shards.write_shards(run_dir, "item", pa.Table.from_pylist(rows, REQUEST).to_batches(), _REQUESTS, None),
        funnel={},
        estimate=Estimate(tokens=count * _REQUESTS, seconds=None, cost=None, tokens_per_second=None, basis="none"),
    )
    run_files.write_json(run_dir / "plan.json", plan.model_dump_json())
    return plan


def _is_finished(settings: Settings, shard: Shard) -> bool:
    run_dir = settings.run_dir(RUN_ID)
    written, _ = shards.read_staged(run_dir, [shard.name])
    asked = shards.read_requests(run_dir, shard.name)["request_id"].to_pylist()
    manifest = shards.read_manifest(run_dir / "staged" / shard.name)
    return manifest is not None and sorted(written["request_id"].to_pylist()) == sorted(asked)


@dataclass
class _Counts:
    """As the engine's Statistics, which would bring in torch."""

    prompt_tokens: int = 1
    new_tokens: int = 1
    steps: int = 1
    drafted: int = 0
    accepted: int = 0
    relaxed: int = 0
    seconds: float = 0.0


@dataclass
class _Answer:
    """As the engine's Result."""

    id: str
    statistics: _Counts
    token_ids: tuple[int, ...] = (2,)
    finish_reason: str = "stop"
    error: None = None
    draft_group: None = None


class _StandIn:
    """A :class:`~dare_core.knowledge.worker.TextWriter` that takes no time."""

    seconds = 0.0
    load_seconds = 0.0

    def write(
        self, rows: Iterable[dict[str, Any]], kind: Kind, pool_version: str | None, longest: int, sequences: int
    ) -> "Iterator[Result]":
        for row in rows:
            yield cast("Result", _Answer(row["request_id"], _Counts()))

    def text(self, result: "Result") -> str:
        return "."

    def probe(self, rows: Iterable[dict[str, Any]], tokens: int, seconds: float) -> None:
        """Nothing to compare with."""
