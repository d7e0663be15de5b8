"""What a request's head and a chunked body may look like: the smuggling list, as pure functions over bytes.

RFC 9112 with every leniency taken out, so that no intermediary can read a message differently (NET-4, NET-5): CRLF only,
single spaces in the request line, origin-form targets, HTTP/1.1, one Host, one Content-Length of digits or one
Transfer-Encoding that says exactly `chunked`, no folding, no space before a colon, no underscore in names (it aliases a
dash behind some gateways), no Upgrade, no trailers. httptools parses the same bytes afterwards: both must agree.

No I/O, no state but the chunk scanner's. Front workers.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_TARGET_BYTES = 8192
MAX_HEADER_BYTES = 16384
MAX_HEADER_LINES = 100
MAX_HEAD_BYTES = MAX_TARGET_BYTES + MAX_HEADER_BYTES + 64
MAX_CHUNK_LINE = 256
MAX_LENGTH_DIGITS = 15

_REQUEST_LINE = re.compile(rb"[A-Z]{1,20} (\S+) HTTP/1\.1\r\n")
_ORIGIN_FORM = re.compile(rb"/[!-~]*")
# Every line: a token, a colon directly behind it, a value of visible bytes, spaces and tabs.
_HEADER_LINES = re.compile(rb"(?:[!#$%&'*+.^`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*\r\n)*")
_REFUSED_HEADERS = {
    b"\nupgrade:": "Upgrades are not offered: send plain HTTP/1.1.",
    b"\nhttp2-settings:": "Upgrades are not offered: send plain HTTP/1.1.",
    b"\ntrailer:": "Trailers are not read.",
}
_BARE = re.compile(rb"(?<!\r)\n|\r[^\n]")
_UNDERSCORE = re.compile(rb"(?:^|\n)[!-9;-~]*_[!-9;-~]*:")
_DIGITS = re.compile(rb"[0-9]{1,%d}" % MAX_LENGTH_DIGITS)
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})(?:;[\t -~]*)?")


class Refused(Exception):
    """The bytes are refused: `code` is a key of inferno.errors.CODES, the message a fixed text."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Head(NamedTuple):
    """How the body of a request is framed: a length, or chunks."""

    content_length: int
    is_chunked: bool


def check_partial(head: bytes | bytearray, scanned: int) -> None:
    """Refuse a head that has not ended yet as early as its fault shows. `scanned` bytes were looked at before."""
    if _BARE.search(head, max(0, scanned - 1)):
        raise Refused("invalid_request", "Lines must end in CRLF.")
    line_end = head.find(b"\r\n")
    if line_end < 0:
        if len(head) > MAX_TARGET_BYTES + 64:
            raise Refused("uri_too_long", f"The URL is longer than {MAX_TARGET_BYTES} bytes.")
    elif len(head) - line_end > MAX_HEADER_BYTES + 4:
        raise Refused("headers_too_large", f"The headers are longer than {MAX_HEADER_BYTES} bytes.")


def check_head(head: bytes) -> Head:
    """Check a whole head, request line to empty line. Raises Refused."""
    line = _REQUEST_LINE.match(head)
    if line is None:
        _refuse_request_line(head)
        raise AssertionError  # unreachable: the line above raises
    target = line[1]
    if len(target) > MAX_TARGET_BYTES:
        raise Refused("uri_too_long", f"The URL is longer than {MAX_TARGET_BYTES} bytes.")
    if not _ORIGIN_FORM.fullmatch(target) or b"#" in target:
        raise Refused("invalid_request", "The request target must be a path.")
    start = line.end()
    end = len(head) - 2
    if end - start > MAX_HEADER_BYTES:
        raise Refused("headers_too_large", f"The headers are longer than {MAX_HEADER_BYTES} bytes.")
    if head.count(b"\n", start, end) > MAX_HEADER_LINES:
        raise Refused("headers_too_large", f"There are more than {MAX_HEADER_LINES} header lines.")
    if not _HEADER_LINES.fullmatch(head, start, end):
        _refuse_header_line(head[start:end])
    lower = (
        head.lower()
    )  # every line is known to be NAME ":" value, so a name stands right behind a line feed
    for name, message in _REFUSED_HEADERS.items():
        if lower.find(name, start - 1, end) >= 0:
            raise Refused("invalid_request", message)
    if _value(lower, b"\nhost:", start, end) is None:
        raise Refused("invalid_request", "A request has exactly one Host header.")
    if _value(lower, b"\nexpect:", start, end) not in (None, b"100-continue"):
        raise Refused("invalid_request", "The only expectation is 100-continue.")
    coding = _value(lower, b"\ntransfer-encoding:", start, end)
    length = _value(lower, b"\ncontent-length:", start, end)
    if coding is not None:
        if coding != b"chunked":
            raise Refused("invalid_request", "The only Transfer-Encoding is chunked, once.")
        if length is not None:
            raise Refused("invalid_request", "Content-Length and Transfer-Encoding exclude each other.")
        return Head(0, True)
    if length is None:
        return Head(0, False)
    if not _DIGITS.fullmatch(length):
        raise Refused("invalid_request", "Content-Length must be digits.")
    return Head(int(length), False)


def _value(lower: bytes, name: bytes, start: int, end: int) -> bytes | None:
    """Return the one value of a header, None if it is absent. `name` is a line feed, the name, a colon."""
    at = lower.find(name, start - 1, end)
    if at < 0:
        return None
    line_end = lower.index(b"\r", at)
    if lower.find(name, line_end, end) >= 0:
        raise Refused("invalid_request", f"There is more than one {name[1:-1].decode()} header.")
    return lower[at + len(name) : line_end].strip(b" \t")


def _refuse_request_line(head: bytes) -> None:
    line = head.split(b"\n", 1)[0]
    if _BARE.search(head):
        raise Refused("invalid_request", "Lines must end in CRLF.")
    if len(line) > MAX_TARGET_BYTES + 64:
        raise Refused("uri_too_long", f"The URL is longer than {MAX_TARGET_BYTES} bytes.")
    raise Refused("invalid_request", "The request line is not METHOD SP path SP HTTP/1.1.")


def _refuse_header_line(lines: bytes) -> None:
    if _BARE.search(lines):
        raise Refused("invalid_request", "Lines must end in CRLF.")
    if _UNDERSCORE.search(lines):
        raise Refused("invalid_request", "Header names must not hold an underscore.")
    raise Refused("invalid_request", "A header line is malformed.")


class ChunkScanner:
    """Walks a chunked body and says where it ends. Strict: plain hexadecimal sizes, CRLF, no trailers."""

    def __init__(self) -> None:
        self._line = b""  # a size line, or the CRLF behind data, that has not come whole
        self._missing = 0  # bytes of the current chunk that have not come
        self._after_data = False
        self._is_last = False
        self.size = 0  # bytes of data announced so far
        self.is_done = False

    def scan(self, data: bytes) -> int:
        """Return how many of these bytes belong to the body; `is_done` tells whether it ended. Raises Refused."""
        position = 0
        while position < len(data) and not self.is_done:
            if self._missing:
                step = min(self._missing, len(data) - position)
                self._missing -= step
                position += step
                self._after_data = not self._missing
                continue
            end = data.find(b"\n", position)
            if end < 0:
                self._line += data[position:]
                self._check_partial_line()
                return len(data)
            line = self._line + data[position : end + 1]
            self._line = b""
            position = end + 1
            self._take(line)
        return position

    def _check_partial_line(self) -> None:
        if len(self._line) > MAX_CHUNK_LINE:
            raise Refused("invalid_request", "A chunk's size line is too long.")
        if self._after_data and not b"\r\n".startswith(self._line):
            raise Refused("invalid_request", "A chunk is longer than its size.")

    def _take(self, line: bytes) -> None:
        if len(line) > MAX_CHUNK_LINE or not line.endswith(b"\r\n"):
            raise Refused("invalid_request", "A chunk's size line is malformed.")
        if self._after_data:
            if line != b"\r\n":
                raise Refused("invalid_request", "A chunk is longer than its size.")
            self._after_data = False
            return
        if self._is_last:
            if line != b"\r\n":
                raise Refused("invalid_request", "Trailers are not read.")
            self.is_done = True
            return
        found = _CHUNK_LINE.fullmatch(line, 0, len(line) - 2)
        if found is None:
            raise Refused("invalid_request", "A chunk's size is not plain hexadecimal digits.")
        size = int(found[1], 16)
        self.size += size
        self._missing = size
        self._is_last = size == 0
