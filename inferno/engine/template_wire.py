"""What the engine and its template child say to each other: typed messages, and frames over a socket.

A frame is a little-endian u32 length and one msgpack message. Both ends check the length against a limit before they
take memory. Used by templates.py (parent) and template_child.py (child); imports nothing heavy, so that the child
stays small.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from typing import Any, Literal

import msgspec

HEADER = struct.Struct("<I")
MAX_FRAME_BYTES = 64 << 20
Sandbox = Literal["auto", "required", "off"]


class Limits(msgspec.Struct, frozen=True, tag="limits"):
    """The child's first message: bounds for every later one, and how far it locks itself in.

    `memory_bytes` comes on top of what the interpreter itself has mapped; `cpu_seconds` is whole seconds per request.
    `sandbox` is the setting of that name: with "off" only resource limits hold.
    """

    cpu_seconds: int = 2
    wall_seconds: float = 10.0
    memory_bytes: int = 512 << 20
    max_output_bytes: int = 8 << 20
    sandbox: Sandbox = "auto"


class Check(msgspec.Struct, frozen=True, tag="check"):
    """Parse, walk and compile a template; nothing is rendered."""

    template: str


class Render(msgspec.Struct, frozen=True, tag="render"):
    """Render `template` with `variables` (messages, tools, add_generation_prompt, tokens, named booleans)."""

    template: str
    variables: dict[str, Any]


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The child's answer to its limits: which pieces of the confinement are in force."""

    sandbox: dict[str, str]


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The rendered text; empty after a check."""

    text: str


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Why there is no text.

    `kind`: "syntax", "complex", "statement", "attribute" (a check found it); "raised" (the template's own
    raise_exception), "error" (another exception while it ran), "loop" (time, recursion, range), "memory", "output",
    "crashed".
    """

    kind: str
    detail: str


Request = Limits | Check | Render
Reply = Ready | Done | Failed

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


class WireError(Exception):
    """The peer closed the connection or sent something that is no frame of ours."""


class WireTimeout(WireError):
    """The peer did not answer in time."""


def encode(message: Request | Reply) -> bytes:
    return _encoder.encode(message)


def decode_request(payload: bytes) -> Request:
    try:
        return _requests.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"a request that does not fit: {type(error).__name__}") from None


def decode_reply(payload: bytes) -> Reply:
    try:
        return _replies.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"a reply that does not fit: {type(error).__name__}") from None


def send_frame(sock: socket.socket, payload: bytes) -> None:
    """Write one frame; raises WireError if the peer is gone."""
    if len(payload) > MAX_FRAME_BYTES:
        raise WireError(f"a frame of {len(payload)} bytes; at most {MAX_FRAME_BYTES} are allowed")
    try:
        sock.sendall(HEADER.pack(len(payload)) + payload)
    except OSError as error:
        raise WireError(f"the peer is gone: {error.strerror}") from None


def receive_frame(sock: socket.socket, deadline: float | None = None) -> bytes:
    """Read one frame; `deadline` is a time.monotonic() value. Raises WireTimeout when it passes."""
    (length,) = HEADER.unpack(_receive(sock, HEADER.size, deadline))
    if length > MAX_FRAME_BYTES:
        raise WireError(f"a frame of {length} bytes; at most {MAX_FRAME_BYTES} are allowed")
    return _receive(sock, length, deadline)


def _receive(sock: socket.socket, size: int, deadline: float | None) -> bytes:
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    data = bytearray()
    while len(data) < size:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0 or not poller.poll(left * 1000 + 1):
                raise WireTimeout("no answer in time")
        try:
            part = sock.recv(min(size - len(data), 1 << 18))
        except OSError as error:
            raise WireError(f"the peer is gone: {error.strerror}") from None
        if not part:
            raise WireError("the peer closed the connection")
        data += part
    return bytes(data)
