"""The runs there are, for people who look for a report: their list as data and as a page."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from dare_core.config.settings import Settings
from dare_core.reports.page import environment, read_figures, report_path
from dare_core.storage.locations import Location, read_bytes
from dare_core.warehouse.runs import generation_runs
from dare_core.warehouse.session import open_warehouse

#: What a file or a folder may be called in an address: nothing that leads up or elsewhere, on any storage.
_NAME: Final = re.compile(r"(?!\.{1,2}$)[^/\\\x00-\x1f]{1,255}")
#: Reports whose figures are read at once.
_READERS: Final = 16


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
        StorageError: the reports cannot.
    """
    with open_warehouse(settings) as (_, engine):
        rows = generation_runs(engine, run_id)
    columns = ("run_id", "domain", "state", "started_at", "planned")
    with ThreadPoolExecutor(_READERS) as readers:
        figures = list(readers.map(lambda row: read_figures(settings, row["run_id"]), rows))
    return [
        ListedRun(**{name: row[name] for name in columns}, figures=known)
        for row, known in zip(rows, figures, strict=True)
    ]


def runs_page(runs: list[ListedRun]) -> str:
    """A table of runs, whose links lead to ``<run_id>/report.html``."""
    return environment().get_template("runs.html.j2").render(runs=runs)


def find_report(settings: Settings, run_id: str) -> bytes | None:
    """The report of a run; None where there is none, or the name is no run's.

    Args:
        settings: where runs are.
        run_id: from outside; one that would lead to another folder finds nothing.

    Raises:
        StorageError: the store cannot be reached.
    """
    return _read_below(settings.runs_dir, (run_id, report_path(settings, run_id).name))


def find_data_docs(settings: Settings, path: str) -> bytes | None:
    """A file of the Data Docs; None where there is none, or ``path`` leads elsewhere.

    Raises:
        StorageError: the store cannot be reached.
    """
    return _read_below(settings.data_docs_dir, path.split("/"))


def _read_below(folder: Location, names: Sequence[str]) -> bytes | None:
    """A file of a folder; None where a name is none, or a link leads out of it."""
    if not all(_NAME.fullmatch(name) for name in names):
        return None
    path = folder.joinpath(*names)
    try:
        if isinstance(folder, Path) and folder.resolve() not in path.resolve().parents:
            return None
        return read_bytes(path)
    except OSError:
        return None
