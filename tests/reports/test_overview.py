"""Which files the pages in Airflow hand out, and the list of runs."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dare_core.config.settings import Settings
from dare_core.reports.overview import ListedRun, find_data_docs, find_report, runs_page
from dare_core.storage.atomic import write_atomically
from dare_core.storage.locations import remove_folder


@pytest.fixture(params=["local", "remote"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """A place with a report, Data Docs, and things that nobody is to see."""
    storage = f"memory://{uuid.uuid4().hex}" if request.param == "remote" else None
    settings = Settings(data_dir=tmp_path / "data", storage=storage, warehouse_url=None)
    for path in ("runs/r/report.html", "data_docs/static/a.css", "airflow/passwords.json", "airflow/report.html"):
        write_atomically(settings.shared / path, path.encode())
    if storage is None:
        (tmp_path / "data" / "data_docs" / "link").symlink_to(tmp_path / "data" / "airflow")
    yield settings
    remove_folder(settings.shared)


def test_reports_and_data_docs_are_found(served: Settings) -> None:
    assert find_report(served, "r") == b"runs/r/report.html"
    assert find_data_docs(served, "static/a.css") == b"data_docs/static/a.css"


@pytest.mark.parametrize(
    "run_id", ["", ".", "..", "../airflow", "/etc", "r/../../airflow", "absent", "r\0", "r" * 5000, "*", "r\\..\\r"]
)
def test_no_run_id_leads_out_of_the_runs(served: Settings, run_id: str) -> None:
    assert find_report(served, run_id) is None


@pytest.mark.parametrize(
    "path",
    ["", "..", "../airflow/passwords.json", "static/../../airflow/passwords.json", "/etc/passwd", "link/passwords.json",
     "static", "static/", "static//a.css", "static/./a.css", "static/*", "memory://airflow/passwords.json", "absent",
     "a\0"],
)  # fmt: skip
def test_no_path_leads_out_of_the_data_docs(served: Settings, path: str) -> None:
    assert find_data_docs(served, path) is None


def test_the_list_links_to_the_runs_that_have_a_report() -> None:
    figures = {"state": "loaded", "texts": 7, "tokens_per_step": 2.5, "speedup": None, "quarantined": 1}
    moment = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
    page = runs_page(
        [
            ListedRun("with", "movies", "loaded", moment, 8, figures),
            ListedRun("without", "<b>shop</b>", "planned", moment, 8, None),
        ]
    )
    assert '<a href="with/report.html">with</a>' in page
    assert "7 of 8" in page
    assert "<th>without</th>" in page
    assert "no report yet" in page
    assert "<b>" not in page
    assert "No run has been planned yet." in runs_page([])
