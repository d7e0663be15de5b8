"""The supervisor: owns the listening socket, shared tables, audit writer and control socket; starts and watches all.

Start: lock → bind → control socket → tables → workers → engines; the summary comes when every model is decided. End
(SIGTERM, SIGINT): workers finish what runs and leave, then the engines, at the latest after shutdown_grace_seconds;
exit 0. SIGHUP takes over reloadable keys, SIGUSR2 replaces the workers without dropping a stream, a second SIGINT
ends everything now. Parses no input of clients, and knows security only through the parts that it was given.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct

from .. import __version__, config
from ..config import Loaded
from ..datadir import DataDir, DataLock
from ..errors import ApiError, ConfigError, StartError
from ..messages import PROTOCOL_VERSION, EngineSettings, ModelVerified, Reload, WorkerSettings
from ..modelfile import Stamp
from . import server_verbs, summary
from .audit_sink import AuditSink, LogSink, server_event
from .backoff import Backoff
from .control import ControlServer
from .engine_process import EngineProcess
from .listener import listen, shown_address
from .model_check import check_model
from .process import Timing, child_environment
from .tables import ServerPart, SharedTable
from .verbs import Verbs
from .worker_process import WorkerProcess

MAX_FAILED_STARTS = 3  # workers in a row that end before they are ready, while none ever was
_log = logging.getLogger("inferno.pool")


class Programs(Struct, frozen=True):
    """What children run: modules, or .py files in tests."""

    worker: str = "inferno.server.worker"
    engine: str = "inferno.engine.main"


class Models(Protocol):
    """The registry, as far as the supervisor asks it."""

    def names(self) -> list[str]: ...
    def at_start(self) -> list[str]: ...
    def engine_settings(self, name: str) -> EngineSettings: ...
    def loaded(self, settings: EngineSettings, calibration: dict[str, Any]) -> None: ...
    def verified(self, settings: EngineSettings, stamps: list[Stamp], message: ModelVerified) -> dict[str, str]: ...
    def remove(self, name: str, *, delete_files: bool) -> int: ...


class Supervisor:
    """One server."""

    def __init__(
        self,
        loaded: Loaded,
        models: Models,
        *,
        secrets: Mapping[str, bytes] | None = None,
        audit: AuditSink | None = None,
        verbs: Verbs | None = None,
        make_tables: Callable[[], dict[str, SharedTable]] = dict,
        parts: Sequence[ServerPart] = (),
        reload: Callable[[], Loaded] | None = None,
        on_settings: Callable[[config.Settings], None] | None = None,
        announce: Callable[[dict[str, Any]], None] | None = None,
        programs: Programs | None = None,
        timing: Timing | None = None,
        lock: DataLock | None = None,
    ) -> None:
        self.loaded = loaded
        self.settings = loaded.settings
        self.verbs = verbs or Verbs()
        self.audit: AuditSink = audit or LogSink()
        self.engines: dict[str, EngineProcess] = {}
        self.address = ""
        self.models = models
        self._secrets = dict(secrets or {})
        self._make_tables = make_tables
        self._parts = list(parts)
        self._started_parts: list[ServerPart] = []
        self._reload = reload
        self._on_settings = on_settings
        self._announce = announce
        self._programs = programs or Programs()
        self._timing = timing or Timing()
        self._data = DataDir(self.settings.storage.data_dir)
        self._lock = lock or DataLock(self._data)
        self._listeners: dict[str, socket.socket] = {}
        self._tables: dict[str, SharedTable] = {}
        self._control: ControlServer | None = None
        self._workers: dict[int, WorkerProcess] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._worker_tasks: set[asyncio.Task[Any]] = set()
        self._next_worker = 1
        self._replacing = asyncio.Lock()
        self._checking = asyncio.Lock()
        self._was_worker_ready = asyncio.Event()
        self._end = asyncio.Event()
        self._killed = asyncio.Event()
        self._failure: StartError | None = None
        self._metrics: Any = None
        self.began = time.time()
        server_verbs.register(self.verbs, self)

    # ------------------------------------------------------------------ life

    async def run(self) -> int:
        """Serve until told to end; return the exit status. Raises StartError when the start fails."""
        self._data.make()
        self._lock.acquire()
        loop = asyncio.get_running_loop()
        try:
            self._open()
            for number, handler in self._signals().items():
                loop.add_signal_handler(number, handler)
            self.event("server.start", target=self.address, reason=f"version {__version__}")
            for warning in self.loaded.warnings:
                _log.warning("%s", warning)
            self._record_open_choices()
            for part in self._parts:
                await part.start()
                self._started_parts.append(part)
            for _ in range(self.settings.server.workers):
                self._start_worker()
            for name in self.models.at_start():
                try:
                    self.start_engine(name)
                except ApiError as error:
                    _log.error("model %s is refused: %s", name, error.message)
                    self.event("model.refused", target=name, result="failure", reason=error.message)
            self._spawn(self._announce_when_decided())
            await self._end.wait()
            await self._drain()
        finally:
            await self._close()
            for number in self._signals():
                loop.remove_signal_handler(number)
        if self._failure is not None:
            raise self._failure
        return 130 if self._killed.is_set() else 0

    def _open(self) -> None:
        """Take everything that can be refused, before any child exists."""
        _raise_descriptor_limit()
        server = self.settings.server
        self._listeners["main"] = listen(server.host, server.port)
        self.address = shown_address(self._listeners["main"])
        if server.admin_host is not None and server.admin_port is not None:
            self._listeners["admin"] = listen(server.admin_host, server.admin_port)
        self._control = ControlServer(self._data.control_socket, self.verbs)
        self._control.open()
        self._tables = self._make_tables()
        if self.settings.telemetry.metrics_enabled:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(self._data.make_metrics_folder())
            from .engine_metrics import EngineMetrics  # reads the variable above at its import

            self._metrics = EngineMetrics()
            self.audit.on_failing = self._metrics.audit_failing
        self.audit.start()

    def _record_open_choices(self) -> None:
        """Put into the audit what the operator chose to leave open."""
        server, security = self.settings.server, self.settings.security
        if not security.auth_enabled:
            self.event(
                "config.change", target="security.auth_enabled", reason=f"no authentication on {server.host}"
            )
        if not server.tls_enabled and not config.is_loopback(server.host):
            self.event("config.change", target="security.tls_required", reason=f"plain HTTP on {server.host}")

    async def _drain(self) -> None:
        """Ordered end: no new connections, workers, engines. Whatever is left after the grace time is killed."""
        grace = self.settings.server.shutdown_grace_seconds
        _log.info("ending: running answers may finish within %.0f s", grace)
        deadline = time.monotonic() + grace
        for listener in self._listeners.values():
            listener.close()
        for worker in self.workers():
            worker.drain(grace)
        await self._wait_for_workers(deadline + 0.5)
        left = max(0.5, min(self._timing.stop_grace, deadline - time.monotonic()))
        stopping = asyncio.gather(*(engine.stop(left) for engine in self.engines.values()))
        killed = asyncio.ensure_future(self._killed.wait())
        either: set[asyncio.Future[Any]] = {stopping, killed}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        killed.cancel()
        await stopping

    async def _wait_for_workers(self, deadline: float) -> None:
        killed = asyncio.ensure_future(self._killed.wait())
        while self._worker_tasks and not self._killed.is_set():
            left = deadline - time.monotonic()
            if left <= 0:
                break
            await asyncio.wait(
                {*self._worker_tasks, killed}, timeout=left, return_when=asyncio.FIRST_COMPLETED
            )
        killed.cancel()
        for worker in self._workers.values():
            _log.warning("worker %d: not done in time; it is ended", worker.number)
            worker.kill()
        if self._worker_tasks:
            await asyncio.wait(self._worker_tasks)

    async def _close(self) -> None:
        """Give everything back; also after a start that failed half way."""
        for worker in self._workers.values():
            worker.kill()
        for engine in self.engines.values():
            engine.kill()
        if self._worker_tasks:
            await asyncio.wait(self._worker_tasks)
        await asyncio.gather(*(engine.stop(0) for engine in self.engines.values()))
        for task in self._tasks:
            task.cancel()
        for part in reversed(self._started_parts):
            await part.close()
        if self.address:
            self.event("server.stop", target=self.address)
        await self.audit.close()
        if self._control is not None:
            self._control.close()
        for listener in self._listeners.values():
            listener.close()
        for table in self._tables.values():
            table.close()
        self._lock.release()

    def _spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _fail(self, message: str) -> None:
        self._failure = self._failure or StartError(message)
        self._killed.set()
        self._end.set()

    def end(self) -> None:
        """Begin the ordered end."""
        self._end.set()

    # ------------------------------------------------------------------ signals

    def _signals(self) -> dict[signal.Signals, Callable[[], None]]:
        return {
            signal.SIGTERM: self.handle_terminate,
            signal.SIGINT: self.handle_interrupt,
            signal.SIGHUP: self.handle_hangup,
            signal.SIGUSR2: self.handle_user2,
        }

    def handle_terminate(self) -> None:
        self.end()

    def handle_interrupt(self) -> None:
        if self._end.is_set():
            self._killed.set()
            for worker in self._workers.values():
                worker.kill()
            for engine in self.engines.values():
                engine.kill()
        self._end.set()

    def handle_hangup(self) -> None:
        try:
            self.reload()
        except ConfigError as error:
            _log.error("the configuration is not reloaded, the old one stays: %s", error)
            self.event("config.reload", result="failure", reason=str(error))

    def handle_user2(self) -> None:
        self._spawn(self._replace_workers())

    # ------------------------------------------------------------------ configuration

    def reload(self) -> tuple[list[str], list[str]]:
        """Read the configuration again and take over what may change: (taken over, needing a restart).

        Workers are told in any case, since the content of a certificate may have changed. Raises ConfigError.
        """
        if self._reload is None:
            raise ConfigError("this server has no configuration to reload")
        loaded = self._reload()
        settings, taken, left = config.merge_reload(self.settings, loaded.settings)
        self._take_over(settings)
        if left:
            _log.warning("changed, but needing a restart: %s", ", ".join(left))
        _log.info("configuration reloaded: %s", ", ".join(taken) or "no key changed")
        self.event("config.reload", reason=", ".join(taken) or "no key changed")
        return taken, left

    def change(self, changes: Mapping[str, Any]) -> list[str]:
        """Change reloadable keys until the next start or reload. Raises ConfigError."""
        settings = config.with_changes(self.settings, changes)
        changed = config.changed_keys(self.settings, settings)
        self._take_over(settings)
        return changed

    def _take_over(self, settings: config.Settings) -> None:
        self.settings = settings
        if self._on_settings is not None:
            self._on_settings(settings)
        message = Reload(settings=config.encode(settings))
        for worker in self.workers():
            worker.send(message)

    # ------------------------------------------------------------------ workers

    def all_workers(self) -> list[WorkerProcess]:
        """Return the workers that run, ready or not."""
        return list(self._workers.values())

    def workers(self) -> list[WorkerProcess]:
        """Return the workers that answer."""
        return [worker for worker in self._workers.values() if worker.is_ready]

    def worker_ready(self, worker: WorkerProcess) -> None:
        self._was_worker_ready.set()
        _log.info("worker %d: ready", worker.number, extra={"fields": {"pid": worker.pid}})
        for engine in self.engines.values():
            engine.attach(worker)

    def _start_worker(self) -> asyncio.Event:
        """Keep one more worker running; return the event of its first readiness."""
        ready = asyncio.Event()
        task = asyncio.get_running_loop().create_task(self._keep_worker(ready))
        self._worker_tasks.add(task)
        task.add_done_callback(self._worker_tasks.discard)
        return ready

    async def _keep_worker(self, ready: asyncio.Event) -> None:
        backoff = Backoff(self._timing.backoff_first, self._timing.backoff_max, self._timing.stable_after)
        failed_starts = 0
        while not self._end.is_set():
            number, self._next_worker = self._next_worker, self._next_worker + 1
            worker = WorkerProcess(
                number, self, program=self._programs.worker, first_ready=ready, timing=self._timing
            )
            began = time.monotonic()
            status = await self._one_worker(worker)
            if self._end.is_set() or worker.is_draining:
                return
            if not worker.was_ready and not self._was_worker_ready.is_set():
                failed_starts += 1
                if failed_starts >= MAX_FAILED_STARTS:
                    self._fail(f"the front worker ends as it starts (exit {status}); its log above says why")
                    return
            delay = backoff.next_delay(time.monotonic() - began)
            _log.error("worker %d: ended (status %d); a new one starts in %.1f s", number, status, delay)
            if self._metrics is not None:
                self._metrics.worker_restarted()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._end.wait(), max(delay, 0.001))

    async def _one_worker(self, worker: WorkerProcess) -> int:
        settings = WorkerSettings(
            version=PROTOCOL_VERSION,
            worker=worker.number,
            settings=config.encode(self.settings),
            secrets=self._secrets,
            listeners=list(self._listeners),
            shared=list(self._tables),
            table_arguments={
                name: table.worker_started(worker.number) for name, table in self._tables.items()
            },
            models=[self._model_entry(name) for name in self.models.names()],
        )
        descriptors = [listener.fileno() for listener in self._listeners.values()]
        descriptors += [table.fd for table in self._tables.values()]
        extra = {}
        if self._metrics is not None:
            extra["PROMETHEUS_MULTIPROC_DIR"] = os.environ["PROMETHEUS_MULTIPROC_DIR"]
        self._workers[worker.number] = worker
        try:
            return await worker.run(settings, descriptors, child_environment(os.environ, extra))
        except OSError as error:
            _log.error("worker %d: cannot be started: %s", worker.number, error.strerror)
            return 127
        finally:
            del self._workers[worker.number]
            for table in self._tables.values():
                table.worker_gone(worker.number)
            if self._metrics is not None and worker.pid is not None:
                self._metrics.worker_ended(worker.pid)

    async def _replace_workers(self) -> None:
        """Start a new worker for each one and let the old one finish its streams. One replacement after the other."""
        async with self._replacing:
            for old in [worker for worker in self.workers() if not worker.is_draining]:
                # The shared tables have room for each worker and one that leaves.
                while self._num_draining() >= self.settings.server.workers:
                    await asyncio.wait(self._worker_tasks, return_when=asyncio.FIRST_COMPLETED)
                ready = self._start_worker()
                await ready.wait()
                old.drain(self.settings.engine.request_timeout_seconds)
            _log.info("workers replaced")

    def _num_draining(self) -> int:
        return sum(worker.is_draining for worker in self._workers.values())

    def _model_entry(self, name: str) -> dict[str, Any]:
        engine = self.engines.get(name)
        if engine is None:
            return {"name": name, "state": "unloaded", "detail": ""}
        state = "loading" if engine.state == "ready" else engine.state  # EngineUp follows with the connection
        return {"name": name, "state": state, "detail": engine.detail}

    # ------------------------------------------------------------------ engines

    def start_engine(self, name: str) -> EngineProcess:
        engine = self.engines.get(name)
        if engine is None or engine.state in ("unloaded", "refused"):
            settings = self.models.engine_settings(name)
            if engine is None:
                engine = EngineProcess(settings, self, program=self._programs.engine, timing=self._timing)
                self.engines[name] = engine
            else:
                engine.settings = settings
            engine.start()
        return engine

    async def check_model(self, name: str) -> dict[str, Any]:
        """Verify a model's files now, whether it is loaded or not; one check at a time. Raises ApiError."""
        settings = self.models.engine_settings(name)
        if self._checking.locked():
            raise ApiError("conflict", "Another model is being verified; ask again when that is done.", param="name")
        async with self._checking:
            return await check_model(settings, program=self._programs.engine, timing=self._timing)

    async def remove_model(self, name: str, *, delete_files: bool) -> int:
        """Forget a model that was added and is not loaded; return how many files were deleted. Raises ApiError."""
        engine = self.engines.get(name)
        if engine is not None and engine.state not in ("unloaded", "refused"):
            raise ApiError("conflict", "The model is loaded; unload it first.", param="name")
        num_deleted = self.models.remove(name, delete_files=delete_files)
        if engine is not None:
            engine.forget()
            del self.engines[name]
        return num_deleted

    def engine_changed(self, engine: EngineProcess) -> None:
        if self._metrics is not None:
            self._metrics.update(
                engine.name,
                engine.generation,
                engine.stats,
                is_up=engine.state == "ready",
                is_wanted=engine.state != "unloaded",
                num_restarts=engine.num_restarts,
            )

    def engine_loaded(self, settings: EngineSettings, calibration: dict[str, Any]) -> None:
        self.models.loaded(settings, calibration)

    def model_verified(self, settings: EngineSettings, stamps: list[Stamp], message: ModelVerified) -> dict[str, str]:
        return self.models.verified(settings, stamps, message)

    async def _announce_when_decided(self) -> None:
        await self._was_worker_ready.wait()
        await asyncio.gather(*(engine.settled.wait() for engine in self.engines.values()))
        if not any(engine.state == "ready" for engine in self.engines.values()):
            _log.warning("no model is served: /readyz answers 503 until one is loaded")
        if self._announce is not None:
            found = summary.facts(
                self.settings, self.address, list(self.engines.values()), self.loaded.not_built
            )
            self._announce(found)

    # ------------------------------------------------------------------ events

    def event(self, event: str, *, target: str = "", result: str = "success", reason: str = "") -> None:
        """Put an event of the server itself into the audit."""
        self.audit.note(server_event(event, target=target, result=result, reason=reason))


def _raise_descriptor_limit() -> None:
    """Allow as many open connections as the system does; children inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
