"""Forgetting: what is left of an entity nowhere, what stays of all others, and that the search finds what it should."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr
from sqlalchemy import Engine, text

from dare_core.config.settings import PROJECT_DIR, Settings
from dare_core.errors import InputError
from dare_core.grouping import (
    CLUSTER_ASSIGNMENT,
    AttributeGroups,
    GroupModel,
    GroupModelStore,
    ItemFactors,
    UserClusters,
)
from dare_core.operations.forgetting import Forgotten, forget
from dare_core.operations.forgetting.traces import Entities
from dare_core.pools import PoolStore
from dare_core.schemas import ENTITY, Kind
from dare_core.sources.importer import described, import_tables
from dare_core.stages import embed, generate, load, plan, pools, report, validate
from dare_core.stages.request import RunRequest
from dare_core.warehouse import quarantine
from dare_core.warehouse.connection import connect
from dare_core.warehouse.entities import EntityChanges, Pulled, upsert_entities
from dare_core.warehouse.group_models import WarehousePointer
from dare_core.warehouse.pools import pool_store
from tests.support.tiny_model import LAX, save_tiny_model

NOW = datetime(1998, 5, 1, tzinfo=UTC)
USER = Entities("movies", "user", ("1",))
ITEM = Entities("movies", "item", ("2",))
IDS = [str(number) for number in range(6)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


def entity(kind: Kind, number: int, **attributes: Any) -> dict[str, Any]:
    return {
        "domain": "movies",
        "kind": kind,
        "entity_id": str(number),
        "group_name": f"group {number % 2}",
        "attributes": json.dumps({"title": f"{kind.capitalize()} number {number}", **attributes}),
        "data_as_of": NOW,
        "events": 3,
    }


def met(item: int) -> dict[str, Any]:
    return {"title": f"Item number {item}", "value": 4, "time": "1998-01-01T00:00:00+00:00"}


ENTITIES = [
    *(entity("item", number) for number in range(6)),
    *(entity("user", number, history=[met(number + 3), met(2)]) for number in range(3)),
]


@pytest.fixture(scope="module")
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


def refresh(settings: Settings, request: RunRequest) -> None:
    """A run from its plan on, the pools and the report included."""
    plan.run(settings, request)
    for part in plan.assignments(settings, request):
        generate.run(settings, request, part)
    for stage in (validate.run, embed.run, load.run):
        stage(settings, request)
    pools.run(settings.model_copy(update={"max_acceptance_loss": 1.0}), request)
    report.run(settings, request)


def clustered(clusters: list[str]) -> GroupModel:
    return GroupModel(
        AttributeGroups("occupation", "first", "rest", ()),
        UserClusters(("cluster 1", "cluster 2"), np.eye(2, 3, dtype=np.float32), 0.25, named=2),
        ItemFactors(tuple(IDS), np.ones((6, 3), np.float32), 1.0, 0.01),
        pa.table([IDS[:3], clusters], schema=CLUSTER_ASSIGNMENT),
    )


def groups(settings: Settings, engine: Engine) -> GroupModelStore:
    root = str(settings.pool_dir("movies", "user"))
    return GroupModelStore(root, WarehousePointer(engine, "movies", "user", root))


def pool(settings: Settings, engine: Engine, kind: Kind) -> PoolStore:
    return pool_store(settings, engine, "movies", kind)


def rows(engine: Engine, statement: str) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(statement))]


def of(engine: Engine, who: Entities, table: str) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """The rows of a table that are about some entities, and the others."""
    [entity_id] = who.ids
    own = f"(kind = '{who.kind}' AND entity_id = '{entity_id}')"
    query = f"SELECT t::text FROM knowledge.{table} AS t WHERE {{}} ORDER BY 1"
    return rows(engine, query.format(own)), rows(engine, query.format(f"NOT {own}"))


def require_nothing_found(done: Forgotten) -> None:
    assert done.found == []
    assert done.tables > 10
    assert done.searched_files > 10
    assert done.searched_segments > 2


@pytest.mark.parametrize("who", [USER, ITEM], ids=["user", "item"])
def test_an_entity_is_gone_everywhere_and_everyone_elses_rows_stay(
    settings: Settings, engine: Engine, who: Entities
) -> None:
    tables = ("entity", "knowledge", "rendering", "quarantine", "quarantined_text")
    before = {table: of(engine, who, table) for table in tables}
    assert len(before["knowledge"][0]) + len(before["quarantined_text"][0]) == 2, "one text of each run"
    held = pool(settings, engine, who.kind)
    old_versions = held.versions()
    assert held.holding(who.ids)
    pages = [settings.run_dir(run) / "report.html" for run in ("first", "second")]
    require_nothing_found(forget(settings, who))
    for table, (_, others) in before.items():
        mine, left = of(engine, who, table)
        assert mine == []
        if (who.kind, table) != ("item", "entity"):  # the item was in users' histories
            assert left == others
    assert rows(engine, "SELECT count(*) FROM knowledge.knowledge_embedding") == rows(
        engine, "SELECT count(*) FROM knowledge.knowledge"
    )
    assert not set(old_versions) & set(held.versions())
    assert held.holding(who.ids) == []
    everyone = [other for other in IDS[: 6 if who.kind == "item" else 3] if other not in who.ids]
    assert {other for other in everyone if held.holding([other])} == {
        row[0] for row in rows(engine, f"SELECT DISTINCT entity_id FROM knowledge.knowledge WHERE kind = '{who.kind}'")
    }
    assert all(page.exists() for page in pages)
    assert not any(f"{who.kind} {who.ids[0]} " in page.read_text() for page in pages)
    assert list((settings.data_dir / "forgetting").iterdir()) == []


def test_source_rows_go_from_the_platforms_copy_and_a_teams_own_table_is_named(
    settings: Settings, engine: Engine
) -> None:
    done = forget(settings, USER)
    assert done.rows["source.users"] == 1
    assert done.rows["source.ratings"] == 2
    assert rows(engine, "SELECT user_id FROM source.users ORDER BY 1") == [("0",), ("2",)]
    assert rows(engine, "SELECT user_id, item_id FROM source.ratings ORDER BY 1") == [("0", "3"), ("2", "2")]
    with engine.begin() as connection:
        connection.execute(text("COMMENT ON TABLE source.items IS 'ours'"))
        connection.execute(text("COMMENT ON TABLE source.ratings IS 'ours'"))
    done = forget(settings, ITEM)
    assert "source.items" not in done.rows
    assert rows(engine, "SELECT count(*) FROM source.items") == [(6,)]
    assert any("'items'" in what and "yours" in what for what in done.out_of_reach)


def test_an_item_leaves_the_histories_of_the_users_who_met_it(settings: Settings, engine: Engine) -> None:
    forget(settings, ITEM)
    found = rows(engine, "SELECT attributes -> 'history' FROM knowledge.entity WHERE kind = 'user' ORDER BY entity_id")
    assert [[entry["title"] for entry in history] for (history,) in found] == [
        ["Item number 3"], ["Item number 4"], ["Item number 5"]
    ]  # fmt: skip


def test_users_leave_group_models_as_members_and_items_as_what_was_met(settings: Settings, engine: Engine) -> None:
    store = groups(settings, engine)
    earlier = store.versions()
    assert len(earlier) == 2
    forget(settings, USER)
    forget(settings, ITEM)
    left = store.read()
    assert left is not None
    assert left.items is not None
    assert left.assignments["entity_id"].to_pylist() == ["0", "2"]
    assert left.items.ids == ("0", "1", "3", "4", "5")
    assert not set(earlier) & set(store.versions())


@pytest.mark.parametrize(
    "planted",
    ["runs/late/shards/user-0000.parquet", "somewhere/copy.bin", "pools/movies/user/segments/left", "notes.json"],
)
def test_what_is_left_over_is_found(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    [(prompt, request_id)] = rows(
        engine, "SELECT prompt, request_id FROM knowledge.knowledge WHERE kind = 'user' AND entity_id = '1' LIMIT 1"
    )
    [segment, *_] = pool(settings, engine, "user").holding(["1"])
    shards = (settings.run_dir("first") / "shards").glob("user-*.parquet")
    [shard] = [path for path in shards if "1" in pq.read_table(path)["entity_id"].to_pylist()]
    contents = {
        "shards": shard.read_bytes(),
        "copy.bin": b"\x00\xff" + prompt.encode() + b"\xfe",
        "segments": (settings.pool_dir("movies", "user") / segment).read_bytes(),
        "notes.json": json.dumps({"of": request_id}).encode(),
    }
    [content] = [content for name, content in contents.items() if name in planted]
    path = settings.data_dir / planted

    def plant(*_: object) -> None:  # after everything was removed, before the search
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    monkeypatch.setattr("dare_core.operations.forgetting.clean.vacuum", plant)
    done = forget(settings, USER)
    assert [where.partition(": ")[0] for where in done.found] == [planted]
    assert len(list((settings.data_dir / "forgetting").iterdir())) == 1, "what is looked for is known the next time"
    monkeypatch.undo()
    if planted in ("somewhere/copy.bin", "notes.json"):  # nothing that the platform wrote
        assert len(forget(settings, USER).found) == 1
        path.unlink()
    require_nothing_found(forget(settings, USER))
    assert not path.exists() or planted.startswith("runs/")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE knowledge.generation_run SET measured = jsonb_build_object('worst', '{request_id}'::text)",
        "UPDATE knowledge.quarantine SET value = 'as user 1 has it'",
        "INSERT INTO source.ratings VALUES ('1', '4')",
        "CREATE TABLE staging.left_over AS SELECT 'said: ' || '{prompt}' AS line",
    ],
)
def test_what_is_left_in_a_table_is_found(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    [(prompt, request_id)] = rows(
        engine, "SELECT prompt, request_id FROM knowledge.knowledge WHERE kind = 'user' AND entity_id = '1' LIMIT 1"
    )
    quarantined = {"request_id": "r", "rule": "x", "domain": "movies", "kind": "user", "entity_id": "0"}

    def plant(*_: object) -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql(
                "INSERT INTO knowledge.quarantine VALUES (%(request_id)s, %(rule)s, %(domain)s, %(kind)s, "
                "%(entity_id)s, 'first', '', '', now())",
                quarantined,
            )
            made = statement.replace("{prompt}", prompt.replace("'", "''")).replace("{request_id}", request_id)
            connection.exec_driver_sql(made.replace("%", "%%"))

    monkeypatch.setattr("dare_core.operations.forgetting.clean.vacuum", plant)
    assert len(forget(settings, USER).found) == 1


def test_forgetting_again_removes_nothing_more_and_searches_again(settings: Settings, engine: Engine) -> None:
    forget(settings, USER)
    versions, everything = pool(settings, engine, "user").versions(), rows(engine, "SELECT * FROM knowledge.entity")
    again = forget(settings, USER)
    require_nothing_found(again)
    assert (again.rows, again.pool_versions, again.group_models, again.files) == ({}, [], [], [])
    assert pool(settings, engine, "user").versions() == versions
    assert rows(engine, "SELECT * FROM knowledge.entity") == everything


@pytest.mark.parametrize(
    "broken",
    [
        "dare_core.pools.PoolStore.purge",
        "dare_core.operations.forgetting.clean.write_table",
        "dare_core.operations.forgetting.clean.gather",
    ],
)
def test_a_try_that_breaks_off_is_finished_by_the_next(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def breaks(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(broken, breaks)
    with pytest.raises(KeyboardInterrupt):
        forget(settings, USER)
    monkeypatch.undo()
    assert of(engine, USER, "knowledge")[0] == []
    require_nothing_found(forget(settings, USER))


def test_an_unknown_entity_is_refused_and_nothing_is_removed(settings: Settings, engine: Engine) -> None:
    before = rows(engine, "SELECT count(*) FROM knowledge.knowledge")
    with pytest.raises(InputError, match=r"movies has no user 77, 78; ids are those of .* 'users', column 'user_id'"):
        forget(settings, Entities("movies", "user", ("1", "77", "78")))
    assert rows(engine, "SELECT count(*) FROM knowledge.knowledge") == before
    assert rows(engine, "SELECT count(*) FROM knowledge.forgotten") == [(0,)]


def test_nothing_is_forgotten_while_a_run_is_in_progress(settings: Settings, engine: Engine) -> None:
    request = RunRequest(run_id="third", max_new_tokens=32)
    plan.run(settings, request)
    with pytest.raises(InputError, match="run third is in progress: let it end"):
        forget(settings, USER)
    assert of(engine, USER, "entity")[0]


def test_a_forgotten_entity_is_not_taken_in_again_and_the_others_are(settings: Settings, engine: Engine) -> None:
    forget(settings, USER)
    pulled = pa.Table.from_pylist([{**one, "events": 9} for one in ENTITIES if one["kind"] == "user"], ENTITY)
    changes = upsert_entities(engine, pulled, Pulled("movies", "user", NOW))
    assert changes == EntityChanges(changed=2, deleted=0, forgotten=1)
    request = RunRequest(run_id="third", kinds=("user",), max_new_tokens=40)
    refresh(settings, request)
    asked = [pq.read_table(path) for path in (settings.run_dir("third") / "shards").glob("*.parquet")]
    assert sorted(pa.concat_tables(asked)["entity_id"].to_pylist()) == ["0", "2"]
    require_nothing_found(forget(settings, USER))


def test_ids_of_another_kind_and_domain_mean_somebody_else(settings: Settings, engine: Engine) -> None:
    other = [{**entity("user", 1), "domain": "shop"}]
    upsert_entities(engine, pa.Table.from_pylist(other, ENTITY))
    require_nothing_found(forget(settings, USER))
    assert rows(engine, "SELECT domain, kind FROM knowledge.entity WHERE entity_id = '1' ORDER BY 1") == [
        ("movies", "item"),
        ("shop", "user"),
    ]


def test_texts_in_quarantine_go_with_their_reasons(settings: Settings, engine: Engine, tmp_path: Path) -> None:
    strict = (PROJECT_DIR / "config" / "movies.toml").read_text()
    (tmp_path / "config" / "movies.toml").write_text(strict)
    request = RunRequest(run_id="refused", kinds=("user",), max_new_tokens=48)
    plan.run(settings, request)
    for part in plan.assignments(settings, request):
        generate.run(settings, request, part)
    validate.run(settings, request)
    embed.run(settings, request)
    load.run(settings, request)
    report.run(settings, request)
    assert {row.entity_id for row in quarantine.find(engine, run_id="refused")} == {"0", "1", "2"}
    docs = settings.data_docs_dir
    assert list((docs / "validations").glob("*/refused/*/*.html"))
    require_nothing_found(forget(settings, USER))
    assert {row.entity_id for row in quarantine.find(engine, run_id="refused")} == {"0", "2"}
    assert (settings.run_dir("refused") / "report.html").exists()
