"""What a person sees in a browser: the run that the form triggered, and its report."""

import re

import httpx
import pytest
from playwright.sync_api import expect

from dare_airflow.local.airflow import LocalAirflow
from dare_airflow.run_names import folder_name
from tests.integration.browser import CHROMIUM, logged_in
from tests.integration.conftest import ITEMS, REFRESH, USERS
from tests.integration.metrics_receiver import MetricsReceiver

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium was found; on Debian: apt-get install chromium")
def test_a_person_triggers_a_run_by_the_form_and_reads_its_report(
    finished: LocalAirflow, run_id: str, metrics: MetricsReceiver
) -> None:
    with logged_in(finished) as page:
        page.goto(f"{finished.url}/dags/{REFRESH}/runs/{run_id}")
        expect(page.get_by_text("Success").first).to_be_visible()

        page.goto(f"{finished.url}/plugin/run-reports")
        pages = page.frame_locator("iframe")
        pages.get_by_role("link", name=re.compile("manual__")).first.click()
        expect(pages.get_by_role("heading", level=1)).to_contain_text(f"Wrote {ITEMS + USERS} texts for movies")
        for title in ("items by stage", "users by stage", "items by group", "Tokens per second over time"):
            expect(pages.get_by_role("img", name=title)).to_be_visible()

        name = folder_name(REFRESH, run_id)
        page.goto(f"{finished.url}/dags/{REFRESH}/runs/{run_id}/tasks/report/details")
        expect(page.get_by_role("link", name="Run report").first).to_have_attribute(
            "href", f"/dare/runs/{name}/report.html"
        )

    gauges = {metric: values for metric, values in metrics.gauges.items() if metric.startswith("airflow.dare.")}
    assert gauges["airflow.dare.texts"] == {frozenset({("domain", "movies")}): ITEMS + USERS}
    assert min(gauges["airflow.dare.tokens_per_step"].values()) >= 1


def test_nothing_is_shown_without_a_login_and_nothing_outside_the_reports_with_one(airflow: LocalAirflow) -> None:
    with httpx.Client(base_url=airflow.url, trust_env=False) as visitor:
        for path in ("", "runs/", "runs/x/report.html", "data_docs/index.html"):
            assert visitor.get(f"/dare/{path}").status_code == httpx.codes.UNAUTHORIZED
        assert visitor.get("/dare/runs/", headers={"Authorization": "Bearer x"}).status_code == httpx.codes.FORBIDDEN

        login = {"Authorization": f"Bearer {airflow.api.token()}"}
        runs = visitor.get("/dare/runs/", headers=login)
        assert runs.status_code == httpx.codes.OK
        policy = runs.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src" not in policy
        for path in ("runs/..%2Fairflow/report.html", "data_docs/..%2Fairflow%2Fpasswords.json", "runs/x/report.html"):
            assert visitor.get(f"/dare/{path}", headers=login).status_code == httpx.codes.NOT_FOUND
