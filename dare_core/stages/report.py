"""Write the report of a run."""

from typing import Any

from dare_core.config.settings import Settings
from dare_core.reports.facts import gather
from dare_core.reports.page import figures, write_report
from dare_core.stages import ownership
from dare_core.stages.request import RunRequest
from dare_core.warehouse.session import open_warehouse


def run(settings: Settings, request: RunRequest) -> dict[str, Any]:
    """Write the report of a run, however far it came. Nobody counts as being at it from then on.

    Returns:
        The report's path under ``report``, and the run's figures; see :func:`dare_core.reports.page.figures`.
    """
    with open_warehouse(settings) as (_, engine):
        facts = gather(settings, engine, request.run_id, request.domain)
        ownership.end(engine, request)
    return {"report": str(write_report(settings, facts)), **figures(facts)}
