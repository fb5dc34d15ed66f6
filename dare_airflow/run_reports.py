"""Run reports in Airflow's UI: a page that lists the runs, the reports and Data Docs that it leads to, and a button.

Airflow leaves the login of a plugin's pages to the plugin. Every page here asks for it, through Airflow's own check of
its session cookie or bearer token, and for the right to read the runs of all DAGs, since a report shows texts about
users. What is served runs no scripts, whatever is in it.

Every process of Airflow imports this file; only the API server needs FastAPI and the library.
"""

from mimetypes import guess_type
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.plugins_manager import AirflowPlugin
from airflow.sdk import BaseOperator, BaseOperatorLink

from dare_airflow.run_names import folder_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.sdk.types import TaskInstanceKey
    from fastapi import FastAPI

    from dare_core.reports.overview import ListedRun

PREFIX = "/dare"

#: Sent with every page. Frames: Airflow's UI shows the list in one. Styles: ours are inline.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline' 'self'; img-src 'self' data:; font-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    "Cache-Control": "private, no-cache",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def create_app() -> "FastAPI":
    """The pages under :data:`PREFIX`."""
    from airflow.api_fastapi.app import get_auth_manager
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
    from airflow.api_fastapi.core_api.security import GetUserDep
    from fastapi import Depends, FastAPI, HTTPException, status
    from fastapi.responses import HTMLResponse, RedirectResponse, Response

    from dare_core.config.settings import load_settings
    from dare_core.errors import DareError
    from dare_core.reports import overview

    def require_reader(user: GetUserDep) -> None:
        if not get_auth_manager().is_authorized_dag(method="GET", access_entity=DagAccessEntity.RUN, user=user):
            raise HTTPException(status.HTTP_403_FORBIDDEN, "Run reports are for those who may read all DAGs' runs")

    app = FastAPI(
        title="Run reports", dependencies=[Depends(require_reader)], docs_url=None, redoc_url=None, openapi_url=None
    )

    def answer(name: str, find: "Callable[[], bytes | None]") -> Response:
        try:
            found = find()
        except DareError as error:
            raise HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE, str(error)) from None
        if found is None:
            raise HTTPException(status.HTTP_404_NOT_FOUND, "There is no such page")
        return Response(found, media_type=guess_type(name)[0] or "application/octet-stream", headers=HEADERS)

    @app.get("/")
    def start() -> RedirectResponse:
        return RedirectResponse("runs/")

    @app.get("/runs/")
    def runs() -> HTMLResponse:
        try:
            found = listed_runs()
        except DareError as error:
            raise HTTPException(status.HTTP_503_SERVICE_UNAVAILABLE, str(error)) from None
        return HTMLResponse(overview.runs_page(found), headers=HEADERS)

    @app.get("/runs/{run_id}/report.html")
    def report(run_id: str) -> Response:
        return answer("report.html", lambda: overview.find_report(load_settings(), run_id))

    @app.get("/data_docs/{path:path}")
    def data_docs(path: str) -> Response:
        name = path or "index.html"
        return answer(name, lambda: overview.find_data_docs(load_settings(), name))

    return app


def listed_runs() -> "list[ListedRun]":
    """The runs of the warehouse that tasks use; a page starts no server.

    Raises:
        DareError: no warehouse is known or answers; its words are for the page.
    """
    from dare_airflow.installation import served_settings
    from dare_core.reports import overview

    return overview.list_runs(served_settings())


class RunReport(BaseOperatorLink):
    """The button on the page of a task that leads to the report of its run."""

    name = "Run report"

    def get_link(self, operator: BaseOperator, *, ti_key: "TaskInstanceKey") -> str:
        return f"{PREFIX}/runs/{quote(folder_name(ti_key.dag_id, ti_key.run_id))}/report.html"


class RunReports(AirflowPlugin):
    """The pages, and where the UI shows them."""

    name = "dare_run_reports"
    external_views = [  # noqa: RUF012  (Airflow declares it so)
        {
            "name": "Run reports",
            "href": f"{PREFIX}/runs/",
            "destination": "nav",
            "category": "browse",
            "url_route": "run-reports",
        }
    ]

    @property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Made when the API server asks."""
        return [{"app": create_app(), "url_prefix": PREFIX, "name": "Run reports"}]
