"""Start the real server as a user would: `inferno serve`, a data directory, secrets in the environment, a real model."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai

from tests.models import demo_model
from tests.ports import free_port

READY_SECONDS = 240
ADMIN_PASSWORD = "correct-" + secrets.token_hex(12)
JWT_SECRET = secrets.token_urlsafe(48)


def children(pid: int) -> list[int]:
    """Return all descendants of a process, Linux."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            for child in (task / "children").read_text().split():
                found += [int(child), *children(int(child))]
    return found


def command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def is_running(pid: int) -> bool:
    """Whether a process is there and has not ended; one that nobody has waited for yet has ended. Linux."""
    with contextlib.suppress(OSError):  # it may go while it is looked at
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


class RunningServer:
    """A running `inferno serve` and what a test needs of it."""

    def __init__(self, folder: Path, *, workers: int = 1, config: str = "", model: Path | None = None,
                 arguments: tuple[str, ...] = (), environment: dict[str, str] | None = None,
                 authority: Path | None = None) -> None:  # fmt: skip
        """`authority`: the certificate that the server's own is checked with; TLS is on then."""
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"{'http' if authority is None else 'https'}://127.0.0.1:{self.port}"
        self.authority = authority
        self.config = self.data / "config.toml"
        self.config.write_text(config)
        self.log = folder / "server.log"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("INFERNO_")},
            "INFERNO_JWT_SECRET": JWT_SECRET,
            "INFERNO_ADMIN_PASSWORD": ADMIN_PASSWORD,
            **(environment or {}),
        }
        self.command = [sys.executable, "-m", "inferno.cli"]
        self.arguments = ["serve", "--config", str(self.config), "--port", str(self.port), "--workers", str(workers)]
        if model is not None:
            self.arguments += ["--model", f"demo={model}"]
        self.arguments += arguments
        self.process: subprocess.Popen[bytes] | None = None
        self.start_seconds = 0.0  # from the command to ready
        self.clients: list[openai.OpenAI] = []  # closed with the server

    def start(self, *, ready: bool = True) -> RunningServer:
        began = time.monotonic()
        with self.log.open("ab") as sink:
            self.process = subprocess.Popen(
                [*self.command, *self.arguments],
                stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, env=self.environment,
                start_new_session=True,
            )  # fmt: skip
        self.wait_for("/readyz" if ready else "/healthz")
        self.start_seconds = time.monotonic() - began
        return self

    def wait_for(self, path: str, status: int = 200, timeout_seconds: float = READY_SECONDS) -> None:
        """Poll until `path` answers `status`; fail with the server's log otherwise."""
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"the server ended with exit {self.process.returncode}:\n{self.output()}")
            with contextlib.suppress(httpx.HTTPError):
                with self.http(timeout=10) as client:
                    if client.get(path).status_code == status:
                        return
            pause()
        raise AssertionError(f"{path} did not answer {status}:\n{self.output()}")

    def http(self, **options: Any) -> httpx.Client:
        """Return a plain client of this server, which trusts its certificate and nothing else."""
        verify = False if self.authority is None else ssl.create_default_context(cafile=str(self.authority))
        return httpx.Client(base_url=self.url, verify=verify, **{"timeout": 60, **options})

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def stop(self, number: int = signal.SIGTERM, timeout_seconds: float = 120) -> int:
        """Signal the supervisor, wait, and return its exit code; nothing of it may be left running."""
        if self.process is None:
            raise AssertionError("not started")
        for client in self.clients:
            client.close()
        family = children(self.process.pid)
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError(f"did not stop within {timeout_seconds} s:\n{self.output()}") from None
        eventually(lambda: not any(map(is_running, family)))
        left = [f"{pid} {command_line(pid)}" for pid in family if is_running(pid)]
        if left:
            raise AssertionError(f"left running: {left}")
        return code

    def kill_all(self) -> None:
        """SIGKILL to the supervisor and everything below it; returns when none of them runs, so that a port is free again."""
        if self.process is None:
            raise AssertionError("not started")
        family = [self.process.pid, *children(self.process.pid)]
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        if not eventually(lambda: not any(map(is_running, family))):
            raise AssertionError("killed processes are still there")

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return the audit records of one kind."""
        path = self.data / "audit" / "audit.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [record for record in map(json.loads, lines) if record["event"] == event]

    def processes(self, module: str) -> list[int]:
        """Return the pids of our children that run `module`, such as inferno.engine.main."""
        if self.process is None:
            return []
        return [pid for pid in children(self.process.pid) if module in command_line(pid)]

    # ------------------------------------------------------------------ clients

    def admin_token(self) -> str:
        with self.http() as client:
            answer = client.post("/api/v1/auth/login", json={"username": "admin", "password": ADMIN_PASSWORD})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["token"])

    def create_key(self, **fields: Any) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.admin_token()}"}
        with self.http(headers=headers) as client:
            answer = client.post("/api/v1/auth/api-keys", json={"name": f"test-{secrets.token_hex(4)}", **fields})
        assert answer.status_code in {200, 201}, answer.text
        result: dict[str, Any] = json.loads(answer.text)
        return result

    def client(self, key: str, **options: Any) -> openai.OpenAI:
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=120, **options)
        self.clients.append(client)
        return client

    def async_client(self, key: str, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=300, **options)


def eventually(is_true: Callable[[], Any], seconds: float = 60) -> bool:
    """Ask until it is true; what other processes do cannot be waited for otherwise. Not a bound of anything: a busy machine
    may take its time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if is_true():
            return True
        pause()
    return False


def pause() -> None:
    """The polling interval of waits on other processes, which cannot be given a clock."""
    time.sleep(0.05)


GENEROUS = """
[security]
max_requests_per_minute = 100000
max_requests_per_hour = 1000000
max_requests_per_minute_per_ip = 100000
max_requests_per_hour_per_ip = 1000000
max_concurrent_requests_per_user = 512
max_logins_per_minute_per_ip = 1000
max_key_creations_per_hour = 1000
max_input_length = 100000

[engine]
slots = 8
context_size = 1024
"""


@contextlib.contextmanager
def running(folder: Path, **options: Any) -> Iterator[RunningServer]:
    options.setdefault("config", GENEROUS)
    options.setdefault("model", demo_model())
    server = RunningServer(folder, **options)
    try:
        yield server.start()
    finally:
        if server.process is not None and server.process.poll() is None:
            server.stop()
