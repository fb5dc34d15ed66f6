"""What `maintain` removes from a storage that is no folder; of folders see tests/stages/test_pools.py."""

from datetime import UTC, datetime, timedelta

import fsspec
import pyarrow as pa
import pytest
from sqlalchemy import Engine

from dare_core.config.settings import Settings
from dare_core.operations import maintenance
from dare_core.pools import PoolBuilder
from dare_core.storage.atomic import write_atomically
from dare_core.storage.locations import Location, files_below
from dare_core.warehouse.pools import pool_store


@pytest.fixture
def settings(settings: Settings, warehouse_url: str, url: str) -> Settings:
    return Settings.model_validate(settings.model_dump() | {"warehouse_url": warehouse_url, "storage": url})


def write(path: Location, days_ago: float = 0) -> None:
    """A file of three bytes that was written some days ago."""
    write_atomically(path, b"old")
    memory = fsspec.filesystem("memory")
    memory.store[path.path].created = datetime.now(UTC) - timedelta(days=days_ago)


def names(settings: Settings) -> list[str]:
    return [str(file.path).removeprefix(f"{settings.shared}/") for file in files_below(settings.shared)]


def test_a_run_is_as_old_as_its_newest_object(settings: Settings) -> None:
    for run, days in (("old", 20), ("late", 1)):
        write(settings.run_dir(run) / "plan.json", 20)
        write(settings.run_dir(run) / "staged" / "item-0000" / "part-0000.parquet", days)
    assert maintenance.expire_runs(settings) == {"removed": 1, "bytes": 6, "left": 1}
    assert names(settings) == ["runs/late/plan.json", "runs/late/staged/item-0000/part-0000.parquet"]


def test_a_run_whose_removal_broke_off_is_removed_the_next_time(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(settings.run_dir("old") / "plan.json", 20)
    write(settings.run_dir("old") / "report.html", 20)

    def breaks(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(maintenance, "remove_folder", breaks)
        maintenance.expire_runs(settings)
    assert names(settings) == ["runs/old/report.html"], "what is left is no run"
    assert maintenance.expire_runs(settings) == {"removed": 1, "bytes": 3, "left": 0}


def test_evaluation_texts_that_no_evaluation_used_go_and_the_others_stay(settings: Settings) -> None:
    write(settings.evaluation_dir("movies") / "old.parquet", 100)
    write(settings.evaluation_dir("movies") / "used.parquet", 80)
    assert maintenance.expire_files(settings)["evaluation"] == 1
    assert names(settings) == ["evaluation/movies/texts/used.parquet"]


def test_old_versions_of_pools_go_with_their_segments(settings: Settings, engine: Engine) -> None:
    store = pool_store(settings, engine, "movies", "item")
    for token in range(3):
        text = pa.table({"group": ["Drama"], "token_ids": pa.array([[token, 7]], pa.list_(pa.int32()))})
        PoolBuilder(store, "m", "t", 100).build(text)
    few = settings.model_copy(update={"keep_pool_versions": 1})
    assert maintenance.expire_pools(few)["movies/item"]["expired"] == 2
    left = store.manifest()
    assert names(settings) == [f"pools/movies/item/{name}" for name in sorted(store.files_of(left.version))]
