"""Server-sent events of both generation routes: frames from templates, heartbeats, errors after the first byte.

A frame's fixed parts are encoded once per answer; a token is one call of native code (inferno_native.frames). All frames
of one engine step go out in one write. The 200 is sent with the first token or after HEARTBEAT_SECONDS; the generator
ends right after [DONE]. Front workers.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from typing import Any, Protocol

from inferno_native.frames import TextFrame

from ..errors import ApiError
from .http import Header, StreamReply, encode_json, error_reply
from .logprobs import LegacyLists, chat_entries
from .output import Output, Piece

HEARTBEAT_SECONDS = 10.0
HEARTBEAT = b": waiting\n\n"
DONE = b"data: [DONE]\n\n"
PADDING_BLOCK = 64
_NO_LOGPROBS = b',"logprobs":null,"finish_reason":null}]'
EVENT_STREAM: Header = (b"content-type", b"text/event-stream; charset=utf-8")


class Frames(Protocol):
    """How one route writes its chunks."""

    def opening(self) -> bytes: ...
    def piece(self, piece: Piece) -> bytes: ...
    def usage(self, usage: dict[str, Any]) -> bytes: ...


class _Tail:
    """What ends every chunk: `usage: null` when a usage chunk will come, padding when it was asked for."""

    def __init__(self, includes_usage: bool, has_obfuscation: bool) -> None:
        self._usage = b',"usage":null' if includes_usage else b""
        self._has_obfuscation = has_obfuscation

    def text_frame(self, before: bytes, after: bytes) -> TextFrame | None:
        """Return the writer of chunks that differ in their text only; None: padding makes each one different."""
        return None if self._has_obfuscation else TextFrame(before, self.close(after))

    def close(self, frame: bytes) -> bytes:
        frame += self._usage
        if self._has_obfuscation:
            # Lengths become multiples of PADDING_BLOCK, give or take one random block.
            missing = -(len(frame) + 20) % PADDING_BLOCK + secrets.randbelow(2) * PADDING_BLOCK
            frame += b',"obfuscation":"' + secrets.token_hex(missing // 2 + 1)[:missing].encode() + b'"'
        return frame + b"}\n\n"


class ChatFrames:
    """chat.completion.chunk: role first for every index in order, then content, one finish chunk per choice."""

    def __init__(
        self, head: dict[str, Any], num_choices: int, includes_usage: bool, has_obfuscation: bool
    ) -> None:
        self._head = b"data: " + encode_json(head)[:-1] + b',"choices":['
        self._content = [
            self._head + b'{"index":%d,"delta":{"content":' % index for index in range(num_choices)
        ]
        self._num_choices = num_choices
        self._tail = _Tail(includes_usage, has_obfuscation)
        self._plain = [self._tail.text_frame(before, b"}" + _NO_LOGPROBS) for before in self._content]

    def opening(self) -> bytes:
        role = (
            b'"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}]'
        )
        return b"".join(
            self._tail.close(self._head + b'{"index":%d,' % index + role)
            for index in range(self._num_choices)
        )

    def piece(self, piece: Piece) -> bytes:
        frames = b""
        plain = self._plain[piece.choice]
        if plain is not None and not piece.logprobs:
            frames = plain.write(piece.text) if piece.text else b""
        elif piece.text or piece.logprobs:
            logprobs = b"null"
            if piece.logprobs:
                logprobs = encode_json({"content": chat_entries(piece.logprobs), "refusal": None})
            frames = self._tail.close(
                self._content[piece.choice]
                + encode_json(piece.text)
                + b'},"logprobs":'
                + logprobs
                + b',"finish_reason":null}]'
            )
        if piece.finish is not None:
            frames += self._tail.close(
                self._head
                + b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":"%s"}]'
                % (piece.choice, piece.finish.encode())
            )
        return frames

    def usage(self, usage: dict[str, Any]) -> bytes:
        return self._head + b'],"usage":' + encode_json(usage) + b"}\n\n"


class CompletionFrames:
    """text_completion chunks: text, then one chunk with the finish reason per choice."""

    def __init__(
        self, head: dict[str, Any], num_choices: int, includes_usage: bool, has_obfuscation: bool
    ) -> None:
        self._head = b"data: " + encode_json(head)[:-1] + b',"choices":['
        self._text = [self._head + b'{"index":%d,"text":' % index for index in range(num_choices)]
        self._lists = [LegacyLists() for _ in range(num_choices)]
        self._tail = _Tail(includes_usage, has_obfuscation)
        self._plain = [self._tail.text_frame(before, _NO_LOGPROBS) for before in self._text]

    def opening(self) -> bytes:
        return b""

    def piece(self, piece: Piece) -> bytes:
        frames = b""
        head = self._text[piece.choice]
        plain = self._plain[piece.choice]
        if plain is not None and not piece.logprobs:
            frames = plain.write(piece.text) if piece.text else b""
        elif piece.text or piece.logprobs:
            logprobs = b"null"
            if piece.logprobs:
                logprobs = encode_json(self._lists[piece.choice].lists(piece.logprobs))
            frames = self._tail.close(
                head + encode_json(piece.text) + b',"logprobs":' + logprobs + b',"finish_reason":null}]'
            )
        if piece.finish is not None:
            frames += self._tail.close(
                head + b'"","logprobs":null,"finish_reason":"%s"}]' % piece.finish.encode()
            )
        return frames

    def usage(self, usage: dict[str, Any]) -> bytes:
        return self._head + b'],"usage":' + encode_json(usage) + b"}\n\n"


async def stream_reply(
    output: Output, frames: Frames, num_choices: int, includes_usage: bool, headers: list[Header]
) -> StreamReply:
    """Wait for the first pieces (an error until then is a status), then answer with the stream. Closes the run."""
    try:
        first = await output.pieces(HEARTBEAT_SECONDS)
    except BaseException:
        output.close()
        raise
    chunks = _stream(output, frames, first, num_choices, includes_usage)
    return StreamReply(chunks, output, [EVENT_STREAM, *headers])


async def _stream(
    output: Output,
    frames: Frames,
    pieces: list[Piece] | None,
    num_choices: int,
    includes_usage: bool,
) -> AsyncGenerator[bytes, None]:
    try:
        num_open = num_choices
        opening = frames.opening()
        while True:
            if pieces is None:
                yield HEARTBEAT
            elif pieces:
                num_open -= sum(piece.finish is not None for piece in pieces)
                batch = opening + b"".join([frames.piece(piece) for piece in pieces])
                opening = b""
                if not num_open:
                    output.close()  # the slot and the rest of the reservation are free before the last byte leaves
                    if includes_usage:
                        batch += frames.usage(output.run.usage())
                    yield batch + DONE
                    return
                if batch:
                    yield batch
            # Choices of one step share a write; a single one needs nobody to wake up for its next pieces.
            direct = frames.piece if num_choices == 1 and not opening else None
            pieces = await output.pieces(HEARTBEAT_SECONDS, direct)
    except ApiError as error:
        yield b"data: " + error_reply(error).body + b"\n\n"
    finally:
        output.close()
