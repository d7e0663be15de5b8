"""One engine connection inside a front worker: prepare, start, drop, cancel, detokenize as an asyncio API.

Owns request ids of the connection, the queue of each call, and what happens to calls when the engine dies. Runs in
front workers. Does not know HTTP, credentials or limits; does not start or watch engines (pool/supervisor.py does).

Messages from the engine are untrusted: the framing is checked by inferno.ipc, and here every message must fit what was
asked. An answer to a request that was closed meanwhile is dropped; anything else that does not fit ends the connection.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable

import msgspec

from ..errors import EngineError, ProtocolError
from ..ipc import AsyncChannel
from ..messages import (
    MAX_ENGINE_FRAME,
    PROTOCOL_VERSION,
    Cancel,
    ChatPrompt,
    Detokenize,
    Detokenized,
    Drop,
    EngineHello,
    EngineToFront,
    Event,
    Failed,
    ModelInfo,
    Prepare,
    Prepared,
    Start,
    Step,
    TextPrompt,
    TokenPrompt,
)

Listener = Callable[[Event], bool]  # whether it took the event
MAX_WAITING_EVENTS = 65536  # of one call whose client does not read; then the call is cancelled
GONE_MESSAGE = "The engine stopped while it worked on this request."
RESTARTING_MESSAGE = "The model's engine is being replaced."


class _Request:
    """One engine request of a call: what was asked, and what may still come."""

    __slots__ = ("answer", "call", "open_choices", "started")

    def __init__(self, call: EngineCall) -> None:
        self.call = call
        self.answer: asyncio.Future[Prepared | Detokenized] | None = None
        self.started = False
        self.open_choices: set[int] = set()


class EngineCall:
    """The engine requests of one API call (several for a list of prompts), with one queue for all their events.

    `close` must be called once at the end, whatever happened: it drops what was only prepared and cancels what runs.
    """

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._requests: set[int] = set()
        self._events: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._error: EngineError | None = None
        self._listener: Listener | None = None  # of the one who waits
        self._closed = False

    @property
    def info(self) -> ModelInfo:
        return self._client.info

    @property
    def is_finished(self) -> bool:
        """Whether every started request came to its end."""
        return not self._requests

    async def prepare(
        self, principal: bytes, prompt: ChatPrompt | TextPrompt | TokenPrompt, *, want_tokens: bool = False
    ) -> Prepared:
        """Have the engine render and tokenize. The result's `request` names it in `start`. Raises EngineError."""
        number, request = self._client.register(self)
        answer = await self._ask(
            number,
            request,
            Prepare(request=number, principal=principal, prompt=prompt, want_tokens=want_tokens),
        )
        if not isinstance(answer, Prepared):
            raise EngineError("engine_failed", GONE_MESSAGE)
        return answer

    async def detokenize(self, tokens: list[int]) -> bytes:
        """Return the bytes that these token ids stand for."""
        number, request = self._client.register(self)
        answer = await self._ask(number, request, Detokenize(request=number, tokens=tokens))
        if not isinstance(answer, Detokenized):
            raise EngineError("engine_failed", GONE_MESSAGE)
        return answer.data

    def start(self, message: Start) -> None:
        """Queue a prepared request for generation."""
        request = self._client.requests.get(message.request)
        if request is None or request.call is not self or request.started:
            raise EngineError("engine_failed", GONE_MESSAGE)
        request.started = True
        request.open_choices = set(range(message.num_choices))
        self._client.send(message)

    async def events(
        self, timeout_seconds: float | None = None, listener: Listener | None = None
    ) -> list[Event]:
        """Return all events that wait, in order; wait for the first one. Empty: the timeout passed.

        While nothing waits, an event is offered to `listener` at the moment at which it comes, without a turn of the
        event loop; one that it declines is returned here, and so is all that comes after it. It must not raise.
        Raises EngineError when a request of this call failed or the engine is gone.
        """
        if not self._events and self._error is None:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            self._listener = listener
            timer = None
            if timeout_seconds is not None:
                timer = loop.call_later(timeout_seconds, self._wake)
            try:
                await self._waiter
            finally:
                self._waiter = self._listener = None
                if timer is not None:
                    timer.cancel()
        if self._events:
            events = list(self._events)
            self._events.clear()
            return events
        if self._error is not None:
            raise self._error
        return []

    def fail(self, error: EngineError) -> None:
        """End the call with this error: what waits in the queue is still delivered first."""
        if self._error is None:
            self._error = error
        self._wake()

    def close(self) -> None:
        """Give back everything that the engine still holds for this call; idempotent."""
        if self._closed:
            return
        self._closed = True
        for number in tuple(self._requests):
            self._client.forget(number)
        self._events.clear()
        if self._error is None:
            self._error = EngineError("engine_failed", "The call is closed.")
        self._wake()

    async def _ask(
        self, number: int, request: _Request, message: Prepare | Detokenize
    ) -> Prepared | Detokenized:
        answer: asyncio.Future[Prepared | Detokenized] = asyncio.get_running_loop().create_future()
        request.answer = answer
        self._client.send(message)
        try:
            return await answer
        finally:
            request.answer = None

    def _push(self, event: Event) -> None:
        listener = self._listener
        if listener is not None and not self._events and listener(event):
            return
        if len(self._events) >= MAX_WAITING_EVENTS:
            self._client.forget(event.request)
            self.fail(EngineError("overloaded", "The client reads too slowly."))
            return
        self._events.append(event)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class EngineClient:
    """One connection to one engine. `on_close` is called exactly once, when it ended for whatever reason."""

    def __init__(
        self, sock: socket.socket, info: ModelInfo, *, on_close: Callable[[EngineClient], None]
    ) -> None:
        self.info = info
        self.requests: dict[int, _Request] = {}
        self._channel = AsyncChannel(sock, EngineToFront, max_frame_bytes=MAX_ENGINE_FRAME)
        self._next_request = 1
        self._said_hello = False
        self._on_close = on_close

    @property
    def is_closed(self) -> bool:
        return self._channel.is_closed

    @property
    def num_requests(self) -> int:
        return len(self.requests)

    def start(self) -> None:
        """Begin to read. Must run on the event loop."""
        self._channel.start(self._on_message, self._closed)

    def open(self) -> EngineCall:
        return EngineCall(self)

    def close(self) -> None:
        self._channel.close()

    def register(self, call: EngineCall) -> tuple[int, _Request]:
        """Take a request id for a call. Ids are never used twice on a connection."""
        number = self._next_request
        self._next_request += 1
        request = self.requests[number] = _Request(call)
        call._requests.add(number)
        return number, request

    def send(self, message: Prepare | Start | Drop | Cancel | Detokenize) -> None:
        """Write a message; never blocks. Raises EngineError when the connection is gone or the engine does not read."""
        try:
            self._channel.send(message)
        except (ProtocolError, OSError):
            raise EngineError("engine_restarting", RESTARTING_MESSAGE) from None

    def forget(self, number: int) -> None:
        """Stop caring for a request and tell the engine so."""
        request = self.requests.pop(number, None)
        if request is None:
            return
        request.call._requests.discard(number)
        if request.answer is not None and not request.answer.done():
            request.answer.set_exception(EngineError("engine_failed", "The call is closed."))
        if self._channel.is_closed:
            return
        try:
            self.send(Cancel(request=number) if request.started else Drop(request=number))
        except EngineError:
            self._channel.close()

    def _on_message(self, message: object, descriptors: list[int]) -> None:
        try:
            if descriptors:
                raise ProtocolError("an engine sent descriptors")
            self._dispatch(message)
        except ProtocolError as error:
            self._channel.close(error)

    def _dispatch(self, message: object) -> None:
        if not self._said_hello:
            if not isinstance(message, EngineHello) or message.version != PROTOCOL_VERSION:
                raise ProtocolError("the first message is not a hello of this version")
            self._said_hello = True
            self.info = msgspec.structs.replace(message.model, name=self.info.name)
        elif isinstance(message, Step):
            for event in message.events:
                self._event(event)
        elif isinstance(message, Prepared | Detokenized):
            self._answer(message)
        elif isinstance(message, Failed):
            self._failed(message)
        else:
            raise ProtocolError("a message that does not belong here")

    def _event(self, event: Event) -> None:
        request = self.requests.get(event.request)
        if request is None:
            return  # cancelled meanwhile
        if event.choice not in request.open_choices or (event.finish is None) != (event.usage is None):
            raise ProtocolError("an event for nothing that runs")
        if event.finish is not None:
            request.open_choices.discard(event.choice)
            if not request.open_choices:
                del self.requests[event.request]
                request.call._requests.discard(event.request)
        request.call._push(event)

    def _answer(self, message: Prepared | Detokenized) -> None:
        request = self.requests.get(message.request)
        if request is None:
            return
        if request.answer is None or request.answer.done():
            raise ProtocolError("an answer to nothing that was asked")
        if isinstance(message, Detokenized):
            del self.requests[message.request]
            request.call._requests.discard(message.request)
        request.answer.set_result(message)

    def _failed(self, message: Failed) -> None:
        request = self.requests.pop(message.request, None)
        if request is None:
            return
        request.call._requests.discard(message.request)
        error = EngineError(
            message.code, message.message, param=message.param, retry_after=message.retry_after
        )
        if request.answer is not None and not request.answer.done():
            request.answer.set_exception(error)
        else:
            request.call.fail(error)

    def _closed(self, error: BaseException | None) -> None:
        requests, self.requests = self.requests, {}
        for number, request in requests.items():
            request.call._requests.discard(number)
            if request.answer is not None and not request.answer.done():
                request.answer.set_exception(EngineError("engine_restarting", RESTARTING_MESSAGE))
            if request.started:
                request.call.fail(EngineError("engine_failed", GONE_MESSAGE))
        self._on_close(self)
