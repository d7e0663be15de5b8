"""inferno_native.marker_index against its plain twin."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inferno_native.marker_index import MarkerIndex, exchange

from tests.native import reference_marker_index as reference

LETTERS = st.text(st.sampled_from("<|a>é｜😀"), min_size=1, max_size=5)


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(LETTERS, unique=True, max_size=8), text=st.text(st.sampled_from("<|a>é｜😀x"), max_size=60))
def test_finds_what_the_twin_finds(texts: list[str], text: str) -> None:
    assert MarkerIndex(texts).find(text) == reference.find(texts, text)


def test_every_width_of_str() -> None:
    index = MarkerIndex(["<a>", "é>", "｜b", "😀"])
    for text in ("<a>", "é><a>", "｜b<a>", "😀<a>｜b"):
        assert index.find(text) == reference.find(["<a>", "é>", "｜b", "😀"], text)


def test_refuses_what_is_no_set_of_texts() -> None:
    for wrong in (["a", "a"], [""], [b"a"], ["a", None]):
        with pytest.raises(ValueError):
            MarkerIndex(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        MarkerIndex(["a"]).find(None)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError):
        MarkerIndex(["a"]).__init__(["b"])  # type: ignore[misc]


def test_other_threads_run_while_a_hostile_text_is_searched() -> None:
    index = MarkerIndex(["<" * length + ">" for length in range(1, 200)])
    text = "<" * 400_000
    ticks = 0
    done = threading.Event()

    def search() -> None:
        assert index.find(text) == []
        done.set()

    thread = threading.Thread(target=search)
    thread.start()
    while not done.is_set():
        ticks += 1
        time.sleep(0)
    thread.join()
    assert ticks > 10


CHARACTERS = st.sampled_from("<|>aé｜漢😀\U000f0000\U000f0001\0")


@settings(max_examples=200, deadline=None)
@given(text=st.text(CHARACTERS, max_size=50), pairs=st.dictionaries(CHARACTERS, CHARACTERS))
def test_exchange_is_translate(text: str, pairs: dict[str, str]) -> None:
    found = exchange(text, pairs)
    assert found == text.translate({ord(a): b for a, b in pairs.items()})
    assert len(found.encode("utf-32-le")) == len(text.encode("utf-32-le"))


def test_exchange_refuses_what_is_no_character() -> None:
    for wrong in ({"ab": "c"}, {"a": "bc"}, {"": "x"}, {1: "x"}):
        with pytest.raises((TypeError, ValueError)):
            exchange("abc", wrong)  # type: ignore[arg-type]
    assert exchange("", {"a": "b"}) == ""
    assert exchange("abc", {}) == "abc"
    with pytest.raises(ValueError, match="at most"):
        exchange("abc", {chr(c): "x" for c in range(0x10000, 0x20001)})
