"""What comes between a program and its object store: a proxy on loopback that breaks requests as it is told.

A fault is a function that is given the exchange in place of the ordinary :meth:`Exchange.pass_on`.
"""

import http.client
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat
from typing import Final
from urllib.parse import urlsplit

_PIECE: Final = 1 << 16
_SECONDS: Final = 30


class Exchange(BaseHTTPRequestHandler):
    """One request, and whatever becomes of it."""

    protocol_version = "HTTP/1.1"
    server: "_Server"

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - as the base class calls it
        """Nothing: a test's output is its own."""

    def _handle(self) -> None:
        self.server.proxy.asked.append((self.command, self.path))
        self._unread = int(self.headers.get("Content-Length") or 0)
        (self.server.proxy.fault_for(self.command) or Exchange.pass_on)(self)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815 - as the base class calls them

    def body(self, most: int | None = None) -> Iterator[bytes]:
        """What the program sends, at most so many bytes of it."""
        left = self._unread if most is None else min(most, self._unread)
        while left:
            piece = self.rfile.read(min(left, _PIECE))
            if not piece:
                raise ConnectionError("the program went away")
            left -= len(piece)
            self._unread -= len(piece)
            yield piece

    def ask(self, most: int | None = None) -> http.client.HTTPConnection:
        """Give the store the request, or the beginning of it."""
        store = http.client.HTTPConnection(self.server.store, timeout=_SECONDS)
        store.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "expect"):
                store.putheader(name, value)
        store.endheaders()
        for piece in self.body(most):
            store.send(piece)
        return store

    def answered(self) -> tuple[http.client.HTTPResponse, bytes]:
        """What the store answers to the whole request."""
        store = self.ask()
        response = store.getresponse()
        content = response.read()
        store.close()
        return response, content

    def begin_answer(self, response: http.client.HTTPResponse, *without: str) -> None:
        """Send what comes before the answer's body, some fields left out."""
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", *without):
                self.send_header(name, value)

    def pass_on(self) -> None:
        """Let the store answer."""
        response, content = self.answered()
        self.begin_answer(response)
        if response.getheader("Content-Length") is None and response.status != http.client.NO_CONTENT:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def hang_up(self) -> None:
        """Close the connection, whatever is still to be said."""
        self.close_connection = True


Fault = Callable[[Exchange], None]


def answers(status: int, code: str) -> Fault:
    """The store does not see the request; an error is answered."""

    def fault(exchange: Exchange) -> None:
        deque(exchange.body(), maxlen=0)
        said = f"<Error><Code>{code}</Code><Message>As the test wants it.</Message></Error>".encode()
        exchange.send_response_only(status)
        exchange.send_header("Content-Type", "application/xml")
        exchange.send_header("Content-Length", str(len(said)))
        exchange.end_headers()
        if exchange.command != "HEAD":
            exchange.wfile.write(said)

    return fault


def cut(after: int) -> Fault:
    """So many bytes of the body reach the store, then both connections end."""

    def fault(exchange: Exchange) -> None:
        exchange.ask(after).close()
        exchange.hang_up()

    return fault


def unanswered(exchange: Exchange) -> None:
    """The store does all that it was asked to, but its answer is lost."""
    exchange.answered()
    exchange.hang_up()


def shortened(after: int, way: str) -> Fault:
    """So many bytes of the answer's body come through.

    Args:
        after: how many; where it is less, the answer is left as it is.
        way: how the program is told where the body ends: ``length``, ``chunked``, by the connection's ``end``, or
            ``whole``, by an end of chunks, as if there were no more.
    """

    def fault(exchange: Exchange) -> None:
        response, content = exchange.answered()
        exchange.begin_answer(response, *(() if way == "length" else ("content-length",)))
        begun = content[:after]
        if way in ("chunked", "whole"):
            exchange.send_header("Transfer-Encoding", "chunked")
            begun = b"%x\r\n%s\r\n" % (len(begun), begun) + (b"0\r\n\r\n" if way == "whole" else b"")
        exchange.send_header("Connection", "close")
        exchange.end_headers()
        exchange.wfile.write(begun)
        exchange.hang_up()

    return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, proxy: "FaultProxy", store: str) -> None:
        super().__init__(("127.0.0.1", 0), Exchange)
        self.proxy, self.store = proxy, store

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: connections break here."""


class FaultProxy:
    """Passes requests on to a store, but for those that it was told to break.

    Attributes:
        endpoint: its URL.
        asked: method and path of every request so far.
    """

    def __init__(self, store: str) -> None:
        self._server = _Server(self, urlsplit(store).netloc)
        self._faults: list[tuple[str, Iterator[Fault]]] = []
        self._lock = threading.Lock()
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.asked: list[tuple[str, str]] = []

    def breaks(self, methods: Sequence[str] | str, fault: Fault, times: int | None = 1) -> None:
        """Break the next requests of the methods; ``times`` None: all of them, until :meth:`mend`."""
        for method in [methods] if isinstance(methods, str) else methods:
            self._faults.append((method, repeat(fault) if times is None else repeat(fault, times)))

    def mend(self) -> None:
        """Break nothing any more."""
        self._faults.clear()
        self.asked.clear()

    def fault_for(self, method: str) -> Fault | None:
        """What becomes of a request, if not what should."""
        with self._lock:
            for broken, faults in self._faults:
                if broken == method and (fault := next(faults, None)) is not None:
                    return fault
        return None

    def methods(self) -> list[str]:
        """The requests so far."""
        return [method for method, _ in self.asked]


@contextmanager
def fault_proxy(store: str) -> Iterator[FaultProxy]:
    """A proxy before the store of this URL, for as long as the block lasts."""
    proxy = FaultProxy(store)
    thread = threading.Thread(target=proxy._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy._server.shutdown()
        proxy._server.server_close()
        thread.join()
