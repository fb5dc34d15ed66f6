"""What happens when a run misses its deadline, or a backfill stops: any way to be told can be added here."""

import json
import logging
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from dare_core.config.settings import Settings, load_settings
from dare_core.storage.atomic import alone, write_atomically

log = logging.getLogger(__name__)

_FILE: Final = "alerts.jsonl"
_LOCK: Final = f".{_FILE}.lock"


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
    with alone(settings.data_dir / _LOCK), (settings.data_dir / _FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def expire_alerts(settings: Settings) -> dict[str, Any]:
    """Remove alerts older than ``settings.keep_alert_days``; what is no alert stays."""
    before = (datetime.now(UTC) - timedelta(days=settings.keep_alert_days)).isoformat(timespec="seconds")
    path = settings.data_dir / _FILE
    if not path.exists():
        return {"removed": 0, "left": 0}
    with alone(settings.data_dir / _LOCK):
        lines = path.read_text("utf-8").splitlines(keepends=True)
        left = [line for line in lines if _at(line) >= before]
        if len(left) < len(lines):
            write_atomically(path, "".join(left).encode())
    return {"removed": len(lines) - len(left), "left": len(left)}


def _at(line: str) -> str:
    """When an alert was raised, in UTC; of a line that is none, after all others."""
    try:
        return str(json.loads(line)["at"])
    except (ValueError, KeyError, TypeError):
        return "~"
