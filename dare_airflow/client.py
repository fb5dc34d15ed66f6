"""The part of Airflow's REST API (v2) that drives DAG runs."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

import httpx

from dare_core.errors import DareError

_LOG_LINES: Final = 25
_PAGE: Final = 100


class AirflowError(DareError):
    """Airflow did not start, stopped, or refused a request."""


@dataclass(frozen=True)
class TaskState:
    """One task of a run.

    Attributes:
        map_index: -1 unless the task is mapped.
        state: null before it is scheduled.
        seconds: from the start of its latest attempt to its end; null before that.
    """

    task_id: str
    map_index: int
    state: str | None
    try_number: int
    seconds: float | None = field(default=None, compare=False)


class AirflowApi:
    """A session with one Airflow.

    Every method raises AirflowError when Airflow cannot be reached or refuses.
    """

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url = url
        self._login = {"username": user, "password": password}
        self._http = httpx.Client(base_url=url, timeout=60, trust_env=False)  # loopback never goes through a proxy
        self._token: str | None = None

    def close(self) -> None:
        self._http.close()

    def token(self) -> str:
        """A bearer token, good for a day."""
        if self._token is None:
            self._token = self._answer(self._send("POST", "/auth/token", json=self._login))["access_token"]
        return self._token

    def health(self) -> dict[str, Any]:
        """Status and latest heartbeat by component; needs no login."""
        health: dict[str, Any] = self._answer(self._send("GET", "/api/v2/monitor/health"))
        return health

    def call(self, method: str, path: str, **content: Any) -> Any:
        """What Airflow answers to a request.

        Args:
            method: of HTTP.
            path: below ``/api/v2/``.
            content: ``json`` or ``params``, as :meth:`httpx.Client.request` takes them.
        """
        return self._answer(self._request(method, path, **content))

    def set_pool(self, name: str, slots: int, description: str) -> None:
        """Create an Airflow pool, or give one that exists so many slots."""
        body = {"slots": slots, "description": description, "include_deferred": False}
        response = self._request("PATCH", f"pools/{name}", json={"pool": name, **body})
        if response.status_code == httpx.codes.NOT_FOUND:
            response = self._request("POST", "pools", json={"name": name, **body})
        self._answer(response)

    def set_connection(self, name: str, fields: dict[str, Any]) -> None:
        """Create an Airflow connection, or replace what one that exists holds."""
        body = {"connection_id": name, **fields}
        response = self._request("PATCH", f"connections/{name}", json=body)
        if response.status_code == httpx.codes.NOT_FOUND:
            response = self._request("POST", "connections", json=body)
        self._answer(response)

    def parsed_at(self, dag_id: str) -> datetime | None:
        """When the DAG processor last parsed this DAG; None while it does not know it."""
        response = self._request("GET", f"dags/{dag_id}")
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        time_of_parse = self._answer(response)["last_parsed_time"]
        return datetime.fromisoformat(time_of_parse) if time_of_parse else None

    def import_errors(self, since: datetime) -> list[str]:
        """The stack trace of every DAG file that could not be imported when it was last parsed."""
        errors = self.call("GET", "importErrors")["import_errors"]
        return [error["stack_trace"] for error in errors if datetime.fromisoformat(error["timestamp"]) >= since]

    def pause(self, dag_id: str, paused: bool) -> None:
        """Pause or unpause a DAG."""
        self.call("PATCH", f"dags/{dag_id}", json={"is_paused": paused})

    def trigger(self, dag_id: str, conf: dict[str, Any], run_id: str) -> None:
        """Start a run with ``conf`` over the DAG's params."""
        body = {"dag_run_id": run_id, "conf": conf, "logical_date": None}
        self.call("POST", f"dags/{dag_id}/dagRuns", json=body)

    def run_state(self, dag_id: str, run_id: str) -> str:
        """``queued``, ``running``, ``success`` or ``failed``."""
        return str(self.call("GET", run_path(dag_id, run_id))["state"])

    def active_runs(self, dag_id: str) -> list[str]:
        """Ids of the runs that have not ended."""
        active = {"state": ["queued", "running"], "limit": _PAGE}
        found = self.call("GET", f"dags/{dag_id}/dagRuns", params=active)
        return [run["dag_run_id"] for run in found["dag_runs"]]

    def fail_run(self, dag_id: str, run_id: str) -> None:
        """Mark a run as failed; Airflow stops its tasks."""
        self.call("PATCH", run_path(dag_id, run_id), json={"state": "failed"})

    def tasks(self, dag_id: str, run_id: str) -> list[TaskState]:
        """Every task of a run, mapped ones one by one."""
        path, rows = f"{run_path(dag_id, run_id)}/taskInstances", list[dict[str, Any]]()
        while True:
            page = self.call("GET", path, params={"limit": _PAGE, "offset": len(rows)})
            rows += page["task_instances"]
            if not page["task_instances"] or len(rows) >= page["total_entries"]:
                names = ("task_id", "map_index", "state", "try_number", "duration")
                return [TaskState(*(row[name] for name in names)) for row in rows]

    def triggered_runs(self, dag_id: str, run_id: str) -> list[tuple[str, str]]:
        """(dag_id, run_id) of the runs that this run's asset events have started so far."""
        found = self.call("GET", "assets/events", params={"source_dag_id": dag_id, "source_run_id": run_id})
        return [(run["dag_id"], run["run_id"]) for event in found["asset_events"] for run in event["created_dagruns"]]

    def log_tail(self, dag_id: str, run_id: str, task: TaskState) -> str:
        """The last lines of a task's latest attempt."""
        path = f"{run_path(dag_id, run_id)}/taskInstances/{task.task_id}/logs/{task.try_number}"
        content = self.call("GET", path, params={"map_index": task.map_index, "full_content": True})["content"]
        lines = [line for entry in content for line in _log_lines(entry)]
        return "\n".join(lines[-_LOG_LINES:])

    def _request(self, method: str, path: str, **content: Any) -> httpx.Response:
        return self._send(method, f"/api/v2/{path}", headers={"Authorization": f"Bearer {self.token()}"}, **content)

    def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **content)
        except httpx.TransportError as error:
            raise AirflowError(f"Airflow at {self.url} does not answer: {error!r}") from None

    def _answer(self, response: httpx.Response) -> Any:
        if response.is_error:
            request = response.request
            raise AirflowError(f"Airflow refused {request.method} {request.url.path}: {response.text[:500]}")
        return response.json()


def run_path(dag_id: str, run_id: str) -> str:
    """Where the API has a run, below ``/api/v2/``."""
    return f"dags/{dag_id}/dagRuns/{quote(run_id, safe='')}"


def _log_lines(entry: dict[str, Any] | str) -> list[str]:
    """A log entry's lines: message, then the exception's if there is one."""
    if isinstance(entry, str):
        return [entry]
    errors = [f"{detail['exc_type']}: {detail['exc_value']}" for detail in entry.get("error_detail") or ()]
    return [*str(entry.get("event", "")).splitlines(), *errors]
