"""Framed messages over a stream socketpair, with descriptors where a message brings some.

A frame is a little-endian u32 payload length, a u8 count of descriptors, then the payload (one msgpack message of
inferno.messages). Descriptors travel as SCM_RIGHTS with the frame's first byte and are matched by count, in order.
Both sides are untrusted: lengths are checked against the limit before memory is taken, descriptors that no frame
announced are closed, and every fault is a ProtocolError after which the connection must be closed.

Used by the supervisor and workers under asyncio (AsyncChannel) and by engines from threads (BlockingChannel).
Knows nothing of what the messages mean.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
import struct
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec

from .errors import ProtocolError
from .messages import ENCODER

_HEADER = struct.Struct("<IB")
MAX_DESCRIPTORS = 16
_READ_BYTES = 1 << 18
_MAX_LAST_READS = 64  # once a write failed


def encode_frame(message: Any, num_descriptors: int = 0) -> bytearray:
    """Return header and payload in one buffer."""
    frame = bytearray(_HEADER.size)
    ENCODER.encode_into(message, frame, _HEADER.size)
    _HEADER.pack_into(frame, 0, len(frame) - _HEADER.size, num_descriptors)
    return frame


class FrameReader:
    """Cuts a byte stream into messages. `feed` what arrived, then iterate `messages()`."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[Any], max_frame_bytes: int) -> None:
        self._decoder = decoder
        self._max_frame_bytes = max_frame_bytes
        self._buffer = bytearray()
        self._descriptors: deque[int] = deque()

    def feed(self, data: bytes, descriptors: Sequence[int] = ()) -> list[tuple[Any, list[int]]]:
        """Return the complete messages, each with its descriptors, which then belong to the caller."""
        self._buffer += data
        self._descriptors.extend(descriptors)
        found: list[tuple[Any, list[int]]] = []
        position = 0
        buffer = self._buffer
        while len(buffer) - position >= _HEADER.size:
            size, num_descriptors = _HEADER.unpack_from(buffer, position)
            if size > self._max_frame_bytes:
                raise ProtocolError(f"a frame of {size} bytes; at most {self._max_frame_bytes} are allowed")
            if num_descriptors > MAX_DESCRIPTORS:
                raise ProtocolError(f"a frame with {num_descriptors} descriptors; at most {MAX_DESCRIPTORS}")
            if len(buffer) - position - _HEADER.size < size:
                break
            if len(self._descriptors) < num_descriptors:
                raise ProtocolError(f"{num_descriptors} descriptors announced, {len(self._descriptors)} came")
            start = position + _HEADER.size
            try:
                with memoryview(buffer) as view:
                    message = self._decoder.decode(view[start : start + size])
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise ProtocolError(f"a message that does not fit: {type(error).__name__}") from None
            found.append((message, [self._descriptors.popleft() for _ in range(num_descriptors)]))
            position = start + size
        if position:
            del buffer[:position]
        return found

    def close(self) -> None:
        """Close descriptors that no message took."""
        while self._descriptors:
            with contextlib.suppress(OSError):
                os.close(self._descriptors.popleft())


def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Read once, with descriptors, close-on-exec. Empty bytes: the peer closed."""
    flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    space = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)
    data, ancillary, message_flags, _ = sock.recvmsg(_READ_BYTES, space, flags)
    descriptors: list[int] = []
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
            descriptors.extend(numbers)
    if message_flags & socket.MSG_CTRUNC:
        for number in descriptors:
            os.close(number)
        raise ProtocolError("descriptors were truncated")
    if not flags:
        for number in descriptors:
            os.set_inheritable(number, False)
    return data, descriptors


class AsyncChannel:
    """One end under asyncio (uvloop or not). Writing never blocks; `max_pending_bytes` bounds what may wait.

    The owner must call `start` once; messages then reach `on_message(message, descriptors)` in order, and the end
    reaches `on_close(error | None)` exactly once. What the peer sent before it went away is delivered first, also when
    a write was what told of its end.
    """

    def __init__(
        self,
        sock: socket.socket,
        kind: Any,
        *,
        max_frame_bytes: int,
        max_pending_bytes: int = 256 << 20,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._reader = FrameReader(msgspec.msgpack.Decoder(kind), max_frame_bytes)
        self._max_frame_bytes = max_frame_bytes
        self._max_pending_bytes = max_pending_bytes
        self._pending: deque[tuple[bytearray | memoryview, tuple[int, ...]]] = deque()
        self._pending_bytes = 0
        self._closed = False
        self._write_error: OSError | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_message: Any = None
        self._on_close: Any = None

    @property
    def is_closed(self) -> bool:
        """Whether nothing more can be sent."""
        return self._closed or self._write_error is not None

    def start(self, on_message: Any, on_close: Any) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self._on_close = on_close
        self._loop.add_reader(self._sock.fileno(), self._readable)

    def send(self, message: Any, descriptors: Sequence[int] = ()) -> None:
        """Queue a message. Descriptors are duplicated, so the caller may close its own at once.

        Raises ProtocolError when closed, when the frame is too large, or when the peer reads too slowly.
        """
        if self.is_closed:
            raise ProtocolError("the connection is closed")
        frame = encode_frame(message, len(descriptors))
        if len(frame) - _HEADER.size > self._max_frame_bytes:
            raise ProtocolError(f"a frame of {len(frame)} bytes; at most {self._max_frame_bytes} are allowed")
        if self._pending_bytes + len(frame) > self._max_pending_bytes:
            raise ProtocolError("the peer does not read")
        self._pending.append((frame, tuple(os.dup(number) for number in descriptors)))
        self._pending_bytes += len(frame)
        if len(self._pending) == 1:
            self._writable()

    def close(self, error: BaseException | None = None) -> None:
        """Close both directions; idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._loop is not None:
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self._reader.close()
        self._drop_pending()
        if self._on_close is not None:
            self._on_close(error)

    def _drop_pending(self) -> None:
        for _, descriptors in self._pending:
            for number in descriptors:
                os.close(number)
        self._pending.clear()
        self._pending_bytes = 0

    def _readable(self) -> bool:
        """Read once and hand on the messages; say whether there was something."""
        try:
            data, descriptors = _receive(self._sock)
            messages = self._reader.feed(data, descriptors) if data else []
        except (BlockingIOError, InterruptedError):
            return False
        except (OSError, ProtocolError) as error:
            self.close(error)
            return False
        if not data:
            self.close(self._write_error)
            return False
        for message, numbers in messages:
            if self._closed:
                for number in numbers:
                    os.close(number)
                continue
            self._on_message(message, numbers)
        return True

    def _write_failed(self, error: OSError) -> None:
        """Stop writing; close once the peer's last words are read, which lie in the socket by now."""
        self._write_error = error
        self._drop_pending()
        if self._loop is None:
            self.close(error)
            return
        self._loop.remove_writer(self._sock.fileno())
        self._loop.call_soon(self._read_last_words)

    def _read_last_words(self) -> None:
        for _ in range(_MAX_LAST_READS):
            if self._closed or not self._readable():
                break
        self.close(self._write_error)

    def _writable(self) -> None:
        while self._pending:
            frame, descriptors = self._pending[0]
            try:
                if descriptors:
                    sent = socket.send_fds(self._sock, [frame], list(descriptors))
                else:
                    sent = self._sock.send(frame)
            except (BlockingIOError, InterruptedError):
                if self._loop is not None:
                    self._loop.add_writer(self._sock.fileno(), self._writable)
                return
            except OSError as error:
                self._write_failed(error)
                return
            for number in descriptors:
                os.close(number)
            self._pending_bytes -= sent
            if sent < len(frame):
                self._pending[0] = (memoryview(frame)[sent:], ())
            else:
                self._pending.popleft()
        if self._loop is not None:
            self._loop.remove_writer(self._sock.fileno())


class BlockingChannel:
    """One end for threads: one reader, any number of writers."""

    def __init__(self, sock: socket.socket, kind: Any, *, max_frame_bytes: int) -> None:
        sock.setblocking(True)
        self._sock = sock
        self._reader = FrameReader(msgspec.msgpack.Decoder(kind), max_frame_bytes)
        self._ready: deque[tuple[Any, list[int]]] = deque()
        self._write_lock = threading.Lock()

    def fileno(self) -> int:
        return self._sock.fileno()

    def receive(self) -> tuple[Any, list[int]] | None:
        """Return the next message and its descriptors, or None when the peer closed. Raises ProtocolError."""
        while not self._ready:
            data, descriptors = _receive(self._sock)
            if not data:
                return None
            self._ready.extend(self._reader.feed(data, descriptors))
        return self._ready.popleft()

    def send(self, message: Any, descriptors: Sequence[int] = ()) -> None:
        """Write the whole frame. Raises OSError when the peer is gone."""
        frame = encode_frame(message, len(descriptors))
        with self._write_lock:
            sent = socket.send_fds(self._sock, [frame], list(descriptors)) if descriptors else 0
            if sent < len(frame):
                self._sock.sendall(memoryview(frame)[sent:])

    def close(self) -> None:
        self._sock.close()
        self._reader.close()
