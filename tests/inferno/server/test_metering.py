"""The contract's order of limits through a real worker: headers on every answer, refusals, slots and tokens given back."""

from __future__ import annotations

import threading
from typing import Any

import httpx
from hypothesis import given
from hypothesis import strategies as st

from inferno.messages import Drop, Start
from inferno.security.limit_headers import ADMITTED_UNCOUNTED, Decision, PolicyState, headers

from .harness import WorkerUnderTest, running_worker, settings_for_tests, until

LIMITS: dict[str, Any] = {
    "rate_limiting_enabled": True,
    "max_requests_per_minute": 1000,
    "max_requests_per_hour": 10_000,
    "max_requests_per_minute_per_ip": 2000,
    "max_requests_per_hour_per_ip": 20_000,
    "max_tokens_per_minute": 100_000,
}


def limited(**changes: Any) -> Any:
    return running_worker(settings_for_tests(security={**LIMITS, **changes}))


def chat(worker: WorkerUnderTest, text: str, **fields: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": text}], **fields}
    return httpx.post(f"{worker.base_url}/v1/chat/completions", json=body, timeout=60)


def test_lim_6_headers_on_success_and_error() -> None:
    with limited() as worker:
        for answer in (
            chat(worker, "x"),
            chat(worker, "!fail template_failed"),
            httpx.get(f"{worker.base_url}/v1/none", timeout=60),
        ):
            assert answer.headers["ratelimit-policy"].startswith(
                '"minute";q=1000;w=60, "hour";q=10000;w=3600'
            )
            assert answer.headers["ratelimit"].startswith('"minute";r=')
            assert answer.headers["x-ratelimit-limit-requests"] == "1000"
            assert "retry-after" not in answer.headers
        assert chat(worker, "x").headers["x-ratelimit-limit-tokens"] == "100000"
        health = httpx.get(f"{worker.base_url}/healthz", timeout=60)
        assert "ratelimit" not in health.headers


def test_lim_2_exactly_so_many_requests_pass() -> None:
    with limited(max_requests_per_hour=7) as worker:  # nothing of an hour's comes back meanwhile
        statuses = [httpx.get(f"{worker.base_url}/v1/models", timeout=60).status_code for _ in range(10)]
        assert statuses == [200] * 7 + [429] * 3
        refused = chat(worker, "x")
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert int(refused.headers["retry-after"]) >= 1
        assert len(refused.headers.get_list("retry-after")) == 1
        assert httpx.get(f"{worker.base_url}/healthz", timeout=60).status_code == 200


def test_lim_9_not_found_options_and_head_are_counted() -> None:
    with limited(max_requests_per_hour=4) as worker:
        assert httpx.get(f"{worker.base_url}/v1/none", timeout=60).status_code == 404
        assert httpx.options(f"{worker.base_url}/v1/models", timeout=60).status_code == 204
        assert httpx.head(f"{worker.base_url}/v1/models", timeout=60).status_code == 200
        assert httpx.put(f"{worker.base_url}/v1/models", timeout=60).status_code == 405
        assert httpx.get(f"{worker.base_url}/v1/models", timeout=60).status_code == 429


def test_lim_1_the_source_comes_first() -> None:
    with limited(max_requests_per_hour_per_ip=3) as worker:
        statuses = [
            httpx.get(f"{worker.base_url}/{path}", timeout=60).status_code
            for path in ("", "nothing", "v1/models", "v1/models")
        ]
        assert statuses == [200, 404, 200, 429]


def test_lim_8_streams_hold_a_slot_until_their_end() -> None:
    with limited(max_concurrent_requests_per_user=2) as worker:
        body = {"messages": [{"role": "user", "content": "!hold on"}], "stream": True}
        results: list[int] = []

        def hold() -> None:
            results.append(
                httpx.post(f"{worker.base_url}/v1/chat/completions", json=body, timeout=60).status_code
            )

        threads = [threading.Thread(target=hold) for _ in range(2)]
        for thread in threads:
            thread.start()
        engine = worker.engines["fake"]
        until(lambda: engine.num_running == 2)
        refused = chat(worker, "x")
        engine.let_go.set()
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        for thread in threads:
            thread.join()
        assert results == [200, 200]
        until(lambda: chat(worker, "x").status_code == 200)


def test_lim_7_unused_tokens_come_back() -> None:
    with limited(max_tokens_per_minute=1000) as worker:
        first = chat(worker, "x", max_tokens=900)
        assert first.status_code == 200
        used = first.json()["usage"]["total_tokens"]
        second = chat(worker, "x", max_tokens=900)
        assert second.status_code == 200
        left = int(second.headers["x-ratelimit-remaining-tokens"])
        assert left < 1000 - used  # while it ran, the second held its whole reservation
        third = chat(worker, "x", max_tokens=10)
        assert int(third.headers["x-ratelimit-remaining-tokens"]) >= 1000 - 3 * used - 20


def test_lim_11_a_cost_above_the_bucket_is_400() -> None:
    with limited(max_tokens_per_minute=100) as worker:
        refused = chat(worker, "x", max_tokens=500)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "tokens_exceed_limit")
        engine = worker.engines["fake"]
        assert len(engine.logged(Drop)) == 1
        assert engine.logged(Start) == []
        answer = chat(worker, "!noise")
        assert answer.json()["choices"][0]["finish_reason"] == "length"
        start = engine.logged(Start)[0]
        assert start.max_tokens == 100 - answer.json()["usage"]["prompt_tokens"]


def test_a_worker_without_its_table_does_not_serve_open() -> None:
    worker = WorkerUnderTest(settings_for_tests(security=LIMITS), ["fake"], with_tables=False)
    try:
        assert worker.process.wait(60) == 1
    finally:
        worker.close()


@given(
    st.tuples(*[st.integers(1, 10**7)] * 2),
    st.tuples(*[st.integers(0, 10**7)] * 2),
    st.tuples(*[st.integers(0, 10**10)] * 2),
)
def test_the_short_way_to_headers_says_the_same(
    quotas: tuple[int, int], left: tuple[int, int], resets: tuple[int, int]
) -> None:
    policies = tuple(
        PolicyState(name, "principal", quotas[i], window, left[i], resets[i], 0, False)
        for i, (name, window) in enumerate((("minute", 60), ("hour", 3600)))
    )
    decision = Decision(True, policies)
    assert headers([decision]) == headers([decision, ADMITTED_UNCOUNTED])
