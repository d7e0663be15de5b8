"""One request and its answer on a connection: uvicorn's cycle, with head and first body bytes in one write.

Two small writes per answer cost a system call each and wait for each other on a slow network. The head is kept until
the first body bytes come; everything else is as in uvicorn. Front workers.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from .http import DIRECT_WRITER

_NO_BODY = frozenset((204, 304))
_as_line = b"%b: %b\r\n".__mod__  # of a (name, value) pair


class EdgeCycle(RequestResponseCycle):
    """Answers with Content-Length or in chunks. A header that holds a line break is a fault of ours: RuntimeError."""

    _head = b""

    async def run_asgi(self, app: Any) -> None:
        scope: Any = self.scope
        scope[DIRECT_WRITER] = self
        try:
            await app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:  # the grace is over, or the supervisor is gone
            self.logger.warning("an answer was cut: this worker ends")
        except Exception as error:  # the application logged it with its request id
            self.logger.error("an answer was cut by a fault of ours: %s", type(error).__name__)
        finally:
            del scope[DIRECT_WRITER]  # or the two would hold each other
            if not self.response_complete:
                self.transport.close()
            self.on_response = lambda: None

    async def send(self, message: Any) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if not self.response_started:
            if message["type"] != "http.response.start":
                raise RuntimeError(f"an answer starts with http.response.start, not {message['type']}")
            self._start(message)
        elif self.response_complete:
            raise RuntimeError("the answer is complete already")
        else:
            self._body(message.get("body", b""), message.get("more_body", False))

    @property
    def is_ready(self) -> bool:
        """Whether `write_now` may be called: the answer has begun, goes on, and the client reads."""
        return self.response_started and not (
            self.response_complete or self.disconnected or self.flow.write_paused
        )

    def write_now(self, body: bytes) -> None:
        """Write a part of the body without waiting, as `send` with more_body would."""
        self._body(body, True)

    def _start(self, message: Any) -> None:
        self.response_started = True
        self.waiting_for_100_continue = False
        status: int = message["status"]
        headers = message["headers"]
        lines = [STATUS_LINE[status], *map(_as_line, self.default_headers), *map(_as_line, headers)]
        for name, value in headers:
            if name == b"content-length":
                self.expected_content_length = int(value)
                self.chunked_encoding = False
            elif name == b"connection" and value == b"close":
                self.keep_alive = False
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        if self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in _NO_BODY:
            self.chunked_encoding = True
            lines.append(b"transfer-encoding: chunked\r\n")
        head = b"".join(lines)
        if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines):
            raise RuntimeError("a header of the answer holds a line break")
        self._head = head + b"\r\n"

    def _body(self, body: bytes, more_body: bool) -> None:
        head, self._head = self._head, b""
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
            body = b""
        elif self.chunked_encoding:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more_body:
                body += b"0\r\n\r\n"
        else:
            if len(body) > self.expected_content_length:
                raise RuntimeError("the body is longer than its Content-Length")
            self.expected_content_length -= len(body)
        if head or body:
            self.transport.write(head + body)
        if more_body:
            return
        if self.expected_content_length != 0:
            raise RuntimeError("the body is shorter than its Content-Length")
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
