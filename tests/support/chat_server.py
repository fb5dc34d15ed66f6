"""A server that speaks as much of the OpenAI API as the engine ``endpoint`` uses, and misbehaves as it is told."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from dare_core.engines.endpoint import client

CANARY = "Say yes."


@dataclass
class Reply:
    """What to answer.

    Attributes:
        body: None is a chat completion of what was asked.
        cut: the connection ends in the middle of the body.
        delay: seconds before anything is said.
    """

    status: int = 200
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    delay: float = 0.0


#: Told what was asked and how often that was asked before; decides what is answered.
Script = Callable[[str, int], Reply]


def completion(text: Any, finish_reason: Any = "stop", usage: Any = None) -> bytes:
    """The body of a chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return json.dumps({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage}).encode()


def text_about(asked: str) -> str:
    """What the server writes when it is well."""
    return f"{asked} is a film about a film."


@dataclass
class ChatServer:
    """A running server.

    Attributes:
        url: for ``endpoint_url``.
        asked: every request's body, in the order in which they came.
        times: when they came, in seconds.
        keys: the ``Authorization`` of every request.
        answered: how often each question got a good answer.
        most_at_once: requests that were under way at once.
    """

    url: str
    script: Script
    asked: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    answered: Counter[str] = field(default_factory=Counter)
    most_at_once: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def questions(self) -> Counter[str]:
        """How often each question came, without canaries."""
        return Counter(q for body in self.asked if (q := body["messages"][-1]["content"]) != CANARY)


def always(reply: Reply) -> Script:
    """The same to everything."""
    return lambda asked, before: reply


@contextmanager
def serving(script: Script = always(Reply())) -> Iterator[ChatServer]:  # noqa: B008
    """A server on a free port, for as long as a block lasts."""
    http = _Http(("127.0.0.1", 0), _Handler)
    http.chat = ChatServer(f"http://127.0.0.1:{http.server_port}/v1", script)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield http.chat
    finally:
        http.chat.ended.set()
        http.shutdown()
        http.server_close()


class _Http(ThreadingHTTPServer):
    chat: ChatServer
    daemon_threads = True
    request_queue_size = 128
    lock = threading.Lock()
    under_way = 0

    def handle_error(self, request: Any, client_address: Any) -> None:  # a client that hung up
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = body["messages"][-1]["content"]
        chat = self.server.chat
        with self.server.lock:
            before = sum(other["messages"][-1]["content"] == asked for other in chat.asked)
            chat.asked.append(body)
            chat.times.append(time.monotonic())
            chat.keys.append(self.headers.get("Authorization"))
            self.server.under_way += 1
            chat.most_at_once = max(chat.most_at_once, self.server.under_way)
        try:
            self._reply(asked, chat.script(asked, before) if self.path == "/v1/chat/completions" else Reply(404))
        finally:
            with self.server.lock:
                self.server.under_way -= 1

    def _reply(self, asked: str, reply: Reply) -> None:
        if reply.delay:
            self.server.chat.ended.wait(reply.delay)
        content = reply.body
        if content is None and reply.status == 200:
            usage = {"prompt_tokens": 11, "completion_tokens": 7}
            content = completion(text_about(asked), usage=usage)
            if not reply.cut:
                with self.server.lock:
                    self.server.chat.answered[asked] += 1
        content = content or b""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if reply.cut else content)
        if reply.cut:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


def shorten_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is to try again does so at once."""
    monkeypatch.setattr(client, "_FIRST_PAUSE", 0.004)
    monkeypatch.setattr(client, "_LONGEST_PAUSE", 0.02)
