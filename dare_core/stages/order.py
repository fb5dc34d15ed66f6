"""The stages in their order, as ``dare pipeline run`` chains them; and whether another run follows in a backfill."""

from collections.abc import Callable
from typing import Any

from dare_core.config.settings import Settings
from dare_core.errors import QualityError
from dare_core.stages import generate, group, load, plan, pools, pull, report
from dare_core.stages.ownership import owning
from dare_core.stages.request import RunRequest
from dare_core.warehouse.runs import generation_runs
from dare_core.warehouse.server import serving
from dare_core.warehouse.session import open_warehouse


def run(
    settings: Settings, request: RunRequest, on_stage: Callable[[str, Any], None] = lambda stage, result: None
) -> dict[str, Any]:
    """All stages in their order, without Airflow; then the pools are rebuilt.

    Args:
        settings: in force.
        request: what to do; the same run id goes on where an earlier try stopped.
        on_stage: told each stage's name and summary.
    """
    with serving(settings), owning(settings, request):  # one server for all stages
        on_stage("pull", pull.run(settings, request))
        on_stage("group", group.run(settings, request))
        planned = plan.run(settings, request)
        on_stage("plan", planned)
        summary: dict[str, Any] = {"run_id": request.run_id, "planned": planned["requests"]}
        if not planned["requests"]:
            return summary
        for assignment in plan.assignments(settings, request):
            on_stage("generate", generate.run(settings, request, assignment))
        loaded = load.run(settings, request)
        on_stage("load", loaded)
        summary |= loaded
        on_stage("rebuild_pools", pools.run(settings, request))
        summary["report"] = report.run(settings, request)["report"]
    return summary


def slice_ended(settings: Settings, request: RunRequest) -> bool:
    """Whether a slice of a backfill came to its end and was not empty, so that another may follow.

    Its texts were loaded, or some of them failed validation and are in quarantine: either way the next slice has others
    to write.

    Raises:
        QualityError: the slice lost more of its texts than ``settings.max_slice_loss``; so would the next.
    """
    with open_warehouse(settings) as (_, engine):
        found = generation_runs(engine, request.run_id)
    if not found or not _taken(found[0]) or found[0]["state"] not in ("loaded", "failed"):
        return False
    [run] = found
    if not run["planned"]:  # whoever was due needed no text after all
        return True
    kept = run["loaded"] or 0
    # What failed validation is in quarantine; what failed as features passed it, and would be written again.
    if run["state"] == "failed" and "features" not in (run["measured"] or {}):
        kept = (run["generated"] or 0) - (run["quarantined"] or 0)
    if (lost := 1 - kept / run["planned"]) > settings.max_slice_loss:
        raise QualityError(
            f"{lost:.0%} of the {run['planned']} texts of slice {request.run_id} were lost, more than max_slice_loss "
            f"{settings.max_slice_loss:.0%}; the backfill stops here: see the run's report, mend what it names, and "
            "trigger the backfill again"
        )
    return True


def _taken(run: dict[str, Any]) -> int:
    """Entities that a slice looked at."""
    funnel = (run["plan"] or {}).get("funnel", {})
    return sum(of_kind["requests"] for of_kind in funnel.values()) or int(run["planned"])
