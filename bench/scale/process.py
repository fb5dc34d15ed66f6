"""Functions in processes of their own, as Airflow runs a task, and their memory while they run.

A function takes settings and further arguments; what it returns goes through JSON, as through XCom.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from bench.scale.memory import private_mb, server_mb
from bench.scale.stand_ins import install
from bench.scale.steps import Step, Steps
from dare_airflow.local.processes import end, start, with_log
from dare_core.config.settings import Settings, load_settings
from dare_core.errors import DareError
from dare_core.stages.request import RunRequest
from dare_core.warehouse.server import cluster

_SAMPLE: Final = 0.5  # seconds between looks at the processes
_KEEP: Final = 10.0  # seconds after which what is known of a step is written down
_STAGES: Final = "dare_core.stages."  # whose model and encoder are stand-ins
_TASK: Final = "DARE_BENCH_SETTINGS"


@dataclass(frozen=True)
class Processes:
    """Where functions run.

    Attributes:
        settings: that functions are given; the warehouse's URL among them.
        server: settings whose data folder holds the embedded server, if there is one.
        steps: takes what each process did; one that has ended is not started again.
        logs: folder of their output.
        index_building: whether PostgreSQL is building an index of vectors right now.
        on_progress: told what is being done.
    """

    settings: Settings
    server: Settings
    steps: Steps
    logs: Path
    index_building: Callable[[], bool]
    on_progress: Callable[[str], None]

    def perform(self, name: str, function: str, *arguments: Any) -> Any:
        """Run a function, or return what it returned when it ran.

        Args:
            name: of the step.
            function: ``module:name``.
            arguments: behind the settings; RunRequests, and what JSON holds.

        Raises:
            DareError: it failed; ends with what it said.
        """
        step = self.steps[name]
        if not step.ended:
            self.on_progress(name)
            self._run(name, step, function, arguments)
        return step.result

    def _run(self, name: str, step: Step, function: str, arguments: Sequence[Any]) -> None:
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{name.replace('/', '-')}.log"
        with TemporaryDirectory(prefix="dare-scale-") as folder:
            answer = Path(folder) / "answer.json"
            task = {
                "settings": _kept(self.settings),
                "function": function,
                "arguments": [_told(argument) for argument in arguments],
                "answer": str(answer),
                "starter": os.getpid(),
            }
            environment = os.environ | {_TASK: json.dumps(task)}
            stopped = step.seconds
            process = start([sys.executable, "-m", __name__], environment, log)
            try:
                self._watch(process, name, step)
            finally:
                end([process])
            if process.returncode:
                raise DareError(with_log(f"{name} ended with status {process.returncode}", log))
            answered = json.loads(answer.read_text("utf-8"))
        step.own_seconds, step.result, step.ended = stopped + answered["seconds"], answered["result"], True
        self.steps.keep(name, step)

    def _watch(self, process: "subprocess.Popen[bytes]", name: str, step: Step) -> None:
        """Sample memory until the process ends; what it took counts also if this is stopped."""
        postmaster = cluster(self.server) / "postmaster.pid"
        looked = kept = time.monotonic()
        running = True
        while running:
            try:
                process.wait(_SAMPLE)
                running = False
            except subprocess.TimeoutExpired:
                for kind, mb in (private_mb(process.pid) | server_mb(postmaster)).items():
                    step.mb[kind] = round(max(mb, step.mb.get(kind, 0.0)), 1)
            now = time.monotonic()
            step.seconds += now - looked
            step.index_seconds += (now - looked) * self.index_building()
            looked = now
            if now - kept > _KEEP:
                self.steps.keep(name, step)
                kept = now


def _kept(settings: Settings) -> dict[str, Any]:
    kept = settings.model_dump(mode="json", exclude_defaults=True)
    if settings.warehouse_url is not None:
        kept["warehouse_url"] = settings.warehouse_url.get_secret_value()
    return kept


def _told(argument: Any) -> Any:
    return {"request": argument.model_dump(mode="json")} if isinstance(argument, RunRequest) else {"value": argument}


def _understood(told: dict[str, Any]) -> Any:
    return RunRequest(**told["request"]) if "request" in told else told["value"]


def main() -> None:
    """The program of such a process."""
    task = json.loads(os.environ.pop(_TASK))
    _end_with(task["starter"])
    settings = load_settings(**task["settings"])
    module, _, name = task["function"].partition(":")
    function = getattr(import_module(module), name)
    if module.startswith(_STAGES):
        install()
    arguments = [_understood(told) for told in task["arguments"]]
    started = time.perf_counter()
    result = function(settings, *arguments)
    answered = {"seconds": time.perf_counter() - started, "result": result}
    Path(task["answer"]).write_text(json.dumps(answered), "utf-8")


def _end_with(starter: int) -> None:
    """Have Linux end this process with its starter, however that ends: a second call of the bench would meet it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != starter:
        sys.exit("the bench has ended")


if __name__ == "__main__":
    main()
