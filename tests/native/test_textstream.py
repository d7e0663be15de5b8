"""Laws of TextStream: joined parts equal the whole, nothing of a stop leaks, code points are never split."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inferno_native.textstream import MAX_STOP_BYTES, MAX_STOPS, TextStream

from tests.native.reference_textstream import cut_at_stop, text_of

ALPHABET = ["a", "b", "ab", "é", "漢", "😀", "👩‍👩‍👧", "\n", "<", "<|", "end"]
LAW = settings(max_examples=200, deadline=None)


def parts_of(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


def stream(parts: list[bytes], stops: list[bytes]) -> tuple[list[str], bool]:
    machine = TextStream(stops)
    texts = [machine.push(part) for part in parts]
    return [*texts, machine.finish()], machine.stopped


@LAW
@given(st.lists(st.sampled_from(ALPHABET), max_size=30), st.lists(st.sampled_from(ALPHABET), max_size=3),
       st.lists(st.integers(0, 500), max_size=20))  # fmt: skip
def test_joined_parts_equal_the_whole(pieces: list[str], stops: list[str], cuts: list[int]) -> None:
    data = "".join(pieces).encode()
    encoded = [stop.encode() for stop in stops]
    texts, stopped = stream(parts_of(data, cuts), encoded)
    assert ("".join(texts), stopped) == text_of(data, encoded)


@LAW
@given(
    st.binary(max_size=40),
    st.lists(st.integers(0, 500), max_size=20),
    st.lists(st.binary(min_size=1, max_size=3), max_size=2),
)
def test_any_bytes_are_decoded_as_a_whole_would_be(data: bytes, cuts: list[int], stops: list[bytes]) -> None:
    texts, stopped = stream(parts_of(data, cuts), stops)
    assert ("".join(texts), stopped) == text_of(data, stops)


@LAW
@given(st.text(max_size=30))
def test_valid_text_never_shows_a_replacement(text: str) -> None:
    if "\ufffd" in text:
        return
    texts, _ = stream([bytes([byte]) for byte in text.encode()], [])
    assert "".join(texts) == text
    assert all("\ufffd" not in part for part in texts)


@pytest.mark.parametrize("stop", ["STOP", "ende", "ananas", "😀!", "漢字", "\n\n", "aab"])
@pytest.mark.parametrize("before", ["", "hello ", "anan", "aaaa", "\n", "漢", "STO"])
def test_every_split_of_a_stop_string(stop: str, before: str) -> None:
    data = (before + stop + " never shown").encode()
    expected, _ = text_of(data, [stop.encode()])
    for first in range(len(data) + 1):
        for second in range(first, len(data) + 1):
            machine = TextStream([stop.encode()])
            shown = ""
            for part in (data[:first], data[first:second], data[second:]):
                shown += machine.push(part)
                assert expected.startswith(shown)
            shown += machine.finish()
            assert (shown, machine.stopped) == (expected, True)


def test_first_letters_of_a_stop_are_held_and_then_flushed() -> None:
    machine = TextStream([b"<|end|>"])
    assert machine.push(b"text<|e") == "text"
    assert machine.push(b"n") == ""
    assert machine.push(b"x") == "<|enx"
    assert machine.push(b"<|end") == ""
    assert machine.finish() == "<|end"
    assert not machine.stopped


def test_an_unfinished_code_point_becomes_a_replacement_only_at_the_end() -> None:
    machine = TextStream()
    assert machine.push("😀".encode()[:3]) == ""
    assert machine.push("😀".encode()[3:]) == "😀"
    assert machine.push(b"\xf0\x9f") == ""
    assert machine.finish() == "\ufffd"


def test_impossible_bytes_do_not_hold_the_text_back() -> None:
    machine = TextStream()
    assert machine.push(b"\xff") == "\ufffd"
    assert machine.push(b"\xe0\x80") == "\ufffd\ufffd"
    assert machine.push(b"\xc0\xafx") == "\ufffd\ufffdx"


def test_the_earliest_complete_stop_wins() -> None:
    data = b"one abc two"
    assert cut_at_stop(data, [b"abcd", b"bc"]) == (b"one a", True)
    assert stream([data], [b"abcd", b"bc"]) == (["one a", ""], True)
    assert stream([data], [b"bc", b"abc"]) == (["one ", ""], True)


def test_min_tokens_stretch_is_not_matched() -> None:
    machine = TextStream([b"x"])
    assert machine.push(b"axb", False) == "axb"
    assert machine.push(b"cxd") == "c"
    assert machine.stopped
    assert machine.stop_offset == 4


def test_limits() -> None:
    with pytest.raises(ValueError, match="at most 16"):
        TextStream([b"a"] * (MAX_STOPS + 1))
    for stop in (b"", b"a" * (MAX_STOP_BYTES + 1)):
        with pytest.raises(ValueError, match="a stop string of"):
            TextStream([stop])


def test_long_streams_keep_little() -> None:
    machine = TextStream([b"q" * 100])
    total = "".join(machine.push(b"abcdefghijklmno" * 20) for _ in range(200))
    assert len(total) == 200 * 300
    assert machine.num_emitted == machine.num_received == 60000
