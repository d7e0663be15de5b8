"""Traces of a real worker process, taken by a real collector: spans, parents, attributes, and what must not be in them."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from inferno.messages import Usage
from inferno.server import tracing
from inferno.server.http import Context
from inferno.server.timeline import MAX_CHOICES, Timeline
from inferno.server.tracing import Tracer, parent_of, traces_url
from tests.collector import Collector, attributes, collecting

from .harness import WorkerUnderTest, running_worker, settings_for_tests

OK, ERROR = 0, 2
CHAT = {"model": "fake", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


@pytest.fixture(scope="module")
def worker(collector: Collector) -> Iterator[WorkerUnderTest]:
    with running_worker(settings_for_tests(telemetry={"otlp_endpoint": collector.url})) as running:
        yield running


def post(worker: WorkerUnderTest, body: Any, path: str = "/v1/chat/completions", **headers: str) -> httpx.Response:
    return httpx.post(f"{worker.base_url}{path}", json=body, headers=headers, timeout=60)


def test_a_request_is_a_span_with_prepare_queue_prefill_decode(worker: WorkerUnderTest, collector: Collector) -> None:
    answer = post(worker, CHAT)
    root, children = collector.of_request(answer.headers["x-request-id"])
    assert root.name == "POST /v1/chat/completions"
    assert root.kind == 2  # SERVER
    assert root.status.code == OK
    assert not root.parent_span_id
    usage = answer.json()["usage"]
    assert attributes(root) == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "inferno.request_id": answer.headers["x-request-id"],
        "gen_ai.request.model": "fake",
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "inferno.cached_tokens": 0,
        "inferno.result": "ok",
    }
    assert [span.name for span in children] == ["prepare", "queue", "prefill", "decode"]
    prepare, queue, prefill, decode = children
    assert root.start_time_unix_nano <= prepare.start_time_unix_nano <= prepare.end_time_unix_nano
    assert prepare.end_time_unix_nano <= queue.start_time_unix_nano
    lengths = [span.end_time_unix_nano - span.start_time_unix_nano for span in (queue, prefill, decode)]
    assert lengths == pytest.approx([1e6, 2e6, 3e6], abs=1000)  # what the engine said: 1, 2 and 3 ms
    assert all(span.trace_id == root.trace_id for span in children)
    assert all(attributes(span) == {"inferno.choice": 0} for span in children[1:])
    assert collector.paths[0] == "/v1/traces application/x-protobuf"
    assert collector.resources[0]["service.name"] == "inferno"
    assert collector.resources[0]["service.instance.id"] == "worker-1"


def test_a_stream_and_each_of_its_choices(worker: WorkerUnderTest, collector: Collector) -> None:
    answer = post(worker, {**CHAT, "stream": True, "n": 3})
    root, children = collector.of_request(answer.headers["x-request-id"])
    assert attributes(root)["inferno.result"] == "ok"
    assert [span.name for span in children].count("decode") == 3
    assert {attributes(span)["inferno.choice"] for span in children if span.name == "decode"} == {0, 1, 2}


def test_a_callers_traceparent_is_followed(worker: WorkerUnderTest, collector: Collector) -> None:
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    answer = post(worker, CHAT, traceparent=f"00-{trace_id}-{span_id}-01", tracestate="vendor=tenant-text")
    root, children = collector.of_request(answer.headers["x-request-id"])
    assert root.trace_id.hex() == trace_id
    assert root.parent_span_id.hex() == span_id
    assert {span.trace_id.hex() for span in children} == {trace_id}
    assert root.trace_state == ""


def test_a_caller_that_does_not_record_is_followed_too(worker: WorkerUnderTest, collector: Collector) -> None:
    trace_id = secrets.token_hex(16)
    silent = post(worker, CHAT, traceparent=f"00-{trace_id}-{secrets.token_hex(8)}-00")
    later = post(worker, CHAT)
    collector.of_request(later.headers["x-request-id"])
    ids = {attributes(span).get("inferno.request_id") for span in collector.spans}
    assert silent.headers["x-request-id"] not in ids
    assert trace_id not in {span.trace_id.hex() for span in collector.spans}


def test_refusals_and_faults_are_told(worker: WorkerUnderTest, collector: Collector) -> None:
    unknown = post(worker, {**CHAT, "model": "nothing"})
    root, children = collector.of_request(unknown.headers["x-request-id"])
    assert attributes(root)["http.response.status_code"] == 404
    assert "gen_ai.request.model" not in attributes(root)  # the client's text
    assert children == []
    missing = httpx.get(f"{worker.base_url}/nothing/here?text=canary-query", timeout=60)
    root, _ = collector.of_request(missing.headers["x-request-id"])
    assert root.name == "GET unknown"
    odd = httpx.request("PROPFIND", f"{worker.base_url}/v1/models", timeout=60)
    root, _ = collector.of_request(odd.headers["x-request-id"])
    assert root.name == "other /v1/models"


def test_nothing_of_the_client_or_the_model_is_in_a_trace(worker: WorkerUnderTest, collector: Collector) -> None:
    canary = "canary" + secrets.token_hex(8)
    body = {
        **CHAT,
        "messages": [{"role": "system", "content": canary}, {"role": "user", "content": canary, "name": canary}],
        "stop": [canary + "x"], "user": canary, "metadata": {"k": canary}, "prompt_cache_key": canary, "seed": 3,
    }  # fmt: skip
    headers = {
        "X-API-Key": canary, "Authorization": f"Bearer {canary}", "Cookie": canary, "User-Agent": canary,
        "tracestate": f"a={canary}", "baggage": f"a={canary}", "X-Request-Id": canary, "X-Forwarded-For": canary,
    }  # fmt: skip
    answer = post(worker, body, **headers)
    assert answer.status_code == 200
    assert canary in answer.text  # the fake model repeats what it was told
    collector.of_request(answer.headers["x-request-id"])
    assert post(worker, {**CHAT, canary: 1}).status_code == 400
    assert post(worker, CHAT, f"/v1/{canary}").status_code == 404
    last = httpx.get(f"{worker.base_url}/v1/models/{canary}?{canary}", timeout=60)
    collector.of_request(last.headers["x-request-id"])
    assert not any(canary.encode() in raw for raw in collector.raw)
    assert not any(b"127.0.0.1" in raw for raw in collector.raw)  # no address of a client either


def test_a_client_that_leaves_shows_what_it_saw(worker: WorkerUnderTest, collector: Collector) -> None:
    body = {**CHAT, "messages": [{"role": "user", "content": "!slow " + "a" * 400}], "stream": True}
    with httpx.stream("POST", f"{worker.base_url}/v1/chat/completions", json=body, timeout=60) as answer:
        request_id = answer.headers["x-request-id"]
        for line in answer.iter_lines():
            if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                break
    root, children = collector.of_request(request_id)
    assert attributes(root)["inferno.result"] == "cancelled"
    assert root.status.code == OK  # nothing of ours failed
    assert [span.name for span in children] == ["prepare", "waiting", "decode"]


def test_an_engine_that_dies_is_an_error() -> None:
    with collecting() as collector, running_worker(settings_for_tests(telemetry={"otlp_endpoint": collector.url})) as worker:
        body = {**CHAT, "messages": [{"role": "user", "content": "!slow " + "a" * 400}], "stream": True}
        with httpx.stream("POST", f"{worker.base_url}/v1/chat/completions", json=body, timeout=60) as answer:
            request_id = answer.headers["x-request-id"]
            lines = answer.iter_lines()
            next(lines)
            worker.engine_gone()
            assert any("engine_failed" in line for line in lines)
        root, _ = collector.of_request(request_id)
        assert root.status.code == ERROR
        assert root.status.message == "engine_failed"


def test_what_waits_is_sent_when_the_worker_stops() -> None:
    with collecting() as collector:
        with running_worker(settings_for_tests(telemetry={"otlp_endpoint": f"{collector.url}/own/path"})) as worker:
            ids = {post(worker, CHAT).headers["x-request-id"] for _ in range(5)}
            assert worker.stop() == 0
        assert ids <= {attributes(span).get("inferno.request_id") for span in collector.spans}
        assert set(collector.paths) == {"/own/path application/x-protobuf"}


@pytest.mark.parametrize("failure", ["refuses", "is gone"])
def test_a_collector_that_fails_costs_traces_not_answers(failure: str) -> None:
    with collecting() as collector:
        collector.status = 400
        endpoint = collector.url if failure == "refuses" else "http://127.0.0.1:9"
        with running_worker(settings_for_tests(telemetry={"otlp_endpoint": endpoint})) as worker:
            for _ in range(5):
                assert post(worker, CHAT).status_code == 200
            assert worker.stop() == 0


def answered() -> Context:
    context = Context("req_1", "192.0.2.1")
    context.status = 200
    return context


def test_scrapes_are_not_traced() -> None:
    exporter = _Keeping()
    tracer = Tracer("http://127.0.0.1:9", 1, exporter=exporter)
    for route in ("/metrics", "/v1/models"):
        tracer.answered(answered(), [], route, "GET")
    tracer.close()
    assert exporter.names == ["GET /v1/models"]


class _Keeping(SpanExporter):
    def __init__(self) -> None:
        self.names: list[str] = []

    def export(self, spans: Any) -> SpanExportResult:
        self.names += [span.name for span in spans]
        return SpanExportResult.SUCCESS


class _Failing(SpanExporter):
    def export(self, spans: Any) -> SpanExportResult:
        raise ConnectionError("canary")


def test_lost_spans_are_mentioned_once(caplog: pytest.LogCaptureFixture) -> None:
    tracer = Tracer("http://127.0.0.1:9", 1, exporter=_Failing())
    for _ in range(2):
        tracer.answered(answered(), [], "/v1/models", "GET")
        tracer._provider.force_flush()
    tracer.close()
    assert [record.message for record in caplog.records if record.name == "inferno.tracing"] == [
        "the collector of traces does not take them; 1 spans are lost"
    ]


class _Stuck(SpanExporter):
    def __init__(self) -> None:
        self.release = threading.Event()

    def export(self, spans: Any) -> SpanExportResult:
        self.release.wait()
        return SpanExportResult.SUCCESS


def test_a_collector_that_never_answers_holds_up_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "EXPORT_TIMEOUT_SECONDS", 0.1)
    exporter = _Stuck()
    tracer = Tracer("http://127.0.0.1:9", 1, exporter=exporter)
    tracer.answered(answered(), [], "/v1/models", "GET")
    tracer.close()  # returns, though nothing was taken
    assert not exporter.release.is_set()
    exporter.release.set()


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://h:4318", "http://h:4318/v1/traces"),
        ("https://h:4318/", "https://h:4318/v1/traces"),
        ("http://h/otel/v1/traces", "http://h/otel/v1/traces"),
    ],
)
def test_a_base_url_gets_the_protocols_path(endpoint: str, url: str) -> None:
    assert traces_url(endpoint) == url


GOOD = b"00-" + b"ab" * 16 + b"-" + b"cd" * 8 + b"-01"


@pytest.mark.parametrize(
    "value",
    [
        b"", b"garbage", GOOD[:-1], GOOD + b"-x", b"ff" + GOOD[2:], GOOD.upper(), b"00-" + b"0" * 32 + b"-" + b"cd" * 8 + b"-01",
        b"00-" + b"ab" * 16 + b"-" + b"0" * 16 + b"-01", b"01" + GOOD[2:] + b"-" + b"x" * 300,
    ],
)  # fmt: skip
def test_what_is_no_traceparent_is_ignored(value: bytes) -> None:
    assert parent_of([(b"traceparent", value)]) is None


def test_traceparent_twice_is_ignored_and_a_later_version_is_read() -> None:
    assert parent_of([(b"traceparent", GOOD), (b"traceparent", GOOD)]) is None
    scope = parent_of([(b"traceparent", b"01" + GOOD[2:] + b"-more")])
    assert trace.get_current_span(scope).get_span_context().span_id == int("cd" * 8, 16)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.just(b"traceparent"), st.binary(max_size=80)), max_size=3))
def test_no_header_breaks_the_parser(headers: list[tuple[bytes, bytes]]) -> None:
    parent_of(headers)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-1, 1e6)] * 3), max_size=MAX_CHOICES + 3), st.booleans(), st.booleans())
def test_phases_never_run_backwards(choices: list[tuple[float, ...]], is_started: bool, has_token: bool) -> None:
    timeline = Timeline("m")
    timeline.preparing()
    timeline.prepared()
    if is_started:
        timeline.started()
    if has_token:
        timeline.first_token(timeline._prepared_at + 1e-3)
    for index, times in enumerate(choices):
        timeline.finished(index, Usage(1, 1, 0, *times))
    timeline.ended("ok", 1, 2, 3)
    phases = list(timeline.phases())
    assert all(phase.began <= phase.ended or phase.name == "decode" for phase in phases)
    assert len([phase for phase in phases if phase.choice is not None]) <= 3 * MAX_CHOICES
    assert timeline.result == ("ok" if is_started else "refused")
