"""What does one front worker cost: requests/s of GET /v1/models, and CPU per streamed token?

Measured: one worker process (uvloop, httptools, our HTTP edge, gate, limits, text guards) over a fake engine; beside it, in
the same run, uvicorn and Starlette with one trivial JSON route. wrk (16 connections, 1 thread) makes the load. CPU
seconds of the server process are read from /proc, so `requests per CPU second` also means something on a busy machine.
Streams: 16 at once through one connection each, tokens as fast as they come; the figure is the worker's CPU time per
token, and what 16 streams of 50 tokens/s would cost of one core.
`authenticated` is a whole `inferno serve` (no model, one worker, audit log on) asked with an API key.
Not measured: a real engine, TLS, the network.

    python benchmarks/bench_front.py [SECONDS]      needs wrk; Linux
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import re
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import httpx

from tests.inferno.server.harness import running_worker, settings_for_tests

ROUNDS = 3
NUM_STREAMS = 16
TOKENS_PER_STREAM = 2000
HIGH = 10_000_000
PEER = """
import socket, sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
async def models(request): return JSONResponse({"object": "list", "data": [{"id": "fake", "object": "model"}]})
config = uvicorn.Config(Starlette(routes=[Route("/v1/models", models)]), loop="uvloop", http="httptools",
                        log_level="error", access_log=False)
uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])
"""


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


SERVED = """
[server]
port = {port}
[security]
max_requests_per_minute = 10000000
max_requests_per_hour = 100000000
max_requests_per_minute_per_ip = 10000000
max_requests_per_hour_per_ip = 100000000
[telemetry]
log_level = "error"
"""


@contextlib.contextmanager
def served() -> Iterator[tuple[str, int, str]]:
    """A whole server with authentication: its URL, the worker's pid, an API key."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        config = Path(folder) / "config.toml"
        config.write_text(SERVED.format(port=port))
        environment = {
            **os.environ,
            "INFERNO_JWT_SECRET": secrets.token_urlsafe(48),
            "INFERNO_ADMIN_PASSWORD": secrets.token_urlsafe(18),
        }
        command = [sys.executable, "-m", "inferno.cli"]
        server = subprocess.Popen([*command, "serve", "--config", str(config)], env=environment)
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(200):
                try:
                    httpx.get(f"{url}/healthz")
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            made = subprocess.run(
                [*command, "keys", "create", "bench", "--config", str(config), "--json"],
                capture_output=True,
                text=True,
                check=True,
            )
            pids = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
            yield url, int(pids[0]), json.loads(made.stdout)["key"]
        finally:
            server.terminate()
            server.wait(20)


def load(url: str, pid: int, seconds: int, key: str = "") -> tuple[float, float]:
    """Return requests/s and requests per CPU second of the server."""
    before = cpu_seconds(pid)
    command = [
        "wrk",
        "-t1",
        "-c16",
        f"-d{seconds}s",
        *(["-H", f"Authorization: Bearer {key}"] if key else []),
        url,
    ]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in out:
        raise SystemExit(f"refused answers: {out}")
    count = int(re.search(r"(\d+) requests in", out)[1])  # type: ignore[index]
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1])  # type: ignore[index]
    return rate, count / max(cpu_seconds(pid) - before, 0.01)


async def streams(base_url: str) -> int:
    """Run NUM_STREAMS streams to their end; return the number of content chunks."""
    body = {
        "messages": [{"role": "user", "content": "!noise"}],
        "max_tokens": TOKENS_PER_STREAM,
        "stream": True,
        "seed": 1,
    }

    async def one(client: httpx.AsyncClient) -> int:
        count = 0
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            async for part in answer.aiter_raw():
                count += part.count(b'"content":')
        return count - 1  # the role chunk

    async with httpx.AsyncClient(base_url=base_url, timeout=120) as client:
        return sum(await asyncio.gather(*(one(client) for _ in range(NUM_STREAMS))))


def main() -> None:
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    if shutil.which("wrk") is None:
        raise SystemExit("this benchmark needs wrk")
    limits = {
        "rate_limiting_enabled": True,
        "max_requests_per_minute": HIGH,
        "max_requests_per_hour": HIGH,
        "max_requests_per_minute_per_ip": HIGH,
        "max_requests_per_hour_per_ip": HIGH,
        "max_tokens_per_minute": 1_000_000_000,
        "input_validation_enabled": True,
        "output_sanitization_enabled": True,
    }
    results: dict[str, list[tuple[float, float]]] = {
        "peer": [],
        "health": [],
        "models": [],
        "authenticated": [],
    }
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(512)
    peer = subprocess.Popen(
        [sys.executable, "-c", PEER, str(listener.fileno())], pass_fds=[listener.fileno()]
    )
    try:
        with running_worker(settings_for_tests(security=limits)) as worker, served() as (url, pid, key):
            peer_url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/models"
            for _ in range(50):
                try:
                    httpx.get(peer_url)
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            for _ in range(ROUNDS):
                results["peer"].append(load(peer_url, peer.pid, seconds))
                results["health"].append(load(f"{worker.base_url}/healthz", worker.process.pid, seconds))
                results["models"].append(load(f"{worker.base_url}/v1/models", worker.process.pid, seconds))
                results["authenticated"].append(load(f"{url}/v1/models", pid, seconds, key))
            asyncio.run(streams(worker.base_url))  # warm
            before = cpu_seconds(worker.process.pid)
            num_tokens = asyncio.run(streams(worker.base_url))
            token_us = (cpu_seconds(worker.process.pid) - before) / num_tokens * 1e6
    finally:
        peer.terminate()
        peer.wait()
        listener.close()
    median: dict[str, Any] = {
        name: {
            "requests_per_second": round(statistics.median(rate for rate, _ in values)),
            "requests_per_cpu_second": round(statistics.median(per_cpu for _, per_cpu in values)),
        }
        for name, values in results.items()
    }
    for name, figures in median.items():
        print(
            f"{name:14} {figures['requests_per_second']:>8} requests/s   {figures['requests_per_cpu_second']:>8} per CPU second"
        )
    ratio = median["models"]["requests_per_cpu_second"] / median["peer"]["requests_per_cpu_second"]
    print(f"models/peer by CPU: {ratio:.2f};  {token_us:.1f} us of CPU per token,")
    print(f"16 streams of 50 tokens/s: {16 * 50 * token_us / 1e4:.1f} % of a core")
    print(
        json.dumps(
            {
                "benchmark": "front",
                **median,
                "ratio_by_cpu": round(ratio, 3),
                "token_cpu_us": round(token_us, 1),
                "num_tokens": num_tokens,
                "machine": platform.processor() or platform.machine(),
                "cpus": os.cpu_count(),
                "python": platform.python_version(),
            }
        )
    )


if __name__ == "__main__":
    main()
