"""The stages between Spark and the warehouse, with a model that writes nonsense: what a run may lose, what it keeps."""

import json
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from sqlalchemy import Engine, text

from dare_core import models
from dare_core.config.settings import PROJECT_DIR, Settings
from dare_core.errors import InputError, QualityError, WarehouseError
from dare_core.knowledge.shards import Shard, funnels, read_plan
from dare_core.knowledge.vectors import vectors
from dare_core.operations import maintenance
from dare_core.pools import PoolBuilder, PoolStore
from dare_core.schemas import ENTITY
from dare_core.stages import generate, load, order, plan, pools, report
from dare_core.stages.request import RunRequest
from dare_core.warehouse import knowledge, quarantine
from dare_core.warehouse.entities import upsert_entities
from dare_core.warehouse.evaluations import record_evaluation
from dare_core.warehouse.knowledge import LoadSummary
from dare_core.warehouse.pools import WarehouseRegister, pool_store
from dare_core.warehouse.runs import record_run
from tests.support.tiny_model import LAX, save_tiny_model

NOW = datetime(1998, 5, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def settings(settings: Settings, warehouse_url: str, engine: Engine, model: Path) -> Settings:
    """A warehouse of five items and two users, and a model that writes nonsense."""
    rows = [
        {
            "domain": "movies",
            "kind": kind,
            "entity_id": str(number),
            "group_name": f"group {number % 2}",
            "attributes": json.dumps({"title": f"Film {number}", "history": []}),
            "data_as_of": NOW,
            "events": 1,
        }
        for kind, count in (("item", 5), ("user", 2))
        for number in range(count)
    ]
    upsert_entities(engine, pa.Table.from_pylist(rows, ENTITY))
    changes = {"warehouse_url": warehouse_url, "model": str(model), "max_new_tokens": 16, "shard_size": 2}
    return Settings.model_validate(settings.model_dump() | changes)


def rows(engine: Engine, statement: str) -> list[tuple[object, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(statement))]


def generate_all(settings: Settings, request: RunRequest) -> list[dict[str, object]]:
    plan.run(settings, request)
    return [generate.run(settings, request, part) for part in plan.assignments(settings, request)]


def planned(settings: Settings, request: RunRequest) -> list[Shard]:
    plan.run(settings, request)
    return read_plan(settings.run_dir(request.run_id)).shards


def test_a_plan_is_made_once_and_cut_into_shards_by_kind(settings: Settings, engine: Engine) -> None:
    request = RunRequest(run_id="r", item_limit=3)
    summary = plan.run(settings, request)
    assert {name: summary[name] for name in ("requests", "shards", "tasks")} == {"requests": 5, "shards": 3, "tasks": 3}
    assert [(shard.name, shard.requests, shard.pool_version) for shard in planned(settings, request)] == [
        ("item-0000", 2, None),
        ("item-0001", 1, None),
        ("user-0000", 2, None),
    ]
    assert plan.run(settings.model_copy(update={"shard_size": 64}), request) == summary
    assert rows(engine, "SELECT state, planned FROM knowledge.generation_run") == [("planned", 5)]


def test_shards_are_dealt_to_so_many_tasks_at_most_each_to_one(settings: Settings) -> None:
    request = RunRequest(run_id="r")
    plan.run(settings.model_copy(update={"shard_size": 1}), request)
    few = settings.model_copy(update={"max_generation_tasks": 3})
    assert plan.assignments(few, request) == [
        {"first": 0, "end": 2},
        {"first": 2, "end": 4},
        {"first": 4, "end": 7},
    ]
    summaries = [generate.run(few, request, part) for part in plan.assignments(few, request)]
    assert [(summary["shards"], summary["texts"]) for summary in summaries] == [(2, 2), (2, 2), (3, 3)]


def test_a_run_that_loses_too_many_texts_fails_and_loads_nothing(settings: Settings, engine: Engine) -> None:
    request = RunRequest(run_id="bad", kinds=("item",))
    generate_all(settings, request)
    with pytest.raises(QualityError, match=r"100% of the 5 texts of run bad failed, more than max_failing_share 25%"):
        load.run(settings, request)
    assert rows(engine, "SELECT state, generated, quarantined FROM knowledge.generation_run") == [("failed", 5, 5)]
    assert rows(engine, "SELECT count(DISTINCT request_id) FROM knowledge.quarantine") == [(5,)]
    assert rows(engine, "SELECT count(*) FROM knowledge.knowledge") == [(0,)]
    again = plan.run(settings, RunRequest(run_id="next", kinds=("item",)))
    assert again["requests"] == 0, "no text is written to fail again"
    assert again["funnel"]["item"]["skipped"] == {"quarantined": 5}


def test_a_run_that_may_lose_them_goes_on_without_them(settings: Settings, engine: Engine) -> None:
    lenient = settings.model_copy(update={"max_failing_share": 1.0})
    request = RunRequest(run_id="lenient", kinds=("user",))
    generate_all(lenient, request)
    for _ in range(2):
        load.run(lenient, request)
    assert rows(engine, "SELECT state, loaded, quarantined FROM knowledge.generation_run") == [("loaded", 0, 2)]
    assert pools.run(lenient, request) == {}


@pytest.mark.parametrize("framework", ["trawl", "rlmrec", "once"])
def test_every_text_of_every_framework_is_loaded_or_in_quarantine(
    settings: Settings, engine: Engine, tmp_path: Path, framework: str
) -> None:
    config = (settings.config_dir / "movies.toml").read_text("utf-8")
    (tmp_path / "movies.toml").write_text(config.replace('framework = "kar@1"', f'framework = "{framework}"'), "utf-8")
    lenient = settings.model_copy(update={"max_failing_share": 1.0, "config_dir": tmp_path})
    request = RunRequest(run_id="r", verification="relaxed")
    generate_all(lenient, request)
    summary = load.run(lenient, request)
    loaded = summary["loaded"]
    assert (summary["generated"], summary["failed"]) == (7, 0)
    assert loaded + summary["quarantined"] == 7
    assert rows(engine, "SELECT count(DISTINCT request_id) FROM knowledge.quarantine") == [(summary["quarantined"],)]


def test_a_prompt_that_leaves_no_room_is_quarantined_when_it_is_rendered(settings: Settings, engine: Engine) -> None:
    request = RunRequest(run_id="long", kinds=("item",), max_new_tokens=900)
    assert {made["requests"] for made in generate_all(settings, request)} == {0}
    [funnel] = funnels(settings.run_dir("long"), read_plan(settings.run_dir("long"))).values()
    assert (funnel.requests, funnel.skipped) == (0, {"unfit": 5})
    again = plan.run(settings, request.model_copy(update={"run_id": "again"}))["funnel"]["item"]
    assert (again["requests"], again["skipped"]) == (0, {"unfit": 5})
    assert rows(engine, "SELECT rule, count(*) FROM knowledge.quarantine GROUP BY rule") == [("prompt", 5)]
    with pytest.raises(InputError, match="max_new_tokens 5000 leaves no room for a prompt"):
        plan.run(settings, RunRequest(run_id="longer", max_new_tokens=5000))


def test_a_run_pins_the_pool_that_is_current_when_it_is_planned(settings: Settings, engine: Engine) -> None:
    texts = pa.table({"group": ["group 0"], "token_ids": pa.array([[65, 66, 67]], pa.list_(pa.int32()))})
    request = RunRequest(run_id="first", kinds=("item",))
    plan.run(settings, request)
    tokenizer_hash = read_plan(settings.run_dir("first")).decoding.tokenizer_hash
    root = settings.pool_dir("movies", "item")
    store = PoolStore(root, WarehouseRegister(engine, "movies", "item", str(root)))
    manifest = PoolBuilder(store, settings.model, tokenizer_hash, 258).build(texts)
    shards = planned(settings, RunRequest(run_id="second", kinds=("item",)))
    assert {shard.pool_version for shard in shards} == {manifest.version}
    PoolBuilder(store, settings.model, "another", 258).build(texts)
    shards = planned(settings, RunRequest(run_id="third", kinds=("item",)))
    assert {shard.pool_version for shard in shards} == {None}  # the current pool is of another tokenizer


def test_a_pin_of_a_run_that_is_being_planned_stays(
    settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = pa.table({"group": ["group 0"], "token_ids": pa.array([[65, 66, 67]], pa.list_(pa.int32()))})
    store = pool_store(settings, engine, "movies", "item")
    manifest = PoolBuilder(store, settings.model, models.prompt_format(settings).tokenizer_hash, 258).build(texts)
    write_shards = plan.shards.write_shards

    def maintained(*arguments: Any) -> list[Shard]:
        maintenance.expire_pools(settings)
        return write_shards(*arguments)

    monkeypatch.setattr(plan.shards, "write_shards", maintained)
    plan.run(settings, RunRequest(run_id="r", kinds=("item",)))
    assert store.register.pins() == {"r": manifest.version}


@pytest.mark.parametrize(
    ("came_to", "goes_on"),
    [
        ({"state": "loaded", "loaded": 8}, True),
        ({"state": "failed", "generated": 10, "quarantined": 4}, True),
        ({"state": "failed", "generated": 10, "quarantined": 10}, "100% of the 10 texts of slice s were lost"),
        ({"state": "failed", "generated": 6, "failed": 4, "quarantined": 3}, "70% of the 10 texts"),
        ({"state": "loaded", "loaded": 1}, "90% of the 10 texts"),
        ({"state": "planned"}, False),
    ],
)
def test_a_backfill_stops_when_a_slice_lost_too_much(
    settings: Settings, engine: Engine, came_to: dict[str, Any], goes_on: bool | str
) -> None:
    began = {"domain": "movies", "params": "{}", "model": "m", "started_at": NOW, "planned": 10}
    record_run(engine, "s", **(began | came_to))
    if isinstance(goes_on, bool):
        assert order.slice_ended(settings, RunRequest(run_id="s")) is goes_on
        return
    with pytest.raises(QualityError, match=goes_on + ".*more than max_slice_loss 50%; the backfill stops here"):
        order.slice_ended(settings, RunRequest(run_id="s"))


def test_a_warehouse_without_the_schema_says_what_to_do(settings: Settings, empty_database_url: str) -> None:
    empty = Settings.model_validate(settings.model_dump() | {"warehouse_url": empty_database_url})
    with pytest.raises(WarehouseError, match="dare warehouse upgrade"):
        plan.run(empty, RunRequest(run_id="r"))


@pytest.mark.parametrize("run_id", ["../x", "", "a/b", "-x", "a" * 300])
def test_a_run_id_that_names_no_folder_is_refused(run_id: str) -> None:
    with pytest.raises(ValueError, match="a run id has letters"):
        RunRequest(run_id=run_id)


#: Nonsense passes, and drift is looked at.
JUDGED = (
    LAX
    + """max_relaxed = 1

[quality.features]
drift_min_texts = 2
coverage = { warn = 1 }
"""
)


def judged_by(settings: Settings, folder: Path, rules: str) -> Settings:
    """Settings whose domain ``movies`` has these thresholds."""
    folder.mkdir(exist_ok=True)
    (folder / "movies.toml").write_text((PROJECT_DIR / "config" / "movies.toml").read_text() + rules)
    return settings.model_copy(update={"config_dir": folder, "max_failing_share": 1.0})


def through(settings: Settings, request: RunRequest) -> dict[str, object]:
    generate_all(settings, request)
    return load.run(settings, request)


def test_drift_past_the_bound_that_fails_loads_nothing_and_a_warning_reaches_the_report(
    settings: Settings, engine: Engine, tmp_path: Path
) -> None:
    lax = judged_by(settings, tmp_path / "config", JUDGED)
    loaded = through(lax, RunRequest(run_id="first", kinds=("item",), item_limit=2))
    assert loaded["coverage"] == {"item": 0.4}
    assert loaded["warnings"] == ["share of entities with features: 1 of 1 (item 0.4), bound 1"]
    page = Path(report.run(lax, RunRequest(run_id="first"))["report"]).read_text()
    assert "warning: share of entities with features: 1 of 1 (item 0.4), bound 1" in page
    strict = judged_by(settings, tmp_path / "config", JUDGED + "length_drift = { fail = 0 }\n")
    second = RunRequest(run_id="second", kinds=("item",))
    with pytest.raises(QualityError, match="features of run second cannot be used: mean characters of item texts"):
        through(strict, second)
    assert rows(engine, "SELECT run_id, state FROM knowledge.generation_run ORDER BY 1") == [
        ("first", "loaded"),
        ("second", "failed"),
    ]
    assert rows(engine, "SELECT count(*) FROM knowledge.knowledge") == [(2,)]
    lax = judged_by(settings, tmp_path / "config", JUDGED)
    assert load.run(lax, second)["loaded"] > 0, "the same texts, by other bounds"


def test_a_load_that_dies_between_transactions_leaves_whole_texts_and_goes_on(
    settings: Settings, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lax = judged_by(settings, tmp_path / "config", JUDGED)
    request = RunRequest(run_id="r", kinds=("item",))
    generate_all(lax, request)
    merge, merged, calls = knowledge.merge_knowledge, list[LoadSummary](), count()

    def dies(*given: Any) -> LoadSummary:
        if next(calls):
            raise WarehouseError("gone")
        merged.append(merge(*given))
        return merged[0]

    monkeypatch.setattr(load, "_TEXTS_AT_ONCE", 2)
    monkeypatch.setattr(knowledge, "merge_knowledge", dies)
    with pytest.raises(WarehouseError, match="gone"):
        load.run(lax, request)
    whole = "SELECT count(*) FROM knowledge.knowledge JOIN knowledge.knowledge_embedding USING (request_id)"
    assert rows(engine, whole) == [(merged[0].loaded,)] != [(0,)]
    monkeypatch.undo()
    done = load.run(lax, request)
    assert done["already_there"] == merged[0].loaded
    passed = done["generated"] - done["quarantined"]
    assert rows(engine, whole) == [(done["loaded"] + done["already_there"],)] == [(passed,)]


def test_a_text_that_validation_refused_is_released_as_it_was_written(settings: Settings, engine: Engine) -> None:
    lenient = settings.model_copy(update={"max_failing_share": 1.0})
    request = RunRequest(run_id="r", kinds=("user",))
    through(lenient, request)
    [first, _] = quarantine.find(engine)
    done = quarantine.release(engine, [first.request_id], "ada", lambda texts: vectors(lenient, engine, texts))
    assert done.released == [first.request_id]
    assert rows(engine, "SELECT user_id FROM features.user") == [(first.entity_id,)]
    again = plan.run(lenient, RunRequest(run_id="next", kinds=("user",)))
    assert again["funnel"]["user"]["skipped"] == {"quarantined": 1, "valid": 1}


def test_a_relaxed_plan_falls_back_to_strict_where_the_newest_evaluation_speaks_against_it(
    settings: Settings, engine: Engine
) -> None:
    figures = dict.fromkeys(("auc_delta_high", "auc_gain", "auc_gain_low", "auc_gain_high"), 0.0)
    facts = {"domain": "movies", "evaluated_at": NOW, "model": "m", "entities": 400, "seeds": 20, "result": {}}
    record_evaluation(engine, {**facts, **figures, "auc_delta_low": -1.0})
    request = RunRequest(run_id="gated", verification="relaxed")
    plan.run(settings, request)
    assert read_plan(settings.run_dir("gated")).decoding.verification == "strict"
