"""Supervisor, real front workers and an engine process without a model, together over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from inferno import config
from inferno.cli.served import ServedModels
from inferno.pool.process import Timing
from inferno.pool.supervisor import Programs, Supervisor

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
PROGRAMS = Programs(engine=str(Path(__file__).parents[1] / "cli" / "echo_engine.py"))
WAIT = 120
CONFIG = """
[server]
port = 0
shutdown_grace_seconds = 10
[security]
auth_enabled = false
rate_limiting_enabled = false
audit_logging_enabled = false
"""
CHAT = {"model": "echo", "messages": [{"role": "user", "content": "say this back"}], "max_tokens": 100}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Running:
    def __init__(self, supervisor: Supervisor, task: asyncio.Task[int], client: httpx.AsyncClient) -> None:
        self.supervisor = supervisor
        self.task = task
        self.client = client

    async def until_status(self, path: str, status: int) -> None:
        async with asyncio.timeout(WAIT):
            while (await self.client.get(path)).status_code != status:
                await asyncio.sleep(0.02)

    async def say(self, **fields: Any) -> httpx.Response:
        return await self.client.post("/v1/chat/completions", json={**CHAT, **fields})

    async def stream(self, text: str, first: asyncio.Event) -> str:
        """Return the lines of a streamed chat; set `first` once a token came."""
        body = {**CHAT, "stream": True, "messages": [{"role": "user", "content": text}]}
        lines = []
        async with self.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                lines.append(line)
                if len(lines) > 3:
                    first.set()
        return "\n".join(lines)


@contextlib.asynccontextmanager
async def running(folder: Path, workers: int = 1) -> AsyncIterator[Running]:
    (folder / "models").mkdir(exist_ok=True)
    (folder / "models" / "echo.gguf").write_bytes(b"GGUF")
    (folder / "config.toml").write_text(CONFIG)
    environ = {"INFERNO_SERVER_WORKERS": str(workers)}
    loaded = config.load(environ=environ, folder=folder)
    served: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    supervisor = Supervisor(
        loaded,
        ServedModels(loaded.settings),
        announce=served.set_result,
        programs=PROGRAMS,
        timing=Timing(backoff_first=0.05),
    )
    task = asyncio.create_task(supervisor.run())
    try:
        await asyncio.wait({task, served}, timeout=WAIT, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        async with httpx.AsyncClient(base_url=f"http://{supervisor.address}", timeout=WAIT) as client:
            yield Running(supervisor, task, client)
    finally:
        if not task.done():
            supervisor.handle_interrupt()
            supervisor.handle_interrupt()
            await asyncio.wait_for(task, WAIT)


@pytest.mark.parametrize("workers", [1, 4])
async def test_a_chat_goes_through_all_processes(tmp_path: Path, workers: int) -> None:
    async with running(tmp_path, workers) as server:
        await server.until_status("/readyz", 200)
        answers = await asyncio.gather(*(server.say() for _ in range(16)))
        assert {answer.json()["choices"][0]["message"]["content"] for answer in answers} == {"say this back"}
        models = (await server.client.get("/v1/models")).json()
        assert [model["id"] for model in models["data"]] == ["echo"]
        os.kill(os.getpid(), signal.SIGTERM)
        assert await asyncio.wait_for(server.task, WAIT) == 0


async def test_a_killed_engine_costs_its_requests_and_is_back(tmp_path: Path) -> None:
    async with running(tmp_path, 2) as server:
        await server.until_status("/readyz", 200)
        first = [asyncio.Event() for _ in range(4)]
        text = "!slow " + "and long enough to be still running " * 3
        streams = [asyncio.create_task(server.stream(text, event)) for event in first]
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in first)), WAIT)
        engine = server.supervisor.engines["echo"]
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        for lines in await asyncio.gather(*streams):
            assert '"code":"engine_' in lines
            assert "[DONE]" not in lines
        async with asyncio.timeout(WAIT):
            while (answer := await server.say()).status_code == 503:  # it may take longer than a request waits
                assert answer.json()["error"]["code"] == "engine_restarting"
        assert answer.status_code == 200, answer.text
        assert engine.num_restarts == 1


async def test_a_killed_worker_is_replaced_and_serves(tmp_path: Path) -> None:
    async with running(tmp_path, 2) as server:
        await server.until_status("/readyz", 200)
        victim = server.supervisor.workers()[0]
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        async with asyncio.timeout(WAIT):
            while victim in server.supervisor.workers() or len(server.supervisor.workers()) < 2:
                await asyncio.sleep(0.02)
        answers = await asyncio.gather(*(server.say() for _ in range(8)), return_exceptions=True)
        assert [answer.status_code for answer in answers if isinstance(answer, httpx.Response)] == [200] * 8


async def test_sigusr2_replaces_workers_without_dropping_a_stream(tmp_path: Path) -> None:
    async with running(tmp_path, 2) as server:
        await server.until_status("/readyz", 200)
        before = {worker.number for worker in server.supervisor.workers()}
        first = [asyncio.Event() for _ in range(6)]
        text = "!slow but this whole sentence must arrive"
        streams = [asyncio.create_task(server.stream(text, event)) for event in first]
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in first)), WAIT)
        os.kill(os.getpid(), signal.SIGUSR2)
        whole = await asyncio.gather(*streams)
        assert all(lines.rstrip().endswith("data: [DONE]") for lines in whole)
        async with asyncio.timeout(WAIT):
            while before & {worker.number for worker in server.supervisor.all_workers()}:
                await asyncio.sleep(0.02)
        assert (await server.say()).status_code == 200


async def test_sigterm_lets_running_answers_finish(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        await server.until_status("/readyz", 200)
        first = asyncio.Event()
        slow = asyncio.create_task(server.stream("!slow and whole", first))
        await asyncio.wait_for(first.wait(), WAIT)
        os.kill(os.getpid(), signal.SIGTERM)
        lines = await slow
        assert lines.rstrip().endswith("data: [DONE]")
        assert '"finish_reason":"stop"' in lines
        assert await asyncio.wait_for(server.task, WAIT) == 0
