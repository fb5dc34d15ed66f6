"""DAG runs, followed to their end, and to the runs that they start; a failed one is explained."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Final

from dare_airflow.client import AirflowApi, AirflowError, TaskState

OnProgress = Callable[[Sequence[TaskState]], None]

_POLL_SECONDS: Final = 1.0
_TRIGGER_SECONDS: Final = 60.0
_DAG_SECONDS: Final = 120.0
_PARSE_SECONDS: Final = 20.0  # for all files


class RunFailedError(AirflowError):
    """A DAG run ended in failure; the message ends with the failing task's log."""


class DagRuns:
    """The runs of one Airflow.

    Args:
        api: of that Airflow.
        dags_dir: its folder of DAG files.
        since: when it was started; what was parsed before counts for nothing.
        check: raises AirflowError when it has ended; called at every look at a run.
    """

    def __init__(self, api: AirflowApi, dags_dir: Path, since: datetime, check: Callable[[], None]) -> None:
        self._api = api
        self._dags_dir = dags_dir
        self._since = since
        self._check = check

    @contextmanager
    def active(self, *dag_ids: str) -> Iterator[None]:
        """Let these DAGs run for as long as the block lasts.

        Runs that an earlier, interrupted block left behind are marked as failed first, and whatever still runs at the
        end of this one too; then the DAGs are paused again.

        Raises:
            AirflowError: a DAG file cannot be imported, or none defines the DAG.
        """
        for dag_id in dag_ids:
            self._await_parsed(dag_id)
            self._fail_active(dag_id)
        try:
            for dag_id in dag_ids:
                self._api.pause(dag_id, False)
            yield
        finally:
            with suppress(AirflowError):  # the failure that ended the block is the one to tell
                for dag_id in dag_ids:
                    self._api.pause(dag_id, True)
                    self._fail_active(dag_id)

    def wait(
        self, dag_id: str, run_id: str, on_progress: OnProgress = lambda tasks: None, poll: float = _POLL_SECONDS
    ) -> None:
        """Wait for a run's success; ``on_progress`` sees its tasks every ``poll`` seconds.

        Raises:
            RunFailedError: the run failed; names the task and shows the end of its log.
            AirflowError: Airflow ended meanwhile.
        """
        while True:
            self._check()
            state = self._api.run_state(dag_id, run_id)
            tasks = self._api.tasks(dag_id, run_id)
            on_progress(tasks)
            if state == "success":
                return
            if state == "failed":
                raise RunFailedError(self._explain(dag_id, run_id, tasks))
            time.sleep(poll)

    def await_triggered(self, dag_id: str, run_id: str, consumer: str) -> str:
        """Wait for the run of DAG ``consumer`` that this run's asset events start; returns its run id.

        Raises:
            AirflowError: none came within a minute, or Airflow ended meanwhile.
        """
        deadline = time.monotonic() + _TRIGGER_SECONDS
        while time.monotonic() < deadline:
            self._check()
            for triggered_dag, triggered_run in self._api.triggered_runs(dag_id, run_id):
                if triggered_dag == consumer:
                    return triggered_run
            time.sleep(_POLL_SECONDS)
        raise AirflowError(f"{dag_id} {run_id} started no run of {consumer} within {_TRIGGER_SECONDS:.0f} s")

    def _await_parsed(self, dag_id: str) -> None:
        deadline = time.monotonic() + _DAG_SECONDS
        excused = deadline  # another file may be broken, and this DAG's be parsed after it
        while (parsed_at := self._api.parsed_at(dag_id)) is None or parsed_at < self._since:
            self._check()
            if errors := self._api.import_errors(since=self._since):
                excused = min(excused, time.monotonic() + _PARSE_SECONDS)
            if errors and time.monotonic() >= excused:
                raise AirflowError(f"a DAG file in {self._dags_dir} cannot be imported:\n{errors[0]}")
            if time.monotonic() > deadline:
                raise AirflowError(f"no DAG {dag_id} was found in {self._dags_dir} within {_DAG_SECONDS:.0f} s")
            time.sleep(_POLL_SECONDS)

    def _fail_active(self, dag_id: str) -> None:
        for run_id in self._api.active_runs(dag_id):
            self._api.fail_run(dag_id, run_id)

    def _explain(self, dag_id: str, run_id: str, tasks: Sequence[TaskState]) -> str:
        for task in tasks:
            if task.state == "failed":
                name = task.task_id if task.map_index < 0 else f"{task.task_id}[{task.map_index}]"
                return f"{dag_id} {run_id}: task {name} failed:\n{self._api.log_tail(dag_id, run_id, task)}"
        return f"{dag_id} {run_id} failed before any of its tasks did"
