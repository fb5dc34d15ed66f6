"""Which domains' interactions the warehouse is told of, and by which commands."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import Engine

from dare_core.config.settings import PROJECT_DIR, Settings
from dare_core.knowledge.costs import Estimate
from dare_core.knowledge.requests import Decoding
from dare_core.knowledge.shards import Plan
from dare_core.sources.importer import described, import_tables
from dare_core.stages import load
from dare_core.stages.request import RunRequest
from dare_core.storage import run_files
from dare_core.warehouse.interactions import register_all
from dare_core.warehouse.knowledge import load_knowledge
from tests.support.command import Dare, in_process

Rows = Callable[..., pa.Table]
_SHIPPED = (PROJECT_DIR / "config" / "movies.toml").read_text("utf-8")


def _registered(engine: Engine) -> dict[str, Any]:
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM knowledge.interaction_source").mappings()
        return {row["domain"]: dict(row) for row in rows}


@pytest.fixture
def config(settings: Settings, warehouse_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of domains: films in the warehouse's database, others elsewhere or without likes, and a broken one."""
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "films.toml").write_text(_SHIPPED, "utf-8")
    (folder / "mute.toml").write_text(re.sub(r"\[evaluation(\.training)?\][^\[]*", "", _SHIPPED))
    (folder / "files.toml").write_text(_SHIPPED.replace('"postgres"', '"csv"\nlocation = "/tables"'))
    (folder / "far.toml").write_text(_SHIPPED.replace('"postgres"', '"postgres"\nlocation = "postgresql://far/db"'))
    (folder / "broken.toml").write_text("[source")
    monkeypatch.setenv("DARE_WAREHOUSE_URL", warehouse_url)
    monkeypatch.setenv("DARE_CONFIG_DIR", str(folder))
    monkeypatch.setenv("DARE_DATA_DIR", str(settings.data_dir))
    return folder


@pytest.fixture
def dare(config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Dare:
    """Runs ``dare …`` over these domains: exit status, standard output, standard error."""
    assert config.is_dir()
    return in_process(monkeypatch, capsys)


def test_an_upgrade_tells_the_warehouse_of_all_domains_whose_interactions_it_has(
    dare: Dare, engine: Engine, config: Path
) -> None:
    code, _, error = dare("warehouse", "upgrade")
    assert code == 0
    assert f"dare: warning: {config / 'broken.toml'}: not valid TOML" in error
    assert _registered(engine) == {
        "films": {
            "domain": "films", "db_schema": "source", "table_name": "ratings", "user_column": "user_id",
            "item_column": "item_id", "value_column": "rating", "time_column": "rated_at", "per_second": None,
            "positive_from": 4.0, "none_values": [],
        }
    }  # fmt: skip


def test_a_domain_that_is_changed_changes_its_row_and_one_that_has_no_likes_any_more_loses_it(
    config: Path, engine: Engine
) -> None:
    settings = Settings(config_dir=config)
    [unread] = register_all(engine, settings)
    assert "broken.toml" in str(unread)
    changed = _SHIPPED.replace('time = "rated_at"', 'time = "at"\ntime_unit = "milliseconds"')
    (config / "films.toml").write_text(changed.replace("positive_from = 4", "positive_from = 3"))
    register_all(engine, settings)
    row = _registered(engine)["films"]
    assert (row["time_column"], row["per_second"], row["positive_from"]) == ("at", 1000, 3.0)
    (config / "films.toml").write_text("[source")
    register_all(engine, settings)
    assert _registered(engine) == {"films": row}, "nobody knows what the file would say"
    (config / "films.toml").write_text((config / "mute.toml").read_text())
    register_all(engine, settings)
    assert _registered(engine) == {}


def test_a_run_that_loads_features_tells_the_warehouse(settings: Settings, warehouse_url: str, engine: Engine) -> None:
    settings = Settings.model_validate(settings.model_dump() | {"warehouse_url": warehouse_url})
    nothing = Estimate(tokens=0, seconds=None, cost=None, tokens_per_second=None, basis="")
    planned = Plan(
        run_id="r", domain="movies", framework="kar", decoding=Decoding("m", "t", "strict", 1, 0.0, 8),
        started_at=datetime.now(UTC), shards=[], funnel={}, estimate=nothing,
    )  # fmt: skip
    run_files.write_json(settings.run_dir("r") / "plan.json", planned.model_dump_json())
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO knowledge.generation_run (run_id, domain, state, params, model, started_at, planned) "
            "VALUES ('r', 'movies', 'planned', '{}', 'm', now(), 0)"
        )
    load.run(settings, RunRequest(run_id="r"))
    assert list(_registered(engine)) == ["movies"]


def test_an_export_writes_likeness_where_it_can_and_says_why_where_it_cannot(
    dare: Dare, engine: Engine, knowledge_rows: Rows, embedding_rows: Rows, tmp_path: Path
) -> None:
    for domain in ("films", "files"):
        rows = [{"request_id": domain, "entity_id": "1", "domain": domain}]
        load_knowledge(engine, knowledge_rows(rows), embedding_rows([domain]))
    code, printed, error = dare("features", "export", "--domain", "films", "--out", tmp_path / "out")
    assert (code, json.loads(printed)) == (0, {"item": 1, "user": 0})
    assert "dare: likeness.parquet is not written: domain films: " in error
    assert "source.ratings" in error and "run `dare source import`" in error
    columns = {
        "user_id": ["u"],
        "item_id": ["1"],
        "rating": [5.0],
        "rated_at": pa.array([0], pa.timestamp("us", "UTC")),
    }
    import_tables(engine, {"ratings": described(pa.table(columns), "test", ["user_id", "item_id"])})
    code, printed, error = dare("features", "export", "--domain", "films", "--out", tmp_path / "out")
    assert (code, json.loads(printed), error) == (0, {"item": 1, "user": 0, "likeness": 1}, "")
    assert pq.read_table(tmp_path / "out" / "likeness.parquet")["label"].to_pylist() == [1]
    code, printed, error = dare("features", "export", "--domain", "files", "--out", tmp_path / "files")
    assert (code, json.loads(printed)) == (0, {"item": 1, "user": 0})
    assert "the warehouse knows no interactions of domain 'files': its file must name a table" in error
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == ["item.parquet", "user.parquet"]
