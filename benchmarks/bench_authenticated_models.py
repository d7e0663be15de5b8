"""How many authenticated `GET /v1/models` does one worker answer in a second, beside a trivial uvicorn application?

Measured: wrk (16 connections, one thread) against a real server with one worker and no model, rate limits on with high
limits; by API key and by session, beside `/healthz` (the same stack without identity and limits) and a Starlette
application of one JSON route in uvicorn (the peer), alternating in one run: requests a second, and CPU time of the
serving process for each, which other load on the machine disturbs less. wrk shares the machine's cores with the server.
Not measured: TLS, many different callers. Warm-up of two seconds, median of three rounds of four. Last line: JSON.
"""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx

from benchmarks.bench_front import PEER, cpu_seconds
from tests.end_to_end.harness import ADMIN_PASSWORD, RunningServer

ROUNDS, SECONDS = 3, 4
CONFIG = """
[security]
max_requests_per_minute = 10000000
max_requests_per_hour = 100000000
max_requests_per_minute_per_ip = 10000000
max_requests_per_hour_per_ip = 100000000
"""


def run_wrk(url: str, header: str | None, pid: int, seconds: int) -> tuple[float, float]:
    """Return requests a second and microseconds of the process for each."""
    command = ["wrk", "-t1", "-c16", f"-d{seconds}s", url]
    if header is not None:
        command[1:1] = ["-H", header]
    began = cpu_seconds(pid)
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = cpu_seconds(pid) - began
    if "Non-2xx" in output:
        raise SystemExit(output)
    count = int(re.search(r"(\d+) requests in", output)[1])  # type: ignore[index]
    return float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1]), used / count * 1e6  # type: ignore[index]


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    peer = subprocess.Popen([sys.executable, "-c", PEER, str(listener.fileno())], pass_fds=[listener.fileno()])
    runs: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        server = RunningServer(Path(folder), workers=1, config=CONFIG).start(ready=False)
        try:
            key = server.create_key()["key"]
            answer = httpx.post(f"{server.url}/api/v1/auth/login", json={"username": "admin", "password": ADMIN_PASSWORD})
            (worker,) = server.processes("inferno.server.worker")
            models = f"{server.url}/v1/models"
            cases = {
                "models_by_key": (models, f"X-API-Key: {key}", worker),
                "models_by_session": (models, f"Authorization: Bearer {answer.json()['token']}", worker),
                "healthz": (f"{server.url}/healthz", None, worker),
                "trivial_uvicorn": (f"http://127.0.0.1:{listener.getsockname()[1]}/v1/models", None, peer.pid),
            }
            for case in cases.values():
                run_wrk(*case, seconds=2)
            for _ in range(ROUNDS):
                for name, case in cases.items():
                    runs.setdefault(name, []).append(run_wrk(*case, seconds=SECONDS))
        finally:
            server.stop()
            peer.terminate()
            peer.wait()
            listener.close()
    found = {
        name: {
            "requests_per_second": statistics.median(rate for rate, _ in values),
            "cpu_microseconds": statistics.median(used for _, used in values),
        }
        for name, values in runs.items()
    }
    for name, value in found.items():
        print(f"{name:>20} {value['requests_per_second']:8.0f} requests/s, {value['cpu_microseconds']:5.1f} us of CPU each")
    ratio = found["models_by_key"]["requests_per_second"] / found["trivial_uvicorn"]["requests_per_second"]
    print(f"by key against the trivial application: {ratio:.2f}")
    print(json.dumps({"benchmark": "authenticated_models", **found, "ratio_to_trivial": ratio, "cores": os.cpu_count(),
                      "machine": platform.machine()}))  # fmt: skip


if __name__ == "__main__":
    main()
