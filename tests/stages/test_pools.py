"""From loaded texts to the pool in force, past the promotion gate."""

import json
import shutil
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
from dare_core.operations import maintenance
from dare_core.pools import Pool
from dare_core.schemas import KNOWLEDGE, KNOWLEDGE_EMBEDDING, QUARANTINE
from dare_core.stages import pools
from dare_core.stages.request import RunRequest
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
