"""Does the server answer while slow clients hold a thousand connections?

Measured: Debian's slowhttptest in its four modes (-H slow headers, -B slow bodies, -R ranges, -X slow readers), each with
1,000 connections for a bounded time, against one front worker with its cap per source raised above that, so that all of
them are really held. Meanwhile three clients at another address stream answers, and /healthz is asked five times a
second from a third address. Reported a mode: health asked and answered, its median and 99th percentile, tokens a second
of the streams against the quiet phase before, memory of the worker before, at its highest and after, and what
slowhttptest says of its connections (-R ends at once: ranges are ignored, each request is answered). Not measured: the network, TLS. Loopback only. Last line: JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import re
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tests.end_to_end.harness import GENEROUS, RunningServer
from tests.models import demo_model

CONNECTIONS = 1000
HEALTH_PERIOD = 0.2
CONFIG = GENEROUS.replace(
    "[security]", "[server]\nmax_connections = 4096\nmax_connections_per_ip = 2048\n[security]"
)
MODES = {
    "slow headers (-H)": ["-H", "-i", "5", "-x", "24"],
    "slow bodies (-B)": ["-B", "-i", "5", "-s", "8192", "-x", "10", "-t", "POST", "-f", "application/json"],
    "ranges (-R)": ["-R", "-a", "10", "-b", "3000", "-t", "HEAD"],
    "slow readers (-X)": ["-X", "-w", "1", "-y", "16", "-n", "5", "-z", "8", "-k", "3", "-p", "5"],
}


class Health(threading.Thread):
    """Asks /healthz at its pace, over new connections."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.seconds: list[float] = []
        self.num_failed = 0
        self._port = port
        self._stop_it = threading.Event()

    def run(self) -> None:
        while not self._stop_it.wait(HEALTH_PERIOD):
            begin = time.perf_counter()
            try:
                connection = http.client.HTTPConnection(
                    "127.0.0.1", self._port, timeout=5, source_address=("127.0.0.3", 0)
                )
                with contextlib.closing(connection):
                    connection.request("GET", "/healthz")
                    good = connection.getresponse().status == 200
            except OSError:
                good = False
            if good:
                self.seconds.append(time.perf_counter() - begin)
            else:
                self.num_failed += 1

    def stop(self) -> None:
        self._stop_it.set()
        self.join()


class Streamer(threading.Thread):
    """Streams one answer after the other and counts events."""

    def __init__(self, port: int, key: str) -> None:
        super().__init__(daemon=True)
        self.num_events = 0
        self.num_failed = 0
        self._port, self._key = port, key
        self._stop_it = threading.Event()

    def run(self) -> None:
        body = json.dumps({"model": "demo", "stream": True, "max_tokens": 400, "ignore_eos": True,
                           "messages": [{"role": "user", "content": "Count."}]})  # fmt: skip
        while not self._stop_it.is_set():
            connection = http.client.HTTPConnection(
                "127.0.0.1", self._port, timeout=60, source_address=("127.0.0.2", 0)
            )
            try:
                with contextlib.closing(connection):
                    headers = {"X-API-Key": self._key, "Content-Type": "application/json"}
                    connection.request("POST", "/v1/chat/completions", body, headers)
                    answer = connection.getresponse()
                    for line in answer:
                        self.num_events += line.startswith(b"data: ")
                        if self._stop_it.is_set():
                            break
            except (OSError, http.client.HTTPException):
                self.num_failed += 1

    def stop(self) -> None:
        self._stop_it.set()


def memory_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def attack(server: RunningServer, options: list[str], seconds: int, folder: Path) -> dict[str, int]:
    """Run slowhttptest; return its last count of connections by state."""
    path = "/api/v1/auth/login" if "-B" in options else "/"  # public and with a body: others end with 401 at once
    command = ["slowhttptest", *options, "-c", str(CONNECTIONS), "-r", "400", "-l", str(seconds), "-u", server.url + path]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds + 60)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    found: dict[str, int] = {}
    for name in ("initializing", "pending", "connected", "error", "closed"):
        values = re.findall(rf"{name}:\s+(\d+)", plain)
        found[name] = max(map(int, values), default=0)
    found["seconds"] = int((re.findall(r"Test ended on (\d+)", plain) or ["0"])[-1])
    found["service_unavailable_seen"] = len(re.findall(r"service available:\s+NO", plain))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=25, help="length of one mode")
    seconds = parser.parse_args().seconds
    if shutil.which("slowhttptest") is None:
        raise SystemExit("no slowhttptest: apt-get install slowhttptest")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="inferno-bench-") as name:
        folder = Path(name)
        server = RunningServer(folder, config=CONFIG, model=demo_model())
        try:
            server.start()
            key = server.create_key()["key"]
            (worker,) = server.processes("inferno.server.worker")
            streamers = [Streamer(server.port, key) for _ in range(3)]
            for streamer in streamers:
                streamer.start()
            time.sleep(3)  # warm-up
            for mode, options in MODES.items():
                begin, count = time.monotonic(), sum(s.num_events for s in streamers)
                time.sleep(5)
                quiet = (sum(s.num_events for s in streamers) - count) / (time.monotonic() - begin)
                before, peak = memory_mib(worker), [0.0]
                over = threading.Event()

                def watch(peak: list[float] = peak, over: threading.Event = over) -> None:
                    while not over.wait(0.1):
                        peak[0] = max(peak[0], memory_mib(worker))

                watcher = threading.Thread(target=watch, daemon=True)
                health = Health(server.port)
                watcher.start()
                health.start()
                begin, count = time.monotonic(), sum(s.num_events for s in streamers)
                said = attack(server, options, seconds, folder)
                during = (sum(s.num_events for s in streamers) - count) / (time.monotonic() - begin)
                health.stop()
                over.set()
                watcher.join()
                times = sorted(health.seconds) or [float("nan")]
                row = {
                    "mode": mode, "health_answered": len(health.seconds), "health_failed": health.num_failed,
                    "health_p50_ms": round(statistics.median(times) * 1e3, 1),
                    "health_p99_ms": round(times[int(len(times) * 0.99) - 1] * 1e3, 1),
                    "events_per_second_quiet": round(quiet, 1), "events_per_second_attacked": round(during, 1),
                    "memory_mib_before": round(before, 1), "memory_mib_peak": round(peak[0], 1),
                    "memory_mib_after": round(memory_mib(worker), 1), "slowhttptest_most": said,
                }  # fmt: skip
                rows.append(row)
                print(json.dumps(row, indent=1), flush=True)
                time.sleep(3)
            for streamer in streamers:
                streamer.stop()
            for streamer in streamers:
                streamer.join(30)
            failed = sum(streamer.num_failed for streamer in streamers)
        finally:
            if server.process is not None and server.process.poll() is None:
                server.stop()
    print(json.dumps({"benchmark": "edge", "connections": CONNECTIONS, "streams_failed": failed, "modes": rows}))


if __name__ == "__main__":
    main()
