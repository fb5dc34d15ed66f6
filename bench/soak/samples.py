"""Looks at everything that lives while the soak runs: memory, open files, connections, latencies."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np
import psutil
from numpy.typing import NDArray
from sqlalchemy import Engine

from bench.soak.tally import Tally
from dare_core.config.settings import Settings

OnProgress = Callable[[str], None]

#: Seconds between them.
_SAMPLE: Final = 5.0


@dataclass(frozen=True)
class Sample:
    """One look at everything.

    Attributes:
        at: seconds since the start.
        memory: MB of each process that lives all the time, and of the refresh: resident; of the server's processes
            together, what each has to itself.
        files: open ones, of the same.
        connections: to the warehouse.
        p50, p95: milliseconds of the queries since the last sample; None: there were none.
    """

    at: float
    memory: dict[str, float]
    files: dict[str, int]
    connections: int
    p50: float | None
    p95: float | None


def take_samples(
    settings: Settings,
    engine: Engine,
    watched: Mapping[str, int],
    started: float,
    seconds: float,
    tally: Tally,
    on_progress: OnProgress,
) -> Iterator[Sample]:
    """Look at the processes ``watched``, by name, for so many ``seconds``; a line a minute of progress."""
    server = int((settings.data_dir / "postgres" / "data" / "postmaster.pid").read_text().split()[0])
    told = 0.0
    while (now := time.monotonic() - started) < seconds:
        memory: dict[str, float] = {}
        files: dict[str, int] = {}
        for name, pid in {**watched, "refresh": tally.refresh_pid, "server": server}.items():
            together = _tree(pid) if name in ("refresh", "server") else [psutil.Process(pid)]
            memory[name], files[name] = _memory(together, own=name == "server"), _open_files(together)
        with engine.connect() as connection:
            connections: int = connection.exec_driver_sql(
                "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            ).scalar_one()
        recent, tally.recent = tally.recent, []
        yield Sample(round(now, 1), memory, files, connections, *quantiles(recent))
        if now - told >= 60:
            told = now
            on_progress(f"{now / 60:.0f} min: {_told(tally)}")
        time.sleep(max(0.1, min(_SAMPLE, seconds / 10)))


def _told(tally: Tally) -> str:
    failed = sum(count for name, count in tally.counts.items() if name.startswith("failed"))
    return (
        f"{len(tally.latencies)} queries, {tally.counts['refreshes']} refreshes, "
        f"{tally.counts['publications']} publications, {failed} failures"
    )


def _tree(pid: int | None) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        if pid is not None:
            root = psutil.Process(pid)
            return [root, *root.children(recursive=True)]
    return []


def _memory(processes: Sequence[psutil.Process], own: bool) -> float:
    """MB that are resident; ``own``: without what is shared, which every server process would count again."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            total += process.memory_full_info().uss if own else process.memory_info().rss
    return round(total / 1e6, 1)


def _open_files(processes: Sequence[psutil.Process]) -> int:
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            total += process.num_fds()
    return total


def quantiles(seconds: Sequence[float] | NDArray[np.float32]) -> tuple[float | None, float | None]:
    """The median and the 95th percentile in milliseconds."""
    if not len(seconds):
        return None, None
    p50, p95 = np.percentile(seconds, [50, 95]) * 1000
    return round(float(p50), 1), round(float(p95), 1)
