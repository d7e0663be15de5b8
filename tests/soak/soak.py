"""A soak: `python -m tests.soak.soak [MINUTES]` loads a real server for a long time and says whether anything gave way.

Rounds of mixed load (tests/soak/load.py) from several accounts, each followed by a quiet moment in which every slot must
be free again. In the first half of the run engines are killed under load; the second half has one engine, whose memory
must be as flat as that of all other processes. Writes samples.csv and soak.svg; exit 1 when a request was lost, a slot is
stuck or something grows (tests/soak/verdict.py). `make soak` runs it; neither pytest nor CI does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from tests.end_to_end.harness import GENEROUS, RunningServer, children, command_line, running
from tests.models import demo_model
from tests.soak.graph import draw
from tests.soak.load import Client, Tally
from tests.soak.samples import gauges, processes
from tests.soak.verdict import judge

NUM_CLIENTS, NUM_ACCOUNTS = 12, 3
ROUNDS = 24
SAMPLE_SECONDS = 1.0
QUIET_SECONDS = 30.0  # after a round, until every slot must be free
CONFIG = GENEROUS.replace("slots = 8", "slots = 4\nthreads = 1\nprefix_cache_mb = 32\nmax_queue = 64")
PERMISSIONS = ["read_models", "run_inference", "use_streaming", "use_grammar", "read_metrics"]
PASSWORD = "plum-orbit-Yonder7"


class Soak:
    def __init__(self, server: RunningServer, keys: list[str], seconds: float) -> None:
        self.server = server
        self.tally = Tally()
        self.rows: list[dict[str, Any]] = []
        self.kills: list[float] = []
        self._keys = keys
        self._seconds = seconds
        self._begin = time.monotonic()

    async def run(self) -> None:
        for number in range(ROUNDS):
            await self._round(number, kill=number % 3 == 1 and number < ROUNDS // 2)
            await self._quiet()
            print(f"{self.rows[-1]['seconds'] / 60:5.1f} min  {dict(self.tally.outcomes)}  "
                  f"engine {self.rows[-1]['engine_rss_mib']:.0f} MiB", flush=True)  # fmt: skip

    async def _round(self, number: int, *, kill: bool) -> None:
        until = time.monotonic() + self._seconds / ROUNDS
        async with contextlib.AsyncExitStack() as stack:
            https = [await stack.enter_async_context(self._http(key)) for key in self._keys]
            clients = [Client(https[i % len(https)], self.tally, number * NUM_CLIENTS + i) for i in range(NUM_CLIENTS)]
            tasks = [asyncio.create_task(client.run(until)) for client in clients]
            if kill:
                tasks.append(asyncio.create_task(self._kill(number, self._seconds / ROUNDS / 2)))
            while not all(task.done() for task in tasks):
                await self._sample("load")
                await asyncio.wait(tasks, timeout=SAMPLE_SECONDS)
            await asyncio.gather(*tasks)

    async def _kill(self, number: int, wait_seconds: float) -> None:
        await asyncio.sleep(wait_seconds)
        for pid in self.server.processes("inferno.engine.main"):
            self.tally.last_kill = time.monotonic()
            self.kills.append(time.monotonic() - self._begin)
            os.kill(pid, signal.SIGKILL if number % 2 else signal.SIGABRT)
            while pid in self.server.processes("inferno.engine.main"):
                await asyncio.sleep(0.05)
            self.tally.last_kill = time.monotonic()

    async def _quiet(self) -> None:
        """Wait until nothing runs or waits; the sample taken then says what is stuck, if something is."""
        await asyncio.to_thread(self.server.wait_for, "/readyz")
        deadline = time.monotonic() + QUIET_SECONDS
        while True:
            row = await self._look("quiet")
            if not (row["running"] or row["waiting"] or row["kv_tokens"]) or time.monotonic() > deadline:
                break
            await asyncio.sleep(SAMPLE_SECONDS)
        await asyncio.sleep(2 * SAMPLE_SECONDS)  # closed connections are gone
        self.rows.append(await self._look("quiet"))

    async def _sample(self, phase: str) -> None:
        self.rows.append(await self._look(phase))

    async def _look(self, phase: str) -> dict[str, Any]:
        async with self._http(self._keys[0]) as http:
            text = (await http.get("/metrics")).text
        if self.server.process is None:
            raise RuntimeError("the server is not running")
        pids = [self.server.process.pid, *children(self.server.process.pid)]
        return {
            "seconds": round(time.monotonic() - self._begin, 2), "phase": phase, "in_flight": self.tally.in_flight,
            **gauges(text), **processes(pids, command_line), "answers": sum(self.tally.outcomes.values()),
        }  # fmt: skip

    def _http(self, key: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.server.url, headers={"X-API-Key": key}, timeout=300)


def account(server: RunningServer, name: str) -> str:
    """Make a service account; return a key of its own."""
    with server.http(headers={"Authorization": f"Bearer {server.admin_token()}"}) as admin:
        body = {"username": name, "password": PASSWORD, "role": "service"}
        admin.post("/api/v1/users", json=body).raise_for_status()
    with server.http() as client:
        answer = client.post("/api/v1/auth/login", json={"username": name, "password": PASSWORD}).raise_for_status()
        client.headers["Authorization"] = f"Bearer {answer.json()['token']}"
        made = client.post("/api/v1/auth/api-keys", json={"name": "soak", "permissions": PERMISSIONS}).raise_for_status()
    return str(made.json()["key"])


def main() -> int:
    parser = argparse.ArgumentParser(description="A long mixed load on a real server; see the module's first lines.")
    parser.add_argument("minutes", nargs="?", type=float, default=30.0)
    parser.add_argument("--out", type=Path, default=Path("build/soak"), help="folder for samples.csv and soak.svg")
    parser.add_argument("--model", type=Path, help="a GGUF file in place of the demo model")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        with running(Path(folder), config=CONFIG, model=options.model or demo_model(), workers=options.workers) as server:
            keys = [account(server, f"soak-{number}") for number in range(NUM_ACCOUNTS)]
            soak = Soak(server, keys, options.minutes * 60)
            with contextlib.suppress(KeyboardInterrupt):  # what was seen until then is judged
                asyncio.run(soak.run())
    with (options.out / "samples.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(soak.rows[0]))
        writer.writeheader()
        writer.writerows(soak.rows)
    faults = judge(soak.rows, soak.tally.lost)
    title = f"Soak of {options.minutes:g} minutes: {dict(soak.tally.outcomes)}, {len(soak.kills)} engines killed"
    (options.out / "soak.svg").write_text(draw(soak.rows, soak.kills, title))
    print(title)
    for fault in faults:
        print(f"FAULT: {fault}")
    print(f"{options.out}/samples.csv and soak.svg are written; {'FAILED' if faults else 'nothing lost, stuck or growing'}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
