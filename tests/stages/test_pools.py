"""From loaded texts to the pool in force, past the promotion gate."""

import json
import os
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sqlalchemy import Engine
from typer.testing import CliRunner

from dare_core import models
from dare_core.cli.main import app
from dare_core.config.settings import Settings
from dare_core.errors import PoolError, WarehouseError
from dare_core.operations import alerts, maintenance
from dare_core.pools import Pool
from dare_core.schemas import KNOWLEDGE, KNOWLEDGE_EMBEDDING, QUARANTINE
from dare_core.stages import pools
from dare_core.stages.request import RunRequest
from dare_core.warehouse import leases
from dare_core.warehouse.knowledge import load_knowledge, request_states
from dare_core.warehouse.pools import current_pool, pool_store
from dare_core.warehouse.quarantine import record
from tests.support.tiny_model import save_tiny_model

NOW = datetime(2026, 5, 1, tzinfo=UTC)
RUN = RunRequest(run_id="loaded")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def settings(settings: Settings, warehouse_url: str, model: Path) -> Settings:
    return Settings.model_validate(settings.model_dump() | {"warehouse_url": warehouse_url, "model": str(model)})


def load_texts(settings: Settings, engine: Engine, entities: range, ids: tuple[int, int] = (0, 250)) -> None:
    """Load a text of its own about each of some items."""
    tokenizer_hash = models.tokenizer_hash(models.load_tokenizer(settings))
    plain = {
        pa.string(): "movies",
        pa.int32(): 1,
        pa.float64(): 0.1,
        pa.timestamp("us", tz="UTC"): NOW,
        pa.list_(pa.int32()): [1],
    }
    rows = [
        {field.name: plain[field.type] for field in KNOWLEDGE}
        | {
            "request_id": f"{number:032x}",
            "kind": "item",
            "entity_id": str(number),
            "group_name": "Drama",
            "token_ids": np.random.default_rng(number).integers(*ids, 40).tolist(),
            "tokenizer_hash": tokenizer_hash,
            "verification": "strict",
            "pool_version": None,
            "available_at": NOW + timedelta(minutes=number),
        }
        for number in entities
    ]
    load_knowledge(engine, pa.Table.from_pylist(rows, KNOWLEDGE), KNOWLEDGE_EMBEDDING.empty_table())


def current(engine: Engine) -> str | None:
    pool = current_pool(engine, "movies", "item")
    return pool and pool["version"]


def test_a_first_candidate_has_nothing_to_be_compared_with(settings: Settings, engine: Engine) -> None:
    assert pools.build_candidates(settings, "movies") == {}
    load_texts(settings, engine, range(4))
    [(kind, found)] = pools.build_candidates(settings, "movies").items()
    assert (kind, found["current"], found["tokens_per_step"], found["falls"]) == ("item", None, None, False)
    assert current(engine) is None
    pools.publish_candidates(settings, "movies", {kind: found})
    assert current(engine) == found["version"]
    assert pools.build_candidates(settings, "movies") == {}  # nothing is new


def test_ids_that_only_the_embedding_has_enter_pools_that_were_built_for_fewer(
    settings: Settings, engine: Engine, model: Path, tmp_path: Path
) -> None:
    load_texts(settings, engine, range(4))
    pools.run(settings, RUN)
    padded = Path(shutil.copytree(model, tmp_path / "padded"))
    config = json.loads((padded / "config.json").read_text())
    (padded / "config.json").write_text(json.dumps(config | {"vocab_size": 320}))
    settings = settings.model_copy(update={"model": str(padded)})
    load_texts(settings, engine, range(4, 8), (300, 320))
    assert pools.run(settings, RUN)["item"]["texts"] == 8
    tokenizer = models.load_tokenizer(settings)
    opened = Pool.open(pool_store(settings, engine, "movies", "item"), models.tokenizer_hash(tokenizer))
    assert (opened.manifest.vocabulary, len(tokenizer), config["vocab_size"]) == (320, 258, 258)


def test_a_candidate_that_falls_short_is_built_and_waits(settings: Settings, engine: Engine) -> None:
    load_texts(settings, engine, range(4))
    first = pools.run(settings, RUN)["item"]["version"]
    load_texts(settings, engine, range(4, 8))
    demanding = settings.model_copy(update={"max_acceptance_loss": -1.0})  # it must be twice as good
    found = pools.run(demanding, RUN)["item"]
    assert (found["falls"], found["current"], found["texts"]) == (True, first, 8)
    assert found["tokens_per_step"] == pytest.approx(found["current_tokens_per_step"], rel=0.05)
    assert current(engine) == first
    assert pools.run(settings, RUN)["item"]["version"] == found["version"]
    assert current(engine) == found["version"]


def test_what_the_limits_say_leaves_the_pipelines_pools(settings: Settings, engine: Engine) -> None:
    load_texts(settings, engine, range(4))
    assert pools.build_candidates(settings, "movies")["item"]["texts"] == 4
    young = settings.model_copy(update={"pool_text_days": 30})  # all of them are older
    assert pools.build_candidates(young, "movies")["item"]["texts"] == 0
    load_texts(settings, engine, range(4, 3000))
    small = settings.model_copy(update={"pool_group_mb": 1})
    found = pools.run(small, RUN)["item"]
    assert 2000 < found["texts"] < 2800
    assert found["tokens"] * 9 < 1_000_000


def test_a_candidate_measured_against_another_version_is_not_published(settings: Settings, engine: Engine) -> None:
    load_texts(settings, engine, range(4))
    pools.run(settings, RUN)
    load_texts(settings, engine, range(4, 6))
    early = pools.build_candidates(settings, "movies")
    load_texts(settings, engine, range(6, 8))
    late = pools.run(settings, RUN)["item"]["version"]
    with pytest.raises(PoolError, match="another builder has published"):
        pools.publish_candidates(settings, "movies", early)
    assert current(engine) == late
    assert pools.publish_candidates(settings, "movies", {"item": {"version": late, "current": "any"}}) == {
        "item": late  # published already: nothing to do
    }


def test_maintenance_keeps_the_latest_versions_and_drops_old_candidates_and_pins(
    settings: Settings, engine: Engine
) -> None:
    for end in (2, 4, 6):
        load_texts(settings, engine, range(end - 2, end))
        pools.run(settings, RUN)
    store = pool_store(settings, engine, "movies", "item")
    kept = store.versions()
    store.pin(kept[2], "nobody")
    load_texts(settings, engine, range(6, 8))
    candidate = pools.build_candidates(settings, "movies")["item"]["version"]

    few = settings.model_copy(update={"keep_pool_versions": 2})
    summary = maintenance.expire_pools(few)["movies/item"]
    assert summary == {"versions": 2, "expired": 1, "candidates": 0, "pins": 1}
    assert store.manifest(candidate).texts == 8  # it may still be approved

    summary = maintenance.expire_pools(few.model_copy(update={"keep_run_days": 1e-9}))["movies/item"]
    assert (summary["versions"], summary["candidates"]) == (2, 1)
    with pytest.raises(PoolError, match="has no version"):
        store.manifest(candidate)
    for version in store.versions():
        store.check(store.manifest(version), thoroughly=True)


def test_the_command_line_knows_the_pipelines_pools_by_name_and_rolls_them_back_for_the_pipeline(
    settings: Settings, engine: Engine, warehouse_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARE_DATA_DIR", str(settings.data_dir))
    monkeypatch.setenv("DARE_WAREHOUSE_URL", warehouse_url)

    def said(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["pool", *arguments, "--json"])
        assert result.exit_code == 0, result.output
        version: str = json.loads(result.output)["version"]
        return version

    versions = []
    for end in (2, 4):
        load_texts(settings, engine, range(end - 2, end))
        pools.run(settings, RUN)
        versions.append(current(engine))
    assert said("inspect", "movies/item") == said("inspect", str(settings.pool_dir("movies", "item"))) == versions[-1]
    assert said("rollback", "movies/item") == versions[0] == current(engine)


def test_runs_that_nothing_was_written_to_for_long_lose_their_staged_files(settings: Settings, engine: Engine) -> None:
    for run_id in ("a", "b"):
        (settings.run_dir(run_id) / "shards").mkdir(parents=True)
        (settings.run_dir(run_id) / "plan.json").write_text("{}")
    assert maintenance.expire_runs(settings) == {"removed": 0, "bytes": 0, "left": 2}
    assert maintenance.expire_runs(settings.model_copy(update={"keep_run_days": 1e-9})) == {
        "removed": 2,
        "bytes": 4,
        "left": 0,
    }


def test_a_run_that_is_under_way_keeps_its_files_and_no_run_is_half_removed(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run_id in ("a", "b"):
        (settings.run_dir(run_id) / "shards").mkdir(parents=True)
        (settings.run_dir(run_id) / "plan.json").write_text("{}")
    leases.take(engine, "a", "movies", {}, leases.new_owner(), ())

    def breaks(_: Path) -> None:
        raise KeyboardInterrupt

    soon = settings.model_copy(update={"keep_run_days": 1e-9})
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("shutil.rmtree", breaks)
        maintenance.expire_runs(soon)
    assert settings.run_dir("a").exists()
    assert not settings.run_dir("b").exists()
    assert maintenance.expire_runs(soon) == {"removed": 1, "bytes": 2, "left": 1}
    assert [path.name for path in settings.run_dir("a").parent.iterdir()] == ["a"]


def docs_of(settings: Settings, run_id: str, at: float) -> Path:
    """Great Expectations' page on a run, as old as that."""
    page = settings.data_docs_dir / "validations" / "texts" / run_id / "20260101T000000.000000Z" / "page.html"
    result = settings.data_docs_dir / "results" / "texts" / run_id / "20260101T000000.000000Z" / "page.json"
    for path in (page, result):
        path.parent.mkdir(parents=True)
        path.write_text("{}")
        os.utime(path, (at, at))
    return page


def test_what_grows_beside_runs_and_pools_has_an_end(settings: Settings, engine: Engine) -> None:
    now = time.time()
    leases.take(engine, "waits", "movies", {}, leases.new_owner(), ())
    old, young, waits = (docs_of(settings, name, now - days * 86_400) for name, days in
                         (("old", 31), ("young", 29), ("waits", 31)))  # fmt: skip
    assert maintenance.expire_data_docs(settings) == {"removed": 1}
    assert [page.exists() for page in (old, young, waits)] == [False, True, True]
    assert [path.name for path in (settings.data_docs_dir / "results" / "texts").iterdir() if path.name == "old"] == []

    kept, gone = [], []
    for name, days in (("evaluation/movies/texts/a.parquet", 90), ("airflow/logs/dag_id=x/run_id=1/1.log", 30),
                       ("vllm/7.log", 30)):  # fmt: skip
        for paths, age in ((gone, days + 1), (kept, days - 1)):
            path = settings.data_dir / name
            path = path.with_name(f"{age} {path.name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            os.utime(path, (now - age * 86_400,) * 2)
            paths.append(path)
    component = settings.data_dir / "airflow" / "logs" / "scheduler.log"
    component.touch()
    os.utime(component, (0, 0))
    alerts.raise_alert(settings, "new")
    (settings.data_dir / "alerts" / "20200101T000000.000000Z-0123abcd.json").write_text("{}")
    assert maintenance.expire_files(settings) == {"evaluation": 1, "logs": 2, "alerts": 1}
    assert maintenance.expire_files(settings) == {"evaluation": 0, "logs": 0, "alerts": 0}
    assert [path.exists() for path in (*gone, *kept, component)] == [False] * 3 + [True] * 4
    assert [alert["alert"] for alert in alerts.read_alerts(settings)] == ["new"]


def quarantine(engine: Engine, request_id: str, rule: str) -> None:
    row = {field.name: "movies" for field in QUARANTINE} | {
        "request_id": request_id,
        "rule": rule,
        "kind": "item",
        "entity_id": "7",
        "quarantined_at": datetime.now(UTC),
    }
    record(engine, pa.Table.from_pylist([row], QUARANTINE))


def test_a_quarantined_request_is_asked_again_so_many_times_and_no_more(settings: Settings, engine: Engine) -> None:
    for tries in (1, 2):
        quarantine(engine, f"try {tries}", "repetition")
        assert request_states(engine, [f"try {tries}"]) == {f"try {tries}": "quarantined"}
        assert maintenance.retry_quarantine(settings) == {"released": 1}
        assert request_states(engine, [f"try {tries}"]) == {f"try {tries}": "released"}
    quarantine(engine, "try 3", "repetition")
    assert maintenance.retry_quarantine(settings) == {"released": 0}


def test_a_prompt_that_does_not_fit_is_not_asked_again(settings: Settings, engine: Engine) -> None:
    quarantine(engine, "long", "prompt")
    assert maintenance.retry_quarantine(settings) == {"released": 0}


def test_tables_are_analysed_and_a_missing_or_invalid_index_is_named_with_its_remedy(
    settings: Settings, engine: Engine
) -> None:
    load_texts(settings, engine, range(3))
    assert maintenance.analyse_tables(settings)["rows"]["knowledge"] == 3
    assert maintenance.check_indexes(settings)["indexes"] > 5
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP INDEX knowledge.pool_version_one_current")
        connection.exec_driver_sql(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'knowledge.knowledge_point_in_time'::regclass"
        )
    with pytest.raises(WarehouseError) as failure:
        maintenance.check_indexes(settings)
    assert "knowledge.pool_version_one_current is missing: create it as sql/migrations does" in str(failure.value)
    assert "REINDEX INDEX CONCURRENTLY knowledge.knowledge_point_in_time" in str(failure.value)
