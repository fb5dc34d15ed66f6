"""The runs there are, for people who look for a report: their list as data and as a page."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from dare_core.config.settings import Settings
from dare_core.reports.page import environment, read_figures, report_path
from dare_core.warehouse.runs import generation_runs
from dare_core.warehouse.session import open_warehouse


@dataclass(frozen=True)
class ListedRun:
    """One run; its figures (see :func:`dare_core.reports.page.figures`) are None while it has no report."""

    run_id: str
    domain: str
    state: str
    started_at: datetime
    planned: int
    figures: dict[str, Any] | None


def list_runs(settings: Settings, run_id: str | None = None) -> list[ListedRun]:
    """The latest runs, the newest first; one alone where it is named.

    Raises:
        WarehouseError: the warehouse cannot be reached, or has another schema.
    """
    with open_warehouse(settings) as (_, engine):
        rows = generation_runs(engine, run_id)
    columns = ("run_id", "domain", "state", "started_at", "planned")
    return [
        ListedRun(**{name: row[name] for name in columns}, figures=read_figures(settings, row["run_id"]))
        for row in rows
    ]


def runs_page(runs: list[ListedRun]) -> str:
    """A table of runs, whose links lead to ``<run_id>/report.html``."""
    return environment().get_template("runs.html.j2").render(runs=runs)


def find_report(settings: Settings, run_id: str) -> Path | None:
    """The report of a run; None where there is none, or the name is no run's.

    Args:
        settings: where runs are.
        run_id: from outside; one that would lead to another folder finds nothing.
    """
    return _file_under(settings.data_dir / "runs", report_path(settings, run_id))


def find_data_docs(settings: Settings, path: str) -> Path | None:
    """A file of the Data Docs; None where there is none, or ``path`` leads elsewhere."""
    return _file_under(settings.data_docs_dir, settings.data_docs_dir / path)


def _file_under(folder: Path, path: Path) -> Path | None:
    try:
        found = path.resolve(strict=True)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None
    return found if found.is_file() and found.is_relative_to(folder.resolve()) else None
