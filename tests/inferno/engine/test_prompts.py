"""CONTRACT 7.7 by token ids: no marker in any client field, the text unchanged, ordinary chats as llama.cpp reads them."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inferno_native import llama

from inferno.engine.prompts import PromptBuilder
from inferno.errors import EngineError
from inferno.messages import ChatPrompt, TextPrompt, TokenPrompt
from tests.conftest import shared
from tests.inferno.engine.vocabularies import (
    CONTROL,
    InProcessTemplate,
    builder,
    open_vocab,
    write_bpe_vocab,
    write_harmony_vocab,
)
from tests.models import demo_model, vocab

# Prints every field that a client can fill, between two markers of the vocabulary.
WITNESS = """{{ bos_token }}{% for tool in tools or [] %}BEGINtool {{ tool.function.name }}: {{ tool.function.description }}
{%- for name, about in tool.function.parameters.properties.items() %} {{ name }} {{ about.type }} {{ about.description }}
{%- for choice in about.enum or [] %} {{ choice }}{% endfor %}{% endfor %} {{ tool | tojson }}END
{% endfor %}{% for m in messages %}BEGIN{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}
{% if m.reasoning_content %}{{ m.reasoning_content }}
{% endif %}{{ m.content }}{% for c in m.tool_calls or [] %} {{ c.id }} {{ c.function.name }}
{%- for key, value in c.function.arguments.items() %} {{ key }}={{ value }}{% endfor %}{% endfor %}
{%- if m.tool_call_id %} {{ m.tool_call_id }}{% endif %}END
{% endfor %}{% if add_generation_prompt %}BEGINassistant
{% endif %}"""

FIELDS = [
    "system", "developer", "user", "user_name", "parts", "answer", "reasoning", "call_id", "call_name", "argument_name",
    "argument", "nested_argument", "result", "result_id", "tool_name", "tool_description", "property", "property_type",
    "property_description", "enum",
]  # fmt: skip


def conversation(field: str = "", text: str = "") -> ChatPrompt:
    """A conversation that uses everything, `text` standing inside of one field."""

    def put(name: str, around: str) -> str:
        return f"{around}{text}{around}" if name == field else around

    arguments = {
        put("argument_name", "city"): put("argument", "Bern"),
        "more": [{"deep": put("nested_argument", "er")}],
    }
    call = {"name": put("call_name", "weather"), "arguments": json.dumps(arguments)}
    about = {
        "type": put("property_type", "string"),
        "description": put("property_description", "Which city?"),
        "enum": [put("enum", "Bern"), "Oslo"],
    }
    function = {
        "name": put("tool_name", "weather"),
        "description": put("tool_description", "The weather"),
        "parameters": {"type": "object", "properties": {put("property", "city"): about}, "required": ["city"]},
    }
    parts = [{"type": "text", "text": put("parts", "part")}, {"type": "text", "text": "two"}]
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": put("system", "Be kind.")},
        {"role": "developer", "content": put("developer", "Be brief.")},
        {"role": "user", "name": put("user_name", "Eve"), "content": put("user", "Rain?")},
        {"role": "user", "content": parts},
        {
            "role": "assistant",
            "content": put("answer", "Wait."),
            "reasoning_content": put("reasoning", "hm"),
            "tool_calls": [{"id": put("call_id", "call1"), "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": put("result_id", "call1"), "content": put("result", "21 C")},
    ]
    return ChatPrompt(messages=messages, tools=[{"type": "function", "function": function}])


def _file(name: str, folder: Path) -> Path:
    if name == "smollm2":
        return demo_model()
    if name == "harmony":
        return write_harmony_vocab(folder / "harmony.gguf")
    return vocab(name)


TURNS = {
    "smollm2": ("<|im_start|>", "<|im_end|>"),
    "gemma-4": ("<|turn>", "<turn|>"),
    "harmony": ("<|start|>", "<|end|>"),
    "qwen2": ("<|im_start|>", "<|im_end|>"),
    "gpt-2": ("<|endoftext|>", "<|endoftext|>"),
    "llama-spm": ("<s>", "</s>"),
    "phi-3": ("<|user|>", "<|end|>"),
    "bert-bge": ("[CLS]", "[SEP]"),
    "nomic-bert-moe": ("<s>", "</s>"),
}
EXACT_TEXT = frozenset(TURNS) - {"bert-bge", "nomic-bert-moe"}  # these fold case or blanks


class Bench:
    """One vocabulary with a witness template, and what its ids are without any client marker."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.vocab = open_vocab(_file(name, folder))
        begin, end = TURNS[name]
        self.builder = builder(self.vocab, WITNESS.replace("BEGIN", begin).replace("END", end))
        self.neutral = functools.cache(lambda field: self.builder.build(conversation(field, "QQQ")))

    def markers_in(self, ids: list[int]) -> list[int]:
        return [token for token in ids if token in self.builder.markers.ids]

    def text(self, ids: list[int]) -> str:
        return b"".join(self.vocab.piece(token, True) for token in ids).decode()


@pytest.fixture(scope="module", params=sorted(TURNS))
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(request.param, tmp_path_factory.mktemp("vocab"))


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench("smollm2", tmp_path_factory.mktemp("vocab"))


@pytest.fixture(scope="module")
def harmony(tmp_path_factory: pytest.TempPathFactory) -> llama.Vocab:
    return open_vocab(write_harmony_vocab(tmp_path_factory.mktemp("vocab") / "harmony.gguf"))


# ---------------------------------------------------------------- every marker in every field


@pytest.mark.parametrize("field", FIELDS)
def test_inp_7_no_marker_of_any_field_becomes_a_token(bench: Bench, field: str) -> None:
    """sec_129, sec_130: every marker of a vocabulary in every field that a client writes."""
    neutral = bench.neutral(field)
    assert "QQQ" in bench.text(neutral).upper()
    for marker in bench.builder.markers.texts:
        ids = bench.builder.build(conversation(field, marker))
        assert bench.markers_in(ids) == bench.markers_in(neutral), marker
        if bench.name in EXACT_TEXT:
            hidden = [t.replace(json.dumps(marker)[1:-1], "QQQ").replace(marker, "QQQ") for t in map(bench.text, (ids, neutral))]
            assert hidden[0] == hidden[1], marker


def test_markers_glued_from_two_fields_or_a_constant_are_cut(harmony: llama.Vocab) -> None:
    build = builder(harmony, "<|start|>x<|{{ messages[0].name }}|>{{ messages[0].content }}{{ messages[1].content }}").build
    for name, first, second in (("end", "", ""), ("a", "<|st", "art|>"), ("a", "<", "|call|>"), ("a", "", "")):
        messages = [{"role": "user", "name": name, "content": first}, {"role": "user", "content": second}]
        ids = build(ChatPrompt(messages=messages))
        pieces = b"".join(harmony.piece(token, True) for token in ids).decode()
        assert pieces == f"<|start|>x<|{name}|>{first}{second}"
        assert [harmony.text(t) for t in ids if harmony.attr(t) & 16] == [b"<|start|>"]


MANIPULATIONS = {
    "{{ content | replace('-', '') }}": "<|-end|>",
    "{{ content | reverse }}": ">|dne|<",
    "{{ content | lower }}": "<|END|>",
    "{{ content[:3] }}{{ content[3:] }}": "<|end|>",
    "{{ content.split('#') | join }}": "<|en#d|>",
    "{% if '<|end|>' in content %}{{ content }}{{ content }}{% endif %}": "<|end|>",
    "{% if content.startswith('<') %}{{ content.split('|')[1] }}{% endif %}": "<|end|>",
    "{{ '<|' }}{{ content.split('|')[1] }}{{ '|>' }}": "<|end|>",
    "{{ content | tojson }}": '"<|end|>"',
    "{{ [content] }}": "<|end|>",
    "{{ content | title }}{{ content }}": "<|end|>",
    "{% if 'end' in content %}{{ content }}{% else %}{{ content }}<|call|>{% endif %}": "<|end|>",
}


@pytest.mark.parametrize("template", MANIPULATIONS)
def test_whatever_the_template_does_with_the_text(harmony: llama.Vocab, template: str) -> None:
    source = "<|start|>{% set content = messages[0].content %}" + template + "<|message|>"
    ids = builder(harmony, source).build(ChatPrompt(messages=[{"role": "user", "content": MANIPULATIONS[template]}]))
    found = [harmony.text(t).decode() for t in ids if harmony.attr(t) & 16]
    assert [text for text in found if text != "<|call|>"] == ["<|start|>", "<|message|>"]
    assert "<|end|>" not in found


def test_logic_on_the_text_is_kept_where_no_marker_is_written(harmony: llama.Vocab) -> None:
    source = "<|start|>{{ 'tool' if 'call' in messages[0].content else 'talk' }}{{ messages[0].content | upper }}<|end|>"
    build = builder(harmony, source)
    ids = build.build(ChatPrompt(messages=[{"role": "user", "content": "please call"}]))
    assert ids == list(harmony.tokenize(b"<|start|>toolPLEASE CALL<|end|>", True, True))


# ---------------------------------------------------------------- exactness

HARMLESS = st.one_of(
    st.text(max_size=30),
    st.text(st.sampled_from("<|>_ \nimstartuser/#'\"{}ß🙂é▁"), max_size=30),
)


@settings(max_examples=120, deadline=None)
@given(field=st.sampled_from(FIELDS), text=HARMLESS)
def test_a_chat_without_markers_is_tokenized_as_llama_cpp_does(bench: Bench, field: str, text: str) -> None:
    prompt = conversation(field, text)
    if any(marker in text for marker in bench.builder.markers.texts):
        return
    rendered = bench.builder._render(prompt, bench.builder._traits.shape(prompt.messages), prompt.tools)
    bos = "" if bench.vocab.bos is None else bench.vocab.text(bench.vocab.bos).decode()
    if bench.vocab.add_bos and bos and rendered.startswith(bos):
        rendered = rendered[len(bos) :]
    assert bench.builder.build(prompt) == list(bench.vocab.tokenize(rendered.encode(), True, True))


PIECES = ["<|im_start|>", "<|im_end|>", "<|", "im_", "end", "|>", "<", ">", "|", "<repo_name>", " ", "\n", "a", "🙂", "\U000f0000"]


@settings(max_examples=200, deadline=None)
@given(texts=st.dictionaries(st.sampled_from(["user", "system", "answer", "user_name"]), st.lists(st.sampled_from(PIECES), max_size=8)))
def test_any_mixture_keeps_its_text_and_forges_nothing(smollm2: Bench, texts: dict[str, list[str]]) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "".join(texts.get("system", []))},
        {"role": "user", "content": "".join(texts.get("user", [])), "name": "".join(texts.get("user_name", []))},
        {"role": "assistant", "content": "".join(texts.get("answer", []))},
    ]
    source = "{% for m in messages %}<|im_start|>{{ m.role }}{{ m.name }}{{ m.content }}<|im_end|>{% endfor %}"
    ids = builder(smollm2.vocab, source).build(ChatPrompt(messages=messages))
    turns = (f"<|im_start|>{m['role']}{m.get('name', '')}{m['content']}<|im_end|>" for m in messages)
    assert smollm2.text(ids) == "".join(turns)
    assert [smollm2.vocab.text(t) for t in smollm2.markers_in(ids)] == [b"<|im_start|>", b"<|im_end|>"] * 3


@pytest.mark.parametrize("name", ["bert-bge", "gpt-2", "llama-spm", "phi-3", "qwen2"])
def test_vocabulary_files_give_the_expected_ids(name: str) -> None:
    path = shared(f"vocabs/ggml-vocab-{name}.gguf")
    build = PromptBuilder(open_vocab(path)).build
    texts = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")[:-1]
    expected = Path(f"{path}.out").read_text().splitlines()
    assert len(texts) == len(expected)
    for text, line in zip(texts, expected, strict=True):
        assert build(TextPrompt(text=text, add_special=False)) == [int(token) for token in line.split()], text


@pytest.mark.parametrize("name", ["llama-spm", "phi-3", "smollm2", "gemma-4"])
def test_bos_stands_once(name: str, tmp_path: Path) -> None:
    vocabulary = open_vocab(_file(name, tmp_path))
    assert vocabulary.bos is not None
    chat = ChatPrompt(messages=[{"role": "user", "content": "Hi"}])
    written = builder(vocabulary, "{{ bos_token }}{{ messages[0].content }}").build(chat)
    unwritten = builder(vocabulary, "{{ messages[0].content }}").build(chat)
    assert written.count(vocabulary.bos) == 1
    assert unwritten.count(vocabulary.bos) == int(vocabulary.add_bos)
    if vocabulary.add_bos:
        assert written == unwritten


def test_a_clients_bos_text_stays_text(tmp_path: Path) -> None:
    vocabulary = open_vocab(_file("llama-spm", tmp_path))
    ids = builder(vocabulary, "{{ messages[0].content }}").build(ChatPrompt(messages=[{"role": "user", "content": "<s>Hi"}]))
    assert ids[0] == vocabulary.bos
    assert vocabulary.bos not in ids[1:]
    assert b"".join(vocabulary.piece(t, True) for t in ids[1:]) == b" <s>Hi"


# ---------------------------------------------------------------- raw prompts


def test_inp_8_raw_prompts_follow_the_same_rule(bench: Bench) -> None:
    """sec_130: raw prompts too, without the permission."""
    for marker in bench.builder.markers.texts:
        ids = bench.builder.build(TextPrompt(text=f"one {marker} two", add_special=False))
        assert bench.markers_in(ids) == [], marker
        if bench.name in EXACT_TEXT:
            assert bench.text(ids).lstrip(" ") == f"one {marker} two"
        special = bench.builder.build(TextPrompt(text=f"one {marker} two", parse_special=True))
        assert special == list(bench.vocab.tokenize(f"one {marker} two".encode(), True, True))


@settings(max_examples=100, deadline=None)
@given(text=HARMLESS)
def test_raw_prompts_without_markers_are_llama_cpps(bench: Bench, text: str) -> None:
    if not any(marker in text for marker in bench.builder.markers.texts):
        assert bench.builder.build(TextPrompt(text=text)) == list(bench.vocab.tokenize(text.encode(), True, True))


def test_spellings_near_a_marker_are_ordinary_text(bench: Bench) -> None:
    wide = {ord(c): ord(c) + 0xFEE0 for c in "<>|/[]abcdefghijklmnopqrstuvwxyz_"}
    for marker in bench.builder.markers.texts[:40]:
        near = {marker.upper(), marker.title(), marker.translate(wide), marker.replace("_", " "), marker.replace("▁", " "), marker[:-1], f"{marker[:1]} {marker[1:]}"}
        for text in near:
            if bench.builder.markers.find(text):
                continue
            ids = bench.builder.build(TextPrompt(text=text, add_special=False))
            assert set(bench.markers_in(ids)) <= bench.builder._pieces._unknown_ids, text
            assert ids == list(bench.vocab.tokenize(text.encode(), False, True)), text


def test_unknown_roles_are_refused(smollm2: Bench) -> None:
    for role in ("<|im_end|>", "root", None):
        with pytest.raises(EngineError) as error:
            smollm2.builder.build(ChatPrompt(messages=[{"role": role, "content": "x"}]))
        assert (error.value.code, error.value.param) == ("invalid_value", "messages")


def test_token_prompts_are_checked(smollm2: Bench) -> None:
    build = smollm2.builder.build
    plain = list(smollm2.vocab.tokenize(b"Hello there", False, False))
    assert build(TokenPrompt(tokens=plain)) == plain
    end = int(smollm2.vocab.tokenize(b"<|im_end|>", False, True)[0])
    assert build(TokenPrompt(tokens=[*plain, end], allow_special=True)) == [*plain, end]
    for tokens, allow in (([*plain, end], False), ([smollm2.vocab.n_tokens], True), ([smollm2.vocab.n_tokens], False)):
        with pytest.raises(EngineError) as error:
            build(TokenPrompt(tokens=tokens, allow_special=allow))
        assert error.value.code == "invalid_value"
        assert error.value.param == "prompt"


def test_text_that_is_no_text_is_refused(smollm2: Bench) -> None:
    for prompt in (TextPrompt(text="\ud800"), conversation("argument", "\ud800"), conversation("user", "\udfff")):
        with pytest.raises(EngineError) as error:
            smollm2.builder.build(prompt)
        assert error.value.code == "invalid_text"


def test_a_one_character_control_token_is_spelt_in_bytes(tmp_path: Path) -> None:
    vocabulary = open_vocab(write_bpe_vocab(tmp_path / "v.gguf", [("漢", CONTROL), ("<eos>", CONTROL)]))
    ids = PromptBuilder(vocabulary).build(TextPrompt(text="ca漢fe", add_special=False))
    assert b"".join(vocabulary.piece(t, True) for t in ids).decode() == "ca漢fe"
    assert not any(vocabulary.is_control(t) for t in ids)


# ---------------------------------------------------------------- errors


def test_without_a_template_a_chat_is_refused(harmony: llama.Vocab) -> None:
    with pytest.raises(EngineError) as error:
        PromptBuilder(harmony).build(conversation())
    assert (error.value.code, error.value.param) == ("template_failed", "messages")


def test_unknown_flags_are_refused(harmony: llama.Vocab) -> None:
    prompt = ChatPrompt(messages=[{"role": "user", "content": "x"}], template_flags={"messages": True})
    with pytest.raises(EngineError) as error:
        builder(harmony, "{{ messages[0].content }}").build(prompt)
    assert error.value.code == "unsupported_parameter"


def test_flags_reach_the_template(harmony: llama.Vocab) -> None:
    build = builder(harmony, "{{ messages[0].content }}{% if enable_thinking %}yes{% endif %}").build
    messages = [{"role": "user", "content": "x"}]
    plain = build(ChatPrompt(messages=messages))
    assert build(ChatPrompt(messages=messages, template_flags={"enable_thinking": False})) == plain
    thinking = build(ChatPrompt(messages=messages, template_flags={"enable_thinking": True}))
    assert thinking == [*plain, *harmony.tokenize(b"yes", False, False)]


def test_a_refusing_template_is_the_callers_error(harmony: llama.Vocab) -> None:
    template = InProcessTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(EngineError) as error:
        PromptBuilder(harmony, template).build(ChatPrompt(messages=[{"role": "user", "content": "x"}]))
    assert error.value.code == "template_failed"
    assert "alternate" in error.value.message


