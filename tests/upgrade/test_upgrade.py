"""An installation that an earlier release left: this code takes it over, and writes none of its texts again.

Every folder beside this file that holds a dump is such an installation; see README.md. A test that fails here says that
an upgrade would write texts again, or lose them.
"""

import gzip
import json
import shutil
import tomllib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from sqlalchemy import Engine, text

from dare_core import models
from dare_core.config.settings import Settings
from dare_core.drafts import Context
from dare_core.knowledge.shards import funnels, read_plan
from dare_core.operations.backup import backup, restore
from dare_core.pools import Pool, PoolDrafter, PoolStore, retention
from dare_core.pools.reader import texts_of
from dare_core.stages import generate, group, load, plan, pull
from dare_core.stages.request import RunRequest
from dare_core.warehouse.connection import connect
from dare_core.warehouse.migrate import require_current, upgrade
from dare_core.warehouse.pools import pool_store
from tests.support.rendered import requests_of
from tests.upgrade.make_fixture import DATA_DIR, SERVED

RELEASES = sorted(dump.parent for dump in Path(__file__).parent.glob("*/warehouse.sql.gz"))
#: Asked as the run that waits was asked.
WAITING = {"domain": "shelves", "kinds": ("item",), "item_limit": 3, "max_new_tokens": 40}


@pytest.fixture(params=RELEASES, ids=lambda folder: folder.name)
def release(request: pytest.FixtureRequest) -> Path:
    """The folder of an earlier release's installation."""
    folder: Path = request.param
    return folder


@pytest.fixture
def installed(release: Path, settings: Settings, empty_database_url: str) -> Settings:
    """The settings of the installation, put back as it was: its database restored, its files in a data folder."""
    shutil.copytree(release / "data", settings.data_dir)
    Settings().models_dir.mkdir(parents=True, exist_ok=True)  # in a fresh checkout nobody made it yet
    (settings.data_dir / "models").symlink_to(Settings().models_dir)
    dump = gzip.decompress((release / "warehouse.sql.gz").read_bytes()).decode()
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute(dump.replace(DATA_DIR, str(settings.data_dir)).encode())
    stated = tomllib.loads((release / "dare.toml").read_text("utf-8"))
    here = {"config_dir": release / "config", "warehouse_url": empty_database_url}
    return Settings.model_validate(settings.model_dump() | stated | here)


@pytest.fixture
def warehouse(installed: Settings) -> Iterator[Engine]:
    """The installation's warehouse, upgraded."""
    assert installed.warehouse_url is not None
    engine = connect(installed.warehouse_url.get_secret_value())
    upgrade(engine)
    yield engine
    engine.dispose()


def rows(engine: Engine, statement: str) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(text(statement)).mappings()]


def change(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        assert connection.execute(text(statement)).rowcount == 1


def stores(settings: Settings, engine: Engine) -> list[PoolStore]:
    """Every pool of the installation."""
    pools = rows(engine, "SELECT DISTINCT domain, kind FROM knowledge.pool_version ORDER BY domain, kind")
    return [pool_store(settings, engine, pool["domain"], pool["kind"]) for pool in pools]


def test_the_views_serve_the_same_texts_and_vectors(release: Path, warehouse: Engine) -> None:
    served = json.loads((release / "served.json").read_text("utf-8"))
    now = rows(warehouse, SERVED)
    for row in now:
        row["embedding"] = row["embedding"] and row["embedding"][:40]
    assert now == served


def test_a_backup_from_before_the_upgrade_is_restored_at_the_current_schema(
    release: Path, installed: Settings, empty_database: Callable[[], AbstractContextManager[str]], tmp_path: Path
) -> None:
    kept = backup(installed, tmp_path / "kept")
    assert kept.contents.schema_version == "0009"
    with empty_database() as url:
        another = Settings(data_dir=tmp_path / "another", warehouse_url=url)
        restore(another, tmp_path / "kept")
        engine = connect(url)
        require_current(engine)
        now = rows(engine, SERVED)
        assert [row["text"] for row in now] == [
            row["text"] for row in json.loads((release / "served.json").read_text("utf-8"))
        ]
        assert stores(another, engine)
        for store in stores(another, engine):
            store.check(store.manifest(), thoroughly=True)
        engine.dispose()


def test_every_version_of_every_pool_is_whole_and_drafts(installed: Settings, warehouse: Engine) -> None:
    tokenizer_hash = models.prompt_format(installed).tokenizer_hash
    opened = 0
    for store in stores(installed, warehouse):
        for version in store.versions():
            pool = Pool.open(store, tokenizer_hash, version, no_other=True)
            store.check(pool.manifest, thoroughly=True)
            texts = texts_of(store, pool.manifest)
            assert len(texts) == pool.manifest.texts > 0
            drafter = PoolDrafter(pool, learned_tokens=0, use_own_text=False)
            for name, known in zip(texts["group"].to_pylist(), texts["token_ids"].to_pylist(), strict=True):
                tokens = np.array(known, np.int32)
                forest = drafter.draft([Context(name, tokens, 4, 8)], max_nodes=16)
                assert drafter.resolve(name) == name
                assert tokens[8] in forest.tokens[forest.depths == 1], "the pool continues its own text"
            opened += 1
    assert opened == rows(warehouse, "SELECT count(*) AS n FROM knowledge.pool_version")[0]["n"]


def test_an_unchanged_domain_is_planned_without_a_text_to_write(installed: Settings, warehouse: Engine) -> None:
    before = read_plan(installed.run_dir("library-idle")).funnel
    renderings = rows(warehouse, "SELECT * FROM knowledge.rendering ORDER BY domain, kind, entity_id")
    summary = plan.run(installed, RunRequest(run_id="upgraded", domain="library"))
    assert (summary["requests"], summary["shards"], summary["tasks"]) == (0, 0, 0)
    assert read_plan(installed.run_dir("upgraded")).funnel == before, (
        "the same entities are skipped for the same reason"
    )
    assert rows(warehouse, "SELECT * FROM knowledge.rendering ORDER BY domain, kind, entity_id") == renderings
    assert rows(warehouse, "SELECT state FROM knowledge.generation_run WHERE run_id = 'upgraded'") == [
        {"state": "loaded"}
    ]


def test_prompts_that_are_rendered_anew_ask_for_no_text(installed: Settings, warehouse: Engine) -> None:
    before = read_plan(installed.run_dir("library-idle")).funnel
    with warehouse.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE knowledge.rendering AS r SET settings = 'those of another wording' FROM knowledge.entity AS e "
            "WHERE (e.domain, e.kind, e.entity_id) = (r.domain, r.kind, r.entity_id) AND e.content = r.content"
        )
    request = RunRequest(run_id="upgraded", domain="library")
    plan.run(installed, request)
    assert requests_of(installed, request) == []
    run_dir = installed.run_dir("upgraded")
    for kind, funnel in funnels(run_dir, read_plan(run_dir)).items():
        assert funnel.requests == 0
        assert funnel.skipped["same_prompt"] == before[kind].skipped["valid"] > 0


def test_one_changed_entity_is_one_text_to_write(installed: Settings, warehouse: Engine) -> None:
    change(
        warehouse,
        "UPDATE knowledge.entity SET attributes = jsonb_set(attributes, '{title}', '\"Another title\"') "
        "WHERE domain = 'library' AND kind = 'item' AND entity_id = 'b05'",
    )
    request = RunRequest(run_id="upgraded", domain="library")
    summary = plan.run(installed, request)
    assert (summary["requests"], summary["shards"]) == (1, 1)
    [asked] = requests_of(installed, request)
    assert (asked["entity_id"], asked["epoch"]) == ("b05", 0)


def test_a_run_that_was_planned_before_can_go_on(installed: Settings, warehouse: Engine) -> None:
    planned = read_plan(installed.run_dir("shelves-waiting"))
    assert planned.decoding.verification == "strict", "the gate's word from before"
    asked = RunRequest.model_validate(WAITING | {"run_id": "shelves-waiting"})
    assert plan.run(installed, asked)["requests"] == planned.requests == 3
    assert plan.assignments(installed, asked) == [{"first": 0, "end": 1}]
    store = pool_store(installed, warehouse, "shelves", "item")
    [pinned] = {shard.pool_version for shard in planned.shards}
    assert pinned is not None
    assert store.register.pins() == {"shelves-waiting": pinned}
    assert store.current() != pinned
    retention.expire(store, keep=1)
    assert store.versions() == [store.current(), pinned]
    assert Pool.open(store, planned.decoding.tokenizer_hash, pinned, no_other=True).manifest.version == pinned


def test_a_run_that_asks_the_same_plans_the_same_requests(installed: Settings, warehouse: Engine) -> None:
    asked = RunRequest.model_validate(WAITING | {"run_id": "upgraded"})
    plan.run(installed, asked)
    before, now = (
        {row["request_id"]: {**row, "data_as_of": None} for row in requests_of(installed, of_run)}
        for of_run in (asked.model_copy(update={"run_id": "shelves-waiting"}), asked)
    )
    assert now == before


@pytest.mark.full
def test_an_unchanged_source_is_pulled_grouped_and_planned_without_a_text_to_write(
    installed: Settings, warehouse: Engine
) -> None:
    def spark_and_plan(run_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
        asked = RunRequest(run_id=run_id, domain="library")
        pull.run(installed, asked)
        grouped = group.run(installed, asked)
        return grouped, plan.run(installed, asked)

    grouped, summary = spark_and_plan("unchanged")
    assert {grouped[f"{kind}_{what}"] for kind in ("item", "user") for what in ("changed", "deleted")} == {0}
    assert (summary["requests"], summary["shards"]) == (0, 0)

    groups = "SELECT kind, entity_id, group_name FROM knowledge.entity WHERE domain = 'library' ORDER BY 1, 2"
    before = rows(warehouse, groups)
    change(warehouse, "UPDATE source.books SET title = 'Another title', updated_at = now() WHERE book_id = 'b05'")
    grouped, summary = spark_and_plan("changed")
    assert (grouped["item_changed"], grouped["item_deleted"], grouped["user_deleted"]) == (1, 0, 0)
    assert summary["funnel"]["item"]["requests"] == 1
    assert rows(warehouse, groups) == before


@pytest.mark.full
def test_a_run_that_was_planned_before_is_finished(installed: Settings, warehouse: Engine) -> None:
    asked = RunRequest.model_validate(WAITING | {"run_id": "shelves-waiting"})
    for assignment in plan.assignments(installed, asked):
        generate.run(installed, asked, assignment)
    load.run(installed, asked)
    done = rows(
        warehouse,
        "SELECT state, planned, generated, loaded FROM knowledge.generation_run WHERE run_id = 'shelves-waiting'",
    )
    assert [(row["state"], row["planned"], row["generated"]) for row in done] == [("loaded", 3, 3)]
    assert not rows(warehouse, "SELECT holder FROM knowledge.pool_pin")
