"""Forgetting: what is left of an entity nowhere, and what stays of all others."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from sqlalchemy import Engine, make_url, text
from typer.testing import CliRunner

from dare_core.cli.main import app
from dare_core.config.settings import PROJECT_DIR, Settings
from dare_core.errors import InputError
from dare_core.operations.forgetting import clean, forget, prove
from dare_core.operations.forgetting.traces import Entities, Sought, Traces
from dare_core.pools import retention
from dare_core.schemas import ENTITY
from dare_core.stages import generate, load, plan, report
from dare_core.stages.request import RunRequest
from dare_core.warehouse import quarantine
from dare_core.warehouse.entities import EntityChanges, Pulled, upsert_entities
from tests.operations.forgetting.installation import (
    ENTITIES,
    IDS,
    ITEM,
    NOW,
    USER,
    entity,
    groups,
    of,
    pool,
    refresh,
    require_nothing_found,
    rows,
)


@pytest.mark.parametrize("who", [USER, ITEM], ids=["user", "item"])
def test_an_entity_is_gone_everywhere_and_everyone_elses_rows_stay(
    settings: Settings, engine: Engine, who: Entities
) -> None:
    tables = ("entity", "knowledge", "rendering", "quarantine", "quarantined_text")
    before = {table: of(engine, who, table) for table in tables}
    assert len(before["knowledge"][0]) + len(before["quarantined_text"][0]) == 2, "one text of each run"
    held = pool(settings, engine, who.kind)
    old_versions = held.versions()
    assert retention.holding(held, who.ids)
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
    assert retention.holding(held, who.ids) == []
    everyone = [other for other in IDS[: 6 if who.kind == "item" else 3] if other not in who.ids]
    assert {other for other in everyone if retention.holding(held, [other])} == {
        row[0] for row in rows(engine, f"SELECT DISTINCT entity_id FROM knowledge.knowledge WHERE kind = '{who.kind}'")
    }
    assert all(page.exists() for page in pages)
    assert not any(f"{who.kind} {who.ids[0]} " in page.read_text() for page in pages)
    assert list((settings.data_dir / "forgetting").iterdir()) == []


def test_a_file_names_many_at_once_and_what_others_say_too_is_no_trace(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    [(text_of_1,)] = rows(
        engine, "SELECT text FROM knowledge.knowledge WHERE kind = 'user' AND entity_id = '1' LIMIT 1"
    )
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE knowledge.knowledge SET prompt = 'As was said: ' || :said || '!' WHERE entity_id = '0'"),
            {"said": text_of_1},
        )
    assert settings.warehouse_url is not None
    for name, value in (
        ("DATA_DIR", str(settings.data_dir)),
        ("CONFIG_DIR", str(settings.config_dir)),
        ("WAREHOUSE_URL", settings.warehouse_url.get_secret_value()),
    ):
        monkeypatch.setenv(f"DARE_{name}", value)
    ids = tmp_path / "ids.txt"
    ids.write_text("1\n\n  2 \n1\n")

    def forgetting(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["forget", "--kind", "user", "--yes", "--json", *arguments])

    done = forgetting("--file", str(ids))
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["found"] == []
    assert said["rows"]["knowledge.entity"] == said["rows"]["source.users"] == 2
    assert rows(engine, "SELECT entity_id FROM knowledge.entity WHERE kind = 'user'") == [("0",)]
    for arguments, problem in (((), "name whom to forget"), (("--file", str(tmp_path)), "cannot be read")):
        assert problem in str(forgetting(*arguments).exception)


def test_on_the_embedded_server_the_bytes_leave_the_files_too(
    settings: Settings, engine: Engine, server_url: str
) -> None:
    folder = Path(str(make_url(server_url).query["host"]))
    [(request, words)] = rows(
        engine, "SELECT request_id, text FROM knowledge.knowledge WHERE kind = 'user' AND entity_id = '1' LIMIT 1"
    )
    sought = Sought(USER, Traces(frozenset([request]), frozenset([words])))
    forget(settings, USER)
    left = prove.search_cluster(engine, folder, sought).found
    assert left, "a plain VACUUM leaves them"
    clean.vacuum(engine, [], embedded=True)
    assert prove.search_cluster(engine, folder, sought).found == []


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
        "dare_core.pools.retention.purge",
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
    with pytest.raises(InputError, match="run third is in progress: let it end") as error:
        forget(settings, USER)
    assert "`dare pipeline run --domain movies --run-id third --max-new-tokens 32`" in str(error.value)
    plan.run(settings, RunRequest(run_id="fourth", max_new_tokens=33, kinds=("user",)))
    with pytest.raises(InputError, match="runs fourth, third are in progress: let them end"):
        forget(settings, USER)
    assert of(engine, USER, "entity")[0]


def test_runs_that_crashed_and_runs_of_other_domains_are_in_nobodys_way(settings: Settings, engine: Engine) -> None:
    plan.run(settings, RunRequest(run_id="crashed", max_new_tokens=32))
    shutil.copy(settings.config_dir / "movies.toml", settings.config_dir / "films.toml")
    plan.run(settings, RunRequest(run_id="other", domain="films"))
    with engine.begin() as connection:
        connection.execute(text("UPDATE knowledge.run_lease SET owner = 'elsewhere 1 x', expires_at = now()"
                                " WHERE run_id = 'crashed'"))  # fmt: skip
    require_nothing_found(forget(settings, USER))
    assert rows(engine, "SELECT state FROM knowledge.generation_run WHERE run_id = 'crashed'") == [("failed",)]
    assert rows(engine, "SELECT count(*) FROM knowledge.pool_pin WHERE holder = 'crashed'") == [(0,)]


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
    load.run(settings, request)
    report.run(settings, request)
    assert {row.entity_id for row in quarantine.find(engine, run_id="refused")} == {"0", "1", "2"}
    docs = settings.data_docs_dir
    assert list((docs / "validations").glob("*/refused/*/*.html"))
    require_nothing_found(forget(settings, USER))
    assert {row.entity_id for row in quarantine.find(engine, run_id="refused")} == {"0", "2"}
    assert (settings.run_dir("refused") / "report.html").exists()
