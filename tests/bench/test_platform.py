import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from bench.cli import PlatformPart
from bench.platform import PARTS, dag_import, write_bare
from dare_core import models
from dare_core.cli.main import main
from dare_core.config.settings import Settings, load_settings
from dare_core.errors import DareError
from dare_core.knowledge import shards
from dare_core.knowledge.costs import Estimate
from dare_core.knowledge.requests import Decoding
from dare_core.knowledge.shards import Plan
from dare_core.knowledge.worker import work_off
from dare_core.schemas import REQUEST
from tests.support.tiny_model import save_tiny_model

DAG = """
from airflow.sdk import DAG

DAG("nothing", schedule=None)
"""


def platform(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> dict[str, Any]:
    """What ``dare bench platform --json`` with these options prints."""
    monkeypatch.setenv("DARE_MODEL", models.locate(load_settings()))  # converted once per checkout
    monkeypatch.setattr(sys, "argv", ["dare", "bench", "platform", "--json", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert set(printed.pop("machine")) == {"processor", "cores", "load"}
    return printed


def test_the_command_line_offers_every_part() -> None:
    assert {part.value for part in PlatformPart} == PARTS.keys()


def test_every_dag_file_s_import_is_measured_and_what_airflow_ignores_is_not(
    settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / ".airflowignore").write_text("shared.py\n")
    (tmp_path / "shared.py").write_text(DAG)
    (tmp_path / "first.py").write_text(DAG)
    (tmp_path / "second.py").write_text(DAG.replace("nothing", "as_little"))
    measured = dag_import(settings, tmp_path)
    assert measured["dag_import_files"].keys() == {"first.py", "second.py"}
    assert measured["dag_import_s"] == max(measured["dag_import_files"].values()) > 0


def test_a_dag_file_that_cannot_be_imported_is_no_figure_but_an_error(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(DAG + "1 / 0")
    with pytest.raises(DareError, match=r"cannot be imported.*broken\.py.*division by zero"):
        dag_import(settings, tmp_path)


def test_the_bare_engine_writes_what_a_worker_writes_of_a_plan(settings: Settings, tmp_path: Path) -> None:
    settings = settings.model_copy(update={"model": str(save_tiny_model(tmp_path / "tiny"))})
    now = datetime.now(UTC)
    asked = {"domain": "bench", "kind": "item", "group_name": "all", "prompt": "?", "dropped_history": 0, "epoch": 0}
    each = [{"request_id": str(n), "entity_id": str(n), "prompt_token_ids": [65 + n] * 9} for n in range(5)]
    rows = [{**asked, **row, "data_as_of": now} for row in each]
    plan = Plan(
        run_id="plan",
        domain="bench",
        framework="kar",
        decoding=Decoding(
            settings.model, models.tokenizer_hash(models.load_tokenizer(settings)), "strict", 1, 0.0, max_new_tokens=12
        ),
        started_at=now,
        shards=shards.write_shards(
            settings.run_dir("plan"), "item", pa.Table.from_pylist(rows, REQUEST).to_batches(), 3, None
        ),
        funnel={},
        estimate=Estimate(tokens=60, seconds=None, cost=None, tokens_per_second=None, basis="none"),
    )
    manifests = work_off(settings, plan, plan.shards)
    tokens, seconds = write_bare(settings, plan)
    assert tokens == sum(manifest["tokens"] for manifest in manifests) > 0
    assert seconds > 0


@pytest.mark.bench
@pytest.mark.integration
def test_a_run_without_a_change_sees_all_of_movielens_and_calls_no_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = platform(capsys, monkeypatch, "--only", "no_change")
    assert figures.pop("no_change_s") > 0
    assert figures == {"no_change_entities": 2625, "no_change_planned": 0, "no_change_model_calls": 0}


@pytest.mark.integration
def test_every_shard_is_finished_by_no_more_tasks_than_the_settings_allow(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARE_MAX_GENERATION_TASKS", "3")
    figures = platform(capsys, monkeypatch, "--only", "shards", "--shards", 20)
    assert (figures["shards_finished"], figures["shards_tasks"]) == (20, 3)
    assert figures["shards_scheduler_mb"] > 0
    assert figures["shards_s"] > 0


@pytest.mark.bench
@pytest.mark.integration
def test_of_a_killed_worker_s_texts_none_is_missing_and_none_written_twice(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = platform(capsys, monkeypatch, "--only", "kills", "--kills", 1)
    assert (figures["kill_missing"], figures["kill_doubled"]) == (0, 0)
    assert figures["kill_resumed"] > 0


@pytest.mark.bench
@pytest.mark.integration
def test_airflow_and_the_bare_engine_write_the_same_texts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARE_VERIFICATION", "strict")  # relaxed texts may differ with the time that a step takes
    monkeypatch.setenv("DARE_MAX_NEW_TOKENS", "24")
    figures = platform(capsys, monkeypatch, "--only", "airflow_vs_engine", "--entities", 4)
    assert figures["airflow_tasks"] == 1
    assert figures["airflow_tokens"] == figures["engine_tokens"] > 0
    assert figures["airflow_task_s"] > figures["airflow_task_engine_s"] + figures["airflow_task_load_s"] > 0
    assert figures["airflow_vs_engine"] > 0
