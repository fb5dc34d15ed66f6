"""Refreshes one after the other, each a process of its own (:mod:`.refresh`), after source rows were altered."""

import os
import subprocess
import threading
import time
from typing import Final

from sqlalchemy import Engine, text

from bench.soak.processes import kept, program
from bench.soak.tally import Tally
from dare_core.config.settings import Settings

#: Source rows that are altered before each refresh, so that each has texts to write.
_ALTERED: Final = {"items": 8, "users": 4}


def keep_refreshing(
    settings: Settings, url: str, engine: Engine, started: float, ended: threading.Event, tally: Tally
) -> None:
    """Alter rows and refresh, over and over, until ``ended``."""
    number = 0
    while not ended.is_set():
        number += 1
        try:
            _alter(engine, number)
            said = refresh_once(settings, url, number, tally)
        except Exception as error:  # noqa: BLE001  whatever it is, it is counted
            said = repr(error)
        if said:
            tally.error("failed_refreshes", said)
        else:
            tally.counts["refreshes"] += 1
            tally.refreshed_at.append(time.monotonic() - started)


def _alter(engine: Engine, number: int) -> None:
    """Other rows each time; how many there are stays the same."""
    with engine.begin() as connection:
        for table, key, change in (
            ("items", "item_id", "title = regexp_replace(title, ' #[0-9]+$', '') || ' #' || CAST(:number AS text)"),
            ("users", "user_id", "age = age % 90 + 1"),
        ):
            connection.execute(
                text(
                    f"UPDATE source.{table} SET {change}, updated_at = now() WHERE {key} IN "  # noqa: S608
                    f"(SELECT {key} FROM source.{table} ORDER BY md5({key} || CAST(:number AS text)) LIMIT :most)"
                ),
                {"number": str(number), "most": _ALTERED[table]},
            )


def refresh_once(settings: Settings, url: str, number: int, tally: Tally) -> str | None:
    """One refresh in a process of its own; what it complained of, or None."""
    environment = {
        **os.environ,
        **{f"DARE_{name.upper()}": str(value) for name, value in kept(settings).items()},
        "DARE_WAREHOUSE_URL": url,
    }
    command = [*program("refresh"), f"soak-{number}"]
    log = settings.data_dir / "logs" / "refresh.log"
    log.parent.mkdir(exist_ok=True)
    with (
        log.open("w") as errors,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        tally.refresh_pid = process.pid
        said, _ = process.communicate()
        tally.refresh_pid = None
    if process.returncode:
        return " ".join(log.read_text("utf-8", "replace").splitlines()[-3:])
    tally.counts["pools_built_again"] += int(said.splitlines()[-1])
    return None
