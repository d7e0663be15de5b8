"""The HTTP edge by raw sockets: smuggling list, sizes, deadlines, caps. Real worker processes, one with short deadlines."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator

import pytest

from .harness import WorkerUnderTest, raw_exchange, running_worker, settings_for_tests, until

HOST = b"Host: localhost\r\n"
OK = b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n"


@pytest.fixture(scope="module")
def edge() -> Iterator[WorkerUnderTest]:
    """With deadlines that no test comes near, however slow the machine."""
    server = {
        "header_timeout_seconds": 120.0, "idle_timeout_seconds": 120.0, "max_body_bytes": 65536, "max_connections_per_ip": 40,
    }  # fmt: skip
    with running_worker(settings_for_tests(server=server)) as running:
        yield running


@pytest.fixture(scope="module")
def hasty() -> Iterator[WorkerUnderTest]:
    with running_worker(settings_for_tests(server={"header_timeout_seconds": 1.0, "idle_timeout_seconds": 1.5})) as running:
        yield running


def parse(raw: bytes) -> tuple[int, dict[str, str], bytes]:
    """Split one whole answer."""
    head, _, body = raw.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}
    return int(lines[0].split()[1]), headers, body


def receive_answer(sock: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Read one answer from a connection that stays open."""
    raw = b""
    while True:
        part = sock.recv(65536)
        assert part, raw
        raw += part
        if b"\r\n\r\n" in raw:
            status, headers, body = parse(raw)
            if len(body) >= int(headers["content-length"]):
                return status, headers, body


def one_answer(port: int, data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes on a connection of their own and read one answer; the connection may stay open behind it."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
        sock.sendall(data)
        return receive_answer(sock)


def check_refusal(raw: bytes, status: int, code: str) -> None:
    """One answer in the envelope, with a request id, and nothing behind it: the connection was closed."""
    got, headers, body = parse(raw)
    assert got == status, raw
    assert headers["connection"] == "close"
    assert headers["x-request-id"].startswith("req_")
    assert headers["content-type"] == "application/json"
    assert int(headers["content-length"]) == len(body)
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code


POST = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
SMUGGLING = {
    "length and chunked": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "same length twice": POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "length list": POST + b"Content-Length: 5, 5\r\n\r\nhello",
    "signed length": POST + b"Content-Length: +5\r\n\r\nhello",
    "negative length": POST + b"Content-Length: -5\r\n\r\nhello",
    "hex length": POST + b"Content-Length: 0x5\r\n\r\nhello",
    "spaced length": POST + b"Content-Length: 5 5\r\n\r\nhello",
    "underscored length": POST + b"Content-Length: 1_0\r\n\r\n0123456789",
    "empty length": POST + b"Content-Length: \r\n\r\n",
    "huge length": POST + b"Content-Length: 99999999999999999999\r\n\r\n",
    "chunked, identity": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "identity, chunked": POST + b"Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
    "gzip, chunked": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "xchunked": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "quoted chunked": POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "vertical tab chunked": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "space before colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "tab before colon": POST + b"Content-Length\t: 5\r\n\r\nhello",
    "space before name": POST + b" Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "folded": POST + b"X-Long: one\r\n two\r\nContent-Length: 0\r\n\r\n",
    "folded coding": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "bare line feed in headers": POST + b"X-One: 1\nX-Two: 2\r\n\r\n",
    "only line feeds": b"GET /healthz HTTP/1.1\nHost: localhost\n\n",
    "bare line feed at the end": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\n",
    "bare carriage return": b"GET /healthz HTTP/1.1\r\nHost: localhost\rX: y\r\n\r\n",
    "carriage return in a value": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: a\rb\r\n\r\n",
    "nul in a value": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
    "control in a name": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX\x01: ab\r\n\r\n",
    "no colon": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nXY\r\n\r\n",
    "empty name": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n: x\r\n\r\n",
    "underscored name": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent_Length: 5\r\n\r\n",
    "underscored key": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX_Api_Key: a\r\n\r\n",
    "underscored forwarding": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Forwarded_For: 1.1.1.1\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    "absolute target": b"GET http://localhost/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "authority target": b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "connect with a path": b"CONNECT /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "asterisk target": b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "relative target": b"GET healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "fragment": b"GET /healthz#x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "target above ASCII": b"GET /health\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "two spaces": b"GET  /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "tab in the request line": b"GET\t/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "space in the target": b"GET /healthz x HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "version 0.9": b"GET /healthz\r\n\r\n",
    "version 1.0": b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n",
    "version 1.2": b"GET /healthz HTTP/1.2\r\nHost: localhost\r\n\r\n",
    "version 2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "lower-case version": b"GET /healthz http/1.1\r\nHost: localhost\r\n\r\n",
    "unknown method": b"FOO /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "lower-case method": b"get /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "upgrade to h2c": b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
    "upgrade to websocket": b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "strange expectation": POST + b"Content-Length: 2\r\nExpect: 200-ok\r\n\r\n{}",
    "announced trailer": POST + b"Trailer: X-A\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "trailer": CHUNKED + b"2\r\n{}\r\n0\r\nX-A: b\r\n\r\n",
    "signed chunk": CHUNKED + b"+2\r\n{}\r\n0\r\n\r\n",
    "negative chunk": CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n",
    "underscored chunk": CHUNKED + b"0_2\r\n{}\r\n0\r\n\r\n",
    "chunk with 0x": CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n",
    "space before a chunk size": CHUNKED + b" 2\r\n{}\r\n0\r\n\r\n",
    "space behind a chunk size": CHUNKED + b"2 \r\n{}\r\n0\r\n\r\n",
    "chunk line feed": CHUNKED + b"2\n{}\r\n0\r\n\r\n",
    "chunk data line feed": CHUNKED + b"2\r\n{}\n0\r\n\r\n",
    "chunk too long": CHUNKED + b"2\r\n{}x\r\n0\r\n\r\n",
    "chunk too short": CHUNKED + b"3\r\n{}\r\n0\r\n\r\n",
    "empty chunk size": CHUNKED + b"\r\n{}\r\n0\r\n\r\n",
    "huge chunk size": CHUNKED + b"fffffffff\r\n{}\r\n0\r\n\r\n",
    "carriage return in a chunk extension": CHUNKED + b"2;a\rb\r\n{}\r\n0\r\n\r\n",
    "long chunk extension": CHUNKED + b"2;" + b"a" * 300 + b"\r\n{}\r\n0\r\n\r\n",
    "garbage": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n",
}


@pytest.mark.parametrize("name", SMUGGLING)
def test_sec_160_ambiguous_requests_are_refused_and_closed(edge: WorkerUnderTest, name: str) -> None:
    check_refusal(raw_exchange(edge.port, SMUGGLING[name]), 400, "invalid_request")


@pytest.mark.parametrize(
    "name", ["two lengths", "trailer", "chunk too long", "bare line feed in headers", "signed chunk"]
)
def test_sec_160_also_byte_by_byte(edge: WorkerUnderTest, name: str) -> None:
    with socket.create_connection(("127.0.0.1", edge.port), timeout=60) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw = b""
        try:
            for value in SMUGGLING[name]:
                sock.sendall(bytes([value]))
        except OSError:
            pass
        while part := sock.recv(65536):
            raw += part
    check_refusal(raw, 400, "invalid_request")


def test_sec_159_too_many_header_bytes(edge: WorkerUnderTest) -> None:
    line = b"X-Pad: " + b"a" * 1000 + b"\r\n"
    head = b"GET /healthz HTTP/1.1\r\n" + HOST
    fits = head + line * 15 + b"X: " + b"b" * (16384 - len(HOST) - 15 * len(line) - 5) + b"\r\n\r\n"
    assert one_answer(edge.port, fits)[0] == 200
    check_refusal(raw_exchange(edge.port, fits[:-4] + b"b\r\n\r\n"), 431, "headers_too_large")
    check_refusal(raw_exchange(edge.port, head + line * 40), 431, "headers_too_large")


def test_sec_159_too_many_header_lines(edge: WorkerUnderTest) -> None:
    head = b"GET /healthz HTTP/1.1\r\n" + HOST
    assert one_answer(edge.port, head + b"X: y\r\n" * 99 + b"\r\n")[0] == 200
    check_refusal(raw_exchange(edge.port, head + b"X: y\r\n" * 100 + b"\r\n"), 431, "headers_too_large")


def test_sec_159_too_long_url(edge: WorkerUnderTest) -> None:
    def get(size: int) -> bytes:
        return b"GET /" + b"a" * (size - 1) + b" HTTP/1.1\r\n" + HOST + b"\r\n"

    assert one_answer(edge.port, get(8192))[0] == 404
    check_refusal(raw_exchange(edge.port, get(8193)), 414, "uri_too_long")
    check_refusal(raw_exchange(edge.port, b"GET /" + b"a" * 9000), 414, "uri_too_long")


def test_sec_112_body_limit_by_length(edge: WorkerUnderTest) -> None:
    body = b'{"messages":[{"role":"user","content":"x"}],"user":"' + b" " * 100
    body += b" " * (65536 - len(body) - 2) + b'"}'
    exact = POST + b"Content-Length: 65536\r\n\r\n" + body
    status, _, answer = one_answer(edge.port, exact)
    assert (status, json.loads(answer)["error"]["param"]) == (400, "user")
    check_refusal(
        raw_exchange(edge.port, POST + b"Content-Length: 65537\r\n\r\n" + body), 413, "request_too_large"
    )


def test_sec_112_body_limit_while_chunks_arrive(edge: WorkerUnderTest) -> None:
    chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    assert one_answer(edge.port, CHUNKED + chunk * 2 + b"0\r\n\r\n")[0] == 400
    check_refusal(raw_exchange(edge.port, CHUNKED + chunk * 2 + b"1\r\n \r\n"), 413, "request_too_large")


def test_chunked_bodies_work_at_every_split(edge: WorkerUnderTest) -> None:
    message = CHUNKED + b'5\r\n{"mod\r\n19;a=b\r\nel":"gpt-9","messages":[]\r\n1\r\n}\r\n0\r\n\r\n'
    for cut in range(len(CHUNKED), len(message), 3):
        with socket.create_connection(("127.0.0.1", edge.port), timeout=60) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(message[:cut])
            sock.sendall(message[cut:])
            status, _, body = receive_answer(sock)
            assert (status, json.loads(body)["error"]["param"]) == (400, "messages")


def test_pipelined_requests_are_answered_in_order(edge: WorkerUnderTest) -> None:
    chunked = CHUNKED + b"2\r\n{}\r\n0\r\n\r\n"
    with socket.create_connection(("127.0.0.1", edge.port), timeout=60) as sock:
        sock.sendall(
            OK + chunked + b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n" + OK + SMUGGLING["two hosts"]
        )
        raw = b""
        while part := sock.recv(65536):
            raw += part
    statuses = [int(part[:3]) for part in raw.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200, 400, 200, 200, 400]


def test_an_empty_line_before_a_request_is_tolerated(edge: WorkerUnderTest) -> None:
    assert one_answer(edge.port, b"\r\n" + OK)[0] == 200


def test_expect_continue(edge: WorkerUnderTest) -> None:
    with socket.create_connection(("127.0.0.1", edge.port), timeout=60) as sock:
        sock.sendall(POST + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"{}")
        assert receive_answer(sock)[0] == 400


def test_sec_157_headers_that_trickle(hasty: WorkerUnderTest) -> None:
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=60) as sock:
        sock.settimeout(0.2)
        raw = b""
        while time.monotonic() - started < 60:
            with contextlib.suppress(OSError):
                sock.sendall(b"G" if not raw else b"")
            try:
                part = sock.recv(65536)
            except TimeoutError:
                continue
            if not part:
                break
            raw += part
            # others are served meanwhile
            assert one_answer(hasty.port, OK)[0] == 200
    assert 0.9 <= time.monotonic() - started < 30
    check_refusal(raw, 408, "request_timeout")


def test_a_connection_that_says_nothing_is_closed(hasty: WorkerUnderTest) -> None:
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=60) as sock:
        assert sock.recv(100) == b""


def test_idle_connections_are_closed(hasty: WorkerUnderTest) -> None:
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=60) as sock:
        started = time.monotonic()
        sock.sendall(OK)
        assert receive_answer(sock)[0] == 200
        assert sock.recv(100) == b""
        assert 1.0 <= time.monotonic() - started < 30


def test_connections_of_one_source_are_capped(edge: WorkerUnderTest) -> None:
    socks: list[socket.socket] = []

    def is_served() -> bool:
        """Open one more; kept when it is answered."""
        sock = socket.create_connection(("127.0.0.1", edge.port), timeout=60)
        sock.sendall(OK)
        if receive_answer(sock)[0] == 200:
            socks.append(sock)
            return True
        sock.close()
        return False

    try:
        until(lambda: is_served() and len(socks) == 40)  # those of the tests before may be counted for a moment
        check_refusal(raw_exchange(edge.port, OK), 429, "rate_limit_exceeded")
        socks.pop().close()
        until(is_served)
        check_refusal(raw_exchange(edge.port, OK), 429, "rate_limit_exceeded")
    finally:
        for sock in socks:
            sock.close()


def test_every_answer_has_the_headers_and_no_version(edge: WorkerUnderTest) -> None:
    for request in (OK, b"GET /v1/models HTTP/1.1\r\n" + HOST + b"\r\n", SMUGGLING["two hosts"]):
        _, headers, _ = one_answer(edge.port, request)
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["x-request-id"].startswith("req_")
        assert "server" not in headers
        assert "strict-transport-security" not in headers
