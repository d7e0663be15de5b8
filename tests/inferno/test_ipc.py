"""Frames between processes: every split, limits, descriptors, hostile bytes."""

import asyncio
import os
import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferno import messages
from inferno.errors import ProtocolError
from inferno.ipc import AsyncChannel, BlockingChannel, FrameReader, encode_frame

LIMIT = 1 << 16


def reader() -> FrameReader:
    return FrameReader(messages.decoder(messages.FrontToEngine), LIMIT)


@given(st.lists(st.integers(0, 1 << 40), max_size=8), st.data())
@settings(max_examples=100, deadline=None)
def test_any_split_of_the_stream_gives_the_same_messages(numbers, data):
    sent = [messages.Drop(request=number) for number in numbers]
    stream = b"".join(encode_frame(message) for message in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    frames = reader()
    got = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += [message for message, _ in frames.feed(stream[start:end])]
    assert got == sent


def test_a_length_above_the_limit_is_refused_before_the_payload_arrives():
    with pytest.raises(ProtocolError, match="at most 65536"):
        reader().feed(struct.pack("<IB", LIMIT + 1, 0))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x81\xa4type\xa7nothing",
        messages.ENCODER.encode({"type": "drop", "request": -1}),
        messages.ENCODER.encode({"type": "drop", "request": 1, "more": 2}),
        messages.ENCODER.encode({"type": "drop", "request": "1"}),
        messages.ENCODER.encode({"type": "pong", "serial": 1}),
        b"\x91" * 5000,
    ],
)
def test_hostile_payloads_are_protocol_errors(payload):
    with pytest.raises(ProtocolError):
        reader().feed(struct.pack("<IB", len(payload), 0) + payload)


def test_announced_descriptors_must_come():
    frame = encode_frame(messages.Drop(request=1), 1)
    with pytest.raises(ProtocolError, match="1 descriptors announced, 0 came"):
        reader().feed(bytes(frame))


def test_descriptors_arrive_with_their_message_and_large_frames_arrive_whole():
    left, right = socket.socketpair()
    big = messages.Detokenize(request=7, tokens=list(range(12000)))

    async def main():
        got: asyncio.Queue = asyncio.Queue()
        a = AsyncChannel(left, messages.FrontToEngine, max_frame_bytes=LIMIT)
        b = AsyncChannel(right, messages.FrontToEngine, max_frame_bytes=LIMIT)
        a.start(lambda message, numbers: None, lambda error: None)
        b.start(
            lambda message, numbers: got.put_nowait((message, numbers)), lambda error: got.put_nowait(error)
        )
        read_end, write_end = os.pipe()
        for _ in range(30):
            a.send(big)
        a.send(messages.Drop(request=1), [write_end])
        os.close(write_end)
        for _ in range(30):
            message, numbers = await got.get()
            assert message == big
            assert numbers == []
        message, numbers = await got.get()
        assert message == messages.Drop(request=1)
        os.write(numbers[0], b"x")
        os.close(numbers[0])
        assert os.read(read_end, 10) == b"x"
        assert os.read(read_end, 10) == b""
        os.close(read_end)
        a.close()
        assert await got.get() is None
        with pytest.raises(ProtocolError):
            a.send(big)

    asyncio.run(main())


def test_a_peer_that_does_not_read_is_bounded():
    left, right = socket.socketpair()

    async def main():
        a = AsyncChannel(left, messages.FrontToEngine, max_frame_bytes=LIMIT, max_pending_bytes=1 << 20)
        a.start(lambda message, numbers: None, lambda error: None)
        with pytest.raises(ProtocolError, match="does not read"):
            for _ in range(1000):
                a.send(messages.Detokenize(request=7, tokens=list(range(12000))))
        a.close()
        right.close()

    asyncio.run(main())


@pytest.mark.parametrize("is_gone", [True, False], ids=["peer closed", "peer only stopped reading"])
def test_a_peers_last_words_arrive_also_when_a_write_tells_of_its_end(is_gone):
    """An engine says that it refuses a model and ends; a ping meanwhile must not lose what it said."""
    left, right = socket.socketpair()

    async def main():
        heard: list = []
        over = asyncio.get_running_loop().create_future()
        a = AsyncChannel(left, messages.FrontToEngine, max_frame_bytes=LIMIT)
        a.start(lambda message, numbers: heard.append(message), over.set_result)
        for number in (1, 2):
            right.sendall(encode_frame(messages.Drop(request=number)))
        right.close() if is_gone else right.shutdown(socket.SHUT_RD)
        a.send(messages.Drop(request=3))
        assert a.is_closed
        assert heard == []
        with pytest.raises(ProtocolError, match="closed"):
            a.send(messages.Drop(request=4))
        assert isinstance(await asyncio.wait_for(over, 60), OSError)
        assert heard == [messages.Drop(request=1), messages.Drop(request=2)]
        right.close()

    asyncio.run(main())


def test_blocking_channel_and_end_of_stream():
    left, right = socket.socketpair()
    a = BlockingChannel(left, messages.FrontToEngine, max_frame_bytes=LIMIT)
    b = BlockingChannel(right, messages.FrontToEngine, max_frame_bytes=LIMIT)
    read_end, write_end = os.pipe()
    a.send(messages.Cancel(request=3), [write_end])
    message, numbers = b.receive()
    assert message == messages.Cancel(request=3)
    for number in [read_end, write_end, *numbers]:
        os.close(number)
    a.close()
    assert b.receive() is None
    b.close()
