"""The engine process of one model, from load to unload: started, watched, replaced, given up.

    unloaded → loading → ready → restarting → ready …      loading → refused (the engine said why)
                                      └→ refused (died too often before it was ready)

Owns this life and the connections between the engine and each worker. Knows nothing of HTTP, and of the model only
what the engine reports; treats every message as untrusted. Runs in the supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any, Literal, Protocol

from msgspec.structs import replace

from ..messages import (
    AttachWorker,
    Drain,
    EngineGone,
    EngineReady,
    EngineSettings,
    EngineStats,
    EngineToSupervisor,
    EngineUp,
    LoadProgress,
    LogLine,
    ModelInfo,
    ModelRefused,
    ModelVerified,
    Pong,
    SupervisorToEngine,
    TemplateChild,
    TemplateWanted,
)
from ..modelfile import Stamp
from .backoff import Backoff
from .process import ENGINE_DEFAULTS, Child, Timing, child_environment, spawn
from .template_process import TemplateSupply
from .worker_process import WorkerProcess

State = Literal["unloaded", "loading", "ready", "restarting", "refused"]
MAX_LINES_PER_SECOND = 100  # of an engine's own log; more are counted, not shown
MAX_CALIBRATION_ITEMS = 256
# Refusals that say nothing of the file: a machine without breath gave no template child in time. Tried again.
_PASSING_REASONS = frozenset({"template-unchecked"})
_TEMPLATE = "template_"  # before the names of what is in force in the template child
_log = logging.getLogger("inferno.pool")
_engine_log = logging.getLogger("inferno.engine")
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class EngineHost(Protocol):
    """What an engine process needs of the supervisor."""

    def workers(self) -> list[WorkerProcess]: ...
    def engine_changed(self, engine: EngineProcess) -> None: ...
    def engine_loaded(self, settings: EngineSettings, calibration: dict[str, Any]) -> None: ...
    def model_verified(self, settings: EngineSettings, stamps: list[Stamp], message: ModelVerified) -> dict[str, str]: ...
    def event(self, event: str, *, target: str = "", result: str = "success", reason: str = "") -> None: ...


class EngineProcess:
    """One model's engine."""

    def __init__(
        self,
        settings: EngineSettings,
        host: EngineHost,
        *,
        program: str,
        environment: dict[str, str] | None = None,
        timing: Timing | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.name = settings.name
        self.state: State = "unloaded"
        self.detail = ""
        self.generation = 0
        self.num_restarts = 0
        self.info: ModelInfo | None = None
        self.stats = EngineStats()
        self.progress = ("", 0.0)
        self._stamps: list[Stamp | None] | None = None  # of the files, from a start until they are verified
        self.settled = asyncio.Event()  # ready, refused or unloaded: a load is decided
        self._host = host
        self._program = program
        self._environment = (
            ENGINE_DEFAULTS | child_environment(os.environ) if environment is None else environment
        )
        self._timing = timing or Timing()
        self._clock = clock
        self._child: Child | None = None
        self._template = TemplateSupply(settings.name)
        self._supplying: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._refusal: ModelRefused | None = None
        self._failed_loads = 0
        self._lines = _LineLimit(clock)

    # ------------------------------------------------------------------ the supervisor's side

    def start(self) -> None:
        """Load the model, or load it again after a refusal or an unload."""
        if self._task is not None and not self._task.done():
            return
        self._stop.clear()
        self.settled.clear()
        self._failed_loads = 0
        self._change("loading", "")
        self._task = asyncio.get_running_loop().create_task(self._live(), name=f"engine {self.name}")

    async def stop(self, grace_seconds: float) -> None:
        """Let running work finish within `grace_seconds`, then end the process."""
        self._stop.set()
        child = self._child
        if child is not None and self.state != "ready":
            child.kill()  # it serves nobody yet, and a load listens to nothing
        elif child is not None:
            child.send(Drain(grace_seconds=grace_seconds))
            if not await child.wait_at_most(grace_seconds + 0.5):
                _log.warning("engine %s: not done within %.0f s; it is ended", self.name, grace_seconds)
                child.kill()
        if self._task is not None:
            await self._task

    def kill(self) -> None:
        self._stop.set()
        if self._child is not None:
            self._child.kill()

    def forget(self) -> None:
        """Be as if never loaded: for a model that is removed, loaded or refused no more."""
        self._change("unloaded", "")

    def send(self, message: SupervisorToEngine) -> bool:
        """Send to the engine when it is up."""
        return self._child is not None and self._child.send(message)

    def attach(self, worker: WorkerProcess) -> None:
        """Give a worker and this engine, when it is ready, the two ends of a new connection."""
        if self.state != "ready" or self.info is None:
            if self.state in ("refused", "restarting", "unloaded"):
                worker.send(self._gone())
            return
        connection = self.connect(worker.number)
        if connection is not None:
            with connection:
                message = EngineUp(model=self.name, generation=self.generation, info=self.info)
                worker.send(message, [connection.fileno()])

    def connect(self, worker: int) -> socket.socket | None:
        """Give the engine one end of a new connection, for requests of `worker`, and return the other."""
        engine_end, worker_end = socket.socketpair()
        with engine_end:
            if self._child is not None and self._child.send(
                AttachWorker(worker=worker), [engine_end.fileno()]
            ):
                return worker_end
        worker_end.close()
        return None

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    # ------------------------------------------------------------------ the engine's life

    async def _live(self) -> None:
        backoff = Backoff(self._timing.backoff_first, self._timing.backoff_max, self._timing.stable_after)
        while not self._stop.is_set():
            began = self._clock()
            status = await self._one_life()
            was_ready = self.state == "ready"
            if self._stop.is_set():
                break
            refusal = self._refusal
            if refusal is not None and refusal.reason not in _PASSING_REASONS:
                self._refuse(refusal.reason, refusal.detail)
                return
            self._count_crash(status, was_ready)
            if self._failed_loads >= self._timing.max_failed_loads:
                if refusal is not None:
                    self._refuse(refusal.reason, refusal.detail)
                    return
                self._refuse(
                    "load-failed", f"the engine ended {self._failed_loads} times while it loaded the model"
                )
                return
            delay = backoff.next_delay(self._clock() - began)
            self._change(
                "restarting", f"{_ending(status)}; starting again", retry_after=max(1.0, delay + 1.0)
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), max(delay, 0.001))
        self._change("unloaded", "")
        self.settled.set()

    async def _one_life(self) -> int:
        """Start the process and stay until it ends; return its exit status."""
        self.generation += 1
        self._refusal = None
        self.stats = EngineStats()
        self._stamps = [Stamp.at(path) for path in self.settings.paths]
        try:
            child = await spawn(
                f"engine {self.name}",
                self._program,
                kind=EngineToSupervisor,
                environment=self._environment,
                on_message=self._received,
                on_line=self._printed,
                timing=self._timing,
            )
        except OSError as error:
            _log.error("engine %s: cannot be started: %s", self.name, error.strerror)
            return 127
        self._child = child
        if self._stop.is_set():  # asked to stop while the process was being started: nobody else will end it
            child.kill()
        _log.info(
            "engine %s: started",
            self.name,
            extra={"fields": {"pid": child.pid, "generation": self.generation}},
        )
        child.send(self.settings)
        ping = asyncio.get_running_loop().create_task(
            child.ping_until_silent(self._timing, lambda: self.state != "ready")
        )
        try:
            return await child.wait()
        finally:
            ping.cancel()
            self._child = None
            if self._supplying is not None:
                self._supplying.cancel()
                await asyncio.wait({self._supplying})
            await self._template.end()

    def _supply_template(self, child: Child) -> None:
        """Answer TemplateWanted; one at a time, an engine that asks twice gets one answer."""
        if self._supplying is None or self._supplying.done():
            self._supplying = asyncio.get_running_loop().create_task(self._give_template(child))

    async def _give_template(self, child: Child) -> None:
        try:
            pid, engine_end = await self._template.replace()
        except OSError as error:
            _log.error("engine %s: no template child: %s", self.name, error.strerror)
            child.send(TemplateChild())
            return
        with engine_end:
            child.send(TemplateChild(pid=pid), [engine_end.fileno()])

    def _count_crash(self, status: int, was_ready: bool) -> None:
        self.num_restarts += 1
        self._failed_loads = 0 if was_ready else self._failed_loads + 1
        reason = _ending(status)
        _log.error(
            "engine %s: ended (%s)", self.name, reason, extra={"fields": {"generation": self.generation}}
        )
        self._host.event("engine.crash", target=self.name, result="error", reason=reason)

    def _refuse(self, reason: str, detail: str) -> None:
        text = f"{reason}: {detail}" if detail else reason
        _log.error("model %s is refused: %s", self.name, text)
        self._host.event("model.refused", target=self.name, result="failure", reason=text)
        self._change("refused", text)
        self.settled.set()

    def _change(self, state: State, detail: str, *, retry_after: float = 5.0) -> None:
        self.state, self.detail = state, detail
        if state != "ready":
            self.info = None if state in ("refused", "unloaded") else self.info
            gone = self._gone(retry_after)
            for worker in self._host.workers():
                worker.send(gone)
        self._host.engine_changed(self)

    def _gone(self, retry_after: float = 5.0) -> EngineGone:
        state = "restarting" if self.state == "ready" else self.state
        return EngineGone(
            model=self.name,
            generation=self.generation,
            state=state,
            detail=self.detail[:500],
            retry_after=retry_after,
        )

    # ------------------------------------------------------------------ what the engine says

    def _received(self, message: Any, descriptors: list[int]) -> None:
        for number in descriptors:  # none is ever expected
            os.close(number)
        child = self._child
        if child is None:
            return
        child.heard()
        match message:
            case Pong():
                self.stats = message.stats or self.stats
                self._host.engine_changed(self)
            case TemplateWanted():
                self._supply_template(child)
            case LogLine():
                self._logged(_LEVELS[message.level], message.text)
            case LoadProgress():
                self._progressed(message)
            case ModelVerified():
                self._verified(message)
            case EngineReady():
                self._ready(message)
            case ModelRefused():
                self._refusal = message

    def _progressed(self, message: LoadProgress) -> None:
        fraction = min(max(message.fraction, 0.0), 1.0) if message.fraction == message.fraction else 0.0
        stage, before = self.progress
        self.progress = (message.stage, fraction)
        if message.stage != stage or int(fraction * 4) > int(before * 4):
            _log.info("model %s: %s %.0f %%", self.name, message.stage, fraction * 100)

    def _verified(self, message: ModelVerified) -> None:
        """Believed once in a life, and before llama.cpp sees the file: what is said later may be the file's own word."""
        if self._stamps is None or self.progress[0] != "verify" or self.state == "ready":
            return
        before, self._stamps = self._stamps, None
        stamps = [stamp for stamp in before if stamp is not None]
        if len(stamps) < len(before) or stamps != [Stamp.at(path) for path in self.settings.paths]:
            return  # changed meanwhile: the engine has its own bytes, but nothing is known of the file
        self._host.event("model.verified", target=self.name, reason=", ".join(message.sha256 or message.policy))
        # For a restart. What may be skipped then is the registry's to say: with verify = "always" nothing.
        known = self._host.model_verified(self.settings, stamps, message)
        self.settings = replace(self.settings, known_files=known)

    def _ready(self, message: EngineReady) -> None:
        if self.state == "ready" or self._stop.is_set():
            return
        self.info = replace(message.model, name=self.name)
        if len(message.calibration) <= MAX_CALIBRATION_ITEMS:
            self._host.engine_loaded(self.settings, message.calibration)
            self.settings = replace(self.settings, calibration=message.calibration)
        self._failed_loads = 0
        self.state, self.detail = "ready", ""
        for worker in self._host.workers():
            self.attach(worker)
        self._host.event("model.load", target=self.name, reason=message.model.sha256)
        self._record_sandbox(message.model.sandbox)
        self._host.engine_changed(self)
        self.settled.set()

    def _record_sandbox(self, sandbox: dict[str, str]) -> None:
        """Put what is in force into the audit, the engine's and its template child's each in a record of its own."""
        own = {name: value for name, value in sandbox.items() if not name.startswith(_TEMPLATE)}
        childs = {
            name.removeprefix(_TEMPLATE): value
            for name, value in sandbox.items()
            if name.startswith(_TEMPLATE)
        }
        for target, pieces in ((self.name, own), (f"{self.name}, template child", childs)):
            if pieces:
                reason = ", ".join(f"{name}={value}" for name, value in pieces.items())
                self._host.event("sandbox.state", target=target, reason=reason)

    def _printed(self, line: str) -> None:
        self._logged(logging.WARNING, line)

    def _logged(self, level: int, text: str) -> None:
        skipped = self._lines.admit()
        if skipped is None:
            return
        if skipped:
            _engine_log.warning("%d lines left out", skipped, extra={"fields": {"model": self.name}})
        _engine_log.log(level, "%s", text, extra={"fields": {"model": self.name}})


class _LineLimit:
    """Admits so many lines a second: a number of lines left out before this one, or None for "leave out"."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._second = 0
        self._count = 0
        self._skipped = 0

    def admit(self) -> int | None:
        second = int(self._clock())
        if second != self._second:
            self._second, self._count = second, 0
        self._count += 1
        if self._count > MAX_LINES_PER_SECOND:
            self._skipped += 1
            return None
        skipped, self._skipped = self._skipped, 0
        return skipped


def _ending(status: int) -> str:
    if status >= 0:
        return f"exit {status}"
    with contextlib.suppress(ValueError):
        return f"signal {signal.Signals(-status).name}"
    return f"signal {-status}"
