"""What a plan asks for and what it leaves alone, as entities, texts and settings change; without Spark and model."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from sqlalchemy import Engine, text
from transformers import AutoTokenizer

from dare_core.config.settings import Settings
from dare_core.errors import InputError, SettingError, WarehouseError
from dare_core.knowledge import shards
from dare_core.knowledge.rendering import Renderer
from dare_core.schemas import ENTITY, KNOWLEDGE, KNOWLEDGE_EMBEDDING, PULLED
from dare_core.stages import group, pull
from dare_core.stages import plan as planning
from dare_core.stages.pull import PullWindow
from dare_core.stages.request import RunRequest
from dare_core.storage import run_files
from dare_core.warehouse.entities import EntityChanges, Pulled, upsert_entities, watermark
from dare_core.warehouse.entity_staging import EntityStaging, copy_entities
from dare_core.warehouse.knowledge import load_knowledge
from dare_core.warehouse.runs import record_run
from tests.support.rendered import requests_of
from tests.support.tiny_model import save_tiny_model

NOW = datetime(1998, 5, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def settings(settings: Settings, warehouse_url: str, model: Path, tmp_path: Path) -> Settings:
    """Domain ``movies`` with five new events for a new text; texts expire after 30 days."""
    config = (settings.config_dir / "movies.toml").read_text("utf-8") + "\nexpires_after_days = 30\n"
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "movies.toml").write_text(config, "utf-8")
    changes = {"warehouse_url": warehouse_url, "model": str(model), "max_new_tokens": 16, "shard_size": 2}
    return Settings.model_validate(settings.model_dump() | changes | {"config_dir": tmp_path / "config"})


def user(number: int, events: int = 10, age: int = 30, as_of: datetime = NOW) -> dict[str, Any]:
    history = [{"title": f"Film {n}", "value": 4} for n in range(events)]
    return {
        "domain": "movies",
        "kind": "user",
        "entity_id": str(number),
        "group_name": f"group {number % 2}",
        "attributes": json.dumps({"age": age, "history": history}),
        "data_as_of": as_of,
        "events": events,
    }


def item(number: int, title: str = "Film", events: int = 1) -> dict[str, Any]:
    attributes = json.dumps({"title": f"{title} {number}"})
    return user(number) | {"kind": "item", "attributes": attributes, "events": events}


def put(engine: Engine, *rows: dict[str, Any], **pulled: Any) -> EntityChanges:
    seen = Pulled("movies", **pulled) if pulled else None
    return upsert_entities(engine, pa.Table.from_pylist(list(rows), ENTITY), seen)


@pytest.fixture
def plan(settings: Settings) -> Callable[..., dict[str, Any]]:
    """Plan and render a run; its funnel of one kind, and the entities that are asked about."""

    def plan(run_id: str, kind: str = "user", **asked: Any) -> dict[str, Any]:
        request = RunRequest(run_id=run_id, kinds=(kind,), **asked)  # type: ignore[arg-type]
        planning.run(settings, request)
        planned = sorted(row["entity_id"] for row in requests_of(settings, request))
        run_dir = settings.run_dir(run_id)
        [funnel] = shards.funnels(run_dir, shards.read_plan(run_dir)).values()
        return {"planned": planned, **funnel.model_dump()}

    return plan


def requests(settings: Settings, run_id: str) -> list[dict[str, Any]]:
    """Of a run that is rendered."""
    run_dir = settings.run_dir(run_id)
    return [
        row
        for shard in shards.read_plan(run_dir).shards
        for row in shards.read_requests(run_dir, shard.name).to_pylist()
    ]


@pytest.fixture
def answer(engine: Engine, settings: Settings) -> Callable[..., None]:
    """Load a text for every request of a run, as if a model had written it."""

    def answer(run_id: str, available_at: datetime | None = None) -> None:
        decoding = shards.read_plan(settings.run_dir(run_id)).decoding
        wrote = {
            **vars(decoding), "text": "x", "token_ids": [1], "text_hash": "h", "finish_reason": "stop",
            "framework": "kar", "pool_version": None, "run_id": run_id, "prompt_tokens": 1, "new_tokens": 10,
            "steps": 5,
            "drafted": 0, "accepted": 0, "relaxed": 0, "seconds": 1.0,
            "available_at": available_at or datetime.now(UTC),
        }  # fmt: skip
        rows = [{**row, **wrote} for row in requests(settings, run_id)]
        load_knowledge(engine, pa.Table.from_pylist(rows, KNOWLEDGE), KNOWLEDGE_EMBEDDING.empty_table())

    return answer


Plan = Callable[..., dict[str, Any]]
Answer = Callable[..., None]


def test_with_nothing_changed_nothing_is_rendered_and_no_tokenizer_is_loaded(
    engine: Engine, plan: Plan, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(engine, *map(user, range(4)))
    assert plan("first") == {
        "planned": ["0", "1", "2", "3"], "seen": 4, "changed": 4, "expired": 0, "requests": 4, "skipped": {},
    }  # fmt: skip
    answer("first")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: pytest.fail("the tokenizer was loaded"))
    assert plan("second") == {
        "planned": [], "seen": 4, "changed": 0, "expired": 0, "requests": 0, "skipped": {"valid": 4},
    }  # fmt: skip
    with engine.connect() as connection:
        state = connection.execute(text("SELECT state, loaded FROM knowledge.generation_run WHERE run_id = 'second'"))
        assert state.one() == ("loaded", 0)


def test_only_what_changed_is_rendered(
    engine: Engine, plan: Plan, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(engine, *map(item, range(6)))
    plan("first", "item")
    answer("first")
    put(engine, item(3, "Another"), item(7))
    rendered = []
    fit = Renderer.render.__globals__["fit_prompt"]
    monkeypatch.setitem(
        Renderer.render.__globals__,
        "fit_prompt",
        lambda domain, kind, attributes, *rest: (
            rendered.append(attributes["title"]) or fit(domain, kind, attributes, *rest)
        ),
    )
    again = plan("second", "item")
    assert (again["planned"], again["changed"], again["skipped"]) == (["3", "7"], 2, {"valid": 5})
    assert sorted(rendered) == ["Another 3", "Film 7"]


def test_a_user_is_rendered_anew_after_enough_events_or_when_the_own_row_changed(
    engine: Engine, plan: Plan, answer: Answer
) -> None:
    put(engine, *map(user, range(3)))
    plan("first")
    answer("first")
    put(engine, user(0, events=14), user(1, events=15), user(2, events=10, age=31))
    second = plan("second")
    assert (second["planned"], second["changed"], second["skipped"]) == (["1", "2"], 3, {"few_new_events": 1})
    answer("second")
    put(engine, user(0, events=15))  # counted from the text, not from the last look
    assert plan("third")["planned"] == ["0"]


def test_the_first_event_makes_the_first_text(engine: Engine, plan: Plan, answer: Answer) -> None:
    put(engine, user(0, events=0))
    assert plan("first")["skipped"] == {"no_events": 1}
    put(engine, user(0, events=1))
    assert plan("second")["planned"] == ["0"]


def test_a_waiting_user_without_an_answer_is_not_forgotten(engine: Engine, plan: Plan) -> None:
    put(engine, user(0))
    plan("died")
    put(engine, user(0, events=11))
    again = plan("second")
    assert again["planned"] == ["0"]


def test_what_a_limit_leaves_out_comes_next(engine: Engine, plan: Plan, answer: Answer) -> None:
    put(engine, *map(user, range(7)))
    first = plan("first", user_limit=3)
    assert (first["seen"], first["requests"], first["skipped"]) == (7, 3, {"over_limit": 4})
    answer("first")
    second = plan("second", user_limit=3)
    assert second["skipped"] == {"over_limit": 1, "valid": 3}
    answer("second")
    third = plan("third", user_limit=3)
    assert len({*first["planned"], *second["planned"], *third["planned"]}) == 7


def test_a_plan_is_not_used_for_another_request(engine: Engine, plan: Plan) -> None:
    put(engine, *map(user, range(3)))
    plan("R", user_limit=2)
    with pytest.raises(InputError, match="run R was begun with user_limit 2 and cannot go on with 3"):
        plan("R", user_limit=3)
    assert len(plan("R", user_limit=2)["planned"]) == 2


def test_the_most_active_come_first_where_that_is_asked(engine: Engine, plan: Plan) -> None:
    put(engine, *(user(number, events=1 + 3 * number % 7) for number in range(7)))
    assert plan("active", user_limit=2, order="active")["planned"] == ["2", "4"]


def test_expired_knowledge_is_written_anew_once(engine: Engine, plan: Plan, answer: Answer) -> None:
    put(engine, user(0), user(1))
    plan("first")
    answer("first", available_at=datetime.now(UTC) - timedelta(days=31))
    second = plan("second")
    assert (second["planned"], second["expired"], second["changed"]) == (["0", "1"], 2, 0)
    answer("second")
    assert plan("third")["skipped"] == {"valid": 2}
    with engine.connect() as connection:
        epochs = connection.execute(text("SELECT epoch, count(*), count(valid_to) FROM knowledge.knowledge GROUP BY 1"))
        assert sorted(map(tuple, epochs)) == [(0, 2, 2), (1, 2, 0)]


def test_other_settings_ask_everybody_anew_and_the_old_ones_again(engine: Engine, plan: Plan, answer: Answer) -> None:
    put(engine, user(0), user(1))
    plan("first")
    answer("first")
    longer = plan("longer", max_new_tokens=20)
    assert (longer["planned"], longer["changed"]) == (["0", "1"], 2)
    assert plan("back")["skipped"] == {"same_prompt": 2}, "nothing came of the longer ones"


def test_two_runs_at_once_ask_the_same_and_the_first_answer_stays(
    engine: Engine, settings: Settings, plan: Plan, answer: Answer
) -> None:
    put(engine, user(0), user(1))
    plan("one")
    plan("other")
    assert requests(settings, "one") == requests(settings, "other")
    answer("one")
    answer("other")
    assert plan("after")["skipped"] == {"valid": 2}
    with engine.connect() as connection:
        assert connection.execute(text("SELECT DISTINCT run_id FROM knowledge.knowledge")).scalars().all() == ["one"]


def test_what_is_gone_loses_its_text_and_has_it_when_it_is_back(engine: Engine, plan: Plan, answer: Answer) -> None:
    put(engine, user(0), user(1), kind="user", to=NOW)
    plan("first")
    answer("first")
    assert put(engine, kind="user", to=NOW, gone=["1", "1000"]) == EntityChanges(0, 1)
    assert put(engine, kind="user", to=NOW, gone=["1"]) == EntityChanges(0, 0)
    gone = plan("gone")
    assert (gone["seen"], gone["requests"]) == (1, 0)
    with engine.connect() as connection:
        valid = connection.execute(text("SELECT entity_id FROM knowledge.knowledge WHERE valid_to IS NULL"))
        assert valid.scalars().all() == ["0"]
    assert put(engine, user(1), kind="user", to=NOW) == EntityChanges(1, 0)
    back = plan("back")
    assert (back["planned"], back["skipped"]) == ([], {"reopened": 1, "valid": 1}), "its text is paid for"
    assert plan("then")["skipped"] == {"valid": 2}


def test_a_text_of_a_prompt_that_is_right_again_is_reopened(engine: Engine, plan: Plan, answer: Answer) -> None:
    valid = "SELECT run_id FROM knowledge.knowledge WHERE valid_to IS NULL"
    for run, title, planned in (("first", "Heat", ["1"]), ("other", "Ronin", ["1"]), ("back", "Heat", [])):
        put(engine, item(1, title))
        assert plan(run, "item")["planned"] == planned
        answer(run)
        with engine.connect() as connection:
            assert connection.execute(text(valid)).scalars().all() == ["other" if run == "other" else "first"]
    assert plan("then", "item")["skipped"] == {"valid": 1}


def test_a_closed_text_that_is_too_old_is_written_anew(engine: Engine, plan: Plan, answer: Answer) -> None:
    put(engine, user(0), kind="user", to=NOW)
    plan("first")
    answer("first", available_at=datetime.now(UTC) - timedelta(days=31))
    put(engine, kind="user", to=NOW, gone=["0"])
    put(engine, user(0), kind="user", to=NOW)
    assert plan("back")["planned"] == ["0"]


def test_a_run_of_the_past_replaces_nothing_newer_and_sees_nothing_later(engine: Engine, plan: Plan) -> None:
    put(engine, user(0, events=12), kind="user", to=NOW)
    past = NOW - timedelta(days=10)
    early = user(0, events=3, as_of=past)
    assert put(engine, early, user(1, as_of=past), kind="user", to=past, gone=["0"]) == EntityChanges(1, 0)
    assert watermark(engine, "movies", "user") == NOW
    planned = plan("past", as_of=past)
    assert (planned["planned"], planned["skipped"]) == (["1"], {"later_than_as_of": 1})


def test_what_is_only_dated_anew_asks_for_no_text(engine: Engine, plan: Plan, answer: Answer) -> None:
    put(engine, user(0), item(0))
    for kind in ("user", "item"):
        plan(f"first-{kind}", kind)
        answer(f"first-{kind}")
    later = NOW + timedelta(days=1)  # a history's item changed in what nobody reads, or a release dates by more
    assert put(engine, user(0, as_of=later), item(0) | {"data_as_of": later}) == EntityChanges(2, 0)
    for kind in ("user", "item"):
        assert plan(f"second-{kind}", kind)["skipped"] == {"valid": 1}


def test_a_pull_reads_from_before_the_watermark_and_keeps_its_window(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(pull, "require_tables", lambda domain, url: None)
    monkeypatch.setattr(pull, "submit", lambda settings, program, arguments, url: asked.append(arguments) or {})
    put(engine, kind="user", to=NOW)
    request = RunRequest(run_id="r", as_of=NOW + timedelta(days=1))
    pull.run(settings, request)
    put(engine, kind="user", to=NOW + timedelta(days=1))
    pull.run(settings, request)  # again: the window was fixed
    assert asked[0] == asked[1]
    assert asked[0][asked[0].index("--since") + 1] == "user=1998-04-30T23:00:00+00:00"
    assert asked[0].count("--since") == 1
    past = RunRequest(run_id="past", kinds=("user",), as_of=NOW - timedelta(days=1))
    pull.run(settings, past)
    assert "--since" not in asked[2], "how everything was then"


def test_a_clock_that_runs_ahead_moves_no_watermark_into_the_future(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(pull, "require_tables", lambda domain, url: None)
    monkeypatch.setattr(pull, "submit", lambda settings, program, arguments, url: asked.append(arguments) or {})
    late = datetime.now(UTC) + timedelta(days=3)
    pull.run(settings, RunRequest(run_id="ahead", as_of=late))
    until = datetime.fromisoformat(asked[0][asked[0].index("--as-of") + 1])
    assert until < late - timedelta(days=2)
    put(engine, kind="user", to=late)  # it was moved there all the same
    put(engine, kind="item", to=NOW)
    pull.run(settings, RunRequest(run_id="next"))
    assert [part for part in asked[1] if part.startswith(("user=", "item="))] == ["item=1998-04-30T23:00:00+00:00"]


def test_spark_groups_only_where_the_warehouse_lacks_something(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(engine, user(0), user(1), kind="user", to=NOW)
    window = PullWindow(until=NOW + timedelta(days=1), since={}, kinds=("user",))
    request = RunRequest(run_id="r", kinds=("user",))
    run_dir = settings.run_dir("r")
    run_files.write_json(run_dir / "pull.json", window.model_dump_json())
    unchanged = [{name: user(0)[name] for name in PULLED.names}]
    run_files.write_table(run_dir / "pulled" / "user" / "0.parquet", pa.Table.from_pylist(unchanged, PULLED))
    run_files.write_table(run_dir / "pulled" / "gone" / "user" / "0.parquet", pa.table({"entity_id": ["1"]}))
    monkeypatch.setattr(group, "submit", lambda *arguments: pytest.fail("Spark was started"))
    assert group.run(settings, request) == {"user_changed": 0, "user_deleted": 1}
    assert watermark(engine, "movies", "user") == window.until

    def grouped(settings: Settings, program: str, arguments: list[str], url: str) -> dict[str, Any]:
        assert arguments[-2:] == ["--run", "r"]
        [table] = EntityStaging("r", "user").create(engine, 1)
        return {"user": copy_entities(url, table, pa.Table.from_pylist([user(0, events=11)], ENTITY).to_batches())}

    changed = [{name: user(0, events=11)[name] for name in PULLED.names}]
    run_files.write_table(run_dir / "pulled" / "user" / "0.parquet", pa.Table.from_pylist(changed, PULLED))
    monkeypatch.setattr(group, "submit", grouped)
    assert group.run(settings, request) == {"user": 1, "user_changed": 1, "user_deleted": 0}


def test_entities_that_a_crash_of_the_server_took_are_missed_and_the_watermark_stays(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(engine, user(0), kind="user", to=NOW)
    run_dir, until = settings.run_dir("r"), NOW + timedelta(days=1)
    run_files.write_json(run_dir / "pull.json", PullWindow(until=until, since={}, kinds=("user",)).model_dump_json())
    changed = [{name: user(0, events=11)[name] for name in PULLED.names}]
    run_files.write_table(run_dir / "pulled" / "user" / "0.parquet", pa.Table.from_pylist(changed, PULLED))
    run_files.write_table(run_dir / "pulled" / "gone" / "user" / "0.parquet", pa.table({"entity_id": ["0"]}))
    monkeypatch.setattr(group, "submit", lambda *_: EntityStaging("r", "user").create(engine, 2) and {"user": 1})
    with pytest.raises(WarehouseError, match="0 of 1 users are staged"):
        group.run(settings, RunRequest(run_id="r", kinds=("user",)))
    assert watermark(engine, "movies", "user") == NOW
    assert len(EntityStaging("r", "user").there(engine)) == 2, "the next try drops them"


def test_a_run_that_was_not_pulled_cannot_be_grouped(settings: Settings, engine: Engine) -> None:
    with pytest.raises(InputError, match="has not been pulled"):
        group.run(settings, RunRequest(run_id="r"))


def test_expected_tokens_time_and_cost_rest_on_earlier_runs(engine: Engine, settings: Settings) -> None:
    put(engine, *map(user, range(10)), *map(item, range(4)))
    dear = settings.model_copy(update={"cost_per_hour": 36.0, "max_generation_tasks": 2})
    first = planning.run(dear, RunRequest(run_id="first"))
    assert first["estimate"] == {
        "tokens": 14 * 16, "seconds": None, "cost": None, "tokens_per_second": None,
        "basis": "item: 16 tokens a text, the most that are allowed; "
        "user: 16 tokens a text, the most that are allowed; no run of this model and precision was measured yet",
    }  # fmt: skip
    assert (first["shards"], first["tasks"]) == (7, 2)
    assert planning.assignments(dear, RunRequest(run_id="first")) == [{"first": 0, "end": 3}, {"first": 3, "end": 7}]
    measured = {"tokens": 60, "seconds": 3.0, "kinds": {"user": {"texts": 5, "tokens": 60}}}
    record_run(engine, "first", measured=measured)
    second = planning.run(dear.model_copy(update={"shard_minutes": 0.04}), RunRequest(run_id="second"))
    assert second["estimate"]["tokens"] == 10 * 12 + 4 * 16
    assert second["estimate"]["tokens_per_second"] == 20
    assert second["estimate"]["seconds"] == pytest.approx(9.2)
    assert second["estimate"]["cost"] == pytest.approx(0.092)
    assert "user: 12 tokens a text, measured; speed of the last 1 runs" in second["estimate"]["basis"]
    sizes = [shard.requests for shard in shards.read_plan(dear.run_dir("second")).shards]
    assert sizes == [3, 1, 4, 4, 2]  # of 2.4 s: three texts of 16 tokens, four of 12
    with engine.connect() as connection:
        stored = connection.execute(
            text("SELECT plan FROM knowledge.generation_run WHERE run_id = 'second'")
        ).scalar_one()
    assert (stored["funnel"], stored["estimate"]) == (second["funnel"], second["estimate"])


def test_a_precision_is_planned_once_asks_for_texts_of_its_own_and_reopens_those_it_had(
    engine: Engine, settings: Settings, answer: Answer
) -> None:
    put(engine, user(0))

    def planned(run_id: str, weights: str) -> tuple[dict[str, Any], set[str]]:
        changed = settings.model_copy(update={"weights": weights, "device": "cpu"})
        request = RunRequest(run_id=run_id, kinds=("user",))
        summary = planning.run(changed, request)
        assert summary["precision"] == shards.read_plan(settings.run_dir(run_id)).decoding.precision
        return summary, {row["request_id"] for row in requests_of(changed, request)}

    first, in_fp32 = planned("first", "model")
    answer("first")
    record_run(engine, "first", measured={"tokens": 60, "seconds": 3.0, "kinds": {}})
    second, in_int8 = planned("second", "int8")
    assert (first["precision"], second["precision"]) == ("fp32", "int8")
    assert len(in_fp32 | in_int8) == 2
    assert second["estimate"]["tokens_per_second"] is None, "fp32's speed says nothing of int8's"
    again, _ = planned("second", "model")
    assert again["precision"] == "int8", "planned is planned"
    answer("second")
    third, asked = planned("third", "auto")  # which no evaluation has let pass
    assert (third["precision"], asked) == ("fp32", set())
    assert shards.settled(settings.run_dir("third"), "user-0000") == {"reopened": 1}
    assert third["estimate"]["tokens_per_second"] == 20
    with engine.connect() as connection:
        stored = connection.execute(
            text("SELECT run_id, plan ->> 'precision' FROM knowledge.generation_run ORDER BY 1")
        )
        assert dict(stored.tuples().all()) == {"first": "fp32", "second": "int8", "third": "fp32"}


def test_narrow_weights_that_the_device_cannot_have_stop_the_plan(engine: Engine, settings: Settings) -> None:
    put(engine, user(0))
    with pytest.raises(SettingError, match=r"DARE_WEIGHTS=int8 is for CPUs, and the device is cuda"):
        planning.run(settings.model_copy(update={"weights": "int8", "device": "cuda"}), RunRequest(run_id="r"))
