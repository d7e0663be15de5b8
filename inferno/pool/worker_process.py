"""One front worker process: started with the settings, secrets, listeners and shared tables; watched; drained.

Owns its channel and what it asks: audit records go to the sink, questions to the verbs, each answered by serial.
Whether it is replaced is the supervisor's decision. Runs in the supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Sequence
from typing import Any, Protocol

from ..errors import ApiError
from ..messages import Answer, Ask, AuditAppend, Drain, Pong, WorkerReady, WorkerSettings, WorkerToSupervisor
from .audit_sink import AuditSink
from .process import Child, Timing, spawn
from .verbs import Caller, Verbs

MAX_OPEN_QUESTIONS = 1024  # of one worker
_log = logging.getLogger("inferno.pool")


class WorkerHost(Protocol):
    """What a worker process needs of the supervisor."""

    @property
    def verbs(self) -> Verbs: ...
    @property
    def audit(self) -> AuditSink: ...
    def worker_ready(self, worker: WorkerProcess) -> None: ...


class WorkerProcess:
    """One worker; `number` is never used twice."""

    def __init__(
        self,
        number: int,
        host: WorkerHost,
        *,
        program: str,
        first_ready: asyncio.Event | None = None,
        timing: Timing | None = None,
    ) -> None:
        self.number = number
        self.is_ready = False
        self.was_ready = False
        self.is_draining = False
        self._host = host
        self._program = program
        self._timing = timing or Timing()
        self._child: Child | None = None
        self._questions: set[asyncio.Task[None]] = set()
        self._ready = asyncio.Event()
        self._first_ready = first_ready or asyncio.Event()  # of a row of workers

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    async def run(
        self, settings: WorkerSettings, descriptors: Sequence[int], environment: dict[str, str]
    ) -> int:
        """Start the process and stay until it ends; return its exit status. Raises OSError."""
        child = await spawn(
            f"worker {self.number}",
            self._program,
            kind=WorkerToSupervisor,
            environment=environment,
            on_message=self._received,
            timing=self._timing,
        )
        self._child = child
        child.send(settings, descriptors)
        loop = asyncio.get_running_loop()
        watch = [
            loop.create_task(self._start_in_time()),
            loop.create_task(child.ping_until_silent(self._timing, lambda: not self.is_ready)),
        ]
        try:
            return await child.wait()
        finally:
            self.is_ready = False
            for task in watch:
                task.cancel()

    def send(self, message: Any, descriptors: Sequence[int] = ()) -> bool:
        """Send to the worker when it is up."""
        return self._child is not None and self._child.send(message, descriptors)

    def drain(self, grace_seconds: float) -> None:
        """Tell the worker to finish what it does and end."""
        self.is_draining = True
        self.send(Drain(grace_seconds=grace_seconds))

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()

    async def _start_in_time(self) -> None:
        try:
            await asyncio.wait_for(self._ready.wait(), self._timing.worker_start)
        except TimeoutError:
            # A supervisor that was itself held up has the worker's word still before it: it blames nobody.
            await asyncio.sleep(self._timing.ping_interval)
            if self._ready.is_set():
                return
            _log.error(
                "worker %d: not ready within %.0f s; it is replaced", self.number, self._timing.worker_start
            )
            self.kill()

    def _received(self, message: Any, descriptors: list[int]) -> None:
        for number in descriptors:  # none is ever expected
            os.close(number)
        if self._child is None:
            return
        self._child.heard()
        match message:
            case WorkerReady():
                if not self.is_ready:
                    self.is_ready = self.was_ready = True
                    self._ready.set()
                    self._first_ready.set()
                    self._host.worker_ready(self)
            case AuditAppend():
                self._begin(self._append(message))
            case Ask():
                self._begin(self._answer(message))
            case Pong():
                pass

    def _begin(self, question: Any) -> None:
        if len(self._questions) >= MAX_OPEN_QUESTIONS:
            _log.error(
                "worker %d: more than %d open questions; it is replaced", self.number, MAX_OPEN_QUESTIONS
            )
            question.close()
            self.kill()
            return
        task = asyncio.get_running_loop().create_task(question)
        self._questions.add(task)
        task.add_done_callback(self._questions.discard)

    async def _append(self, message: AuditAppend) -> None:
        answer = Answer(serial=message.serial)
        try:
            await self._host.audit.append(message.records, durable=message.durable)
        except ApiError as error:
            answer = _refusal(message.serial, error)
        except (ValueError, OSError) as error:
            _log.error("worker %d: audit records refused: %s", self.number, type(error).__name__)
            answer = Answer(serial=message.serial, error="audit_unavailable")
        self.send(answer)

    async def _answer(self, message: Ask) -> None:
        pid = self.pid or 0
        caller = Caller(kind="worker", pid=pid, uid=os.geteuid(), worker=self.number)
        try:
            answer = Answer(
                serial=message.serial,
                result=await self._host.verbs.call(message.what, message.arguments, caller),
            )
        except ApiError as error:
            answer = _refusal(message.serial, error)
        with contextlib.suppress(TypeError):  # a result that msgpack cannot carry is a verb's own fault
            self.send(answer)
            return
        _log.error("the verb %s answered something that cannot be sent", message.what)
        self.send(Answer(serial=message.serial, error="internal_error"))


def _refusal(serial: int, error: ApiError) -> Answer:
    return Answer(serial=serial, error=error.code, result={"message": error.message, "param": error.param})
