"""What happens when a run misses its deadline. Airflow calls it; any other way to be told can be added here."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

from dare_core.config.settings import load_settings

log = logging.getLogger(__name__)


def deadline_missed(hours: float, context: dict[str, Any], **_: Any) -> None:
    """Log an error, and add a JSON line to ``alerts.jsonl`` in the data folder.

    Args:
        hours: that the run was given.
        context: Airflow's: ``dag_run``, among others.
    """
    run = context["dag_run"]
    alert = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "alert": "deadline missed",
        "dag_id": run["dag_id"],
        "run_id": run["dag_run_id"],
        "hours": hours,
    }
    log.error("%s %s has not ended within %g hours", alert["dag_id"], alert["run_id"], hours)
    path = load_settings().data_dir / "alerts.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(alert) + "\n")
