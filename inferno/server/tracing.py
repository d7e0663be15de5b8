"""OpenTelemetry traces: one span a request, with the engine's prepare, queue, prefill and decode as its children.

Spans are made once, at the end of a request, from times that were noted on the way; an engine's own times come with its
messages. Attributes hold routes as declared, methods, statuses, model names of the registry, counts and the request id:
no text of a client or a model, no credential, no address. Exported in batches from a thread of the SDK to a collector
(OTLP over HTTP); a collector that is gone costs traces, never an answer. Front workers, only where
`telemetry.otlp_endpoint` is set: nobody else imports this module, and the SDK is an extra.
"""

from __future__ import annotations

import logging
import re
import threading
import time
import urllib.parse
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.context import Context as SpanScope
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.util.types import AttributeValue

from .. import __version__
from .http import Context, Header
from .timeline import Timeline

logger = logging.getLogger("inferno.tracing")
MAX_QUEUE = 8192  # spans that wait for a collector; more are dropped
EXPORT_TIMEOUT_SECONDS = 5.0
COMPLAIN_SECONDS = 60.0  # a collector that is gone is mentioned so often
_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SILENT = frozenset(("/metrics",))  # a scrape every few seconds is no news
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


def traces_url(endpoint: str) -> str:
    """Return where spans are posted: a base URL gets the protocol's path, a URL with a path is taken as it is."""
    parts = urllib.parse.urlsplit(endpoint)
    return endpoint if parts.path.strip("/") else parts._replace(path="/v1/traces").geturl()


def parent_of(headers: Sequence[Header]) -> SpanScope | None:
    """Return the caller's span from its `traceparent` (W3C Trace Context); None when there is none or it is not one.

    Its trace id and its wish not to be recorded are followed. `tracestate` is not: it is text of the client's.
    """
    values = [value for name, value in headers if name == b"traceparent"]
    found = _PARENT.fullmatch(values[0]) if len(values) == 1 and len(values[0]) <= 256 else None
    if found is None or found[1] == b"ff" or (found[1] == b"00" and found[5] is not None):
        return None
    remote = trace.SpanContext(
        int(found[2], 16), int(found[3], 16), is_remote=True, trace_flags=trace.TraceFlags(int(found[4], 16) & 1)
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(remote)) if remote.is_valid else None


class _Delivery(SpanExporter):
    """The exporter, with what fails said once in a while instead of with each batch."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._num_lost = 0
        self._complained_at = float("-inf")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # the door: whatever a collector or the network does, requests go on
            logger.debug("the trace exporter failed: %s", type(error).__name__)
            result = SpanExportResult.FAILURE
        if result is not SpanExportResult.SUCCESS:
            self._num_lost += len(spans)
            now = time.monotonic()
            if now - self._complained_at >= COMPLAIN_SECONDS:
                self._complained_at = now
                logger.warning("the collector of traces does not take them; %d spans are lost", self._num_lost)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class Tracer:
    """Makes the spans of one worker's requests."""

    def __init__(self, endpoint: str, worker: int, *, exporter: SpanExporter | None = None) -> None:
        """`exporter` replaces the one that posts to `endpoint` (tests)."""
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # failures are told by _Delivery
        if exporter is None:
            exporter = OTLPSpanExporter(endpoint=traces_url(endpoint), timeout=EXPORT_TIMEOUT_SECONDS)
        facts: dict[str, AttributeValue] = {
            "service.name": "inferno",
            "service.version": __version__,
            "service.instance.id": f"worker-{worker}",
        }
        self._provider = TracerProvider(
            sampler=ParentBased(ALWAYS_ON),
            resource=Resource(facts),
            span_limits=SpanLimits(max_attributes=32, max_attribute_length=256),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                _Delivery(exporter),
                max_queue_size=MAX_QUEUE,
                schedule_delay_millis=1000,
                max_export_batch_size=512,
                export_timeout_millis=EXPORT_TIMEOUT_SECONDS * 1000,
            )
        )
        self._tracer = self._provider.get_tracer("inferno", __version__)

    def timeline(self, context: Context, model: str) -> Timeline:
        """Return what notes the times of this request's generation."""
        context.timeline = Timeline(model)
        return context.timeline

    def answered(self, context: Context, headers: Sequence[Header], route: str, method: str) -> None:
        """Make the spans of a request that is over."""
        if route in _SILENT:
            return
        now = time.perf_counter()
        offset = time.time_ns() - int(now * 1e9)  # from the clock of the notes to that of the world
        status = context.status
        method = method if method in _METHODS else "other"
        span = self._tracer.start_span(
            f"{method} {route}",
            parent_of(headers),
            trace.SpanKind.SERVER,
            {
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": status,
                "inferno.request_id": context.request_id,
            },
            start_time=offset + int(context.began * 1e9),
        )
        timeline = context.timeline
        if span.is_recording() and timeline is not None:
            span.set_attributes(
                {
                    "gen_ai.request.model": timeline.model,
                    "gen_ai.usage.input_tokens": timeline.prompt_tokens,
                    "gen_ai.usage.output_tokens": timeline.completion_tokens,
                    "inferno.cached_tokens": timeline.cached_tokens,
                    "inferno.result": timeline.result,
                }
            )
            scope = trace.set_span_in_context(span)
            for phase in timeline.phases():
                attributes = None if phase.choice is None else {"inferno.choice": phase.choice}
                child = self._tracer.start_span(
                    phase.name, scope, attributes=attributes, start_time=offset + int(phase.began * 1e9)
                )
                child.end(offset + int(phase.ended * 1e9))
            if timeline.result not in ("ok", "cancelled"):
                span.set_status(trace.StatusCode.ERROR, timeline.result)
        if status >= 500:
            span.set_status(trace.StatusCode.ERROR)
        span.end(offset + int(now * 1e9))

    def close(self) -> None:
        """Send what waits and end; blocks for at most EXPORT_TIMEOUT_SECONDS, whatever the collector does."""
        ending = threading.Thread(target=self._provider.shutdown, name="inferno-traces", daemon=True)
        ending.start()
        ending.join(EXPORT_TIMEOUT_SECONDS)
