"""Forgetting where machines share a storage that is no folder: it is cleaned and searched, and any machine goes on."""

import shutil
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from sqlalchemy import Engine

from dare_core.config.settings import Settings
from dare_core.operations.forgetting import forget
from dare_core.pools import Pool, retention
from dare_core.storage.atomic import write_atomically
from dare_core.storage.locations import Location, exists, fetched, files_below, location, matching, put, read_bytes
from tests.operations.forgetting.installation import ITEM, USER, pool, require_nothing_found, rows


@pytest.fixture
def settings(settings: Settings, url: str) -> Settings:
    """The installation, with all that machines share behind a URL."""
    for name in ("runs", "pools", "evaluation", "data_docs"):
        for file in files_below(folder := settings.data_dir / name):
            put(Path(str(file.path)), location(url) / str(file.path)[len(str(settings.data_dir)) + 1 :])
        shutil.rmtree(folder, ignore_errors=True)
    return settings.model_copy(update={"storage": url})


def request_of_user_1(engine: Engine) -> str:
    [(request_id,)] = rows(
        engine, "SELECT request_id FROM knowledge.knowledge WHERE kind = 'user' AND entity_id = '1' LIMIT 1"
    )
    return str(request_id)


def ids(part: Location) -> list[str]:
    with fetched(part) as path:
        return [str(value) for value in pq.read_table(path)["entity_id"].to_pylist()]


def test_an_entity_is_gone_from_the_storage_this_machines_cache_and_its_logs(
    settings: Settings, engine: Engine
) -> None:
    store = pool(settings, engine, "user")
    opened = Pool.open(store, store.manifest().tokenizer_hash)
    for group in opened.manifest.groups:
        opened.group(group)
    cached = settings.pool_cache_dir / "segments"
    whose = retention.Whose.of(USER.ids)
    assert any(whose.are_in(path) for path in cached.iterdir())
    log = settings.data_dir / "airflow" / "logs" / "task" / "1.log"
    write_atomically(log, b"began\nuser 1 has no title\nended\n")
    [part] = [
        path
        for shard in matching(settings.run_dir("first") / "staged", "user-*")
        for path in matching(shard, "part-*.parquet")
        if "1" in ids(path)
    ]
    others = [entity for entity in ids(part) if entity != "1"]
    unlisted = part.parent / "part-0009-of-an-earlier-try.parquet"
    write_atomically(unlisted, read_bytes(part))

    done = forget(settings, USER)
    require_nothing_found(done)
    assert ids(part) == ids(unlisted) == others
    assert {str(part), str(unlisted)} <= set(done.files)
    assert "airflow/logs/task/1.log" in done.files
    assert log.read_bytes() == b"began\nended\n"
    assert not any(whose.are_in(path) for path in cached.iterdir())
    assert retention.holding(store, USER.ids) == []
    assert exists(settings.run_dir("first") / "report.html")
    assert any("data folders of other machines" in what for what in done.out_of_reach)
    assert not any(exists(place / "forgetting" / "x") or matching(place / "forgetting") for place in
                   (settings.shared, settings.data_dir))  # fmt: skip


def test_another_machine_finishes_what_one_began(
    settings: Settings, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_id = request_of_user_1(engine)
    note = settings.shared / "notes.txt"
    write_atomically(note, f"kept\nsaid for {request_id}\n".encode())

    def breaks(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("dare_core.operations.forgetting.clean.clean_files", breaks)
        forget(settings, USER)
    assert len(matching(settings.shared / "forgetting")) == 1
    require_nothing_found(forget(settings.model_copy(update={"data_dir": tmp_path / "another"}), USER))
    assert read_bytes(note) == b"kept\n"
    assert matching(settings.shared / "forgetting") == []


def test_what_is_left_over_on_the_storage_is_found_by_its_whole_name(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = pool(settings, engine, "item")
    [segment, *_] = retention.holding(store, ITEM.ids)
    content = store.files.read(segment)
    [shard] = [path for path in matching(settings.run_dir("first") / "shards", "item-*") if "2" in ids(path)]
    planted = {
        settings.shared / "pools/movies/item/segments/left": content,
        settings.shared / "runs/late/shards/item-0000.parquet": read_bytes(shard),
    }

    def plant(*_: object) -> None:  # after everything was removed, before the search
        for path, what in planted.items():
            write_atomically(path, what)

    monkeypatch.setattr("dare_core.operations.forgetting.clean.vacuum", plant)
    done = forget(settings, ITEM)
    assert [where.rpartition(": ")[0] for where in done.found] == [str(path) for path in planted]


def test_a_storage_in_a_folder_below_the_data_folder_is_cleaned_once(settings: Settings, engine: Engine) -> None:
    below = settings.data_dir / "shared" / "storage"
    for file in files_below(settings.shared):
        write_atomically(below / str(file.path).removeprefix(f"{settings.shared}/"), read_bytes(file.path))
    nested = settings.model_copy(update={"storage": str(below)})
    done = forget(nested, USER)
    require_nothing_found(done)
    assert done.searched_files == len(
        [file for file in files_below(settings.data_dir) if "models" not in file.path.parts]
    )
    assert [name for name in done.files if name.startswith("shared/storage/runs/first/staged/")]
    for part in files_below(below / "runs"):
        if part.path.name.endswith(".parquet") and "user" in str(part.path):
            table = pq.read_table(Path(str(part.path)))
            if "entity_id" in table.column_names:
                assert not pc.any(pc.equal(table["entity_id"], "1")).as_py()
