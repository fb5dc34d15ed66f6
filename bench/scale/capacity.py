"""What other numbers of users take: hours, workers, gigabytes and money, from what the bench measured at one.

The model: every stage takes so much, and so much for each further user as between the half and the whole of the bench's
users. Writing and embedding, which the bench's stand-ins do in no time, are added: tokens over a worker's tokens per
second, and vectors over those that the bench's machine made per second. Workers share what generation tasks do; the
other stages go one after the other on one machine like the bench's.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from bench.scale.source import CHANGED, USERS_PER_ITEM

_HOUR: Final = 3600.0
_DAY: Final = 24.0
#: The stage that workers share.
_WORKERS: Final = "generate"


@dataclass(frozen=True)
class Worker:
    """What a worker writes, and what it costs.

    Attributes:
        tokens_per_second: with the pool, at its batch, as a run's report says.
        tokens_per_text: likewise.
        cost_per_hour: of a worker, and of the machine that the other stages run on; in a currency of your own.
    """

    tokens_per_second: float
    tokens_per_text: float
    cost_per_hour: float


@dataclass(frozen=True)
class Capacity:
    """What so many users take.

    Attributes:
        users: how many; ``entities``: with the items.
        worker_hours: of all workers, for the first fill.
        stages_hours: of all other stages, for the first fill.
        workers: that do their part of it in so many days.
        night_worker_hours, night_stages_hours: of a night in which one in a hundred changes.
        database_gb: of the warehouse, indexes included, without the source's tables.
        files_gb: of run folders and pools.
        cost: of the first fill.
        night_cost: of the night.
    """

    users: int
    entities: int
    worker_hours: float
    stages_hours: float
    workers: int
    night_worker_hours: float
    night_stages_hours: float
    database_gb: float
    files_gb: float
    cost: float
    night_cost: float


def capacity(result: Mapping[str, Any], users: int, worker: Worker, days: float) -> Capacity:
    """What so many users take.

    Args:
        result: the bench's ``result.json``.
        users: how many there are.
        worker: what it writes and costs.
        days: in which workers are to do their part of the first fill.
    """
    full = int(result["users"])
    small, half = full // 10, full // 2

    def expected(run: str, workers: bool, lower: int) -> float:
        """Hours of a run's stages on a line through two sizes: those of workers, or the others."""
        at = {size: _hours(result["seconds"][str(size)][run], workers) for size in (lower, full)}
        return _on_line(users, lower, at[lower], full, at[full])

    def gb(*names: str) -> float:
        at = {size: sum(result["gigabytes"][str(size)].get(name, 0.0) for name in names) for size in (half, full)}
        return _on_line(users, half, at[half], full, at[full])

    entities = users + users // USERS_PER_ITEM
    seconds = worker.tokens_per_text / worker.tokens_per_second + 1 / result["vectors_per_second"]
    writing = entities * seconds / _HOUR
    worker_hours, stages_hours = writing + expected("first", True, half), expected("first", False, half)
    night_worker, night_stages = writing / CHANGED + expected("nightly", True, small), expected("nightly", False, small)
    return Capacity(
        users=users,
        entities=entities,
        worker_hours=round(worker_hours, 1),
        stages_hours=round(stages_hours, 1),
        workers=math.ceil(worker_hours / (days * _DAY)),
        night_worker_hours=round(night_worker, 1),
        night_stages_hours=round(night_stages, 1),
        database_gb=round(gb("knowledge"), 1),
        files_gb=round(gb("runs", "pools", "other"), 1),
        cost=round((worker_hours + stages_hours) * worker.cost_per_hour),
        night_cost=round((night_worker + night_stages) * worker.cost_per_hour, 2),
    )


def _hours(seconds: Mapping[str, float], workers: bool) -> float:
    """Of a run's stages; ``index`` is a part of ``load``."""
    return sum(took for stage, took in seconds.items() if stage != "index" and (stage == _WORKERS) == workers) / _HOUR


def _on_line(at: float, first: float, of_first: float, second: float, of_second: float) -> float:
    """The value at a place of the line through two points; never less than that of the second where it falls."""
    slope = max(0.0, (of_second - of_first) / (second - first))
    return of_second + slope * (at - second)
