"""What the bench's steps say: the figures that the project holds itself to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.scale.steps import Step

#: A run's steps by ``<stage>/<number>``.
Run = Mapping[str, Step]


@dataclass(frozen=True)
class Size:
    """What was done at one number of users.

    Attributes:
        runs: steps of the runs ``first``, ``unchanged`` and ``nightly``, as far as they were made.
        bench: of what the bench itself did: ``source``, ``copy``, ``disk``, and ``audit`` by run.
    """

    runs: Mapping[str, Run]
    bench: Run


def figures_of(users: int, sizes: Mapping[int, Size]) -> dict[str, Any]:
    """The figures of a bench at so many users.

    Args:
        users: the largest size.
        sizes: by users: a tenth, a half and all of them.
    """
    small, half, full = users // 10, users // 2, users
    first = {size: seconds_of(sizes[size].runs["first"]) for size in (small, half, full)}
    runs = sizes[full].runs
    mb = {size: most_mb(sizes[size].runs, "python") for size in (small, full)}
    plan, load = (stage_of(runs["first"], name) for name in ("plan", "load"))
    marginal = (first[full] - first[half]) / (full - half)
    return {
        "private_mb_max": mb[full],
        "memory_growth": _ratio(mb[full], mb[small]),
        "driver_mb_max": most_mb(runs, "driver"),
        "marginal_time_ratio": _ratio(marginal, (first[half] - first[small]) / (half - small)),
        "nightly_ratio": _ratio(seconds_of(runs["nightly"]), first[full]),
        "no_change_s": round(seconds_of(runs["unchanged"]), 1),
        "plan_per_s": round(plan.result["requests"] / plan.own_seconds),
        "load_vs_copy": _ratio(load.own_seconds - load.index_seconds, sizes[full].bench["copy/0"].own_seconds),
        "unaccounted": sum(sum(unaccounted(size).values()) for size in sizes.values()),
        "seconds": {str(users): seconds_by_stage(size) for users, size in sizes.items()},
    }


def seconds_of(run: Run) -> float:
    """Seconds of a run's processes, one after the other."""
    return sum(step.seconds for step in run.values())


def seconds_by_stage(size: Size) -> dict[str, dict[str, float]]:
    """Seconds by run and stage; ``index`` is the part of ``load`` in which vectors were indexed."""
    found: dict[str, dict[str, float]] = {}
    for run, steps in size.runs.items():
        of_run = found.setdefault(run, {})
        for name, step in steps.items():
            stage = name.partition("/")[0]
            of_run[stage] = round(of_run.get(stage, 0.0) + step.seconds, 1)
            if step.index_seconds:
                of_run["index"] = round(of_run.get("index", 0.0) + step.index_seconds, 1)
    return found


def mb_by_stage(size: Size) -> dict[str, dict[str, dict[str, float]]]:
    """The most private memory of one process, in MB, by run, stage and kind of process."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for run, steps in size.runs.items():
        for name, step in steps.items():
            of_stage = found.setdefault(run, {}).setdefault(name.partition("/")[0], {})
            for kind, mb in step.mb.items():
                of_stage[kind] = max(mb, of_stage.get(kind, 0.0))
    return found


def most_mb(runs: Mapping[str, Run], kind: str) -> float:
    """The most private memory, in MB, that one process of a kind had."""
    return max((step.mb.get(kind, 0.0) for run in runs.values() for step in run.values()), default=0.0)


def unaccounted(size: Size) -> dict[str, int]:
    """What does not add up, by run and check."""
    audits = {name: step for name, step in size.bench.items() if name.startswith("audit/")}
    return {
        f"{name.partition('/')[2]}.{check}": count
        for name, step in audits.items()
        for check, count in step.result.items()
    }


def stage_of(run: Run, stage: str) -> Step:
    """A stage that is one process."""
    return run[f"{stage}/0"]


def _ratio(over: float, under: float) -> float | None:
    return round(over / under, 3) if under else None
