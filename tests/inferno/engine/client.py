"""A thin client of a real engine process: starts it as the supervisor would, speaks the messages over socketpairs."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inferno.engine.template_spawn import Spawned, program
from inferno.ipc import BlockingChannel
from inferno.messages import (
    MAX_CONTROL_FRAME,
    MAX_ENGINE_FRAME,
    PROTOCOL_VERSION,
    AttachWorker,
    Cancel,
    ChatPrompt,
    Detokenized,
    EngineHello,
    EngineReady,
    EngineSettings,
    EngineToFront,
    EngineToSupervisor,
    Failed,
    LogLine,
    ModelRefused,
    ModelVerified,
    Ping,
    Pong,
    Prepare,
    Prepared,
    Sampling,
    Start,
    Step,
    TemplateChild,
    TemplateWanted,
    TextPrompt,
    TokenLogprob,
    TokenPrompt,
    Usage,
)
from inferno.pool.process import ENGINE_DEFAULTS

ALICE = b"alice-0000000000"
BOB = b"bob-000000000000"
GREEDY = Sampling(temperature=0.0)


@dataclass
class Answer:
    """All that came for one request, by choice."""

    texts: dict[int, str] = field(default_factory=dict)
    finishes: dict[int, str] = field(default_factory=dict)
    usages: dict[int, Usage] = field(default_factory=dict)
    logprobs: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    num_tokens: dict[int, int] = field(default_factory=dict)
    times: list[float] = field(default_factory=list)
    failed: Failed | None = None
    prepared: Prepared | None = None

    @property
    def text(self) -> str:
        return self.texts.get(0, "")

    def is_over(self, num_choices: int = 1) -> bool:
        return self.failed is not None or len(self.finishes) >= num_choices


class EngineFailed(Exception):
    def __init__(self, message: ModelRefused | None) -> None:
        super().__init__(str(message))
        self.message = message


class Worker:
    """One front worker's connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.channel = BlockingChannel(sock, EngineToFront, max_frame_bytes=MAX_ENGINE_FRAME)
        self.sock = sock
        self.answers: dict[int, Answer] = {}
        self._next = 1
        hello = self._receive(120.0)
        if not isinstance(hello, EngineHello):
            raise AssertionError(hello)
        self.model = hello.model
        self.num_steps = 0
        self.is_closed = False
        self.detokenized: dict[int, bytes] = {}

    def _receive(self, timeout: float) -> Any:
        if not self.channel._ready:
            ready, _, _ = select.select([self.sock], [], [], timeout)
            if not ready:
                raise TimeoutError("the engine says nothing")
        received = self.channel.receive()
        return None if received is None else received[0]

    def prepare(self, prompt: str | list[int] | ChatPrompt, *, principal: bytes = ALICE, wait: bool = True,
                want_tokens: bool = False, timeout: float = 120.0) -> int:  # fmt: skip
        number = self._next
        self._next += 1
        self.answers[number] = Answer()
        if isinstance(prompt, str):
            message: Any = TextPrompt(text=prompt)
        elif isinstance(prompt, list):
            message = TokenPrompt(tokens=prompt)
        else:
            message = prompt
        self.channel.send(
            Prepare(request=number, principal=principal, prompt=message, want_tokens=want_tokens)
        )
        if wait:
            self.wait(lambda: self.answers[number].prepared or self.answers[number].failed, timeout)
        return number

    def start(self, number: int, *, max_tokens: int = 16, sampling: Sampling = GREEDY, **options: Any) -> int:
        self.channel.send(Start(request=number, sampling=sampling, max_tokens=max_tokens, **options))
        return number

    def submit(
        self, prompt: str | list[int] | ChatPrompt, *, principal: bytes = ALICE, **options: Any
    ) -> int:
        number = self.prepare(prompt, principal=principal)
        return number if self.answers[number].failed else self.start(number, **options)

    def run(self, prompt: str | list[int] | ChatPrompt, timeout: float = 300.0, **options: Any) -> Answer:
        number = self.submit(prompt, **options)
        self.finish([number], options.get("num_choices", 1), timeout)
        return self.answers[number]

    def finish(self, numbers: list[int], num_choices: int = 1, timeout: float = 300.0) -> list[Answer]:
        self.wait(lambda: all(self.answers[n].is_over(num_choices) for n in numbers), timeout)
        return [self.answers[n] for n in numbers]

    def cancel(self, number: int) -> None:
        self.channel.send(Cancel(request=number))

    def wait(self, condition: Any, timeout: float = 120.0) -> None:
        """Take messages until `condition()`."""
        deadline = time.monotonic() + timeout
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the condition did not come true")
            self.take(left)

    def take(self, timeout: float = 120.0) -> bool:
        """Take one message. False: the engine closed the connection."""
        message = self._receive(timeout)
        match message:
            case None:
                self.is_closed = True
                raise ConnectionResetError("the engine closed the connection")
            case Step():
                self.num_steps += 1
                for event in message.events:
                    answer = self.answers[event.request]
                    choice = event.choice
                    answer.times.append(time.perf_counter())
                    answer.texts[choice] = answer.texts.get(choice, "") + event.text
                    answer.num_tokens[choice] = answer.num_tokens.get(choice, 0) + event.num_tokens
                    if event.logprobs:
                        answer.logprobs.setdefault(choice, []).extend(event.logprobs)
                    if event.finish:
                        answer.finishes[choice] = event.finish
                        if event.usage is None:
                            raise AssertionError("a finish without usage")
                        answer.usages[choice] = event.usage
            case Prepared():
                self.answers[message.request].prepared = message
            case Failed():
                self.answers.setdefault(message.request, Answer()).failed = message
            case Detokenized():
                self.detokenized[message.request] = message.data
            case _:
                raise AssertionError(message)
        return True

    def close(self) -> None:
        self.channel.close()


class EngineUnderTest:
    """A running engine process."""

    def __init__(
        self,
        path: Path | str,
        *,
        timeout: float = 300.0,
        program: tuple[str, ...] = ("-m", "inferno.engine.main"),
        **settings: Any,
    ) -> None:
        ours, theirs = socket.socketpair()
        environment = {"LANG": "C.UTF-8", **ENGINE_DEFAULTS}
        self.process = subprocess.Popen(
            [sys.executable, "-I", *program, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment,
            cwd="/",
            start_new_session=True,
        )
        theirs.close()
        self.control = BlockingChannel(ours, EngineToSupervisor, max_frame_bytes=MAX_CONTROL_FRAME)
        self._sock = ours
        self.log: list[LogLine] = []
        self.progress: list[str] = []
        self.verified: ModelVerified | None = None
        self.ready: EngineReady | None = None
        self._workers = 0
        self._attached: list[Worker] = []
        self._serial = 0
        self.children: list[Spawned] = []
        options: dict[str, Any] = {
            "slots": 4,
            "context_size": 512,
            "threads": 1,
            "flash_attention": "off",
            **settings,
        }
        self.control.send(EngineSettings(version=PROTOCOL_VERSION, name="demo", paths=[str(path)], **options))
        deadline = time.monotonic() + timeout
        while self.ready is None:
            message = self.receive(deadline - time.monotonic())
            match message:
                case EngineReady():
                    self.ready = message
                case ModelRefused():
                    self.process.wait(60)
                    self.close()
                    raise EngineFailed(message)
                case LogLine():
                    self.log.append(message)
                case None:
                    self.process.wait(60)
                    self.close()
                    raise EngineFailed(None)
                case ModelVerified():
                    self.verified = message
                case _:
                    self.progress.append(message.stage)

    def receive(self, timeout: float) -> Any:
        if not self.control._ready:
            ready, _, _ = select.select([self._sock], [], [], max(timeout, 0))
            if not ready:
                raise TimeoutError("the engine says nothing")
        received = self.control.receive()
        if received is not None and isinstance(received[0], TemplateWanted):
            self._supply_template()
            return self.receive(timeout)
        return None if received is None else received[0]

    def _supply_template(self) -> None:
        """Start a template child as the supervisor does, in place of the one before."""
        for child in self.children:
            child.end()
        child = program(sys.executable)()
        self.children = [child]
        self.control.send(TemplateChild(pid=child.pid), [child.socket.fileno()])
        child.socket.close()

    def attach(self) -> Worker:
        ours, theirs = socket.socketpair()
        self._workers += 1
        self.control.send(AttachWorker(worker=self._workers), [theirs.fileno()])
        theirs.close()
        worker = Worker(ours)
        self._attached.append(worker)
        return worker

    def ping(self, timeout: float = 60.0) -> Pong:
        self._serial += 1
        self.control.send(Ping(serial=self._serial))
        deadline = time.monotonic() + timeout
        while True:
            message = self.receive(deadline - time.monotonic())
            if isinstance(message, Pong) and message.serial == self._serial:
                return message
            if isinstance(message, LogLine):
                self.log.append(message)
            elif message is None:
                raise ConnectionResetError("the engine is gone")

    def wait_until_idle(self) -> Pong:
        """Return the answer to a ping once nothing runs, waits or lies in the memory of slots: that is a moment after the
        last answer ended."""
        deadline = time.monotonic() + 60
        while True:
            pong = self.ping()
            stats = pong.stats
            if stats is not None and not (stats.running or stats.waiting or stats.kv_used_tokens):
                return pong
            if time.monotonic() > deadline:
                raise TimeoutError(f"still busy: {stats}")

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        for worker in self._attached:
            worker.close()
        self.control.close()
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(60)
        for child in self.children:
            child.end()

    def __enter__(self) -> EngineUnderTest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
