"""The accepting end of a TLS listener: caps and a deadline that hold before a handshake is done.

An event loop's own TLS server hands a connection over once its handshake is over; until then nothing would count it and a
minute would pass before it is given up. Here a connection is counted when it is accepted, is closed unanswered when its
source or the listener has too many, and has the time of a request's head for its handshake. Knows no HTTP; looks to
uvicorn's server like one of asyncio's. Front workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable

from .protocol import Edge

logger = logging.getLogger("inferno.server")
ACCEPT_AT_ONCE = 64  # connections a turn of the loop
PAUSE_SECONDS = 1.0  # when the system has no descriptor left
HANDSHAKE_GRACE_SECONDS = 2.0  # at the worker's end
SHUTDOWN_SECONDS = 5.0  # for the other side's goodbye


class TlsListener:
    """Accepts on one listening socket."""

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        edge: Edge,
        make_protocol: Callable[[], asyncio.Protocol],
    ) -> None:
        self._sock = sock
        self._context = context
        self._edge = edge
        self._make_protocol = make_protocol
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._is_closed = False
        sock.setblocking(False)
        self._loop.add_reader(sock, self._accept)

    def close(self) -> None:
        """Accept nothing more."""
        if not self._is_closed:
            self._is_closed = True
            self._loop.remove_reader(self._sock)

    async def finish(self) -> None:
        """Let handshakes that are under way end, for a while; their connections go on."""
        self.close()
        if self._handshakes:
            await asyncio.wait(self._handshakes, timeout=HANDSHAKE_GRACE_SECONDS)

    async def wait_closed(self) -> None:
        for task in self._handshakes:
            task.cancel()
        while self._handshakes:
            await asyncio.wait(self._handshakes)

    def _accept(self) -> None:
        for _ in range(ACCEPT_AT_ONCE):
            try:
                connection, address = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                logger.error("no connection can be accepted: %s", error.strerror)
                self._loop.remove_reader(self._sock)
                self._loop.call_later(PAUSE_SECONDS, self._resume)
                return
            source = self._edge.handshake_begins(str(address[0]))
            if source is None:
                connection.close()
                continue
            task = self._loop.create_task(self._shake(connection, source))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    def _resume(self) -> None:
        if not self._is_closed:
            self._loop.add_reader(self._sock, self._accept)

    async def _shake(self, connection: socket.socket, source: str) -> None:
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(
                self._make_protocol,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self._edge.header_timeout_seconds,
                ssl_shutdown_timeout=SHUTDOWN_SECONDS,
            )
        except (OSError, ssl.SSLError):  # the client's business: plain bytes, an old version, silence
            with contextlib.suppress(OSError):
                connection.close()
        finally:
            self._edge.handshake_ends(source)
