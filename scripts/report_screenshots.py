"""Take the screenshots of docs/reports.md anew: two runs over real films and users, then Airflow's page on them.

Usage: python scripts/report_screenshots.py   (about 5 minutes on two idle cores; needs a Chromium)
"""

import base64
import shutil
import struct
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Page, sync_playwright

from dare_airflow.local.airflow import LocalAirflow
from dare_airflow.local.environment import USER
from dare_core import models
from dare_core.config.settings import PROJECT_DIR, load_settings
from dare_core.sources.importer import import_tables
from dare_core.sources.movielens import read_movielens
from dare_core.stages import order
from dare_core.stages.request import RunRequest
from dare_core.warehouse.connection import connect
from dare_core.warehouse.migrate import upgrade
from dare_core.warehouse.server import serving

SHOTS = PROJECT_DIR / "docs" / "reports"
RUNS = ("first", "second")  # the second drafts from what the first wrote


def main() -> None:
    chromium = shutil.which("chromium") or sys.exit("no Chromium was found; on Debian: apt-get install chromium")
    models.locate(load_settings())  # converts the bundled model where that was not done yet
    with TemporaryDirectory(prefix="dare-") as folder:
        (Path(folder) / "models").symlink_to(load_settings().models_dir)
        settings = load_settings(data_dir=Path(folder), warehouse_url=None, probe_share=0.5)
        with serving(settings) as url:
            engine = connect(url)
            upgrade(engine)
            import_tables(engine, read_movielens())
            for run_id in RUNS:
                request = RunRequest(run_id=run_id, item_limit=48, user_limit=16, max_new_tokens=96)
                order.run(settings, request, on_stage=lambda stage, result: print(f"{stage}: {result}", flush=True))
            SHOTS.mkdir(exist_ok=True)
            with LocalAirflow(settings, url, port=0) as airflow, sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                page = browser.new_page(viewport={"width": 1180, "height": 800})
                page.goto(f"file://{settings.run_dir(RUNS[-1]) / 'report.html'}")
                save(page, "report.svg", full_page=True)
                page = browser.new_page(viewport={"width": 1180, "height": 620})
                page.goto(airflow.url)
                page.get_by_label("Username").fill(USER)
                page.get_by_label("Password").fill(airflow.password)
                page.get_by_role("button", name="Sign in").click()
                page.get_by_role("link", name="Dags", exact=True).wait_for()
                page.goto(f"{airflow.url}/plugin/run-reports")
                page.frame_locator("iframe").get_by_role("link", name=RUNS[-1]).wait_for()
                save(page, "airflow.svg")
                browser.close()


def save(page: Page, name: str, full_page: bool = False) -> None:
    """Keep what a page shows, as an image inside an SVG: the repository holds text alone."""
    png = page.screenshot(full_page=full_page)
    width, height = struct.unpack(">II", png[16:24])
    image = f'<image width="{width}" height="{height}" href="data:image/png;base64,{base64.b64encode(png).decode()}"/>'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">{image}</svg>\n'
    (SHOTS / name).write_text(svg, "utf-8")


if __name__ == "__main__":
    main()
