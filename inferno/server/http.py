"""What a handler gets and gives: Request, Reply, StreamReply, and the one way errors are written.

Owns reading a body within its limit, the media type rule, the error envelope as bytes and the per-request Context.
Does not know routes, credentials or engines. No decision here or elsewhere reads a URL rebuilt from headers: handlers
see the matched route's parameters, raw headers and the raw query. Runs in front workers.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Any, Protocol

import msgspec

from ..errors import CODES, ApiError, EngineError
from ..security.limit_headers import Decision
from ..security.principal import Principal
from .timeline import Timeline

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

JSON_TYPE: Header = (b"content-type", b"application/json")
_MEDIA_TYPE = re.compile(
    rb"application/json[ \t]*(;[ \t]*charset[ \t]*=[ \t]*\"?utf-8\"?[ \t]*)?", re.IGNORECASE
)
DIRECT_WRITER = "inferno.writer"  # in a scope: the edge's cycle, as a DirectWriter
_ENCODER = msgspec.json.Encoder()
encode_json = _ENCODER.encode


class ClientGone(Exception):
    """The client closed the connection; there is nobody to answer."""


class Context:
    """Facts of one request that more than one layer needs. Made by the outermost middleware."""

    __slots__ = (
        "began",
        "decisions",
        "is_administration",
        "principal",
        "request_id",
        "source",
        "status",
        "timeline",
    )

    def __init__(self, request_id: str, source: str) -> None:
        self.request_id = request_id
        self.source = source
        self.began = time.perf_counter()
        self.status = 0  # of the answer, once it has begun
        self.principal: Principal | None = None
        self.is_administration = False  # said by the matched route
        self.decisions: list[Decision] = []  # of the limits; the answer's RateLimit headers are made of them
        self.timeline: Timeline | None = None  # of its generation, where traces are on


class Request:
    """One request as handlers see it."""

    __slots__ = (
        "_max_body_bytes",
        "_watcher",
        "context",
        "headers",
        "is_gone",
        "method",
        "params",
        "query",
        "raw_path",
        "receive",
        "writer",
    )

    def __init__(self, scope: Scope, receive: Receive, params: dict[str, str], max_body_bytes: int) -> None:
        self.context: Context = scope["inferno"]
        self.method: str = scope["method"]
        self.headers: list[Header] = scope["headers"]
        self.query: bytes = scope["query_string"]
        self.raw_path: bytes = scope["raw_path"]
        self.params = params  # of the path, percent-decoded
        self.receive = receive
        self.writer: DirectWriter | None = scope.get(DIRECT_WRITER)
        self.is_gone = False
        self._max_body_bytes = max_body_bytes
        self._watcher: asyncio.Task[None] | None = None

    @property
    def principal(self) -> Principal:
        """The caller. Only for routes that are not public."""
        principal = self.context.principal
        if principal is None:
            raise ApiError("invalid_api_key", "No valid credential was sent.")
        return principal

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of a header, given in lower case."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    async def json_body(self) -> bytes:
        """Return the body of a JSON request. Raises ApiError 413 and 415, and ClientGone."""
        types = [value for key, value in self.headers if key == b"content-type"]
        if len(types) != 1 or not _MEDIA_TYPE.fullmatch(types[0].strip()):
            raise ApiError("unsupported_media_type", "Send Content-Type: application/json, in UTF-8.")
        encoding = self.header(b"content-encoding")
        if encoding is not None and encoding.strip().lower() != b"identity":
            raise ApiError("unsupported_media_type", "Compressed bodies are not read.")
        message = await self._receive_body()
        if not message.get("more_body", False):
            body = message.get("body", b"")
            self._check_size(len(body))
            return bytes(body)
        parts = bytearray()
        while True:
            parts += message.get("body", b"")
            self._check_size(len(parts))
            if not message.get("more_body", False):
                return bytes(parts)
            message = await self._receive_body()

    def watch_disconnect(self, on_gone: Callable[[], None]) -> None:
        """Call `on_gone` at once when the client leaves. The body must have been read."""

        async def watch() -> None:
            while True:
                message = await self.receive()
                if message["type"] == "http.disconnect":
                    self.is_gone = True
                    on_gone()
                    return

        self._watcher = asyncio.get_running_loop().create_task(watch())

    def close(self) -> None:
        """End what watches the connection."""
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None

    async def _receive_body(self) -> Message:
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        return message

    def _check_size(self, size: int) -> None:
        if size > self._max_body_bytes:
            raise ApiError("request_too_large", f"The body is larger than {self._max_body_bytes} bytes.")


class Reply:
    """A whole answer."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, body: bytes, headers: list[Header]) -> None:
        self.status = status
        self.body = body
        self.headers = headers


class DirectWriter(Protocol):
    """The connection of a running answer: body bytes written at once, without a turn of the event loop."""

    @property
    def is_ready(self) -> bool:
        """Whether the answer has begun, goes on, and the client reads."""
        ...

    def write_now(self, body: bytes) -> None:
        """Write a part of the body. Only when ready."""
        ...


class StreamSource(Protocol):
    """Where a stream's pieces come from."""

    def attach(self, writer: DirectWriter) -> None:
        """Take a way past the generator, for pieces that come while it waits for them."""
        ...

    def close(self) -> None:
        """Give back what the stream holds; idempotent."""
        ...


class StreamReply:
    """An answer whose body comes in pieces. Generator and source are closed whatever happens."""

    __slots__ = ("chunks", "headers", "source", "status")

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        source: StreamSource,
        headers: list[Header],
        status: int = 200,
    ) -> None:
        self.chunks = chunks
        self.source = source
        self.headers = headers
        self.status = status


def json_reply(value: Any, *, status: int = 200, headers: list[Header] | None = None) -> Reply:
    return Reply(status, encode_json(value), [JSON_TYPE, *(headers or ())])


def to_api_error(error: EngineError) -> ApiError:
    """Translate an engine's fault at the front's edge."""
    retry_after = error.retry_after
    if retry_after is None and CODES[error.code].status in (429, 503):
        retry_after = 2.0
    return ApiError(error.code, error.message, param=error.param, retry_after=retry_after)


def error_reply(error: ApiError) -> Reply:
    """Write the envelope, with the retry headers that the official client reads."""
    headers: list[Header] = [JSON_TYPE]
    if error.retry_after is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after))))
        headers.append((b"retry-after-ms", b"%d" % max(1, math.ceil(error.retry_after * 1000))))
    if error.code == "insufficient_quota":
        headers.append((b"x-should-retry", b"false"))
    if error.status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="inferno"'))
    headers.extend((name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in error.headers)
    return Reply(error.status, encode_json(error.body()), headers)


async def send_reply(send: Send, reply: Reply) -> None:
    headers = [*reply.headers, (b"content-length", b"%d" % len(reply.body))]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


async def send_stream(send: Send, reply: StreamReply, writer: DirectWriter | None = None) -> None:
    """Write pieces as they come; the body is closed with the last one."""
    try:
        await send({"type": "http.response.start", "status": reply.status, "headers": list(reply.headers)})
        if writer is not None:
            reply.source.attach(writer)
        async for chunk in reply.chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        try:
            await reply.chunks.aclose()
        finally:
            reply.source.close()  # a generator that never ran closes nothing
