"""Which tokens are markers, and where texts are cut."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferno.engine.markers import Markers, Occurrence, cut, looks_like_marker
from tests.inferno.engine.vocabularies import (
    CONTROL,
    NORMAL,
    USER_DEFINED,
    open_vocab,
    write_bpe_vocab,
    write_harmony_vocab,
)
from tests.models import demo_model, vocab

FAMILY = ["<|x|>", "<|x>", "<x|>", "<｜begin▁of▁sentence｜>", "＜｜x｜＞", "[|user|]", "{|x|}", "<¦x¦>", "〈|x|〉", '<|"|>']
NOT_FAMILY = ["", "<>", "<|>", "<x>", "|x|", "a|b", "[INST]", "</s>", "<| x", "x |>", "hello", "\n\n"]


@pytest.mark.parametrize("text", FAMILY)
def test_family(text: str) -> None:
    assert looks_like_marker(text)


@pytest.mark.parametrize("text", NOT_FAMILY)
def test_not_family(text: str) -> None:
    assert not looks_like_marker(text)


def test_user_defined_tokens_of_the_template_are_markers(tmp_path: Path) -> None:
    special = [
        ("<think>", USER_DEFINED),
        ("<answer>", USER_DEFINED),
        ("\n\n", USER_DEFINED),
        ("▁▁", USER_DEFINED),
        ("漢", USER_DEFINED),
        ("<|turn>", USER_DEFINED),
        ("<|plain|>", NORMAL),
        ("<eos>", CONTROL),
    ]
    vocabulary = open_vocab(write_bpe_vocab(tmp_path / "v.gguf", special))
    assert set(Markers(vocabulary).texts) == {"<|turn>", "<eos>"}
    assert set(Markers(vocabulary, ["a<think>\n\n漢", "▁▁"]).texts) == {"<|turn>", "<eos>", "<think>"}


def test_gemma_4() -> None:
    markers = Markers(open_vocab(vocab("gemma-4")))
    assert {"<|channel>", "<channel|>", '<|"|>', "<|tool_call>", "<|turn>", "<turn|>", "<bos>"} <= set(markers.texts)
    assert all(markers.key_characters & set(text) for text in markers.texts)


def test_harmony(tmp_path: Path) -> None:
    markers = Markers(open_vocab(write_harmony_vocab(tmp_path / "h.gguf")))
    assert {"<|start|>", "<|channel|>", "<|message|>", "<|endoftext|>"} <= set(markers.texts)
    assert "hello" not in markers.texts


def test_smollm2_has_its_control_tokens() -> None:
    vocabulary = open_vocab(demo_model())
    markers = Markers(vocabulary)
    controls = {vocabulary.text(t).decode() for t in range(vocabulary.n_tokens) if vocabulary.is_control(t)}
    assert set(markers.texts) == controls
    assert {"<|im_start|>", "<|im_end|>", "<|endoftext|>"} <= controls


def _occurrences(text: str, texts: list[str]) -> list[Occurrence]:
    return [
        Occurrence(start, start + len(needle), number)
        for start in range(len(text))
        for number, needle in enumerate(texts)
        if text.startswith(needle, start)
    ]


def test_cut_after_the_first_character() -> None:
    assert cut([(Occurrence(4, 9, 0), False)]).positions == [5]
    assert cut([(Occurrence(4, 9, 0), True)]).positions == []
    single = cut([(Occurrence(4, 5, 0), False)])
    assert single.positions == [4, 5]
    assert single.singles == {4}


def test_a_marker_of_the_template_is_not_cut_by_what_the_client_puts_beside_it() -> None:
    # Template "<a>", client ">": the longer "<a>>" is cut where the client's part starts.
    assert cut([(Occurrence(0, 3, 0), True), (Occurrence(0, 4, 1), False)]).positions == [3]
    # Client "<", template "<a>": "<<a>" is cut after its first character, which is the border too.
    assert cut([(Occurrence(0, 4, 1), False), (Occurrence(1, 4, 0), True)]).positions == [1]


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(st.sampled_from("<a>|"), max_size=24),
    texts=st.lists(st.text(st.sampled_from("<a>|"), min_size=2, max_size=5), unique=True, min_size=1, max_size=5),
    owned=st.data(),
)
def test_no_client_marker_stays_whole_and_no_template_marker_is_cut(
    text: str, texts: list[str], owned: st.DataObject
) -> None:
    is_templates = [owned.draw(st.booleans()) for _ in text]
    pairs = [(o, all(is_templates[o.start : o.end])) for o in _occurrences(text, texts)]
    positions = cut(pairs).positions
    assert positions == sorted(set(positions))
    for occurrence, kept in pairs:
        inside = [p for p in positions if occurrence.start < p < occurrence.end]
        assert bool(inside) != kept
