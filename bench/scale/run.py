"""Conducts the bench: sizes, their runs, and what is kept of them."""

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from inspect import ismodule
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from pydantic import SecretStr
from sqlalchemy import text

from bench.machine import machine
from bench.scale.audit import texts_told
from bench.scale.figures import Size, figures_of, mb_by_stage, unaccounted
from bench.scale.process import Processes
from bench.scale.source import DOMAIN
from bench.scale.steps import Steps
from dare_airflow.local.processes import exit_on_signals
from dare_core import models
from dare_core.config.settings import PROJECT_DIR, Settings
from dare_core.errors import InputError
from dare_core.stages import order
from dare_core.stages.request import RunRequest
from dare_core.storage.run_files import write_json
from dare_core.warehouse.connection import connected
from dare_core.warehouse.server import database_url, serving

OnProgress = Callable[[str], None]

RUNS: Final = ("first", "unchanged", "nightly")

_RESULT: Final = "result.json"

#: A task for each of a few workers, of shards that take one of them minutes; nothing may be lost.
_TASKS: Final[dict[str, Any]] = {
    "shard_size": 1000,
    "max_generation_tasks": 8,
    "probe_share": 0.0,
    "max_failing_share": 0.0,
}
#: Whether an index of vectors is being built: others are on tables whose rows are still to come.
_BUILDING: Final = text("""
    SELECT EXISTS (
        SELECT FROM pg_stat_progress_create_index AS progress JOIN pg_attribute AS a ON a.attrelid = progress.relid
        WHERE datname = current_database() AND a.atttypid = to_regtype('vector')
    )
""")


def bench_scale(
    settings: Settings, users: int, fresh: bool = False, on_progress: OnProgress = lambda what: None
) -> dict[str, Any]:
    """Make shops of a tenth, of half and of all of ``users``, and run the stages over them.

    What has been done is kept in ``data_dir/bench/scale``: a call that is stopped goes on there. In the end its
    ``result.json`` holds the figures, memory and disk by stage and size, and the speed of the real encoder; all else is
    gone.

    Args:
        settings: the model's tokenizer and Spark's master count; so does the warehouse's server, in which each size has
            a database of its own.
        users: of the largest shop; a multiple of 10.
        fresh: forget what an earlier call has done.
        on_progress: told what is being done.

    Returns:
        The figures of :func:`bench.scale.figures.figures_of`, and the facts of :func:`bench.machine.machine`.

    Raises:
        InputError: ``users`` is no multiple of 10.
        DareError: a stage failed; the next call begins it again.
    """
    if users % 10:
        raise InputError(f"{users} users cannot be divided by 10, which the bench does")
    root = _root(settings)
    here = settings.model_copy(
        update={"model": models.locate(settings), "config_dir": PROJECT_DIR / "config", **_TASKS}
    )
    with exit_on_signals(), serving(settings) as url:
        shops = {
            size: _Shop(settings, here, url, root / str(users) / str(size), size, runs, on_progress)
            for size, runs in ((users // 10, RUNS), (users // 2, RUNS[:1]), (users, RUNS))
        }
        if fresh:
            for shop in shops.values():
                shop.forget()
        for shop in shops.values():
            shop.measure()
        sizes = {size: shop.measured() for size, shop in shops.items()}
        figures = figures_of(users, sizes) | machine()
        beside = {
            "users": users,
            "mb": {size: mb_by_stage(of_size) for size, of_size in sizes.items()},
            "gigabytes": {size: of_size.bench["disk/0"].result for size, of_size in sizes.items()},
            "vectors_per_second": sizes[users].bench["embedding/0"].result,
            "unaccounted_by_check": {size: unaccounted(of_size) for size, of_size in sizes.items()},
        }
        write_json(root / _RESULT, json.dumps(figures | beside, indent=1))
        for shop in shops.values():
            shop.forget()
        (root / str(users)).rmdir()  # of all sizes, empty now
    return figures


def last_result(settings: Settings) -> dict[str, Any]:
    """What the last bench that came to its end left.

    Raises:
        InputError: there is none.
    """
    path = _root(settings) / _RESULT
    if not path.exists():
        raise InputError(f"{path} is missing: run `dare bench scale` first")
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def _root(settings: Settings) -> Path:
    return settings.data_dir / "bench" / "scale"


class _Shop:
    """The bench at one size.

    Args:
        settings: whose data folder holds the embedded server, if there is one.
        here: of the stages; data folder and warehouse are the shop's own.
        url: of the server.
        folder: takes the data folder, logs and what has been done.
        users: how many.
        runs: that are made, in their order.
        on_progress: told what is being done.
    """

    def __init__(
        self,
        settings: Settings,
        here: Settings,
        url: str,
        folder: Path,
        users: int,
        runs: Sequence[str],
        on_progress: OnProgress,
    ) -> None:
        self._settings, self._here, self._url = settings, here, url
        self._folder, self._users, self._runs = folder, users, runs
        self._on_progress = on_progress
        self._database = f"dare_scale_{folder.parent.name}_{users}"
        self._steps = Steps(folder / "steps.json")

    def measure(self) -> None:
        """Do what has not been done yet."""
        if not self._steps["bench/disk/0"].ended:
            with self._processes() as processes:
                self._measure(processes)
        self._clear()  # what the next size needs is disk

    def measured(self) -> Size:
        """What was done."""
        return Size({run: self._steps.of(run) for run in self._runs}, self._steps.of("bench"))

    def forget(self) -> None:
        """Remove everything."""
        self._clear()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._steps = Steps(self._folder / "steps.json")

    def _clear(self) -> None:
        shutil.rmtree(self._folder / "data", ignore_errors=True)
        with (
            connected(self._url) as engine,
            engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
        ):
            connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {self._database} WITH (FORCE)")

    def _measure(self, processes: Processes) -> None:
        rows = processes.perform("bench/source/0", "bench.scale.source:fill", self._users)
        expected = {"first": rows["shop_products"] + rows["buyers"], "unchanged": 0}
        for run in self._runs:
            if run == "nightly":
                changed = processes.perform("bench/night/0", "bench.scale.source:change")
                expected[run] = changed["items"] + changed["users"]
            request = RunRequest(run_id=run, domain=DOMAIN)
            told = texts_told(perform_run(processes, request))
            if run == "first":
                told |= processes.perform("bench/copy/0", "bench.scale.audit:copy_parts", run)
            processes.perform(f"bench/audit/{run}", "bench.scale.audit:audit", run, expected[run], told)
        processes.perform("bench/embedding/0", "bench.scale.embedding:vectors_per_second")
        processes.perform("bench/disk/0", "bench.scale.audit:gigabytes")

    @contextmanager
    def _processes(self) -> Iterator[Processes]:
        url = database_url(self._url, self._database)
        here = self._here.model_copy(update={"data_dir": self._folder / "data", "warehouse_url": SecretStr(url)})
        with connected(url) as engine:

            def index_building() -> bool:
                with engine.connect() as connection:
                    return bool(connection.execute(_BUILDING).scalar_one())

            yield Processes(
                settings=here,
                server=self._settings,
                steps=self._steps,
                logs=self._folder / "logs",
                index_building=index_building,
                on_progress=lambda what: self._on_progress(f"{self._users} users: {what}"),
            )


def perform_run(processes: Processes, request: RunRequest) -> dict[str, list[Any]]:
    """A run by :func:`dare_core.stages.order.run`, whatever its stages are, each call in a process of its own.

    Returns:
        What the stages returned, by their name, in the order of their calls.
    """
    results: dict[str, list[Any]] = defaultdict(list)

    def in_process(stage: str) -> Callable[..., Any]:
        def run(settings: Settings, asked: RunRequest, *more: Any) -> Any:
            name = f"{asked.run_id}/{stage}/{len(results[stage])}"
            results[stage].append(processes.perform(name, f"dare_core.stages.{stage}:run", asked, *more))
            return results[stage][-1]

        return run

    stages = {name: part for name, part in vars(order).items() if ismodule(part) and hasattr(part, "run")}
    with ExitStack() as replaced:
        for part in stages.values():
            stage = part.__name__.rpartition(".")[2]
            replaced.enter_context(patch.object(part, "run", in_process(stage)))
        # The run is owned by one stage after the other, as under Airflow.
        replaced.enter_context(patch.object(order, "owning", lambda settings, request: nullcontext()))
        order.run(processes.settings, request)
    return results
