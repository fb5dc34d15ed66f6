"""What happens when a run misses its deadline, or a backfill stops: any way to be told can be added here."""

import json
import logging
from datetime import UTC, datetime
from typing import Any

from dare_core.config.settings import Settings, load_settings

log = logging.getLogger(__name__)


def deadline_missed(hours: float, context: dict[str, Any], **_: Any) -> None:
    """Log an error, and add a JSON line to ``alerts.jsonl`` in the data folder.

    Args:
        hours: that the run was given.
        context: Airflow's: ``dag_run``, among others.
    """
    run = context["dag_run"]
    log.error("%s %s has not ended within %g hours", run["dag_id"], run["dag_run_id"], hours)
    raise_alert(load_settings(), "deadline missed", dag_id=run["dag_id"], run_id=run["dag_run_id"], hours=hours)


def raise_alert(settings: Settings, alert: str, **facts: Any) -> None:
    """Add a JSON line to ``alerts.jsonl`` in the data folder."""
    line = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "alert": alert, **facts}
    path = settings.data_dir / "alerts.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
