"""A run's deadline, the moment that it counts from, and the plugin by which Airflow's scheduler knows that moment.

It is when the run was queued, and Airflow has a reference of its own for that. With it, though, Airflow 3.3.2 fails to
clear a task of a run whose deadline is still to come: it takes the interval, which it has stored as a JSON object, for
a number of seconds, while it moves the deadline. References of others are not moved, so a run's deadline counts from
its beginning, however often its tasks are cleared.
"""

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.plugins_manager import AirflowPlugin
from airflow.sdk import (  # type: ignore[attr-defined]  # its stub file leaves deadlines out
    BaseDeadlineReference,
    DeadlineAlert,
    SyncCallback,
)

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


class RunQueued(BaseDeadlineReference):  # type: ignore[misc]
    """When the run was queued."""

    #: What Airflow hands to :meth:`_evaluate_with`.
    required_kwargs = frozenset({"dag_id", "run_id"})

    def _evaluate_with(self, *, session: "Session", dag_id: str, run_id: str, **_: Any) -> datetime | None:
        from airflow.models import DagRun
        from sqlalchemy import select

        return session.scalar(select(DagRun.queued_at).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id))


def within(hours: float) -> DeadlineAlert:
    """So many hours after a run was queued; a run that has not ended then raises an alert."""
    return DeadlineAlert(
        reference=RunQueued(),
        interval=timedelta(hours=hours),
        callback=SyncCallback("dare_core.operations.alerts.deadline_missed", kwargs={"hours": hours}),
        name="dare",
    )


class RunDeadline(AirflowPlugin):
    """Registers the reference."""

    name = "dare_run_deadline"
    deadline_references = [RunQueued]  # noqa: RUF012  (Airflow declares it so)
