"""The report of a run at every stage that a run can end in."""

import json
import re
import uuid
from html.parser import HTMLParser
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from dare_core.config.settings import Settings
from dare_core.errors import QualityError
from dare_core.quality.findings import Finding
from dare_core.quality.texts import SUITE
from dare_core.reports.facts import gather
from dare_core.reports.overview import find_report
from dare_core.reports.page import figures, read_figures
from dare_core.stages import generate, load, plan
from dare_core.stages import report as reporting
from dare_core.stages.request import RunRequest
from dare_core.stages.weighing import weigh
from dare_core.storage import run_files
from dare_core.storage.atomic import write_atomically
from dare_core.storage.locations import remove_folder
from tests.reports.conftest import HOSTILE


class _Page(HTMLParser):
    """What a browser would run, and what it would ask for."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.asks: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.asks += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]


def plan_and_generate(settings: Settings, request: RunRequest) -> None:
    plan.run(settings, request)
    for assignment in plan.assignments(settings, request):
        generate.run(settings, request, assignment)


def report(settings: Settings, request: RunRequest) -> tuple[dict[str, object], str]:
    figures = reporting.run(settings, request)
    return figures, Path(str(figures["report"])).read_text("utf-8")


def test_a_loaded_run_shows_its_funnel_groups_speed_quarantine_and_samples(settings: Settings, engine: Engine) -> None:
    request = RunRequest(run_id="loaded")
    plan_and_generate(settings, request)
    load.run(settings, request)
    figures, page = report(settings, request)
    with engine.connect() as connection:
        run = connection.execute(text("SELECT * FROM knowledge.generation_run")).one()
        refused = connection.execute(text("SELECT count(*) FROM knowledge.quarantine")).scalar_one()
    assert (figures["state"], figures["texts"], figures["tokens"]) == ("loaded", 7, run.new_tokens)
    assert figures["tokens_per_step"] == pytest.approx(run.new_tokens / run.steps, abs=1e-3)
    assert figures["quarantined"] == refused > 0
    assert figures["precision"] == run.plan["precision"] == "fp32"
    assert "<dt>precision</dt><dd>fp32</dd>" in page
    for section in ("funnel", "speed", "groups", "throughput", "quarantine", "pools", "samples"):
        assert f'<section id="{section}">' in page
    facts = gather(settings, engine, "loaded", "movies")
    assert [(funnel.kind, funnel.planned, funnel.generated, funnel.loaded) for funnel in facts.funnels] == [
        ("item", 5, 5, sum(kind == "item" for kind in _loaded_kinds(engine))),
        ("user", 2, 2, sum(kind == "user" for kind in _loaded_kinds(engine))),
    ]
    assert sum(written.tokens for written in facts.groups.values()) == run.new_tokens
    assert facts.throughput is not None
    assert sum(facts.throughput.tokens_per_second) * facts.throughput.bin_seconds == pytest.approx(
        run.new_tokens, abs=0.5
    )


def _loaded_kinds(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return list(connection.execute(text("SELECT kind FROM knowledge.knowledge")).scalars())


def test_a_report_runs_nothing_and_asks_for_nothing_but_the_data_docs(settings: Settings) -> None:
    request = RunRequest(run_id="hostile")
    plan_and_generate(settings, request)
    load.run(settings, request)
    _, page = report(settings, request)
    parsed = _Page(page)
    assert "script" not in parsed.tags
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page  # names are shown, as text
    [docs] = parsed.asks
    assert (settings.run_dir("hostile") / docs).resolve().is_relative_to(settings.data_docs_dir.resolve())
    assert (settings.run_dir("hostile") / docs).is_file()
    assert "url(" not in page


def test_a_run_that_failed_validation_says_so_and_shows_why(settings: Settings) -> None:
    strict = settings.model_copy(update={"max_failing_share": 0.0})
    request = RunRequest(run_id="bad", kinds=("item",))
    plan_and_generate(strict, request)
    with pytest.raises(QualityError):
        load.run(strict, request)
    figures, page = report(strict, request)
    assert figures["state"] == "failed"
    assert "Failed in validation, and loaded nothing. It had written 5 of 5 texts" in page
    assert re.search(r"<summary>\w+: \d of \d</summary>", page)


def test_a_run_that_stopped_half_way_reports_what_was_written(settings: Settings) -> None:
    request = RunRequest(run_id="half", kinds=("item",))
    plan.run(settings, request)
    generate.run(settings, request, plan.assignments(settings, request)[0])
    figures, page = report(settings, request)
    assert (figures["state"], figures["texts"]) == ("stopped", 3)
    assert "It had written 3 of 5 texts" in page


def test_a_run_with_nothing_to_write_and_one_never_planned_have_reports_too(settings: Settings) -> None:
    nothing = RunRequest(run_id="nothing", max_new_tokens=900)  # which leaves no prompt room
    plan_and_generate(settings, nothing)
    load.run(settings, nothing)
    figures, page = report(settings, nothing)
    assert figures["state"] == "idle"
    assert "Nothing had to be written for movies" in page
    assert "5 unfit" in page
    figures, page = report(settings, RunRequest(run_id="never"))
    assert (figures["state"], figures["texts"]) == ("unplanned", 0)


def test_a_report_lies_on_the_shared_storage_and_leads_to_the_newest_data_docs_there(
    settings: Settings, engine: Engine
) -> None:
    remote = settings.model_copy(update={"storage": f"memory://{uuid.uuid4().hex}"})
    request = RunRequest(run_id="remote")
    plan.run(settings, request)
    planned = json.loads((settings.data_dir / "runs" / "remote" / "plan.json").read_text())
    run_files.write_json(remote.run_dir("remote") / "plan.json", json.dumps({**planned, "shards": []}))
    weigh(remote, request, "texts", [Finding("lost", "warning", "2 of <i>3</i>")], "texts")
    for moment in ("1", "2"):
        page = remote.data_docs_dir / "validations" / SUITE / "remote" / moment / "page.html"
        write_atomically(page, b"", durable=False)
    path = reporting.run(remote, request)["report"]
    assert path == f"{remote.storage}/runs/remote/report.html"
    found = find_report(remote, "remote")
    assert found is not None
    assert f'href="../../data_docs/validations/{SUITE}/remote/2/page.html"' in found.decode()
    assert b"lost: 2 of &lt;i&gt;3&lt;/i&gt;" in found
    assert read_figures(remote, "remote") == figures(gather(remote, engine, "remote", "movies"))
    assert read_figures(remote, "other") is None
    remove_folder(remote.shared)


def test_the_plans_funnel_and_estimate_are_shown_beside_what_was_measured(settings: Settings) -> None:
    request = RunRequest(run_id="estimated", kinds=("user",))
    plan_and_generate(settings, request)
    path = settings.run_dir("estimated") / "plan.json"
    planned = json.loads(path.read_text())
    planned["funnel"] = {
        "user": {"seen": 943, "changed": 1, "expired": 1, "requests": 2, "skipped": {"valid": 940, "unfit": 1}}
    }
    planned["estimate"] = {
        "tokens": 48, "seconds": 4.0, "cost": None, "tokens_per_second": 12.0, "basis": "the last run <b>of all</b>"
    }  # fmt: skip
    run_files.write_json(path, json.dumps(planned))
    _, page = report(settings, request)
    assert "943" in page
    assert "940 valid, 1 unfit" in page
    assert re.search(r"<th>tokens</th><td>48</td><td>\d+</td><td>\d+%</td>", page)
    assert "the last run &lt;b&gt;of all&lt;/b&gt;" in page
