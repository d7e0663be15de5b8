"""Deadlines that no setting shortens, with an Edge of short ones: slow bodies, slow readers, caps of the listener.

Over plain sockets on asyncio's loop, and over TLS on uvloop's, whose transports do their own buffering.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop

from inferno import tls
from inferno.server.protocol import Edge, EdgeProtocol
from inferno.server.worker import _Server

from .harness import until

HEAD = b"Host: localhost\r\n"
GET = b"GET / HTTP/1.1\r\n" + HEAD + b"\r\n"
gone: list[str] = []


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Read the body; answer its size, or 64 MiB for /big. Notes when the client is gone."""
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            gone.append(scope["path"])
            return
        size += len(message["body"])
        if not message["more_body"]:
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/big":
        for _ in range(1024):
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
    await send({"type": "http.response.body", "body": b"%d" % size})


Connect = Callable[[], socket.socket]


@pytest.fixture(scope="module", params=["plain", "tls"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path] | None:
    return tls.make_self_signed(tmp_path_factory.mktemp("tls")) if request.param == "tls" else None


@pytest.fixture(scope="module")
def edge(pair: object) -> Edge:
    return Edge(
        max_body_bytes=1 << 20,
        body_seconds=0.6,
        write_stall_seconds=1.0,
        sweep_seconds=0.05,
        max_connections=30,
    )


@pytest.fixture(scope="module")
def connect(edge: Edge, pair: tuple[Path, Path] | None) -> Iterator[Connect]:
    config = uvicorn.Config(
        application,
        http=functools.partial(EdgeProtocol, edge=edge),  # type: ignore[arg-type]
        loop="none",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ssl_context_factory=None if pair is None else lambda *_: tls.server_context(*pair, minimum="1.2"),
    )
    server = _Server(config, edge, lambda: None)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(64)
    run = asyncio.run if pair is None else uvloop.run
    thread = threading.Thread(target=lambda: run(server.serve(sockets=[listener])))
    thread.start()
    address = listener.getsockname()
    context = None if pair is None else ssl.create_default_context(cafile=str(pair[0]))

    def open_one() -> socket.socket:
        sock = socket.create_connection(address, timeout=60)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock if context is None else context.wrap_socket(sock, server_hostname="127.0.0.1")

    yield open_one
    server.should_exit = True
    thread.join(60)


def read_all(sock: socket.socket) -> bytes:
    parts = []
    while True:
        try:
            part = sock.recv(1 << 20)
        except (ConnectionResetError, ssl.SSLEOFError):
            break
        if not part:
            break
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 1000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n"]
)
def test_sec_158_a_body_that_trickles(connect: Connect, framing: bytes) -> None:
    started = time.monotonic()
    with connect() as sock:
        sock.sendall(b"POST /trickle HTTP/1.1\r\n" + HEAD + framing)
        sock.settimeout(0.1)
        raw = b""
        while time.monotonic() - started < 60:
            with contextlib.suppress(OSError):
                sock.sendall(b"x")
            try:
                part = sock.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
            if not part:
                break
            raw += part
    assert raw.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in raw
    assert 0.5 < time.monotonic() - started < 30
    until(lambda: "/trickle" in gone)  # the application learns it
    gone.clear()


def test_a_large_body_at_a_fair_pace_has_its_time(connect: Connect) -> None:
    """A second per 16 KiB on top: 64 KiB in a second are in time, though the base is 0.6 s."""
    with connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\n" + HEAD + b"Content-Length: 65536\r\n\r\n")
        for _ in range(8):
            sock.sendall(b"x" * 8192)
            time.sleep(0.13)
        assert b"65536" in sock.recv(65536)


def test_sec_158_a_reader_that_stops(connect: Connect, edge: Edge) -> None:
    started = time.monotonic()
    with connect() as sock:
        sock.sendall(b"GET /big HTTP/1.1\r\n" + HEAD + b"\r\n")
        assert sock.recv(1)
        until(lambda: not edge.connections, 30)
        assert time.monotonic() - started > 0.9
        assert len(read_all(sock)) < 64 << 20


def test_a_reader_that_reads_gets_everything(connect: Connect) -> None:
    with connect() as sock:
        sock.sendall(b"GET /big HTTP/1.1\r\n" + HEAD + b"Connection: close\r\n\r\n")
        assert len(read_all(sock)) > 64 << 20


def test_sec_161_the_cap_of_connections(connect: Connect, edge: Edge) -> None:
    until(lambda: not edge.connections)  # those of the tests before
    socks = [connect() for _ in range(30)]
    try:
        for sock in socks:
            sock.sendall(GET)
            assert b"200 OK" in sock.recv(65536)
        with connect() as over:
            over.sendall(GET)
            raw = read_all(over)
        assert raw.startswith(b"HTTP/1.1 503 ")
        assert b'"code":"overloaded"' in raw
        assert b"retry-after: 1\r\n" in raw
    finally:
        for sock in socks:
            sock.close()

    def is_served() -> bool:
        with connect() as again:
            again.sendall(GET)
            return b"200 OK" in again.recv(65536)

    until(is_served)
