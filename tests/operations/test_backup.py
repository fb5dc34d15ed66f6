"""Backups: an empty installation holds the same after a restore; what is broken or in the way is named."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, text

from dare_core.config.settings import Settings
from dare_core.errors import InputError, PoolError, SettingError, StorageError, WarehouseError
from dare_core.grouping import AttributeGroups, GroupModel, GroupModelStore
from dare_core.operations import backup as module
from dare_core.operations import digest
from dare_core.operations.backup import MANIFEST, backup, restore
from dare_core.pools import PoolBuilder, retention
from dare_core.sources.importer import described, import_tables
from dare_core.storage.atomic import write_atomically
from dare_core.storage.locations import Stored, files_below, location
from dare_core.warehouse.connection import connect
from dare_core.warehouse.entities import upsert_entities
from dare_core.warehouse.group_models import WarehousePointer
from dare_core.warehouse.knowledge import load_knowledge
from dare_core.warehouse.migrate import require_current, schema_version
from dare_core.warehouse.pools import pool_store

Rows = Callable[..., pa.Table]


def texts(*ids: list[int]) -> pa.Table:
    return pa.table({"group": ["Drama"] * len(ids), "token_ids": pa.array(ids, pa.list_(pa.int32()))})


def rows(engine: Engine, statement: str) -> list[tuple[object, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(statement))]


def engine_of(settings: Settings) -> Engine:
    assert settings.warehouse_url is not None
    return connect(settings.warehouse_url.get_secret_value())


@pytest.fixture(scope="module")
def filled(
    template_url: str,
    copied_database: Callable[[str], AbstractContextManager[str]],
    tmp_path_factory: pytest.TempPathFactory,
    rows_of: dict[str, Rows],
) -> Iterator[Settings]:
    """An installation with entities, texts, vectors, two versions of a pool, a group model and an imported table."""
    with copied_database(template_url) as url:
        settings = Settings(data_dir=tmp_path_factory.mktemp("filled") / "data", warehouse_url=SecretStr(url))
        engine = connect(url)
        upsert_entities(
            engine, rows_of["entity"]([{"entity_id": str(n), "attributes": '{"title": "Zoë\\n"}'} for n in range(3)])
        )
        load_knowledge(
            engine,
            rows_of["knowledge"]([{"request_id": f"r{n}", "entity_id": str(n)} for n in range(3)]),
            rows_of["embedding"]([f"r{n}" for n in range(3)]),
        )
        store = pool_store(settings, engine, "movies", "item")
        PoolBuilder(store, "m", "t", 100).build(texts([1, 2, 3], [4, 5, 6]))
        PoolBuilder(store, "m", "t", 100).add(texts([7, 8, 9]))
        root = str(settings.pool_dir("movies", "user"))
        model = GroupModel(AttributeGroups("occupation", "first", "rest", ()))
        GroupModelStore(root, WarehousePointer(engine, "movies", "user", root)).publish(model)
        table = pa.table({"item_id": ["1", "2"], "year": pa.array([1, None], pa.int32())})
        import_tables(engine, {"items": described(table, "items; the platform's", ["item_id"], ["year"])})
        engine.dispose()
        yield settings


@pytest.fixture(scope="module")
def kept(filled: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of it."""
    folder = tmp_path_factory.mktemp("backups") / "kept"
    backup(filled, folder)
    return folder


@pytest.fixture
def copy(kept: Path, tmp_path: Path) -> Path:
    """The backup, the test's own."""
    return Path(shutil.copytree(kept, tmp_path / "copy"))


@pytest.fixture
def engine(filled: Settings) -> Iterator[Engine]:
    engine = engine_of(filled)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def never_filled(
    empty_database: Callable[[], AbstractContextManager[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    """An installation into which every restore fails."""
    with empty_database() as url:
        yield Settings(data_dir=tmp_path_factory.mktemp("never") / "data", warehouse_url=SecretStr(url))


def test_an_empty_installation_holds_the_same_after_a_restore_whatever_broke_off_before(
    filled: Settings,
    engine: Engine,
    kept: Path,
    empty_database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def breaks(*_: object) -> None:
        raise KeyboardInterrupt

    empty = Settings(data_dir=tmp_path / "data", warehouse_url=SecretStr(empty_database_url))
    for broken in ("_put_back", "restore_tables"):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(module, broken, breaks)
            restore(empty, kept)
        untouched = engine_of(empty)
        assert schema_version(untouched) is None
        untouched.dispose()
    restore(empty, kept)

    restored = engine_of(empty)
    require_current(restored)
    before = digest.digest(filled, engine)
    parts = {"warehouse.entity", "warehouse.knowledge_embedding", "warehouse.pool_version", "pool.movies.item"}
    assert parts <= set(before)
    assert digest.digest(empty, restored) == before
    assert digest.unfinished(empty, restored) == []
    assert rows(restored, "SELECT * FROM source.items ORDER BY 1") == [("1", 1), ("2", None)]
    [(comment,)] = rows(restored, "SELECT obj_description('source.items'::regclass)")
    assert comment == "Imported: items; the platform's"
    assert rows(restored, "SELECT count(*) FROM pg_indexes WHERE schemaname = 'source'") == [(2,)]
    assert rows(restored, "SELECT count(*) FROM knowledge.vector_partition WHERE is_indexed") == [(1,)]
    store = pool_store(empty, restored, "movies", "item")
    assert len(store.versions()) == 2
    assert rows(restored, "SELECT DISTINCT location FROM knowledge.pool_version") == [(store.location,)]
    root = str(empty.pool_dir("movies", "user"))
    assert GroupModelStore(root, WarehousePointer(restored, "movies", "user", root)).read() is not None
    PoolBuilder(store, "m", "t", 100).add(texts([10, 11]))  # life goes on
    restored.dispose()
    with pytest.raises(WarehouseError, match="the warehouse is not empty"):
        restore(empty, kept)


def test_a_backup_behind_a_url_is_restored_into_an_installation_whose_storage_is_behind_another(
    filled: Settings, engine: Engine, empty_database_url: str, tmp_path: Path, url: str
) -> None:
    place = f"{url}/backups/monday"
    manifest = backup(filled, place)
    assert {name(file, place) for file in files_below(location(place))} == {*manifest.files, MANIFEST}
    with pytest.raises(StorageError, match="monday is there and not empty"):
        backup(filled, place)
    empty = Settings(
        data_dir=tmp_path / "data", storage=f"{url}/installed", warehouse_url=SecretStr(empty_database_url)
    )
    restore(empty, place)
    restored = engine_of(empty)
    assert digest.digest(empty, restored) == digest.digest(filled, engine)
    assert digest.unfinished(empty, restored) == []
    store = pool_store(empty, restored, "movies", "item")
    assert rows(restored, "SELECT DISTINCT location FROM knowledge.pool_version") == [(store.location,)]
    assert store.location == f"{url}/installed/pools/movies/item"
    restored.dispose()


def name(file: Stored, place: str) -> str:
    return str(file.path).removeprefix(f"{place}/")


def test_what_breaks_off_or_is_damaged_behind_a_url_is_no_backup(
    filled: Settings, never_filled: Settings, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module, "_pool_files", breaks)
        backup(filled, url)
    assert files_below(location(url)) == []
    with pytest.raises(InputError, match="it is no backup, or one that broke off"):
        restore(never_filled, url)
    backup(filled, url)
    write_atomically(location(url) / "warehouse" / "knowledge.entity.zst", b"torn")
    with pytest.raises(InputError, match=r"knowledge\.entity\.zst has 4 bytes instead of"):
        restore(never_filled, url)


def test_a_place_that_no_filesystem_serves_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", warehouse_url=None)
    for refused in (backup, restore):
        with pytest.raises(SettingError, match="no installed filesystem serves the URL nowhere://backups/monday"):
            refused(settings, "nowhere://backups/monday")
    assert not settings.data_dir.exists()


def test_a_backup_is_of_one_moment_and_keeps_pools_from_being_expired(
    filled: Settings, engine: Engine, tmp_path: Path, rows_of: dict[str, Rows], caplog: pytest.LogCaptureFixture
) -> None:
    store = pool_store(filled, engine, "movies", "item")
    versions = store.versions()

    def others_go_on(step: str) -> None:
        if step.endswith("knowledge.encoder"):
            upsert_entities(engine, rows_of["entity"]([{"entity_id": "late"}]))
            PoolBuilder(store, "m", "t", 100).add(texts([20, 21]))
            assert retention.expire(store, keep=1) == []

    manifest = backup(filled, tmp_path / "kept", others_go_on)
    assert "a backup is being made" in caplog.text
    assert manifest.rows["knowledge.entity"] == 3
    kept = {name.rpartition("/")[2] for name in manifest.files if name.startswith("pools/movies/item/versions/")}
    assert kept == {f"{version}.json" for version in versions}
    for name in manifest.files:
        assert (tmp_path / "kept" / name).is_file()
    assert set(retention.expire(store, keep=1)) == set(versions)


def last_byte_changed(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def naming_a_file_outside(path: Path) -> None:
    path.write_text(path.read_text().replace('"pools/movies/item/segments/', '"pools/../item/segments/', 1))


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        (MANIFEST, Path.unlink),
        (MANIFEST, cut_short),
        (MANIFEST, naming_a_file_outside),
        ("warehouse/knowledge.entity.zst", Path.unlink),
        ("warehouse/knowledge.entity.zst", last_byte_changed),
        ("warehouse/knowledge.knowledge.zst", cut_short),
        ("pools/movies/user/grouping/versions/*.json", last_byte_changed),
    ],
)
def test_a_broken_or_partial_backup_is_refused_by_the_name_of_the_file(
    copy: Path, never_filled: Settings, name: str, broken: Callable[[Path], None]
) -> None:
    [path] = copy.glob(name)
    broken(path)
    with pytest.raises(InputError, match=path.name):
        restore(never_filled, copy)
    assert not never_filled.data_dir.exists(), "nothing is written before all is checked"


def test_rows_that_the_tables_do_not_take_and_schemas_of_newer_releases_leave_nothing(
    copy: Path, never_filled: Settings
) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    [table] = [table for table in manifest["contents"]["tables"] if table["name"] == "pool_version"]
    table["columns"].reverse()
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(WarehouseError, match="does not take the rows, and holds none"):
        restore(never_filled, copy)
    untouched = engine_of(never_filled)
    assert schema_version(untouched) is None
    untouched.dispose()
    manifest["contents"]["schema_version"] = "9999"
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(WarehouseError, match="the backup has schema version 9999, which is newer than this code"):
        restore(never_filled, copy)


def test_a_warehouse_that_holds_something_is_refused(filled: Settings, kept: Path, never_filled: Settings) -> None:
    with pytest.raises(WarehouseError, match=r"not empty \(knowledge\.encoder has rows\)"):
        restore(filled, kept)
    with pytest.raises(WarehouseError, match="no tables"):
        backup(never_filled, kept.parent / "of nothing")
    engine = engine_of(never_filled)
    import_tables(engine, {"items": described(pa.table({"item_id": ["1"]}), "mine", ["item_id"])})
    with pytest.raises(WarehouseError, match=r"there is a table source\.items"):
        restore(never_filled, kept)
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE source.items")
    engine.dispose()


def test_a_backup_that_breaks_off_leaves_nothing_and_a_damaged_pool_is_named(
    filled: Settings, engine: Engine, tmp_path: Path
) -> None:
    store = pool_store(filled, engine, "movies", "item")
    [entry, *_] = store.manifest().segments
    path = store.root / "segments" / entry.sha256
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\xff")
    with pytest.raises(PoolError, match=f"{entry.sha256} is damaged"):
        backup(filled, tmp_path / "kept")
    path.unlink()
    with pytest.raises(PoolError, match=f"{entry.sha256} is missing"):
        backup(filled, tmp_path / "kept")
    path.write_bytes(content)
    assert list((tmp_path / "kept").iterdir()) == []
    (tmp_path / "kept" / "mine").touch()
    with pytest.raises(StorageError, match="not empty"):
        backup(filled, tmp_path / "kept")
