"""An engine without a model: speaks inferno.messages over a socketpair, in a thread of the test's process.

A byte tokenizer (id = byte; 256 begins, 257 ends) and a model that repeats the last message, one token a step. What a
message starts with can ask for more:

    !fail CODE        prepare fails with this code         !die     the connection ends while generating
    !late CODE        generation fails after two tokens    !hang    no token ever comes
    !noise            as many random letters as max_tokens, from the seed
    !slow             a step of 50 ms                       !hold    two tokens, the others when `let_go` is set

Keeps what it was told in `log`, so that tests can see that nothing is started twice or left behind.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from typing import Any

from inferno.errors import ProtocolError
from inferno.ipc import BlockingChannel
from inferno.messages import (
    MAX_ENGINE_FRAME,
    PROTOCOL_VERSION,
    Cancel,
    ChatPrompt,
    Detokenize,
    Detokenized,
    Drop,
    EngineHello,
    Event,
    Failed,
    FrontToEngine,
    ModelInfo,
    Prepare,
    Prepared,
    Start,
    Step,
    TextPrompt,
    TokenLogprob,
    TokenPrompt,
    Usage,
)

BOS, EOS = 256, 257
VOCAB_SIZE = 258


def fake_info(name: str = "fake", context_size: int = 4096) -> ModelInfo:
    return ModelInfo(
        name=name,
        context_size=context_size,
        slots=8,
        vocab_size=VOCAB_SIZE,
        fingerprint="fp_fake",
        has_chat_template=True,
        created=1_700_000_000,
    )


def render(messages: list[dict[str, Any]]) -> str:
    return "".join(f"<{message['role']}>{message['content']}" for message in messages) + "<assistant>"


class _Choice:
    """One running choice: the bytes still to come, and what is held back for a stop string or a code point."""

    def __init__(self, start: Start, index: int, answer: bytes, num_prompt: int, step_seconds: float) -> None:
        self.start = start
        self.index = index
        self.answer = answer
        self.num_prompt = num_prompt
        self.step_seconds = step_seconds
        self.num_done = 0
        self.pending = b""
        self.held = ""
        self.finish: str | None = None

    def step(self) -> Event | None:
        """Sample one token; return what may be shown."""
        start = self.start
        logprobs = None
        text = ""
        if self.num_done < len(self.answer):
            token = self.answer[self.num_done : self.num_done + 1]
            self.num_done += 1
            self.pending += token
            if start.top_logprobs is not None:
                top = [(token, -0.25), (b"?", -1.5)][: start.top_logprobs]
                logprobs = [TokenLogprob(token, -0.25, top, token[0])]
            try:
                text = self.pending.decode()
                self.pending = b""
            except UnicodeDecodeError:
                text = ""
        else:
            self.num_done += 1
            self.finish = "stop"
        self.held += text
        shown = self._cut()
        if self.finish is None and self.num_done >= start.max_tokens:
            self.finish = "length"
            shown += self.held
            self.held = ""
        elif self.finish == "stop" and self.held and not any(stop in self.held for stop in start.stop):
            shown += self.held
            self.held = ""
        usage = None
        if self.finish is not None:
            usage = Usage(self.num_prompt, self.num_done, 0, 0.001, 0.002, 0.003)
        return Event(start.request, self.index, 1, shown, logprobs, self.finish, usage)  # type: ignore[arg-type]

    def _cut(self) -> str:
        for stop in self.start.stop:
            at = self.held.find(stop)
            if at >= 0:
                shown, self.held, self.finish = self.held[:at], self.held[at:], "stop"
                return shown
        keep = 0
        for stop in self.start.stop:
            for length in range(1, len(stop)):
                if self.held.endswith(stop[:length]):
                    keep = max(keep, length)
        shown, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return shown


class FakeEngine:
    """One connection of one engine. `close` ends the thread."""

    def __init__(self, sock: socket.socket, info: ModelInfo | None = None) -> None:
        self.info = info or fake_info()
        self.log: list[Any] = []
        self.let_go = threading.Event()
        self._channel = BlockingChannel(sock, FrontToEngine, max_frame_bytes=MAX_ENGINE_FRAME)
        self._sock = sock
        self._prepared: dict[int, tuple[str, int]] = {}
        self._running: dict[int, list[_Choice]] = {}
        self._lock = threading.Lock()
        self._work = threading.Event()
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._read, daemon=True),
            threading.Thread(target=self._steps, daemon=True),
        ]
        self._channel.send(EngineHello(version=PROTOCOL_VERSION, model=self.info))
        for thread in self._threads:
            thread.start()

    @property
    def num_running(self) -> int:
        with self._lock:
            return len(self._running)

    def logged(self, kind: type) -> list[Any]:
        return [message for message in self.log if isinstance(message, kind)]

    def close(self) -> None:
        self._is_closed = True
        self._work.set()
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(60)
        self._sock.close()

    def _read(self) -> None:
        while not self._is_closed:
            try:
                received = self._channel.receive()
            except (OSError, ProtocolError):
                break
            if received is None:
                break
            self.log.append(received[0])
            try:
                self._handle(received[0])
            except OSError:
                break
        self._is_closed = True
        self._work.set()

    def _handle(self, message: Any) -> None:
        if isinstance(message, Prepare):
            self._prepare(message)
        elif isinstance(message, Start):
            self._start(message)
        elif isinstance(message, Drop):
            self._prepared.pop(message.request, None)
        elif isinstance(message, Cancel):
            with self._lock:
                self._running.pop(message.request, None)
            self._prepared.pop(message.request, None)
        elif isinstance(message, Detokenize):
            data = bytes(token for token in message.tokens if token < 256)
            self._channel.send(Detokenized(request=message.request, data=data))

    def _prepare(self, message: Prepare) -> None:
        prompt = message.prompt
        if isinstance(prompt, ChatPrompt):
            text, tail = render(prompt.messages), str(prompt.messages[-1]["content"])
            tokens = [BOS, *text.encode()]
        elif isinstance(prompt, TextPrompt):
            tail = prompt.text
            tokens = [*([BOS] if prompt.add_special else []), *prompt.text.encode()]
        else:
            assert isinstance(prompt, TokenPrompt)
            tokens = prompt.tokens
            tail = bytes(token for token in tokens if token < 256).decode("utf-8", "replace")
        if tail.startswith("!fail "):
            code = tail.split()[1]
            self._channel.send(
                Failed(request=message.request, code=code, message="As asked.", param="messages")
            )
            return
        left = self.info.context_size - len(tokens)
        if left < 1:
            text = f"The prompt has {len(tokens)} tokens, the context holds {self.info.context_size}."
            self._channel.send(
                Failed(
                    request=message.request, code="context_length_exceeded", message=text, param="messages"
                )
            )
            return
        self._prepared[message.request] = (tail, len(tokens))
        self._channel.send(
            Prepared(
                request=message.request,
                num_tokens=len(tokens),
                context_left=left,
                tokens=tokens if message.want_tokens else None,
            )
        )

    def _start(self, start: Start) -> None:
        tail, num_prompt = self._prepared.pop(start.request)
        choices = []
        for index in range(start.num_choices):
            answer = tail.encode()
            if tail.startswith("!noise"):
                seed = None if start.seed is None else start.seed + index
                source = random.Random(seed)
                answer = "".join(source.choices("abcdefgh", k=start.max_tokens)).encode()
            choices.append(
                _Choice(start, index, answer, num_prompt, 0.05 if tail.startswith("!slow") else 0.0)
            )
        with self._lock:
            self._running[start.request] = choices
        self._work.set()

    def _steps(self) -> None:
        while not self._is_closed:
            with self._lock:
                running = dict(self._running)
            if not running:
                self._work.wait()
                self._work.clear()
                continue
            try:
                self._step(running)
            except OSError:
                return

    def _step(self, running: dict[int, list[_Choice]]) -> None:
        events: list[Event] = []
        pause = 0.0
        failed: list[Failed] = []
        for request, choices in running.items():
            tail = choices[0].answer.decode("utf-8", "replace")
            if tail.startswith("!hang"):
                pause = max(pause, 0.02)
                continue
            if tail.startswith("!hold") and choices[0].num_done >= 2 and not self.let_go.is_set():
                pause = max(pause, 0.02)
                continue
            if tail.startswith("!die") and choices[0].num_done >= 2:
                self._is_closed = True
                self._sock.shutdown(socket.SHUT_RDWR)
                return
            if tail.startswith("!late ") and choices[0].num_done >= 2:
                failed.append(Failed(request=request, code=tail.split()[1], message="As asked, later."))
                continue
            for choice in choices:
                if choice.finish is None:
                    event = choice.step()
                    if event is not None:
                        events.append(event)
                    pause = max(pause, choice.step_seconds)
        done = [request for request, choices in running.items() if all(c.finish for c in choices)]
        with self._lock:
            for request in [*done, *(message.request for message in failed)]:
                self._running.pop(request, None)
        if events:
            self._channel.send(Step(events=events))
        for message in failed:
            self._channel.send(message)
        time.sleep(pause)
