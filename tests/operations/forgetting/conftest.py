"""An installation to forget somebody in: made once, copied for each test."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine

from dare_core.config.settings import PROJECT_DIR, Settings
from dare_core.schemas import ENTITY
from dare_core.sources.importer import described, import_tables
from dare_core.stages.request import RunRequest
from dare_core.warehouse.connection import connect
from dare_core.warehouse.entities import upsert_entities
from tests.operations.forgetting.installation import ENTITIES, IDS, clustered, groups, refresh
from tests.support.tiny_model import LAX, save_tiny_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def refreshed(
    template_url: str,
    copied_database: Callable[[str], AbstractContextManager[str]],
    model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Settings]:
    """Two runs about six items and three users: loaded or in quarantine, in pools and group models, reported on."""
    folder = tmp_path_factory.mktemp("refreshed")
    movies = (PROJECT_DIR / "config" / "movies.toml").read_text()
    (folder / "config").mkdir()
    (folder / "config" / "movies.toml").write_text(movies + LAX + "max_relaxed = 1\n")
    users, seen = ["0", "1", "2", "1"], ["3", "4", "2", "2"]
    with copied_database(template_url) as url:
        settings = Settings(
            data_dir=folder / "data", config_dir=folder / "config", warehouse_url=SecretStr(url), model=str(model),
            max_new_tokens=64, shard_size=2, max_failing_share=1.0,
        )  # fmt: skip
        engine = connect(url)
        import_tables(
            engine,
            {
                "users": described(pa.table({"user_id": IDS[:3]}), "users", ["user_id"]),
                "items": described(pa.table({"item_id": IDS}), "items", ["item_id"]),
                "ratings": described(pa.table({"user_id": users, "item_id": seen}), "ratings", ["user_id", "item_id"]),
            },
        )
        upsert_entities(engine, pa.Table.from_pylist(ENTITIES, ENTITY))
        for clusters in (["cluster 1"] * 3, ["cluster 1", "cluster 1", "cluster 2"]):
            groups(settings, engine).publish(clustered(clusters))
        for run_id, tokens in (("first", 64), ("second", 60)):
            refresh(settings, RunRequest(run_id=run_id, max_new_tokens=tokens))
        engine.dispose()
        yield settings


@pytest.fixture
def settings(
    refreshed: Settings, copied_database: Callable[[str], AbstractContextManager[str]], tmp_path: Path
) -> Iterator[Settings]:
    """A copy of all that ``refreshed`` made, the test's own."""
    shutil.copytree(refreshed.data_dir, tmp_path / "data")
    shutil.copytree(refreshed.config_dir, tmp_path / "config")
    assert refreshed.warehouse_url is not None
    with copied_database(refreshed.warehouse_url.get_secret_value()) as url:
        changes = {"data_dir": tmp_path / "data", "config_dir": tmp_path / "config", "warehouse_url": SecretStr(url)}
        yield refreshed.model_copy(update=changes)


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    assert settings.warehouse_url is not None
    engine = connect(settings.warehouse_url.get_secret_value())
    yield engine
    engine.dispose()
