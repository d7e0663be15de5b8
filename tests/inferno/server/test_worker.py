"""A worker's life: pings, engines, drain, the end of its supervisor, reload, malformed bodies."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inferno import config
from inferno.messages import Drain, Reload

from .harness import WorkerUnderTest, running_worker, settings_for_tests, until


def stream(worker: WorkerUnderTest, text: str, results: list[Any]) -> threading.Thread:
    """Start a streaming request in a thread; its text or its error is put into `results`."""

    def run() -> None:
        body = {"messages": [{"role": "user", "content": text}], "stream": True}
        try:
            answer = httpx.post(f"{worker.base_url}/v1/chat/completions", json=body, timeout=120)
            chunks = [
                json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")
            ]
            results.append("".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if "choices" in chunk))
            results.extend(chunk["error"]["code"] for chunk in chunks if "error" in chunk)
        except httpx.HTTPError as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: worker.engines["fake"].num_running)
    return thread


def test_pings_are_answered_while_it_streams() -> None:
    with running_worker() as worker:
        results: list[Any] = []
        thread = stream(worker, "!slow abcdefghij", results)
        assert worker.ping(1)
        assert worker.ping(2)
        thread.join()
        assert results == ["!slow abcdefghij"]


def test_sigterm_finishes_running_answers_and_takes_no_new_ones() -> None:
    with running_worker() as worker:
        results: list[Any] = []
        thread = stream(worker, "!slow abcdefghijklmnop", results)
        worker.listener.close()  # nobody else listens on it: a new connection must be refused
        assert worker.stop() == 0
        thread.join()
        assert results == ["!slow abcdefghijklmnop"]
        with socket.socket() as sock:
            assert sock.connect_ex(("127.0.0.1", worker.port)) != 0


def test_drain_ends_within_its_grace_and_tells_the_streams_that_it_cuts(capfd: pytest.CaptureFixture[str]) -> None:
    with running_worker() as worker:
        results: list[Any] = []
        thread = stream(worker, "!slow " + "x" * 1000, results)
        started = time.monotonic()
        worker.control.send(Drain(grace_seconds=4.0))
        assert worker.process.wait(30) == 0
        assert 2.9 < time.monotonic() - started < 30
        thread.join()
        assert worker.engines["fake"].num_running == 0
        assert results[1:] == ["shutting_down"]
        assert "x" in results[0]  # what came before
    assert "Exception in ASGI" not in capfd.readouterr().err


def test_an_answer_that_is_cut_by_force_is_one_line_in_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    with running_worker() as worker:
        results: list[Any] = []
        thread = stream(worker, "!slow " + "x" * 1000, results)
        worker._control_sock.shutdown(socket.SHUT_RDWR)
        assert worker.process.wait(30) == 1
        thread.join()
        assert isinstance(results[0], httpx.RemoteProtocolError)  # cut, so the client knows that it is not whole
    log = capfd.readouterr().err
    assert "Traceback" not in log
    assert log.count("an answer was cut") == 1


def test_the_end_of_the_supervisor_ends_the_worker() -> None:
    with running_worker() as worker:
        results: list[Any] = []
        thread = stream(worker, "!slow " + "x" * 1000, results)
        worker._control_sock.shutdown(socket.SHUT_RDWR)
        assert worker.process.wait(60) == 1
        thread.join()


def test_readiness_follows_the_engines() -> None:
    with running_worker(with_engines=False) as worker:
        url = f"{worker.base_url}/readyz"
        assert httpx.get(url, timeout=60).status_code == 503
        assert httpx.get(f"{worker.base_url}/healthz", timeout=60).status_code == 200
        body = {"messages": [{"role": "user", "content": "x"}]}
        answer: list[httpx.Response] = []

        def ask() -> None:
            answer.append(httpx.post(f"{worker.base_url}/v1/chat/completions", json=body, timeout=60))

        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(0.2)
        worker.engine_up()
        thread.join()
        assert answer[0].status_code == 200  # it waited for the model that was on its way
        assert httpx.get(url, timeout=60).status_code == 200
        worker.engine_gone(state="unloaded")
        assert httpx.get(url, timeout=60).status_code == 503
        assert httpx.get(f"{worker.base_url}/v1/models", timeout=60).json()["data"] == []
        refused = httpx.post(f"{worker.base_url}/v1/chat/completions", json=body, timeout=60)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")


def test_reload_changes_limits_in_place() -> None:
    limits = {"rate_limiting_enabled": True, "max_requests_per_minute": 1000, "max_requests_per_hour": 2}
    with running_worker(settings_for_tests(security=limits)) as worker:
        statuses = [httpx.get(f"{worker.base_url}/v1/models", timeout=60).status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        changed = settings_for_tests(security={**limits, "max_requests_per_hour": 5})
        worker.control.send(Reload(settings=config.encode(changed)))
        assert worker.ping()
        statuses = [httpx.get(f"{worker.base_url}/v1/models", timeout=60).status_code for _ in range(4)]
        assert statuses == [200, 200, 200, 429]


FRAGMENTS = st.sampled_from(
    [b"{", b"}", b"[", b"]", b",", b":", b'"messages"', b'"role"', b'"user"', b'"content"', b'"x"', b"1e999", b"-1", b"null",
     b"NaN", b"\xff", b"\xef\xbb\xbf", b'"\\ud800"', b'"\\u0000"', b'{"model":"fake"', b'"stream":true', b'"n":0', b" "]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    [
        "messages",
        "model",
        "stream",
        "n",
        "temperature",
        "stop",
        "tools",
        "logit_bias",
        "prompt",
        "tokens",
        "foo",
    ]
)
# The content is no string in any of them, so none is a request that could be answered.
MALFORMED = (
    st.lists(FRAGMENTS, max_size=14).map(b"".join)
    | st.binary(max_size=60)
    | st.dictionaries(NAMES, VALUES, max_size=5).map(
        lambda value: json.dumps({**value, "bad field": 1}).encode()
    )
)


@settings(
    max_examples=1000,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(body=MALFORMED, route=st.sampled_from(["chat/completions", "completions", "tokenize", "detokenize"]))
def check_malformed(client: httpx.Client, body: bytes, route: str) -> None:
    answer = client.post(f"/v1/{route}", content=body, headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500, (body, answer.text)
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"].startswith("req_")


def test_a_thousand_malformed_bodies(worker: WorkerUnderTest) -> None:
    with httpx.Client(base_url=worker.base_url, timeout=60) as client:
        check_malformed(client)
        assert client.get("/readyz").status_code == 200
        good = {"messages": [{"role": "user", "content": "still here"}]}
        assert (
            client.post("/v1/chat/completions", json=good).json()["choices"][0]["message"]["content"]
            == "still here"
        )
    assert worker.process.poll() is None


def test_a_drain_while_the_worker_is_put_together_is_not_lost() -> None:
    for _ in range(3):
        worker = WorkerUnderTest(settings_for_tests(), ["fake"])
        try:
            worker.control.send(Drain(grace_seconds=300.0))
            assert worker.process.wait(60) == 0
        finally:
            worker.close()
