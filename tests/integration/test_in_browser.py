"""What a person does in a browser: logs in, fills the form, triggers the run, and opens its report."""

import re
import shutil
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from dare_airflow.local.airflow import LocalAirflow
from dare_airflow.local.environment import USER
from dare_airflow.run_names import folder_name
from dare_core.config.settings import Settings
from tests.integration.conftest import REFRESH
from tests.integration.metrics_receiver import MetricsReceiver

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

ITEMS, USERS, MAX_NEW_TOKENS = 5, 3, 12
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium was found; on Debian: apt-get install chromium"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not start for root, and the pages are ours.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1360, "height": 900})
    context.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    yield context.new_page()
    context.close()


def log_in(page: Page, airflow: LocalAirflow) -> None:
    page.goto(airflow.url)
    page.get_by_label("Username").fill(USER)
    page.get_by_label("Password").fill(airflow.password)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("link", name="Dags", exact=True)).to_be_visible()


@needs_browser
def test_a_person_triggers_a_run_by_the_form_and_reads_its_report(
    page: Page, airflow: LocalAirflow, airflow_settings: Settings, metrics: MetricsReceiver
) -> None:
    log_in(page, airflow)
    page.goto(f"{airflow.url}/dags/{REFRESH}")
    page.get_by_role("button", name="Trigger").first.click()
    form = page.get_by_role("dialog")
    trigger = form.get_by_role("button", name="Trigger", exact=True).last

    items = form.get_by_label("item_limit")
    items.fill("0")
    form.get_by_label("user_limit").fill(str(USERS))
    expect(items).to_have_value("1")  # the least that the form lets stand

    items.fill("1.5")
    form.get_by_label("max_new_tokens").fill(str(MAX_NEW_TOKENS))
    trigger.click()
    expect(form.get_by_text("Invalid input for param item_limit: 1.5 is not of type")).to_be_visible()
    assert airflow.api.active_runs(REFRESH) == []

    items.fill(str(ITEMS))
    form.get_by_label("user_limit").click()  # a value is taken when its field is left
    trigger.click()
    page.wait_for_url(re.compile(r"/runs/manual__"))
    [run_id] = airflow.api.active_runs(REFRESH)
    airflow.runs.wait(REFRESH, run_id)
    page.reload()
    expect(page.get_by_text("Success").first).to_be_visible()

    page.goto(f"{airflow.url}/plugin/run-reports")
    pages = page.frame_locator("iframe")
    pages.get_by_role("link", name=re.compile("manual__")).first.click()
    expect(pages.get_by_role("heading", level=1)).to_contain_text(f"Wrote {ITEMS + USERS} texts for movies")
    for title in ("items by stage", "users by stage", "items by group", "Tokens per second over time"):
        expect(pages.get_by_role("img", name=title)).to_be_visible()

    name = folder_name(REFRESH, run_id)
    page.goto(f"{airflow.url}/dags/{REFRESH}/runs/{run_id}/tasks/report/details")
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
