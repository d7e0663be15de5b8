"""A real front worker process over a fake engine: what the supervisor does, in a test."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from msgspec.structs import replace

from inferno import config
from inferno.cli.server_parts import BucketsTable
from inferno.errors import ProtocolError
from inferno.ipc import BlockingChannel
from inferno.messages import (
    MAX_CONTROL_FRAME,
    PROTOCOL_VERSION,
    Answer,
    Ask,
    AuditAppend,
    EngineGone,
    EngineUp,
    Ping,
    Pong,
    WorkerReady,
    WorkerSettings,
    WorkerToSupervisor,
)
from tests.fakes import FakeEngine, fake_info


def settings_for_tests(**sections: dict[str, Any]) -> config.Settings:
    """Effective settings with nothing that is not built; `sections` change single keys."""
    settings = config.Settings()
    defaults: dict[str, dict[str, Any]] = {
        "security": {
            "auth_enabled": False,
            "api_key_enabled": False,
            "rate_limiting_enabled": False,
            "input_validation_enabled": False,
            "output_sanitization_enabled": False,
            "audit_logging_enabled": False,
            "tls_required": False,
        }
    }
    for name in {*defaults, *sections}:
        changes = {**defaults.get(name, {}), **sections.get(name, {})}
        settings = replace(settings, **{name: replace(getattr(settings, name), **changes)})
    return settings


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for what another process or thread does."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("it did not happen in time")
        time.sleep(0.01)


class WorkerUnderTest:
    """One worker process and its engines. Use `running_worker`."""

    def __init__(
        self,
        settings: config.Settings,
        models: list[str],
        *,
        with_tables: bool = True,
        program: tuple[str, ...] = ("-I", "-m", "inferno.server.worker"),
    ) -> None:
        ours, theirs = socket.socketpair()
        self.listener = socket.socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(512)
        self.port: int = self.listener.getsockname()[1]
        self.base_url = f"http://127.0.0.1:{self.port}"
        self.process = subprocess.Popen(
            [sys.executable, *program, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
        theirs.close()
        self.control = BlockingChannel(ours, WorkerToSupervisor, max_frame_bytes=MAX_CONTROL_FRAME)
        self._control_sock = ours
        self.engines: dict[str, FakeEngine] = {}
        self.generation = 0
        self.received: list[Any] = []
        self.tables: dict[str, BucketsTable] = {}
        if with_tables and settings.security.rate_limiting_enabled:
            self.tables["buckets"] = BucketsTable(1)
        self._ready = threading.Event()
        self._pong = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        message = WorkerSettings(
            version=PROTOCOL_VERSION,
            worker=1,
            settings=config.encode(settings),
            listeners=["main"],
            shared=list(self.tables),
            table_arguments={name: table.worker_started(1) for name, table in self.tables.items()},
            models=[{"name": name, "state": "loading", "detail": ""} for name in models],
        )
        self.control.send(message, [self.listener.fileno(), *(table.fd for table in self.tables.values())])

    def wait_ready(self) -> None:
        if not self._ready.wait(120):
            raise AssertionError(f"the worker is not ready; exit status {self.process.poll()}")

    def ping(self, serial: int = 7) -> bool:
        self._pong.clear()
        self.control.send(Ping(serial=serial))
        return self._pong.wait(60)

    def engine_up(self, name: str = "fake", **info: Any) -> FakeEngine:
        """Connect an engine; the worker knows of it when this returns."""
        self.generation += 1
        ours, theirs = socket.socketpair()
        facts = fake_info(name, **info)
        self.control.send(EngineUp(model=name, generation=self.generation, info=facts), [theirs.fileno()])
        theirs.close()
        engine = self.engines[name] = FakeEngine(ours, facts)
        if not self.ping(self.generation):  # messages are taken in their order
            raise AssertionError("the worker does not answer")
        return engine

    def engine_gone(self, name: str = "fake", state: Any = "restarting") -> None:
        """Take an engine away; the worker knows of it when this returns."""
        self.control.send(EngineGone(model=name, generation=self.generation, state=state, retry_after=3.0))
        self.engines.pop(name).close()
        if not self.ping(self.generation):
            raise AssertionError("the worker does not answer")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def close(self) -> None:
        for engine in self.engines.values():
            engine.close()
        with contextlib.suppress(OSError):
            self._control_sock.shutdown(socket.SHUT_RDWR)
        self._reader.join(60)
        self.control.close()
        self.listener.close()
        for table in self.tables.values():
            table.worker_gone(1)
            table.close()
        if self.process.poll() is None:
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()

    def _read(self) -> None:
        while True:
            try:
                received = self.control.receive()
            except (OSError, ProtocolError):
                return
            if received is None:
                return
            message = received[0]
            self.received.append(message)
            if isinstance(message, WorkerReady):
                self._ready.set()
            elif isinstance(message, Pong):
                self._pong.set()
            elif isinstance(message, Ask | AuditAppend):
                error = "not_found" if isinstance(message, Ask) else None
                with contextlib.suppress(OSError):  # a worker that ends waits for no answer
                    self.control.send(Answer(serial=message.serial, error=error))


@contextlib.contextmanager
def running_worker(
    settings: config.Settings | None = None,
    models: tuple[str, ...] = ("fake",),
    *,
    with_engines: bool = True,
    **options: Any,
) -> Iterator[WorkerUnderTest]:
    """A ready worker, with a fake engine for each model."""
    worker = WorkerUnderTest(settings or settings_for_tests(), list(models), **options)
    try:
        worker.wait_ready()
        if with_engines:
            for name in models:
                worker.engine_up(name)
        yield worker
    finally:
        worker.close()


def raw_exchange(port: int, data: bytes) -> bytes:
    """Send bytes, read until the other side closes; return what came."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(data)
        parts = []
        while True:
            try:
                part = sock.recv(65536)
            except ConnectionResetError:
                break
            if not part:
                break
            parts.append(part)
        return b"".join(parts)
