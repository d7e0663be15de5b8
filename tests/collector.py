"""A collector of OpenTelemetry traces inside of the test process: OTLP over HTTP, decoded with the protocol's own types."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time
from collections.abc import Iterator
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Collector:
    """What came, as bytes and as spans. `status` is what posts are answered with."""

    def __init__(self) -> None:
        self.status = 200
        self.raw: list[bytes] = []
        self.paths: list[str] = []
        self.spans: list[Any] = []
        self.resources: list[dict[str, Any]] = []
        self._changed = threading.Condition()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer._take(self.path, self.headers["content-type"], body)
                self.send_response(outer.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _take(self, path: str, media_type: str, body: bytes) -> None:
        message = ExportTraceServiceRequest.FromString(body)
        with self._changed:
            self.raw.append(body)
            self.paths.append(f"{path} {media_type}")
            for group in message.resource_spans:
                self.resources.append(attributes(group.resource))
                for scope in group.scope_spans:
                    self.spans += scope.spans
            self._changed.notify_all()

    def wait_for(self, is_wanted: Any, num: int = 1, seconds: float = 120) -> list[Any]:
        """Return the spans that `is_wanted`, once there are `num` of them."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while len(found := [span for span in self.spans if is_wanted(span)]) < num:
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    raise AssertionError(f"{len(found)} of {num} spans came: {[span.name for span in self.spans]}")
        return found

    def of_request(self, request_id: str) -> tuple[Any, list[Any]]:
        """Return the span of a request and its children in order."""
        (root,) = self.wait_for(lambda span: attributes(span).get("inferno.request_id") == request_id)
        children = [span for span in self.spans if span.parent_span_id == root.span_id]
        return root, sorted(children, key=lambda span: (span.start_time_unix_nano, span.end_time_unix_nano))


def attributes(holder: Any) -> dict[str, Any]:
    """Return the attributes of a span or a resource as plain values."""
    found = {}
    for pair in holder.attributes:
        kind = pair.value.WhichOneof("value")
        found[pair.key] = getattr(pair.value, kind)
    return found


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()
    try:
        yield collector
    finally:
        collector.close()
