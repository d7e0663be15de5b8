"""inferno_native.frames against a plain twin: msgspec's JSON between the fixed bytes."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inferno_native.frames import TextFrame

BEFORE, AFTER = b'data: {"choices":[{"index":0,"delta":{"content":', b'},"finish_reason":null}]}\n\n'


def reference_write(before: bytes, text: str, after: bytes) -> bytes:
    return before + msgspec.json.encode(text) + after


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=80), st.text(max_size=200), st.binary(max_size=80))
def test_a_frame_is_what_its_twin_writes(before: bytes, text: str, after: bytes) -> None:
    assert TextFrame(before, after).write(text) == reference_write(before, text, after)


@pytest.mark.parametrize("code", range(0x100))
def test_every_byte_of_latin_1_alone_and_in_company(code: int) -> None:
    for text in (chr(code), f"ab{chr(code)}", f"{chr(code)}\U0001f600", chr(code) * 33):
        frame = TextFrame(BEFORE, AFTER).write(text)
        assert frame == reference_write(BEFORE, text, AFTER)
        assert json.loads(frame[len(BEFORE) : -len(AFTER)]) == text


def test_a_frame_is_used_again_and_keeps_nothing() -> None:
    frame = TextFrame(BEFORE, AFTER)
    assert [frame.write(text) for text in ("one", "", 'a"b\n', "one")] == [
        reference_write(BEFORE, text, AFTER) for text in ("one", "", 'a"b\n', "one")
    ]


def test_no_line_break_of_a_text_ends_an_event_early() -> None:
    """A blank line is where an event ends: none may come from the text."""
    for text in ("\n\n", "\r\r", "\r\n\r\n", "a\n\ndata: [DONE]\n\n"):
        assert TextFrame(b"data: ", b"\n\n").write(text).count(b"\n") == 2
        assert b"\r" not in TextFrame(b"data: ", b"\n\n").write(text)


def test_a_megabyte_of_what_must_be_escaped() -> None:
    text = "\x01" * (1 << 20)
    assert TextFrame(b"", b"").write(text) == b'"' + b"\\u0001" * (1 << 20) + b'"'


def test_lone_surrogates_and_other_types_are_refused() -> None:
    frame = TextFrame(BEFORE, AFTER)
    with pytest.raises(UnicodeEncodeError):
        frame.write("a\ud800b")
    for wrong in (None, b"bytes", 1):
        with pytest.raises(TypeError):
            frame.write(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        TextFrame(BEFORE, None)  # type: ignore[arg-type]
