"""An OpenTelemetry collector of a few lines: takes OTLP over HTTP on loopback and keeps the gauges."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest


class MetricsReceiver:
    """Listens while a ``with`` block lasts.

    Attributes:
        port: on 127.0.0.1.
        gauges: the latest value by name and tags.
    """

    def __init__(self) -> None:
        self.gauges: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _take(self, body: bytes) -> None:
        for name, tags, value in _points(ExportMetricsServiceRequest.FromString(body)):
            self.gauges.setdefault(name, {})[tags] = value

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        take = self._take

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                take(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        return Handler


def _points(request: ExportMetricsServiceRequest) -> Iterator[tuple[str, frozenset[tuple[str, str]], float]]:
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.gauge.data_points:
                    tags = frozenset((tag.key, tag.value.string_value) for tag in point.attributes)
                    yield metric.name, tags, float(getattr(point, point.WhichOneof("value")))
