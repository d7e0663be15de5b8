"""uvicorn's httptools protocol, extended below ASGI: deadlines, caps, sizes, and strict framing.

Every head is checked whole by inferno.server.http_rules before httptools sees it, bodies are cut at their exact end, and
both parsers must agree about it; a pipelined request waits until the answer before it is complete. What is refused here
gets the JSON envelope with a request id, then the connection closes. Deadlines (headers, body, idle, write stall) are
numbers on each connection that one sweep per process compares: no timer per connection or byte. Front workers.

Edge holds what the connections of one listener share: caps and counts.
"""

from __future__ import annotations

import asyncio
import math
import urllib.parse
from collections.abc import Sequence
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ..errors import CODES, ApiError
from ..security.addresses import ClientAddresses, parse_address, source_block
from ..security.connection_limits import ConnectionCounts
from .cycle import EdgeCycle
from .http import error_reply
from .http_rules import ChunkScanner, Head, Refused, check_head, check_partial
from .middleware import SECURITY_HEADERS, new_request_id

SWEEP_SECONDS = 0.5
BODY_SECONDS = 20.0
BODY_BYTES_PER_SECOND = 16384
WRITE_STALL_SECONDS = 60.0
LINGER_SECONDS = 2.0  # after a refusal: read on, so that the client sees the answer and no reset
FIRST_BYTES_SECONDS = 2.0  # at the worker's end: for the first request of a connection that was just made
OVER_CAP_SECONDS = 1.0
MAX_OVER_CAP = 128  # connections above the cap that still get an answer; more are cut
HANDSHAKES_OVER_CAP = 8  # connections above a cap that may still shake hands, to be told so
MAX_KNOWN_HEAD_BYTES = 2048  # of a connection's last head, kept to compare the next with
MAX_HELD_BYTES = 65536  # of a pipelined request that waits

# Where a connection stands.
HEAD, LENGTH, CHUNKED, ANSWERING, REFUSED, OVER_CAP = range(6)


class Edge:
    """What the connections of one listener in this process share."""

    def __init__(
        self,
        *,
        max_body_bytes: int = 4 << 20,
        header_timeout_seconds: float = 10.0,
        idle_timeout_seconds: float = 75.0,
        max_connections: int = 4096,
        max_connections_per_ip: int = 512,
        trusted_proxies: Sequence[str] = (),
        body_seconds: float = BODY_SECONDS,
        write_stall_seconds: float = WRITE_STALL_SECONDS,
        sweep_seconds: float = SWEEP_SECONDS,
        counts: ConnectionCounts | None = None,
    ) -> None:
        """`counts`: connections of all workers; None: those of this process are all there are."""
        self.max_body_bytes = max_body_bytes
        self.header_timeout_seconds = header_timeout_seconds
        self.idle_timeout_seconds = idle_timeout_seconds
        self.max_connections = max_connections
        self.max_connections_per_ip = max_connections_per_ip
        self.body_seconds = body_seconds
        self.write_stall_seconds = write_stall_seconds
        self.sweep_seconds = sweep_seconds
        self.connections: set[EdgeProtocol] = set()
        self.num_over_cap = 0
        self._by_source: dict[str, int] = {}
        self._handshakes: dict[str, int] = {}  # TLS connections that are not ours to see yet, by source
        self._num_handshakes = 0
        self._counts = counts
        self._addresses = ClientAddresses(trusted_proxies)
        self._is_sweeping = False

    def admit(self, connection: EdgeProtocol, peer: str) -> str | None:
        """Count a connection; return the error code if it is above a cap."""
        loop = connection.loop
        self.connections.add(connection)
        if not self._is_sweeping:
            self._is_sweeping = True
            loop.call_later(self.sweep_seconds, self._sweep, loop)
        if len(self.connections) - self.num_over_cap > self.max_connections:
            return "overloaded"
        address = parse_address(peer)
        source: str | None = source_block(peer).text
        if address is not None and self._addresses.is_trusted(address):
            source = None
        elif self._by_source.get(source or "", 0) >= self.max_connections_per_ip:
            return "rate_limit_exceeded"
        if self._counts is not None:
            hold = self._counts.take(source)
            if isinstance(hold, str):
                return hold
            connection.counted_hold = hold
        if source is not None:
            self._by_source[source] = self._by_source.get(source, 0) + 1
            connection.counted_source = source
        return None

    def handshake_begins(self, peer: str) -> str | None:
        """Count an accepted connection until its handshake is over; None: there are too many, close it.

        Returns what `handshake_ends` is told. What is admitted here is judged again by `admit`.
        """
        num_open = len(self.connections) - self.num_over_cap + self._num_handshakes
        if num_open >= self.max_connections + HANDSHAKES_OVER_CAP:
            return None
        source = source_block(peer).text
        count = self._handshakes.get(source, 0)
        address = parse_address(peer)
        if address is None or not self._addresses.is_trusted(address):
            limit = self.max_connections_per_ip + HANDSHAKES_OVER_CAP
            if count + self._by_source.get(source, 0) >= limit:
                return None
        self._handshakes[source] = count + 1
        self._num_handshakes += 1
        return source

    def handshake_ends(self, source: str) -> None:
        self._num_handshakes -= 1
        count = self._handshakes[source] - 1
        if count:
            self._handshakes[source] = count
        else:
            del self._handshakes[source]

    def forget(self, connection: EdgeProtocol) -> None:
        self.connections.discard(connection)
        if connection.was_over_cap:
            self.num_over_cap -= 1
        hold, connection.counted_hold = connection.counted_hold, None
        if hold is not None and self._counts is not None:
            self._counts.give_back(hold)
        source, connection.counted_source = connection.counted_source, None
        if source is not None:
            count = self._by_source[source] - 1
            if count:
                self._by_source[source] = count
            else:
                del self._by_source[source]

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in tuple(self.connections):
            if (
                connection.deadline <= now
                or connection.stall_deadline <= now
                or connection.transport.is_closing()
            ):
                connection.expire(now)
        if self.connections:
            loop.call_later(self.sweep_seconds, self._sweep, loop)
        else:
            self._is_sweeping = False


class EdgeProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, edge: Edge, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.edge = edge
        self.state = HEAD
        self.deadline = math.inf
        self.stall_deadline = math.inf
        self.counted_source: str | None = None
        self.counted_hold: int | None = None
        self.was_over_cap = False
        self._over_code = ""
        self._partial_head = b""
        self._known_head = b""  # checked already
        self._known_framing = Head(0, False)
        self._missing = 0  # body bytes that have not come (LENGTH)
        self._chunks: ChunkScanner | None = None
        self._body_started = 0.0
        self._is_message_complete = False
        self._held = b""
        self._is_last = False  # the worker ends: one request more, then close

    # ------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.deadline = self.loop.time() + self.edge.header_timeout_seconds
        code = self.edge.admit(self, self.client[0] if self.client else "")
        if code is not None:
            self.edge.num_over_cap += 1
            self.was_over_cap = True
            self.state = OVER_CAP
            self._over_code = code
            self.deadline = self.loop.time() + OVER_CAP_SECONDS
            if self.edge.num_over_cap > MAX_OVER_CAP:
                transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.edge.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.state == REFUSED:
            return
        try:
            self._feed(data)
        except Refused as refusal:
            self._refuse(refusal.code, refusal.message)
        except httptools.HttpParserUpgrade:
            self._refuse("invalid_request", "Upgrades are not offered: send plain HTTP/1.1.")
        except httptools.HttpParserError:
            self._refuse("invalid_request", "The request is not well-formed HTTP/1.1.")

    def shutdown(self) -> None:
        """The worker ends. A connection that brought no request yet is not idle: its first one is on the way; nor is one
        that brought a part of its next."""
        has_more = self.cycle is None or (self.cycle.response_complete and bool(self._partial_head or self._held))
        if not has_more or self.state in (REFUSED, OVER_CAP):
            super().shutdown()
            return
        self._is_last = True
        if self.state == HEAD and not self._partial_head:
            self.deadline = min(self.deadline, self.loop.time() + FIRST_BYTES_SECONDS)

    def pause_writing(self) -> None:
        self.stall_deadline = self.loop.time() + self.edge.write_stall_seconds
        super().pause_writing()

    def resume_writing(self) -> None:
        self.stall_deadline = math.inf
        super().resume_writing()

    # ------------------------------------------------------------ framing

    def _feed(self, data: bytes) -> None:
        while data:
            if self.state == HEAD:
                data = self._feed_head(data)
            elif self.state == LENGTH:
                part, data = data[: self._missing], data[self._missing :]
                self._missing -= len(part)
                self.parser.feed_data(part)
                if not self._missing:
                    self._message_ends()
            elif self.state == CHUNKED:
                data = self._feed_chunks(data)
            elif self.state == ANSWERING:
                self._held += data
                if len(self._held) > MAX_HELD_BYTES:
                    raise Refused("invalid_request", "Too much was sent before the answer.")
                return
            elif self.state == OVER_CAP:
                raise Refused(self._over_code, "Too many connections.")
            else:
                return

    def _feed_head(self, data: bytes) -> bytes:
        """Take bytes of a head; return what stands behind it."""
        seen = len(self._partial_head)
        if seen:
            data = self._partial_head + data
        else:
            if data.startswith(b"\r\n"):
                data = data[2:]  # one empty line before a request line is old clients' habit (RFC 9112, 2.2)
                if not data:
                    return b""
            if self.cycle is not None:
                self.deadline = self.loop.time() + self.edge.header_timeout_seconds
        end = data.find(b"\r\n\r\n", max(0, seen - 3))
        if end < 0:
            check_partial(data, seen)
            self._partial_head = data
            return b""
        self._partial_head = b""
        head, rest = data[: end + 4], data[end + 4 :]
        if head != self._known_head:  # most requests of a connection have the head of the one before
            self._known_framing = check_head(head)
            self._known_head = head if len(head) <= MAX_KNOWN_HEAD_BYTES else b""
        framing = self._known_framing
        if framing.content_length > self.edge.max_body_bytes:
            raise Refused("request_too_large", f"The body is larger than {self.edge.max_body_bytes} bytes.")
        self._is_message_complete = False
        self.deadline = math.inf
        self.parser.feed_data(head)
        if framing.is_chunked or framing.content_length:
            self._body_started = self.loop.time()
            length = 0 if framing.is_chunked else framing.content_length
            self.deadline = self._body_deadline(length)
            self._missing = length
            self._chunks = ChunkScanner() if framing.is_chunked else None
            self.state = CHUNKED if framing.is_chunked else LENGTH
        else:
            self._message_ends()
        return rest

    def _feed_chunks(self, data: bytes) -> bytes:
        chunks = self._chunks
        if chunks is None:
            raise Refused("invalid_request", "The request is not well-formed HTTP/1.1.")
        taken = chunks.scan(data)
        if chunks.size > self.edge.max_body_bytes:
            raise Refused("request_too_large", f"The body is larger than {self.edge.max_body_bytes} bytes.")
        self.parser.feed_data(data[:taken])
        if chunks.is_done:
            self._message_ends()
        else:
            self.deadline = self._body_deadline(chunks.size)
        return data[taken:]

    def _body_deadline(self, size: int) -> float:
        return self._body_started + self.edge.body_seconds + size / BODY_BYTES_PER_SECOND

    def _message_ends(self) -> None:
        if not self._is_message_complete:
            raise Refused("invalid_request", "The request is not well-formed HTTP/1.1.")
        self.deadline = math.inf
        self.state = ANSWERING
        if self.cycle.response_complete:
            self._await_next()

    def _await_next(self) -> None:
        """Go on with the next request of this connection, if some of it has come."""
        self.state = HEAD
        self.deadline = self.loop.time() + self.edge.idle_timeout_seconds
        if self._held:
            held, self._held = self._held, b""
            self.loop.call_soon(self.data_received, held)

    # ------------------------------------------------------------ uvicorn's callbacks

    def on_headers_complete(self) -> None:
        """Start the application. The head was checked: the target is a path of visible ASCII, the version 1.1."""
        raw_path, _, query = self.url.partition(b"?")
        path = raw_path.decode("ascii")
        scope: Any = self.scope
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["path"] = urllib.parse.unquote(path) if "%" in path else path
        scope["raw_path"] = raw_path
        scope["query_string"] = query
        self.cycle = EdgeCycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=self.parser.should_keep_alive() and not self._is_last,
            on_response=self.on_response_complete,
        )
        self._start_asgi_task(self.cycle, self.app)

    def on_body(self, body: bytes) -> None:
        if not self.cycle.response_complete:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_message_complete or (self.state == LENGTH and self._missing):
            raise Refused("invalid_request", "The request is not well-formed HTTP/1.1.")
        self._is_message_complete = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.state == ANSWERING:
            self._await_next()

    # ------------------------------------------------------------ refusals and deadlines

    def expire(self, now: float) -> None:
        """A deadline passed, or the transport is closing and may hang on a client that does not read."""
        if self.transport.is_closing():
            if self.stall_deadline == math.inf:
                self.stall_deadline = now + self.edge.write_stall_seconds
            elif self.stall_deadline <= now:
                self.transport.abort()
            return
        if self.stall_deadline <= now or self.state == REFUSED:
            self.transport.abort()
        elif self.state == OVER_CAP:
            self._refuse(self._over_code, "Too many connections.")
        elif self.state == HEAD and not self._partial_head:
            self.transport.close()
        else:
            self._refuse("request_timeout", "The request did not arrive in time.")

    def send_400_response(self, msg: str) -> None:
        self._refuse("invalid_request", "The request is not well-formed HTTP/1.1.")

    def _refuse(self, code: str, message: str) -> None:
        """Answer in the envelope and close. A running request of this connection learns that its client is gone."""
        self.state = REFUSED
        self._held = self._partial_head = b""
        cycle = self.cycle
        is_answering = cycle is not None and not cycle.response_complete
        if is_answering:
            has_started = cycle.response_started
            cycle.disconnected = True
            cycle.message_event.set()
            if has_started:
                self.transport.close()
                return
        self.flow.resume_reading()
        retry_after = 1.0 if CODES[code].status in (429, 503) else None
        reply = error_reply(ApiError(code, message, retry_after=retry_after))
        lines = [STATUS_LINE[reply.status]]
        headers = [
            *self.server_state.default_headers,
            *reply.headers,
            *SECURITY_HEADERS,
            (b"x-request-id", new_request_id().encode()),
            (b"content-length", b"%d" % len(reply.body)),
            (b"connection", b"close"),
        ]
        lines.extend(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(b"".join([*lines, b"\r\n", reply.body]))
        self.deadline = self.loop.time() + LINGER_SECONDS
        if self.transport.can_write_eof():
            self.transport.write_eof()
