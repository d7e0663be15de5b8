"""Which strings are a client's, and how conversations are shaped for templates of different ages."""

from __future__ import annotations

from typing import Any

import pytest
from inferno_native import llama

from inferno.engine.conversation import Traits, convert_strings
from inferno.errors import EngineError
from inferno.messages import ChatPrompt
from tests.inferno.engine.test_prompts import conversation
from tests.inferno.engine.vocabularies import InProcessTemplate, builder, open_vocab, write_harmony_vocab


@pytest.fixture(scope="module")
def harmony(tmp_path_factory: pytest.TempPathFactory) -> llama.Vocab:
    return open_vocab(write_harmony_vocab(tmp_path_factory.mktemp("vocab") / "harmony.gguf"))


def _traits(source: str) -> Traits:
    template = InProcessTemplate(source)
    return Traits(lambda messages, tools: template.render(messages, tools), frozenset([source]))


def test_every_client_string_is_converted_and_no_field_name() -> None:
    prompt = conversation()
    seen: list[str] = []

    def mark(string: str) -> str:
        seen.append(string)
        return f"[{string}]"

    messages, tools = convert_strings(prompt.messages, prompt.tools, mark)
    assert [m["role"] for m in messages] == ["system", "developer", "user", "user", "assistant", "tool"]
    assert messages[2] == {"role": "user", "name": "[Eve]", "content": "[Rain?]"}
    assert messages[3]["content"][0] == {"type": "text", "text": "[part]"}
    call = messages[4]["tool_calls"][0]
    assert (call["id"], call["type"], call["function"]["name"]) == ("[call1]", "function", "[weather]")
    assert tools is not None
    function = tools[0]["function"]
    assert function["description"] == "[The weather]"
    assert function["parameters"]["type"] == "object"
    assert function["parameters"]["required"] == ["[city]"]
    assert function["parameters"]["properties"] == {
        "[city]": {"type": "string", "description": "[Which city?]", "enum": ["[Bern]", "[Oslo]"]}
    }
    assert prompt == conversation(), "the request itself is not changed"


def test_type_words_are_kept_and_other_types_converted() -> None:
    schema = {"type": ["string", "null", "<|x|>"], "x-own": {"k": "v"}, "items": {"type": "evil"}}
    _, tools = convert_strings([], [{"type": "function", "function": {"parameters": schema}}], lambda s: f"[{s}]")
    assert tools == [
        {
            "type": "function",
            "function": {
                "parameters": {
                    "type": ["string", "null", "[<|x|>]"],
                    "[x-own]": {"[k]": "[v]"},
                    "items": {"type": "[evil]"},
                }
            },
        }
    ]


def test_system_joins_the_next_message_where_the_template_has_no_such_role() -> None:
    refusing = _traits(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    silent = _traits("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")
    knowing = _traits("{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}")
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    for traits in (refusing, silent):
        assert traits.shape(messages) == [{"role": "user", "content": "Be kind.\nHi"}]
    assert knowing.shape(messages) == messages


def test_developer_is_system_where_the_template_does_not_know_it() -> None:
    messages = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    plain = "{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}"
    assert [m["role"] for m in _traits(plain).shape(messages)] == ["system", "user"]
    assert [m["role"] for m in _traits(plain + "{# developer #}").shape(messages)] == ["developer", "user"]


def test_parts_become_one_string_or_stay_parts_as_the_template_needs() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages = [{"role": "user", "content": parts}]
    assert _traits("{{ messages[0].content }}").shape(messages)[0]["content"] == "one\ntwo"
    typed = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
    assert _traits(typed).shape(messages)[0]["content"] == [{"type": "text", "text": "one\ntwo"}]
    with pytest.raises(EngineError) as error:
        _traits(typed).shape([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])
    assert error.value.code == "unsupported_parameter"


def _calls(arguments: Any) -> list[dict[str, Any]]:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [call]}]


OBJECTS = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"
STRINGS = "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ 'f' + c.function.arguments }}{% endfor %}{% endfor %}"


def test_arguments_become_objects_where_the_template_reads_objects() -> None:
    shaped = _traits(OBJECTS).shape(_calls('{"a": [1, "b"]}'))
    assert shaped[1]["content"] == ""
    assert shaped[1]["tool_calls"][0]["function"]["arguments"] == {"a": [1, "b"]}
    shaped = _traits(STRINGS).shape(_calls('{"a": [1, "b"]}'))
    assert shaped[1]["tool_calls"][0]["function"]["arguments"] == '{"a": [1, "b"]}'
    for wrong in ("{", "[" * 100_000):
        with pytest.raises(EngineError) as error:
            _traits(OBJECTS).shape(_calls(wrong))
        assert (error.value.code, error.value.param) == ("invalid_value", "messages")


@pytest.mark.parametrize("template", [OBJECTS, STRINGS])
def test_markers_in_arguments_are_cut_in_either_form(harmony: llama.Vocab, template: str) -> None:
    ids = builder(harmony, template + "<|end|>").build(ChatPrompt(messages=_calls('{"<|start|>": "<|end|>"}')))
    assert [harmony.text(t) for t in ids if harmony.attr(t) & 16] == [b"<|end|>"]
    assert b'{"<|start|>": "<|end|>"}' in b"".join(harmony.piece(t, True) for t in ids)


def test_a_probe_that_met_a_limit_teaches_nothing() -> None:
    class Limit(EngineError):
        kind = "loop"

    answers: list[Any] = [Limit("template_failed", "too slow"), "needle-user"]

    def render(messages: Any, tools: Any) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    traits = Traits(render, frozenset())
    with pytest.raises(EngineError):
        traits.shape([{"role": "user", "content": "x"}])
    assert traits.shape([{"role": "user", "content": "x"}]) == [{"role": "user", "content": "x"}]
