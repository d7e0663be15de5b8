"""How many authenticated `GET /v1/models` does one worker answer in a second?

Measured: wrk (two connections' worth of keep-alive load, 16 connections, one thread) against a real server with one
worker and no model, rate limits on with high limits and then off; by API key and by session, beside `/healthz`, the
same stack without identity, in the same run. wrk shares the machine's cores with the server. Not measured: TLS, many
different callers. Warm-up of two seconds, median of three runs of four seconds. Last line: JSON.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import tempfile
from pathlib import Path

import httpx

from tests.end_to_end.harness import ADMIN_PASSWORD, RunningServer

CONFIG = """
[security]
rate_limiting_enabled = {limits}
max_requests_per_minute = 10000000
max_requests_per_hour = 100000000
max_requests_per_minute_per_ip = 10000000
max_requests_per_hour_per_ip = 100000000
"""


def requests_per_second(url: str, header: str | None, seconds: int) -> float:
    command = ["wrk", "-t1", "-c16", f"-d{seconds}s", url]
    if header is not None:
        command[1:1] = ["-H", header]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in output:
        raise SystemExit(output)
    return float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1])  # type: ignore[index]


def main() -> None:
    found: dict[str, float] = {}
    for limits in ("true", "false"):
        with tempfile.TemporaryDirectory() as folder:
            server = RunningServer(Path(folder), workers=1, config=CONFIG.format(limits=limits)).start(ready=False)
            try:
                key = server.create_key()["key"]
                answer = httpx.post(
                    f"{server.url}/api/v1/auth/login", json={"username": "admin", "password": ADMIN_PASSWORD}
                )
                cases = {
                    "healthz": (f"{server.url}/healthz", None),
                    "models_by_key": (f"{server.url}/v1/models", f"X-API-Key: {key}"),
                    "models_by_session": (f"{server.url}/v1/models", f"Authorization: Bearer {answer.json()['token']}"),
                }
                for url, header in cases.values():
                    requests_per_second(url, header, 2)
                runs: dict[str, list[float]] = {name: [] for name in cases}
                for _ in range(3):
                    for name, (url, header) in cases.items():
                        runs[name].append(requests_per_second(url, header, 4))
                suffix = "_limited" if limits == "true" else "_unlimited"
                found |= {name + suffix: statistics.median(values) for name, values in runs.items()}
            finally:
                server.stop()
    for name, value in found.items():
        print(f"{name:>28} {value:10.0f} requests/s")
    print(json.dumps({"benchmark": "authenticated_models", "requests_per_second": found, "cores": os.cpu_count(),
                      "machine": platform.machine()}))  # fmt: skip


if __name__ == "__main__":
    main()
