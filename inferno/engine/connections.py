"""The engine's sockets to front workers: one thread reads them all, nobody who writes ever waits.

`Connection.send` writes what the socket takes now and keeps the rest for the thread, up to a bound; a worker that reads
too slowly, sends what does not fit, or is gone, is dropped and reported once. Knows frames and messages' types, not
their meaning. Engine process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from ..errors import ProtocolError
from ..ipc import FrameReader, encode_frame
from ..messages import FrontToEngine, decoder

MAX_PENDING_BYTES = 64 << 20
_READ_BYTES = 1 << 18
_log = logging.getLogger("inferno.engine")


class Connection:
    """One front worker. `send` from any thread."""

    def __init__(self, sock: socket.socket, worker: int, loop: ConnectionLoop) -> None:
        sock.setblocking(False)
        self.worker = worker
        self._sock = sock
        self._loop = loop
        self._reader = FrameReader(decoder(FrontToEngine), loop.max_frame_bytes)
        self._pending: deque[memoryview] = deque()
        self._pending_bytes = 0
        self._lock = threading.Lock()
        self.is_closed = False
        self.requests: dict[int, Any] = {}  # the runner's records, under the runner's lock

    def send(self, message: Any) -> None:
        """Send now or soon; never waits. After a failure the connection is closed by its thread."""
        frame = memoryview(encode_frame(message))
        with self._lock:
            if self.is_closed:
                return
            if not self._pending:
                try:
                    sent = self._sock.send(frame)
                except (BlockingIOError, InterruptedError):
                    sent = 0
                except OSError:
                    self._loop.call(lambda: self._loop.close(self, None))
                    return
                if sent == len(frame):
                    return
                frame = frame[sent:]
            if self._pending_bytes + len(frame) > MAX_PENDING_BYTES:
                self._loop.call(lambda: self._loop.close(self, "it does not read"))
                return
            self._pending.append(frame)
            self._pending_bytes += len(frame)
        self._loop.call(lambda: self._loop.watch(self))

    def _flush(self) -> None:
        with self._lock:
            while self._pending:
                frame = self._pending[0]
                try:
                    sent = self._sock.send(frame)
                except (BlockingIOError, InterruptedError):
                    return
                self._pending_bytes -= sent
                if sent < len(frame):
                    self._pending[0] = frame[sent:]
                    return
                self._pending.popleft()

    @property
    def wants_write(self) -> bool:
        return bool(self._pending)


class ConnectionLoop:
    """The thread that reads from and flushes to every connection."""

    def __init__(
        self,
        on_message: Callable[[Connection, Any], None],
        on_close: Callable[[Connection], None],
        on_tick: Callable[[], None],
        *,
        max_frame_bytes: int,
        tick_seconds: float = 1.0,
    ) -> None:
        self.max_frame_bytes = max_frame_bytes
        self._on_message = on_message
        self._on_close = on_close
        self._on_tick = on_tick
        self._tick_seconds = tick_seconds
        self._calls: deque[Callable[[], None]] = deque()
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._run, name="inferno-io", daemon=True)
        self.connections: set[Connection] = set()

    def start(self) -> None:
        self._thread.start()

    def call(self, action: Callable[[], None]) -> None:
        """Run `action` in the loop's thread soon."""
        self._calls.append(action)
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")

    def add(self, sock: socket.socket, worker: int, greeting: Any) -> None:
        """Serve a new connection; `greeting` is its first message."""
        connection = Connection(sock, worker, self)

        def begin() -> None:
            self.connections.add(connection)
            self._selector.register(sock, selectors.EVENT_READ, connection)
            connection.send(greeting)

        self.call(begin)

    def watch(self, connection: Connection) -> None:
        if not connection.is_closed:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.wants_write else 0)
            self._selector.modify(connection._sock, events, connection)

    def close(self, connection: Connection, reason: str | None) -> None:
        """Drop a connection; its requests are reported once through `on_close`."""
        if connection.is_closed:
            return
        if reason is not None:
            _log.warning("worker %d is dropped: %s", connection.worker, reason)
        with connection._lock:
            connection.is_closed = True
            connection._pending.clear()
        self.connections.discard(connection)
        self._selector.unregister(connection._sock)
        connection._sock.close()
        connection._reader.close()
        self._on_close(connection)

    def _run(self) -> None:
        while True:
            ready = self._selector.select(self._tick_seconds)
            for key, events in ready:
                if key.data is None:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_read, 4096)
                else:
                    self._serve(key.data, events)
            while self._calls:
                self._calls.popleft()()
            self._on_tick()

    def _serve(self, connection: Connection, events: int) -> None:
        if connection.is_closed:
            return
        try:
            if events & selectors.EVENT_WRITE:
                connection._flush()
                self.watch(connection)
            if events & selectors.EVENT_READ:
                data = connection._sock.recv(_READ_BYTES)
                if not data:
                    self.close(connection, None)
                    return
                for message, _ in connection._reader.feed(data):
                    if connection.is_closed:
                        return
                    self._on_message(connection, message)
        except (BlockingIOError, InterruptedError):
            return
        except ProtocolError as error:
            self.close(connection, str(error))
        except OSError:
            self.close(connection, None)
