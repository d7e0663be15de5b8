"""Does a flood of logins slow inference down?

Measured: the time between two events of four running streams (p50 and p99 over all gaps) of the demo model, first
alone, then while 24 clients of another process send wrong and right passwords as fast as they are answered, alternating
four times in one run; and how many logins were answered, refused or throttled meanwhile. All share the machine's cores,
so the flood's own cost (its process is niced) is in the figure too: a third phase floods /healthz at the same rate and
shows it. Not measured: TLS. Last line: JSON.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from tests.end_to_end.harness import ADMIN_PASSWORD, GENEROUS, RunningServer
from tests.models import demo_model

NUM_STREAMS = 4
NUM_FLOODERS = 24
PHASE_SECONDS = 6.0
CONFIG = GENEROUS.replace("max_logins_per_minute_per_ip = 1000", "max_logins_per_minute_per_ip = 100000").replace(
    "[security]", "[server]\ntrusted_proxies = ['127.0.0.1/32']\n[security]"
)


def gaps_of(url: str, key: str, stop: threading.Event, found: list[float]) -> None:
    body = {
        "model": "demo", "stream": True, "max_tokens": 900, "ignore_eos": True, "min_tokens": 900,
        "messages": [{"role": "user", "content": "Count."}],
    }  # fmt: skip
    with httpx.Client(base_url=url, headers={"x-api-key": key}, timeout=60, verify=False) as client:
        while not stop.is_set():
            with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                last = None
                for line in answer.iter_lines():
                    if not line.startswith("data: "):
                        continue
                    now = time.perf_counter()
                    if last is not None:
                        found.append(now - last)
                    last = now
                    if stop.is_set():
                        break


def flood(
    url: str, number: int, stop: threading.Event, statuses: Counter[int], what: str, password: str
) -> None:
    with httpx.Client(base_url=url, timeout=60, verify=False) as client:
        i = 0
        while not stop.is_set():
            i += 1
            if what == "healthz":
                statuses[client.get("/healthz").status_code] += 1
                time.sleep(0.15)
                continue
            right = i % 2 == 0
            source = f"198.51.{number}.{i % 250}"  # many sources: the delays do not thin the flood out
            answer = client.post(
                "/api/v1/auth/login",
                headers={"x-forwarded-for": source},
                json={"username": "admin" if right else f"u{i}", "password": password if right else "wrong-Pass-12"},
            )
            statuses[answer.status_code] += 1
            if answer.status_code == 503:
                time.sleep(0.15)


def flooder(url: str, stop: Any, counts: Any, what: str, password: str) -> None:
    """The other process."""
    os.nice(10)
    statuses: Counter[int] = Counter()
    local = threading.Event()
    threads = [threading.Thread(target=flood, args=(url, i, local, statuses, what, password)) for i in range(NUM_FLOODERS)]
    for thread in threads:
        thread.start()
    stop.wait()
    local.set()
    for thread in threads:
        thread.join()
    counts.put(statuses)


def phase(server: RunningServer, key: str, what: str, statuses: Counter[int]) -> list[float]:
    stop = threading.Event()
    found: list[float] = []
    threads = [threading.Thread(target=gaps_of, args=(server.url, key, stop, found)) for _ in range(NUM_STREAMS)]
    context = multiprocessing.get_context("spawn")
    other_stop, counts = context.Event(), context.Queue()
    other = context.Process(target=flooder, args=(server.url, other_stop, counts, what, ADMIN_PASSWORD))
    if what:
        other.start()
        time.sleep(1.5)
    for thread in threads:
        thread.start()
    time.sleep(PHASE_SECONDS)
    stop.set()
    for thread in threads:
        thread.join()
    if what:
        other_stop.set()
        statuses.update(counts.get())
        other.join()
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = RunningServer(Path(folder), workers=1, config=CONFIG, model=demo_model()).start()
        try:
            key = server.create_key()["key"]
            statuses: Counter[int] = Counter()
            phase(server, key, "", Counter())
            gaps: dict[str, list[float]] = {"alone": [], "healthz": [], "logins": []}
            for _ in range(4):
                gaps["alone"] += phase(server, key, "", Counter())
                gaps["healthz"] += phase(server, key, "healthz", Counter())
                gaps["logins"] += phase(server, key, "logins", statuses)
        finally:
            server.stop()
    found = {
        name: {"p50_ms": statistics.median(v) * 1e3, "p99_ms": statistics.quantiles(v, n=100)[98] * 1e3, "gaps": len(v)}
        for name, v in gaps.items()
    }
    ratios = {name: found["logins"]["p99_ms"] / found[name]["p99_ms"] for name in ("alone", "healthz")}
    for name, values in found.items():
        print(f"{name:>8}: p50 {values['p50_ms']:.1f} ms, p99 {values['p99_ms']:.1f} ms over {values['gaps']} gaps")
    print(f"p99 of logins against alone {ratios['alone']:.2f}, against healthz {ratios['healthz']:.2f}; {dict(statuses)}")
    print(json.dumps({"benchmark": "login_flood", **found, "p99_ratios": ratios, "logins": dict(statuses),
                      "cores": os.cpu_count(), "machine": platform.machine()}))  # fmt: skip


if __name__ == "__main__":
    main()
