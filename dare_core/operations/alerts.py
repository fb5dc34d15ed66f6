"""What happens when a run misses its deadline, or a backfill stops: any way to be told can be added here.

<storage>/alerts/<time>-<random>.json    an alert; whichever machine raised it, all see it
<data_dir>/alerts.jsonl                  those of release 0.1.0, a line each
"""

import json
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

from dare_core.config.settings import Settings, load_settings
from dare_core.storage.atomic import storing, write_atomically
from dare_core.storage.locations import Location, matching, read_bytes, remove

log = logging.getLogger(__name__)

_TIME: Final = "%Y%m%dT%H%M%S.%fZ"
_NAME: Final = re.compile(r"(\d{8}T\d{6}\.\d{6}Z)-[0-9a-f]{8}\.json")
#: Of release 0.1.0, in the data folder.
_LINES: Final = "alerts.jsonl"
#: After all moments.
_NEVER: Final = "~"


def deadline_missed(hours: float, context: dict[str, Any], **_: Any) -> None:
    """Log an error, and raise an alert.

    Args:
        hours: that the run was given.
        context: Airflow's: ``dag_run``, among others.
    """
    run = context["dag_run"]
    log.error("%s %s has not ended within %g hours", run["dag_id"], run["dag_run_id"], hours)
    raise_alert(load_settings(), "deadline missed", dag_id=run["dag_id"], run_id=run["dag_run_id"], hours=hours)


def raise_alert(settings: Settings, alert: str, **facts: Any) -> None:
    """Keep an alert, a JSON object, in ``alerts`` on the shared storage.

    Raises:
        StorageError: it cannot be written.
    """
    now = datetime.now(UTC)
    content = {"at": now.isoformat(timespec="seconds"), "alert": alert, **facts}
    path = _folder(settings) / f"{now.strftime(_TIME)}-{uuid4().hex[:8]}.json"
    with storing(path):
        write_atomically(path, json.dumps(content).encode(), durable=False)


def read_alerts(settings: Settings) -> list[dict[str, Any]]:
    """The alerts that are kept, the oldest first.

    Raises:
        StorageError: the storage cannot be reached.
    """
    path = settings.data_dir / _LINES
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return [
        *(json.loads(line) for line in lines if _at(line) < _NEVER),
        *(json.loads(read_bytes(path)) for path, _ in _alerts(settings)),
    ]


def expire_alerts(settings: Settings) -> dict[str, Any]:
    """Remove alerts older than ``settings.keep_alert_days``; what is no alert stays."""
    before = datetime.now(UTC) - timedelta(days=settings.keep_alert_days)
    removed = left = 0
    for path, raised in _alerts(settings):
        if raised < before.strftime(_TIME):
            remove(path)
            removed += 1
        else:
            left += 1
    if (path := settings.data_dir / _LINES).exists():
        lines = path.read_text("utf-8").splitlines(keepends=True)
        young = [line for line in lines if _at(line) >= before.isoformat(timespec="seconds")]
        if len(young) < len(lines):
            write_atomically(path, "".join(young).encode())
        removed, left = removed + len(lines) - len(young), left + len(young)
    return {"removed": removed, "left": left}


def _folder(settings: Settings) -> Location:
    return settings.shared / "alerts"


def _alerts(settings: Settings) -> Iterator[tuple[Location, str]]:
    """Each alert's file, and when it was raised, the oldest first."""
    for path in matching(_folder(settings)):
        if name := _NAME.fullmatch(path.name):
            yield path, name[1]


def _at(line: str) -> str:
    """When the alert of a line was raised, in UTC; of a line that is none, after all others."""
    try:
        return str(json.loads(line)["at"])
    except (ValueError, KeyError, TypeError):
        return _NEVER
