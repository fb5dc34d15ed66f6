"""The digest of an installation whose runs and pools lie on a storage that is no folder."""

import pyarrow as pa
import pytest
from sqlalchemy import Engine

from dare_core.config.settings import Settings
from dare_core.operations.digest import digest, unfinished
from dare_core.pools import PoolBuilder
from dare_core.storage.locations import files_below, remove
from dare_core.storage.run_files import write_manifest, write_table
from dare_core.warehouse.pools import pool_store


@pytest.fixture
def settings(settings: Settings, warehouse_url: str, url: str) -> Settings:
    return Settings.model_validate(settings.model_dump() | {"warehouse_url": warehouse_url, "storage": url})


def test_a_table_is_what_its_newest_manifest_names(settings: Settings, engine: Engine) -> None:
    folder = settings.run_dir("one") / "grouped" / "user"
    for name in ("earlier", "one", "two"):
        write_table(folder / f"{name}.parquet", pa.table({"entity_id": [name]}))
    write_manifest(folder, ["earlier.parquet"])
    before = digest(settings, engine)["staged.grouped.user"]
    write_manifest(folder, ["one.parquet", "two.parquet"])
    after = digest(settings, engine)["staged.grouped.user"]
    assert (before.rows, after.rows) == (1, 2)
    remove(folder / "earlier.parquet")
    assert digest(settings, engine)["staged.grouped.user"] == after


def test_a_pool_counts_by_its_texts_and_a_segment_that_is_gone_is_unfinished(
    settings: Settings, engine: Engine
) -> None:
    store = pool_store(settings, engine, "movies", "item")
    texts = pa.table({"group": ["Drama"] * 2, "token_ids": pa.array([[1, 2], [3]], pa.list_(pa.int32()))})
    PoolBuilder(store, "m", "t", 100).build(texts)
    assert digest(settings, engine)["pool.movies.item"].rows == 4, "of the group and of all groups"
    assert unfinished(settings, engine) == []
    for file in files_below(settings.pool_dir("movies", "item") / "segments"):
        remove(file.path)
    [problem] = unfinished(settings, engine)
    assert "is missing" in problem
    assert not (settings.data_dir / "pools").exists()
