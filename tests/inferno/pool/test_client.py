"""The engine client against engines that lie, die, or answer late."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from inferno.errors import ApiError, EngineError
from inferno.ipc import AsyncChannel
from inferno.messages import (
    MAX_ENGINE_FRAME,
    PROTOCOL_VERSION,
    Cancel,
    Detokenized,
    Drop,
    EngineGone,
    EngineHello,
    EngineUp,
    Event,
    Failed,
    FrontToEngine,
    Prepare,
    Prepared,
    Sampling,
    Start,
    Step,
    TextPrompt,
    Usage,
)
from inferno.pool.client import EngineClient
from inferno.pool.engines import Engines
from tests.fakes import fake_info

TAG = b"t" * 16


class Engine:
    """The engine's end, by hand."""

    def __init__(self) -> None:
        self.front, sock = socket.socketpair()
        self.channel = AsyncChannel(sock, FrontToEngine, max_frame_bytes=MAX_ENGINE_FRAME)
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()
        self.channel.start(
            lambda message, descriptors: self.inbox.put_nowait(message),
            lambda error: self.inbox.put_nowait(None),
        )

    def hello(self, version: int = PROTOCOL_VERSION) -> None:
        self.channel.send(EngineHello(version=version, model=fake_info()))

    async def next(self, kind: type) -> Any:
        async with asyncio.timeout(60):
            message = await self.inbox.get()
        assert isinstance(message, kind), message
        return message


def run(test: Callable[[Engine, EngineClient, list[Any]], Awaitable[None]]) -> None:
    async def main() -> None:
        engine = Engine()
        closed: list[Any] = []
        client = EngineClient(engine.front, fake_info(), on_close=closed.append)
        client.start()
        engine.hello()
        await test(engine, client, closed)
        client.close()
        engine.channel.close()
        await asyncio.sleep(0)
        assert closed == [client]

    asyncio.run(main())


async def started(engine: Engine, client: EngineClient, num_choices: int = 1) -> tuple[Any, int]:
    call = client.open()
    task = asyncio.ensure_future(call.prepare(TAG, TextPrompt(text="x")))
    asked = await engine.next(Prepare)
    engine.channel.send(Prepared(request=asked.request, num_tokens=3, context_left=10))
    prepared = await task
    assert prepared.num_tokens == 3
    call.start(Start(request=prepared.request, sampling=Sampling(), max_tokens=5, num_choices=num_choices))
    await engine.next(Start)
    return call, asked.request


def usage(count: int) -> Usage:
    return Usage(3, count, 0, 0.0, 0.0, 0.0)


def test_a_whole_request() -> None:
    async def test(engine: Engine, client: EngineClient, closed: list[Any]) -> None:
        call, request = await started(engine, client)
        engine.channel.send(Step(events=[Event(request, 0, 1, "a"), Event(request, 0, 1, "b")]))
        assert "".join(event.text for event in await call.events()) == "ab"
        assert await call.events(0.01) == []
        engine.channel.send(Step(events=[Event(request, 0, 1, "c", None, "stop", usage(3))]))
        assert [event.finish for event in await call.events()] == ["stop"]
        assert call.is_finished
        call.close()
        assert client.num_requests == 0
        assert engine.inbox.empty()  # nothing to cancel

    run(test)


def test_a_listener_takes_events_in_order_until_it_declines_one() -> None:
    async def test(engine: Engine, client: EngineClient, closed: list[Any]) -> None:
        call, number = await started(engine, client)
        texts = ["a", "b", "stop here", "c"]
        engine.channel.send(Step(events=[Event(number, 0, 1, text) for text in texts]))
        heard: list[str] = []

        def listener(event: Event) -> bool:
            heard.append(event.text)
            return event.text != "stop here"

        events = await call.events(5, listener)
        assert heard == ["a", "b", "stop here"]  # what comes after a declined one waits behind it
        assert [event.text for event in events] == ["stop here", "c"]
        assert await call.events(0.01, listener) == []
        engine.channel.send(Step(events=[Event(number, 0, 1, "later")]))  # nobody waits now: nothing is offered
        assert [event.text for event in await call.events(5)] == ["later"]
        assert heard == ["a", "b", "stop here"]
        call.close()

    run(test)


def test_close_cancels_what_runs_and_drops_what_waits() -> None:
    async def test(engine: Engine, client: EngineClient, closed: list[Any]) -> None:
        call, request = await started(engine, client)
        task = asyncio.ensure_future(call.prepare(TAG, TextPrompt(text="y")))
        asked = await engine.next(Prepare)
        call.close()
        call.close()
        with pytest.raises(EngineError):
            await task
        told = {
            type(message): message.request
            for message in (await engine.next(object), await engine.next(object))
        }
        assert told == {Cancel: request, Drop: asked.request}
        # late answers to closed requests are nothing
        engine.channel.send(Step(events=[Event(request, 0, 1, "late")]))
        engine.channel.send(Prepared(request=asked.request, num_tokens=1, context_left=1))
        engine.channel.send(Failed(request=request, code="engine_failed", message="late"))
        await started(engine, client)
        assert not client.is_closed

    run(test)


LIES: dict[str, Callable[[int], list[Any]]] = {
    "a choice that was not asked for": lambda request: [Step(events=[Event(request, 1, 1, "x")])],
    "a finish without usage": lambda request: [Step(events=[Event(request, 0, 1, "x", None, "stop")])],
    "usage without finish": lambda request: [Step(events=[Event(request, 0, 1, "x", None, None, usage(1))])],
    "prepared again": lambda request: [Prepared(request=request, num_tokens=1, context_left=1)],
    "an answer to another question": lambda request: [Detokenized(request=request, data=b"x")],
    "a second hello": lambda request: [EngineHello(version=PROTOCOL_VERSION, model=fake_info())],
}


@pytest.mark.parametrize("name", LIES)
def test_box_3_a_lie_ends_the_connection(name: str) -> None:
    async def test(engine: Engine, client: EngineClient, closed: list[Any]) -> None:
        call, request = await started(engine, client)
        for message in LIES[name](request):
            engine.channel.send(message)
        with pytest.raises(EngineError) as caught:
            await call.events(60)
        assert caught.value.code == "engine_failed"
        assert client.is_closed

    run(test)


def test_events_for_requests_that_nobody_has_are_dropped() -> None:
    async def test(engine: Engine, client: EngineClient, closed: list[Any]) -> None:
        call, request = await started(engine, client)
        engine.channel.send(Step(events=[Event(request + 7, 0, 1, "x"), Event(request, 0, 1, "y")]))
        assert [event.text for event in await call.events()] == ["y"]
        call.close()

    run(test)


def test_a_wrong_version_is_refused() -> None:
    async def main() -> None:
        engine = Engine()
        closed: list[Any] = []
        client = EngineClient(engine.front, fake_info(), on_close=closed.append)
        client.start()
        engine.hello(PROTOCOL_VERSION + 1)
        await engine.next(type(None))
        assert closed == [client]

    asyncio.run(main())


def test_failed_reaches_whoever_waits() -> None:
    async def test(engine: Engine, client: EngineClient, closed: list[Any]) -> None:
        call = client.open()
        task = asyncio.ensure_future(call.prepare(TAG, TextPrompt(text="x")))
        asked = await engine.next(Prepare)
        engine.channel.send(
            Failed(
                request=asked.request, code="context_length_exceeded", message="10 and 5", param="messages"
            )
        )
        with pytest.raises(EngineError) as caught:
            await task
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
        running, request = await started(engine, client)
        engine.channel.send(Step(events=[Event(request, 0, 1, "x")]))
        engine.channel.send(Failed(request=request, code="no such code", message="m", retry_after=4.0))
        await asyncio.sleep(0.05)
        assert [event.text for event in await running.events()] == ["x"]
        with pytest.raises(EngineError) as caught:
            await running.events()
        assert (caught.value.code, caught.value.retry_after) == ("engine_failed", 4.0)

    run(test)


def test_the_end_of_the_engine_ends_every_request() -> None:
    async def test(engine: Engine, client: EngineClient, closed: list[Any]) -> None:
        running, _ = await started(engine, client)
        waiting = client.open()
        task = asyncio.ensure_future(waiting.prepare(TAG, TextPrompt(text="x")))
        await engine.next(Prepare)
        engine.channel.close()
        with pytest.raises(EngineError) as caught:
            await running.events()
        assert caught.value.code == "engine_failed"
        with pytest.raises(EngineError) as caught:
            await task
        assert caught.value.code == "engine_restarting"
        with pytest.raises(EngineError) as caught:
            await client.open().prepare(TAG, TextPrompt(text="x"))
        assert caught.value.code == "engine_restarting"
        running.close()

    run(test)


def test_engines_come_and_go() -> None:
    async def main() -> None:
        engines = Engines(wait_seconds=0.05)
        with pytest.raises(ApiError) as caught:
            engines.find(None)
        assert caught.value.code == "no_model"
        engines.register([{"name": "a", "state": "loading"}, {"name": "b", "state": "refused"}])
        with pytest.raises(ApiError) as caught:
            engines.find(None)
        assert caught.value.code == "missing_required_parameter"
        with pytest.raises(ApiError) as caught:
            await engines.connect(engines.find("a"))
        assert (caught.value.code, caught.value.retry_after) == ("model_loading", 5.0)
        with pytest.raises(ApiError) as caught:
            await engines.connect(engines.find("b"))
        assert caught.value.code == "no_model"
        engines.default = "a"
        engines.wait_seconds = 60
        engine = Engine()
        waiting = asyncio.ensure_future(engines.connect(engines.find("default")))
        await asyncio.sleep(0)
        engines.engine_up(EngineUp(model="a", generation=2, info=fake_info("a")), engine.front.detach())
        client = await waiting
        assert engines.is_ready()
        engines.engine_gone(EngineGone(model="a", generation=1, state="restarting"))  # of an earlier engine
        assert not client.is_closed
        engines.engine_gone(EngineGone(model="a", generation=2, state="unloaded"))
        assert client.is_closed
        with pytest.raises(ApiError) as caught:
            engines.find("a")
        assert caught.value.code == "model_not_found"
        assert not engines.is_ready()
        engine.channel.close()

    asyncio.run(main())
