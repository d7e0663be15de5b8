"""Answers that wait for tokens, on a clock of the test: heartbeats, lost rights, the end of the server, no retries."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from inferno.errors import CODES, ApiError, EngineError
from inferno.messages import Event, Usage
from inferno.pool.engines import Engines
from inferno.security.principal import Principal
from inferno.server.http import Context, error_reply, to_api_error
from inferno.server.output import Output
from inferno.server.pipeline import Run
from inferno.server.services import OpenAuthenticator, Services
from inferno.server.sse import HEARTBEAT, ChatFrames, stream_reply

from .harness import settings_for_tests


def token(text: str, finish: Any = None) -> Event:
    usage = Usage(3, 2, 0, 0.0, 0.0, 0.0) if finish else None
    return Event(1, 0, 1, text, None, finish, usage)


class FakeCall:
    """An engine call whose events come at given times of the test's clock; an EngineError is raised.

    As the real one, it offers an event to a listener first.
    """

    def __init__(self, clock: list[float], script: list[tuple[float, Event | EngineError]]) -> None:
        self._clock = clock
        self._script = script
        self.is_closed = False
        self.error: EngineError | None = None

    @property
    def is_finished(self) -> bool:
        return not self._script

    async def events(
        self, timeout_seconds: float | None, listener: Callable[[Event], bool] | None = None
    ) -> list[Event]:
        end = self._clock[0] + (timeout_seconds if timeout_seconds is not None else 1e9)
        while self._script and self._script[0][0] <= end:
            at, what = self._script.pop(0)
            self._clock[0] = max(self._clock[0], at)
            if isinstance(what, EngineError):
                raise what
            if listener is None or not listener(what):
                return [what]
            if self.error is not None:
                if self._script and self._script[0][0] <= self._clock[0]:
                    return [self._script.pop(0)[1]]  # what came with it is delivered before the error
                raise self.error
        self._clock[0] = end
        return []

    def fail(self, error: EngineError) -> None:
        self.error = error

    def close(self) -> None:
        self.is_closed = True


class Caller(OpenAuthenticator):
    """Stands until a time."""

    def __init__(self, clock: list[float], until: float) -> None:
        self._clock = clock
        self._until = until

    def is_current(self, principal: Principal) -> bool:
        return self._clock[0] < self._until


def make(script: list[tuple[float, Event | EngineError]], *, until: float = 1e9) -> tuple[Output, list[float], Services]:
    clock = [0.0]
    services = Services(settings_for_tests(), Engines(), authenticator=Caller(clock, until))
    services.clock = lambda: clock[0]
    context = Context("req_1", "192.0.2.1")
    principal = Principal("acc", "ann", "user", "user", frozenset())
    request: Any = SimpleNamespace(context=context, principal=principal, is_gone=False)
    model: Any = SimpleNamespace(name="fake")
    run = Run(services, request, model)
    call: Any = FakeCall(clock, script)
    run.call = call
    run._offsets[1] = 0
    run._is_started = True
    return Output(run), clock, services


def frames() -> ChatFrames:
    return ChatFrames({"id": "x"}, 1, False, False)


def stream(output: Output, clock: list[float]) -> tuple[float, list[tuple[float, bytes]]]:
    """Return when the 200 was sent, and each piece with its time."""

    async def main() -> tuple[float, list[tuple[float, bytes]]]:
        reply = await stream_reply(output, frames(), 1, False, [])
        begin = clock[0]
        return begin, [(clock[0], chunk) async for chunk in reply.chunks]

    return asyncio.run(main())


class FakeWriter:
    """The connection: what was written past the generator, with the clock's time."""

    def __init__(self, clock: list[float]) -> None:
        self._clock = clock
        self.is_ready = True
        self.written: list[tuple[float, bytes]] = []

    def write_now(self, body: bytes) -> None:
        assert self.is_ready
        self.written.append((self._clock[0], body))


def direct(output: Output, clock: list[float], writer: FakeWriter) -> list[tuple[float, bytes]]:
    """Return what the generator still brings when pieces may be written past it."""

    async def main() -> list[tuple[float, bytes]]:
        reply = await stream_reply(output, frames(), 1, False, [])
        reply.source.attach(writer)
        return [(clock[0], chunk) async for chunk in reply.chunks]

    return asyncio.run(main())


def content(chunks: list[tuple[float, bytes]]) -> list[str]:
    events = [line[6:] for _, chunk in chunks for line in chunk.split(b"\n\n") if line.startswith(b"data: {")]
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events]
    return [delta["content"] for delta in deltas if delta.get("content")]


def test_tokens_that_come_while_nothing_waits_are_written_at_once() -> None:
    output, clock, _ = make([(1.0, token("a")), (2.0, token("b")), (3.5, token("c")), (4.0, token("d", "stop"))])
    writer = FakeWriter(clock)
    chunks = direct(output, clock, writer)
    assert content(chunks) == ["a", "d"]  # the first opens the answer, the last one ends it
    assert content(writer.written) == ["b", "c"]
    assert [at for at, _ in writer.written] == [2.0, 3.5]
    assert output.run.completion_tokens == 2  # as the last event's usage says


def test_a_client_that_does_not_read_gets_everything_in_order_later() -> None:
    output, clock, _ = make([(float(at), token(str(at))) for at in range(1, 6)] + [(6.0, token("", "stop"))])
    writer = FakeWriter(clock)
    writer.is_ready = False
    assert content(direct(output, clock, writer)) == ["1", "2", "3", "4", "5"]
    assert not writer.written


def test_heartbeats_are_counted_from_the_last_token_that_was_written_at_once() -> None:
    output, clock, _ = make([(1.0, token("a")), (9.0, token("b")), (40.0, token("c", "stop"))])
    writer = FakeWriter(clock)
    chunks = direct(output, clock, writer)
    assert content(writer.written) == ["b"]
    heartbeats = [at for at, chunk in chunks if chunk == HEARTBEAT]
    assert [18.5 <= heartbeats[0] <= 19.0, len(heartbeats)] == [True, 3]


def break_guard(output: Output, text: str) -> None:
    """Have the output guard fail at the event with this text."""
    pieces = output._piece

    def broken(choice: int, event: Event) -> Any:
        if event.text == text:
            raise ApiError("redaction_failed", "The output guard failed; nothing more is sent.")
        return pieces(choice, event)

    output._piece = broken  # type: ignore[method-assign]


def test_out_5_a_fault_of_what_is_written_at_once_ends_the_stream_and_shows_nothing_more() -> None:
    output, clock, _ = make([(float(at), token(str(at))) for at in range(1, 6)])
    writer = FakeWriter(clock)
    break_guard(output, "3")
    chunks = direct(output, clock, writer)
    assert content(writer.written) == ["2"]
    assert json.loads(chunks[-1][1][6:])["error"]["code"] == "redaction_failed"
    call: Any = output.run.call
    assert call.is_closed
    assert clock[0] == 3.0


def test_out_5_what_came_together_with_a_piece_that_failed_is_not_shown_and_ends_nothing_well() -> None:
    output, clock, _ = make([(1.0, token("a")), (2.0, token("b")), (2.0, token("c", "stop"))])
    break_guard(output, "b")
    chunks = direct(output, clock, FakeWriter(clock))
    assert content(chunks[:-1]) == ["a"]
    assert json.loads(chunks[-1][1][6:])["error"]["code"] == "redaction_failed"


def test_a_fault_of_ours_in_what_is_written_at_once_reaches_the_one_who_waits() -> None:
    output, clock, _ = make([(1.0, token("a")), (2.0, token("b")), (3.0, token("c"))])
    writer = FakeWriter(clock)
    writer.write_now = lambda body: 1 / 0  # type: ignore[assignment, return-value]
    with pytest.raises(ZeroDivisionError):
        direct(output, clock, writer)
    call: Any = output.run.call
    assert call.is_closed


def test_the_200_comes_with_the_first_token() -> None:
    output, clock, _ = make([(3.0, token("a")), (4.0, token("", "stop"))])
    begin, pieces = stream(output, clock)
    assert begin == 3.0
    assert HEARTBEAT not in [piece for _, piece in pieces]
    assert pieces[-1][1].endswith(b"data: [DONE]\n\n")


def test_after_ten_seconds_without_a_token_the_200_comes_with_heartbeats_ten_seconds_apart() -> None:
    output, clock, _ = make([(34.0, token("a")), (35.0, token("", "stop"))])
    begin, pieces = stream(output, clock)
    assert begin == 10.0
    assert [at for at, piece in pieces if piece == HEARTBEAT] == [10.0, 20.0, 30.0]
    assert b'"content":"a"' in pieces[3][1]
    assert b'"role":"assistant"' in pieces[3][1]


def test_a_failure_before_the_first_token_is_a_status_and_after_it_an_event() -> None:
    lost = EngineError("engine_failed", "The engine stopped while it worked on this request.")
    output, clock, _ = make([(2.0, lost)])
    with pytest.raises(ApiError, match="engine stopped"):
        stream(output, clock)
    output, clock, _ = make([(12.0, lost)])
    _, pieces = stream(output, clock)
    assert [piece for _, piece in pieces[:-1]] == [HEARTBEAT]
    assert json.loads(pieces[-1][1][6:])["error"]["code"] == "engine_failed"


@pytest.mark.parametrize("until", [0.2, 3.3, 11.0, 27.9])
def test_jwt_7_an_answer_that_waits_for_its_tokens_ends_within_a_second(until: float) -> None:
    output, clock, _ = make([(60.0, token("a"))], until=until)
    if until < 10:  # nothing was sent yet
        with pytest.raises(ApiError) as caught:
            stream(output, clock)
        assert caught.value.status == 401
    else:
        _, pieces = stream(output, clock)
        assert json.loads(pieces[-1][1][6:])["error"]["code"] == "invalid_api_key"
    assert until <= clock[0] <= until + 1.0
    call: Any = output.run.call
    assert call.is_closed


def collect(output: Output) -> Callable[[], None]:
    return lambda: asyncio.run(output.collect(1)) and None


def test_jwt_7_an_answer_that_is_collected_ends_within_a_second_too() -> None:
    output, clock, _ = make([(1.0, token("a")), (60.0, token("b"))], until=7.0)
    with pytest.raises(ApiError) as caught:
        collect(output)()
    assert caught.value.code == "invalid_api_key"
    assert 7.0 <= clock[0] <= 8.0


def test_the_end_of_the_server_is_an_error_event() -> None:
    output, clock, services = make([(1.0, token("a")), (60.0, token("b"))])
    services.ends_at = 20.0
    _, pieces = stream(output, clock)
    assert json.loads(pieces[-1][1][6:])["error"]["code"] == "shutting_down"
    assert 20.0 <= clock[0] <= 20.5


@pytest.mark.parametrize("code", [code for code, entry in CODES.items() if entry.status in (429, 503)])
def test_every_refusal_of_an_engine_says_when_to_ask_again(code: str) -> None:
    headers = dict(error_reply(to_api_error(EngineError(code, "Not now."))).headers)
    assert int(headers[b"retry-after"]) >= 1
    assert int(headers[b"retry-after-ms"]) >= 1
    assert b"retry-after" not in dict(error_reply(to_api_error(EngineError("invalid_value", "No."))).headers)


@pytest.mark.parametrize("num_tokens", [0, 1])
@pytest.mark.parametrize("end", ["engine", "server"])
def test_a_generation_that_had_begun_is_not_retried_by_the_client_itself(num_tokens: int, end: str) -> None:
    lost = EngineError("engine_failed", "The engine stopped while it worked on this request.")
    script: list[tuple[float, Event | EngineError]] = [(1.0, token("a"))] * num_tokens
    output, _, services = make([*script, (5.0, lost if end == "engine" else token("b"))])
    services.ends_at = 4.0 if end == "server" else 1e9
    with pytest.raises(ApiError) as caught:
        collect(output)()
    reply = error_reply(caught.value)
    assert reply.status == 503
    assert dict(reply.headers).get(b"x-should-retry") == (b"false" if num_tokens else None)
