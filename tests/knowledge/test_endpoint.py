"""Runs whose texts a server writes: planned, rendered and worked off, whatever the server does in between."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from sqlalchemy import Engine

from dare_core import models
from dare_core.config.settings import Settings
from dare_core.errors import EndpointError, InputError, ModelError, SettingError
from dare_core.evaluation.texts import STRICT, write_texts
from dare_core.knowledge import shards
from dare_core.knowledge.answers import answer_form
from dare_core.knowledge.prompt_file import generate
from dare_core.knowledge.requests import Decoding, request_id
from dare_core.knowledge.worker import work_off
from dare_core.schemas import ENTITY, Kind
from dare_core.stages import plan as planning
from dare_core.stages.rendering import render
from dare_core.stages.request import RunRequest
from dare_core.storage.run_files import read_parquet
from dare_core.warehouse.entities import upsert_entities
from dare_core.warehouse.runs import generation_runs
from tests.support.chat_server import CANARY, ChatServer, Reply, Script, completion, serving, shorten_pauses
from tests.support.tiny_model import save_tiny_model

NOW = datetime(1998, 4, 1, tzinfo=UTC)
FILMS = 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_pauses(monkeypatch)


@pytest.fixture
def settings(tmp_path: Path, warehouse_url: str, model: Path) -> Settings:
    return Settings(  # type: ignore[call-arg]
        data_dir=tmp_path, warehouse_url=warehouse_url, model=str(model), engine="endpoint", endpoint_model="big",
        endpoint_url="http://127.0.0.1:9/v1", endpoint_retries=3, endpoint_timeout=1, max_new_tokens=64,
        checkpoint_seconds=0.01,
    )  # fmt: skip


@pytest.fixture
def entities(engine: Engine) -> None:
    """Films, and a user who saw one."""
    rows = [{"kind": "item", "entity_id": str(n), "attributes": {"title": f"Film {n}"}} for n in range(FILMS)]
    seen = {"title": "Film 1", "value": 4, "time": "1998-01-01T00:00:00Z"}
    rows.append({"kind": "user", "entity_id": "7", "attributes": {"age": 30, "history": [seen]}})
    usual = {"domain": "movies", "group_name": "all", "data_as_of": NOW, "events": 1}
    table = [{**usual, **row, "attributes": json.dumps(row["attributes"])} for row in rows]
    upsert_entities(engine, pa.Table.from_pylist(table, ENTITY))


def at(settings: Settings, server: ChatServer, **changes: Any) -> Settings:
    return settings.model_copy(update={"endpoint_url": server.url, **changes})


def planned(settings: Settings, run_id: str = "run", kinds: tuple[Kind, ...] = ("item",), **asked: Any) -> shards.Plan:
    request = RunRequest(run_id=run_id, kinds=kinds, **asked)
    planning.run(settings, request)
    plan = shards.read_plan(settings.run_dir(run_id))
    render(settings, request, plan, plan.shards)
    return plan


def staged(settings: Settings, plan: shards.Plan) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    texts, failed = shards.read_staged(settings.run_dir(plan.run_id), [shard.name for shard in plan.shards])
    return texts.to_pylist(), failed.to_pylist()


def misbehaving() -> Script:
    """Every fifth film is throttled, every seventh fails, and so on; the last two always."""
    ways: list[tuple[int, Reply]] = [
        (5, Reply(429, b"{}", {"Retry-After": "0.01"})),
        (7, Reply(500, b"no")),
        (9, Reply(cut=True)),
        (11, Reply(200, b"{")),
        (13, Reply(200, completion("too late"), delay=1.2)),
    ]

    def script(asked: str, before: int) -> Reply:
        if asked == CANARY:
            return Reply()
        number = int(asked.partition('"Film ')[2].partition('"')[0])
        if number == FILMS - 1:
            return Reply(500, b"never")
        if number == FILMS - 2:
            return Reply(200, completion("x" * (10 << 20)))
        return next((reply for every, reply in ways if number % every == 0 and not before), Reply())

    return script


def test_a_run_against_a_server_that_misbehaves_loses_and_doubles_no_row(
    settings: Settings, engine: Engine, entities: None
) -> None:
    with serving(misbehaving()) as server:
        here = at(settings, server)
        plan = planned(here)
        work_off(here, plan, plan.shards)
    texts, failed = staged(here, plan)
    asked = [row["request_id"] for shard in plan.shards for row in _requests(here, shard.name)]
    assert len(asked) == len(set(asked)) == FILMS
    assert sorted(row["request_id"] for row in texts + failed) == sorted(asked)
    assert sorted(row["entity_id"] for row in failed) == [str(FILMS - 2), str(FILMS - 1)]
    assert {row["rule"] for row in failed} == {"generation"}
    assert {times for asked, times in server.answered.items() if asked != CANARY} == {1}
    for row in texts:
        assert row["text"].endswith("is a film about a film.")
        assert bytes(row["token_ids"]) and (row["prompt_tokens"], row["new_tokens"], row["steps"]) == (11, 7, 0)
        assert (row["model"], row["verification"], row["pool_version"]) == ("big", "strict", None)
    [told] = generation_runs(engine, "run")
    assert server.url in json.dumps(told["plan"])
    assert (plan.decoding.precision, plan.decoding.verification, plan.endpoint) == ("endpoint", "strict", server.url)


def _requests(settings: Settings, shard: str) -> list[dict[str, Any]]:
    return shards.read_requests(settings.run_dir("run"), shard).to_pylist()


def test_a_server_that_goes_down_fails_the_task_and_another_try_writes_what_is_missing(
    settings: Settings, entities: None
) -> None:
    well = set(range(10))

    def until_down(asked: str, before: int) -> Reply:
        return Reply() if well and asked != CANARY and (well.pop() is not None) else Reply(503, b"{}")

    with serving(until_down) as server:
        here = at(settings, server)
        plan = planned(here)
        with pytest.raises(EndpointError, match="does not answer: status 503"):
            work_off(here, plan, plan.shards)
        texts, failed = staged(here, plan)
        assert (len(texts), failed) == (10, [])
        first = dict(server.answered)
        server.script = lambda asked, before: Reply()
        work_off(here, plan, plan.shards)
    texts, failed = staged(here, plan)
    assert (len({row["request_id"] for row in texts}), len(texts), failed) == (FILMS, FILMS, [])
    assert all(server.answered[asked] == 1 for asked in first)


def test_histories_go_to_a_server_only_where_that_is_allowed(settings: Settings, entities: None) -> None:
    refused = r"DARE_ENDPOINT_MAY_SEE_USERS=true"
    with serving() as server:
        here = at(settings, server)
        with pytest.raises(SettingError, match=refused):
            planning.run(here, RunRequest(run_id="refused"))
        allowed = at(settings, server, endpoint_may_see_users=True)
        plan = planned(allowed, kinds=("user",))
        with pytest.raises(SettingError, match=refused):
            work_off(here, plan, plan.shards)
        assert server.asked == []
        work_off(allowed, plan, plan.shards)
    [body] = server.asked
    assert [turn["role"] for turn in body["messages"]] == ["user"]
    assert "Film 1" in body["messages"][0]["content"]


def test_a_plan_is_for_the_kind_of_engine_that_it_was_made_for(settings: Settings, entities: None) -> None:
    plan = planned(settings)
    own = settings.model_copy(update={"engine": "transformers"})
    with pytest.raises(ModelError, match="cannot be written here"):
        work_off(own, plan, plan.shards)
    with pytest.raises(ModelError, match="was planned for a server"):
        again = plan.model_copy(update={"run_id": "again"})
        shards.run_files.write_table(
            settings.run_dir("again") / "shards" / "item-0000.parquet",
            read_parquet(settings.run_dir("run") / "shards" / "item-0000.parquet"),
        )
        render(own, RunRequest(run_id="again", kinds=("item",)), again, again.shards[:1])


def test_relaxed_verification_cannot_be_asked_of_a_server(settings: Settings, entities: None) -> None:
    with pytest.raises(SettingError, match="nothing is verified"):
        planning.run(settings, RunRequest(run_id="run", kinds=("item",), verification="relaxed"))


def test_a_server_s_requests_are_others_than_those_of_our_engine_for_the_same_model() -> None:
    def of(precision: str, verification: Any) -> str:
        return request_id("movies", "item", "1", [1], Decoding("m", "t", verification, 2, 0.1, 8, precision), 0)

    assert len({of("endpoint", "strict"), of("fp32", "strict"), of("fp32", "relaxed"), of("bf16", "strict")}) == 4


@pytest.mark.parametrize(
    ("answer", "continued"),
    [
        ('{"summarization": "Heist.", "reasoning": "r"}', 'Heist.", "reasoning": "r"}'),
        ('```json\n{\n "summarization" : "Heist.",\n "reasoning": "r"}\n```', 'Heist.",\n "reasoning": "r"}\n```'),
        ("I cannot say.", "I cannot say."),
    ],
)
def test_an_answer_that_was_not_begun_is_read_as_one_that_was(answer: str, continued: str) -> None:
    form = answer_form("rlmrec", "item")
    assert form is not None
    assert form.continuation(answer) == continued
    if answer != continued:
        assert form.content(continued, cut=False) == "Heist."


def test_prompts_of_a_file_are_written_by_a_server(tmp_path: Path, settings: Settings) -> None:
    prompts, out = tmp_path / "p.jsonl", tmp_path / "o.parquet"
    prompts.write_text('{"id": "a", "group": "g", "prompt": "Heat"}\n{"id": "b", "group": "g", "prompt": "Ran"}\n')
    refuse = Reply(400, b'{"message": "no"}')
    with serving(lambda asked, before: refuse if asked == "Ran" else Reply()) as server:
        summary = generate(at(settings, server), prompts, out)
        assert (summary["texts"], summary["failed"], summary["tokens"]) == (1, 1, 7)
        rows = read_parquet(out).to_pylist()
        assert [(row["status"], row["text"]) for row in rows] == [
            ("ok", "Heat is a film about a film."),
            ("failed", ""),
        ]
        prompts.write_text('{"id": "a", "group": "g", "prompt_token_ids": [1, 2]}\n')
        with pytest.raises(InputError, match=r"id 'a' has prompt_token_ids; a server .* needs prompt"):
            generate(at(settings, server), prompts, out)


def test_an_evaluation_is_not_written_by_a_server(settings: Settings, movies: Any) -> None:
    with pytest.raises(SettingError, match="an evaluation compares"):
        write_texts(settings, movies, [], [STRICT])


def test_the_tokenizer_s_context_is_the_model_s_own(settings: Settings) -> None:
    assert models.prompt_format(settings).context_length == 1024
