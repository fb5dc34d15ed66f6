"""What a person does in a browser to have a run: log in, fill in the form, trigger it."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Page, expect, sync_playwright

from dare_airflow.local.airflow import LocalAirflow
from dare_airflow.local.environment import USER

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def logged_in(airflow: LocalAirflow) -> Iterator[Page]:
    """A page after the login."""
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not start for root, and the pages are ours.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1360, "height": 900})
        context.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        page = context.new_page()
        page.goto(airflow.url)
        page.get_by_label("Username").fill(USER)
        page.get_by_label("Password").fill(airflow.password)
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("link", name="Dags", exact=True)).to_be_visible()
        yield page
        context.close()
        browser.close()


def trigger_by_form(page: Page, airflow: LocalAirflow, dag_id: str, items: int, users: int, max_new_tokens: int) -> str:
    """Run id of a run that the form has triggered, once it had refused what it must."""
    page.goto(f"{airflow.url}/dags/{dag_id}")
    page.get_by_role("button", name="Trigger").first.click()
    form = page.get_by_role("dialog")
    trigger = form.get_by_role("button", name="Trigger", exact=True).last

    limit = form.get_by_label("item_limit")
    limit.fill("0")
    form.get_by_label("user_limit").fill(str(users))
    expect(limit).to_have_value("1")  # the least that the form lets stand

    limit.fill("1.5")
    form.get_by_label("max_new_tokens").fill(str(max_new_tokens))
    trigger.click()
    expect(form.get_by_text("Invalid input for param item_limit: 1.5 is not of type")).to_be_visible()
    assert airflow.api.active_runs(dag_id) == []

    limit.fill(str(items))
    form.get_by_label("user_limit").click()  # a value is taken when its field is left
    trigger.click()
    page.wait_for_url(re.compile(r"/runs/manual__"))
    [run_id] = airflow.api.active_runs(dag_id)
    return run_id
