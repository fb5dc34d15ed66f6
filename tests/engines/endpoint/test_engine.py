"""A server that is well, slow, busy, broken or hostile: every row gets an outcome, once."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dare_core.config.settings import Settings
from dare_core.decoding import EngineConfig, Result, Rule
from dare_core.engines import load_engines
from dare_core.engines.endpoint.client import PassingError, RefusedError, read_answer
from dare_core.engines.endpoint.engine import ChatRequest, ChatResult, turns
from dare_core.errors import DareError, EndpointError, ModelError, SettingError
from tests.support.chat_server import (
    CANARY,
    ChatServer,
    Reply,
    Script,
    always,
    completion,
    serving,
    shorten_pauses,
    text_about,
)
from tests.support.tiny_model import save_tiny_model

KEY = "sk-a-key-that-nobody-may-see"
MIB = 1 << 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_pauses(monkeypatch)


Write = Callable[..., dict[str, Result]]


@pytest.fixture
def write(model: Path) -> Write:
    """Have a server write about some titles: results by title."""

    def write(server: ChatServer, titles: list[str], **changes: Any) -> dict[str, Result]:
        found: dict[str, Result] = {}
        for result in results(model, server, titles, **changes):
            assert result.id not in found
            found[result.id] = result
        return found

    return write


def results(model: Path, server: ChatServer, titles: list[str], **changes: Any) -> Iterator[Result]:
    values: dict[str, Any] = {
        "engine": "endpoint", "endpoint_url": server.url, "endpoint_key": KEY, "model": str(model),
        "endpoint_concurrency": 4, "endpoint_retries": 3, "endpoint_timeout": 5,
    }  # fmt: skip
    settings = Settings(**(values | changes))
    config = EngineConfig(settings.endpoint_concurrency, 512, Rule("strict"), frozenset())
    engine = load_engines(settings).open(config, None)
    yield from engine.generate(ChatRequest(title, "g", [1, 2, 3], 64, turns(title, "Be brief.")) for title in titles)


TITLES = [f"Film {number}" for number in range(12)]


def test_each_text_comes_once_with_what_it_took(write: Write) -> None:
    with serving(always(Reply(delay=0.05))) as server:
        found = write(server, TITLES, endpoint_model="big")
    assert set(found) == set(TITLES)
    for title, result in found.items():
        assert isinstance(result, ChatResult)
        assert result.text == text_about(title)
        assert bytes(result.token_ids)  # of a tokenizer over bytes
        assert (result.finish_reason, result.error, result.draft_group) == ("stop", None, None)
        assert (result.statistics.prompt_tokens, result.statistics.new_tokens) == (11, 7)
        assert result.statistics.steps == result.statistics.relaxed == 0
        assert result.statistics.seconds > 0
    assert server.answered == dict.fromkeys(TITLES, 1)
    assert 1 < server.most_at_once <= 4
    assert set(server.keys) == {f"Bearer {KEY}"}
    asked = server.asked[0]
    assert asked["messages"] == [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": asked["messages"][1]["content"]},
    ]  # fmt: skip
    assert (asked["model"], asked["max_tokens"], asked["temperature"]) == ("big", 64, 0)


BAD_FIRST: dict[str, Reply] = {
    "throttles": Reply(429, b"{}", {"Retry-After": "0.02"}),
    "throttles by date": Reply(429, b"{}", {"Retry-After": "Mon, 01 Jan 2001 00:00:00 GMT"}),
    "fails": Reply(500, b"oops"),
    "is overloaded": Reply(503, b"<html>"),
    "truncates": Reply(cut=True),
    "says nothing": Reply(200, b""),
    "says half": Reply(200, completion("a text")[:40]),
    "says no text": Reply(200, b"\xff\xfe not JSON"),
    "nests": Reply(200, b"[" * 50_000),
    "has no choices": Reply(200, b'{"error": {"message": "busy"}}'),
    "has no end": Reply(200, completion("a text", None)),
    "times out": Reply(200, completion("too late"), delay=30),
}


@pytest.mark.parametrize("how", BAD_FIRST)
def test_what_passes_is_asked_again_until_it_is_answered(write: Write, how: str) -> None:
    bad = BAD_FIRST[how]
    with serving(lambda asked, before: bad if before == 0 and asked.endswith(("1", "4")) else Reply()) as server:
        found = write(server, TITLES[:6], endpoint_timeout=0.3 if how == "times out" else 5)
    assert {title: result.error for title, result in found.items()} == dict.fromkeys(TITLES[:6])
    assert server.answered == dict.fromkeys(TITLES[:6], 1)
    assert server.questions["Film 1"] == server.questions["Film 4"] == 2


LASTING: list[tuple[Reply, str]] = [
    (Reply(400, b'{"error": {"message": "the prompt is too long"}}'), "status 400: the prompt is too long"),
    (Reply(422, b'{"detail": "no"}'), "status 422: no"),
    (Reply(500, b"oops"), "status 500"),
    (Reply(cut=True), "sent 5 times"),
    (Reply(429, b'{"message": "too large for the limit"}'), "status 429: too large for the limit"),
    (Reply(200, b"[]"), "no chat completion"),
    (Reply(200, completion("x" * 10 * MIB)), "more than 81920 bytes, for 64 tokens"),
    (Reply(200, completion(None)), "has no text"),
    (Reply(200, completion("x", "content_filter")), "ended the text with 'content_filter'"),
    (Reply(200, b'{"choices": [{"finish_reason": "stop", "message": {"content": "\\ud800"}}]}'), "surrogate"),
]


@pytest.mark.parametrize(("reply", "said"), LASTING)
def test_a_row_that_fails_lastingly_fails_alone(write: Write, reply: Reply, said: str) -> None:
    with serving(lambda asked, before: reply if asked == "Film 2" else Reply()) as server:
        found = write(server, TITLES[:5])
    failed = found.pop("Film 2")
    assert failed.error is not None
    assert said in failed.error
    assert (failed.token_ids, failed.finish_reason) == ([], None)
    assert {title: result.error for title, result in found.items()} == {
        title: None for title in TITLES[:5] if title != "Film 2"
    }


@pytest.mark.parametrize(
    "script", [always(Reply(503, b"{}")), always(Reply(cut=True)), always(Reply(429, b"{}")), always(Reply(200, b"?"))]
)
def test_a_server_that_is_down_ends_the_task_and_fails_no_row(write: Write, script: Script) -> None:
    with serving(script) as server, pytest.raises(EndpointError, match=r"does not answer: .*run the same again"):
        write(server, TITLES)
    assert server.asked[-1]["messages"][-1]["content"] == CANARY or server.questions.total() > 0


def test_nobody_at_the_address_ends_the_task(write: Write) -> None:
    with serving() as server:
        pass
    with pytest.raises(EndpointError, match=r"http://127.0.0.1:\d+/v1 does not answer: \w+"):
        write(server, TITLES)


def test_texts_that_came_before_a_server_went_down_are_not_lost(model: Path) -> None:
    came = []
    with serving(lambda asked, before: Reply() if asked in TITLES[:3] else Reply(503, b"{}")) as server:
        coming = results(model, server, TITLES)
        with pytest.raises(EndpointError):
            while True:
                came.append(next(coming).id)
    assert sorted(came) == TITLES[:3]


def test_an_outage_that_ends_costs_no_row(write: Write) -> None:
    broken = iter(range(40))
    with serving(lambda asked, before: Reply() if next(broken, None) is None else Reply(502, b"{}")) as server:
        found = write(server, TITLES, endpoint_retries=20)
    assert {result.error for result in found.values()} == {None}
    assert server.answered.total() == len(TITLES) == len(server.answered)


def test_a_throttled_server_is_left_alone_for_as_long_as_it_says(write: Write) -> None:
    with serving(lambda asked, before: Reply(429, b"{}", {"Retry-After": "0.3"}) if not before else Reply()) as server:
        found = write(server, TITLES[:4], endpoint_retries=0)
    assert {result.error for result in found.values()} == {None}
    assert server.questions == dict.fromkeys(TITLES[:4], 2)  # without a failure counted


@pytest.mark.parametrize(
    ("reply", "error", "said"),
    [
        (Reply(401, f'{{"error": {{"message": "Incorrect API key: {KEY}"}}}}'.encode()), SettingError, "[key]"),
        (Reply(403, f"Bearer {KEY}".encode()), SettingError, "DARE_ENDPOINT_KEY"),
        (Reply(404, b'{"message": "no such model"}'), ModelError, "no such model"),
        (Reply(307, b"", {"Location": "http://127.0.0.1:9/v1"}), ModelError, "status 307"),
        (Reply(400, f"temperature unsupported {KEY}".encode()), ModelError, "refuses whatever"),
    ],
)
def test_what_no_row_can_mend_ends_the_task_and_never_shows_the_key(
    write: Write, caplog: pytest.LogCaptureFixture, reply: Reply, error: type[DareError], said: str
) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(always(reply)) as server, pytest.raises(error) as caught:
        write(server, TITLES)
    assert said in str(caught.value)
    assert caught.value.__cause__ is None
    assert KEY not in f"{caught.value!r} {caught.value} {caplog.text}"


def test_a_server_without_a_key_and_without_usage_is_asked_all_the_same(write: Write) -> None:
    reply = Reply(200, completion("<|im_end|> is text", "length", {"completion_tokens": -1, "prompt_tokens": 10**40}))
    with serving(always(reply)) as server:
        found = write(server, ["Heat"], endpoint_key=None)
    [result] = found.values()
    assert isinstance(result, ChatResult)
    assert (result.text, result.finish_reason) == ("<|im_end|> is text", "length")
    assert len(result.token_ids) == len("<|im_end|> is text")  # in ordinary tokens
    assert (result.statistics.prompt_tokens, result.statistics.new_tokens) == (3, 18)


def test_rate_limits_are_kept_and_shared_by_tasks(write: Write) -> None:
    with serving() as server:
        write(server, TITLES[:4], endpoint_requests_per_minute=1200, accelerators=2)  # 10 a second for each
    assert server.times[3] - server.times[0] > 0.28
    with serving() as server:  # 3 + 64 tokens are reserved, and 11 + 7 are what it was
        write(server, TITLES[:4], endpoint_tokens_per_minute=67 * 600, endpoint_concurrency=1)
    assert 0.05 < server.times[3] - server.times[0] < 0.28


@pytest.mark.parametrize("body", [b"", b"null", b"7", b'"x"', b"{}", b'{"choices": []}', b'{"choices": [null]}'])
def test_an_answer_that_is_none_may_be_asked_again(body: bytes) -> None:
    with pytest.raises(PassingError, match="no chat completion"):
        read_answer(body, 1.0)


def test_a_text_that_cannot_be_kept_is_not_asked_again() -> None:
    with pytest.raises(RefusedError, match="ended the text with 'tool_calls'"):
        read_answer(completion("x", "tool_calls"), 1.0)
