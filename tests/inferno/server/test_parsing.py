"""Fields at their edges, refusals by name, paths of faults: parsing, schemas, chat and completion rules."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferno.errors import ApiError
from inferno.server import chat, completions, schemas
from inferno.server.parsing import check_model_name, parse

USER = [{"role": "user", "content": "x"}]


def parse_chat(**fields: Any) -> schemas.ChatRequest:
    body = {"messages": USER, **fields}
    parsed, _ = parse(json.dumps(body).encode(), schemas.ChatRequest, refused=schemas.REFUSED)
    chat.check(parsed)
    return parsed


def parse_completion(**fields: Any) -> schemas.CompletionRequest:
    body = {"prompt": "x", **fields}
    parsed, _ = parse(
        json.dumps(body).encode(), schemas.CompletionRequest, refused=schemas.REFUSED_COMPLETION
    )
    completions.check(parsed)
    completions.engine_prompts(parsed, can_use_special=False)
    return parsed


def refusal(code: str, param: str | None, **fields: Any) -> None:
    with pytest.raises(ApiError) as caught:
        parse_chat(**fields)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.status == 400


NUMBERS = {
    "temperature": ([0, 0.5, 2, 2.0], [-0.1, 2.1, "0.7", True, [], {}]),
    "top_p": ([0, 1, 0.5], [-0.1, 1.1, "1", False]),
    "min_p": ([0, 1], [-1, 2]),
    "typical_p": ([0, 1], [-1, 2]),
    "top_k": ([0, 1, 1 << 20], [-1, 1.5, (1 << 20) + 1, "40", True]),
    "presence_penalty": ([-2, 0, 2], [-2.1, 2.1, "0"]),
    "frequency_penalty": ([-2, 0, 2], [-2.1, 2.1]),
    "repeat_penalty": ([0.01, 1, 10], [0, -1, 10.1]),
    "repeat_last_n": ([0, 64], [-1, 1.5]),
    "n": ([1, 16], [0, -1, 17, 1.5, True, "1"]),
    "max_tokens": ([1, 2147483647], [0, -1, 1.5, 2147483648, "5", True]),
    "max_completion_tokens": ([1, 2147483647], [0, -1, 1.5, 2147483648]),
    "seed": ([0, 1 << 32, (1 << 63) - 1], [-1, 1 << 63, (1 << 64) - 1, 1.5, "1"]),
    "min_tokens": ([0, 5], [-1, 2147483648]),
    "priority": ([-100, 100], [-101, 101]),
    "dry_multiplier": ([0, 100], [-1, 101]),
    "dry_base": ([1, 100], [0.5, 101]),
    "dry_allowed_length": ([0, 65536], [-1, 65537]),
    "dry_penalty_last_n": ([0, 1 << 20], [-1, (1 << 20) + 1]),
    "xtc_probability": ([0, 1], [-0.5, 1.5]),
    "xtc_threshold": ([0, 1], [-0.5, 1.5]),
    "mirostat": ([0, 1, 2], [-1, 3, 1.5]),
    "mirostat_tau": ([0, 100], [-1, 101]),
    "mirostat_eta": ([0, 1], [-1, 2]),
}


@pytest.mark.parametrize("field", NUMBERS)
def test_inp_3_numbers_at_their_edges(field: str) -> None:
    good, bad = NUMBERS[field]
    for value in good:
        assert getattr(parse_chat(**{field: value}), field) == value
    assert parse_chat(**{field: None}) == parse_chat()
    for value in bad:
        refusal("invalid_value", field, **{field: value})


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e400"])
def test_sec_104_no_such_numbers(literal: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse(f'{{"messages":[],"temperature":{literal}}}'.encode(), schemas.ChatRequest)
    assert caught.value.code == "invalid_json"


def test_sec_105_a_number_of_five_thousand_digits() -> None:
    with pytest.raises(ApiError) as caught:
        parse(f'{{"messages":[],"max_tokens":1{"0" * 5000}}}'.encode(), schemas.ChatRequest)
    assert caught.value.code == "invalid_json"


def test_sec_103_a_member_twice() -> None:
    for body in (b'{"model":"a","model":"b","messages":[]}', b'{"messages":[{"role":"user","content":"a","role":"system"}]}'):
        with pytest.raises(ApiError) as caught:
            parse(body, schemas.ChatRequest)
        assert (caught.value.status, caught.value.code) == (400, "invalid_json")


def test_sec_106_seeds_beyond_what_the_engine_takes() -> None:
    for seed in (0, 1 << 32, (1 << 63) - 1):
        assert parse_chat(seed=seed).seed == seed
        assert parse_completion(seed=seed).seed == seed
    for seed in (-1, 1 << 63, (1 << 64) - 1):
        refusal("invalid_value", "seed", seed=seed)
    with pytest.raises(ApiError) as caught:
        parse(f'{{"messages":[],"seed":{1 << 64}}}'.encode(), schemas.ChatRequest)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


@pytest.mark.parametrize("schema", ["deep", "cycle", "pattern", "type"])
def test_sec_110_schemas_made_to_hang_are_refused_at_once(schema: str) -> None:
    deep = b'{"type":"object","properties":{"a":' * 10_000 + b"{}" + b"}}" * 10_000
    documents = {
        "deep": deep,
        "cycle": b'{"$ref":"#/$defs/a","$defs":{"a":{"$ref":"#/$defs/a"}}}',
        "pattern": b'{"type":"string","pattern":"(a+)+$"}',
        "type": b'{"type":"foo"}',
    }
    body = (
        b'{"messages":[{"role":"user","content":"x"}],"response_format":{"type":"json_schema","json_schema":'
        b'{"name":"n","schema":' + documents[schema] + b"}}}"
    )
    begin = time.process_time()
    with pytest.raises(ApiError) as caught:
        chat.check(parse(body, schemas.ChatRequest, refused=schemas.REFUSED)[0])
    assert caught.value.status == 400
    assert time.process_time() - begin < 1  # of processor time, for at most half a megabyte


def test_sec_107_counts_at_their_limits() -> None:
    parse_chat(logprobs=True, top_logprobs=20)
    refusal("invalid_value", "top_logprobs", logprobs=True, top_logprobs=21)
    refusal("invalid_value", "top_logprobs", top_logprobs=2)
    refusal("invalid_value", "top_logprobs", logprobs=False, top_logprobs=0)
    parse_chat(stop=["a", "b", "c", "d"])
    refusal("invalid_value", "stop", stop=["a", "b", "c", "d", "e"])
    parse_completion(logprobs=5)
    parse_completion(n=2, best_of=2)
    for bad in ({"logprobs": 6}, {"logprobs": True}, {"best_of": 17}):
        with pytest.raises(ApiError):
            parse_completion(**bad)


def test_sec_108_stop_strings() -> None:
    assert parse_chat(stop="a").stops == ["a"]
    assert parse_chat(stop=[]).stops == []
    refusal("invalid_value", "stop", stop="")
    refusal("invalid_value", "stop[0]", stop=[""])
    refusal("invalid_value", "stop", stop="x" * 10_000)
    refusal("invalid_value", "stop[1]", stop=["a", None])


def test_sec_109_logit_bias() -> None:
    assert parse_chat(logit_bias={"5": -100, "6": 100}).sampling().logit_bias == {5: -100.0, 6: 100.0}
    for bad in (
        {"-1": 0},
        {"x": 0},
        {"5": 101},
        {"5": "1"},
        {"4294967296": 0},
        {"99999999999": 0},
        {" 5": 0},
        [],
    ):
        with pytest.raises(ApiError) as caught:
            parse_chat(logit_bias=bad)
        assert caught.value.code == "invalid_value"
        assert (caught.value.param or "").startswith("logit_bias")
    with pytest.raises(ApiError):
        parse_chat(logit_bias={str(index): 0 for index in range(1025)})
    with pytest.raises(ApiError):
        parse_chat(logit_bias={str(index): 0 for index in range(300_001)})


@pytest.mark.parametrize(
    "name",
    ["chat_template", "tokenize", "prompt_embeds", "api_base", "lora", "n_discard", "slot_id"],
)
def test_sec_111_forbidden_names(name: str) -> None:
    refusal("unsupported_parameter", name, **{name: "x"})
    with pytest.raises(ApiError):
        parse(json.dumps({"messages": USER, name: 1}).encode(), schemas.ChatRequest, report_unknown=True)


def test_sec_111_template_arguments() -> None:
    flags = parse_chat(chat_template_kwargs={"enable_thinking": False, "thinking": None}).chat_template_kwargs
    assert chat.template_flags(flags) == {"enable_thinking": False}
    refusal("unknown_parameter", "chat_template_kwargs.x", chat_template_kwargs={"x": True})
    refusal("invalid_value", "chat_template_kwargs.thinking", chat_template_kwargs={"thinking": "yes"})
    refusal("invalid_value", "chat_template_kwargs", chat_template_kwargs=True)


def test_sec_116_messages() -> None:
    refusal("invalid_value", "messages", messages=[])
    refusal("missing_required_parameter", "messages", messages=None)
    refusal("invalid_value", "messages", messages="x")
    refusal("invalid_value", "messages[0].role", messages=[{"role": "root", "content": "x"}])
    refusal("missing_required_parameter", "messages[0].role", messages=[{"content": "x"}])
    refusal("missing_required_parameter", "messages[0].content", messages=[{"role": "user"}])
    refusal("invalid_value", "messages[0].content", messages=[{"role": "user", "content": None}])
    refusal("invalid_value", "messages[1].content", messages=[*USER, {"role": "assistant", "content": None}])
    refusal(
        "missing_required_parameter", "messages[0].tool_call_id", messages=[{"role": "tool", "content": "x"}]
    )
    refusal("unknown_parameter", "messages[0].extra", messages=[{"role": "user", "content": "x", "extra": 1}])
    refusal("invalid_value", "messages[0].content", messages=[{"role": "user", "content": []}])
    refusal("invalid_value", "messages", messages=USER * 10_001)
    assert len(parse_chat(messages=USER * 10_000).messages) == 10_000


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_sec_167_media_parts_are_refused(kind: str) -> None:
    part = {"type": kind, kind: {"url": "http://169.254.169.254/latest"}}
    refusal(
        "unsupported_parameter",
        "messages[0].content[1]",
        messages=[{"role": "user", "content": [{"type": "text", "text": "x"}, part]}],
    )
    refusal(
        "invalid_value",
        "messages[0].content[0].type",
        messages=[{"role": "user", "content": [{"type": "odd"}]}],
    )


def test_messages_as_templates_get_them() -> None:
    parsed = parse_chat(
        messages=[
            {"role": "developer", "content": "be brief", "name": None},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                "name": "ann",
            },
            {
                "role": "assistant",
                "content": None,
                "refusal": None,
                "annotations": [],
                "audio": None,
                "function_call": None,
                "reasoning_content": "hm",
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                ],
            },
            {"role": "tool", "content": "42", "tool_call_id": "c1"},
            {"role": "assistant", "content": None, "refusal": "no"},
            {"role": "user", "content": "x", "cache_control": {"type": "ephemeral"}},
        ]
    )
    assert chat.engine_messages(parsed.messages) == [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "a\nb", "name": "ann"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "hm",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "42", "tool_call_id": "c1"},
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": "x"},
    ]


REFUSED = {
    "tools": [[], [{"type": "function"}]],
    "functions": [[{}]],
    "audio": [{"voice": "x"}],
    "web_search_options": [{}],
    "prediction": [{"type": "content"}],
    "moderation": [True],
    "prompt_cache_options": [{}],
    "store": [True],
    "modalities": [["text", "audio"], ["audio"]],
    "response_format": [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "x"}}],
    "tool_choice": ["required", {"type": "function", "function": {"name": "f"}}],
    "function_call": [{"name": "f"}],
}


@pytest.mark.parametrize("field", REFUSED)
def test_contract_7_5_what_is_not_offered_is_refused_by_name(field: str) -> None:
    for value in REFUSED[field]:
        refusal("unsupported_parameter", field, **{field: value})
    assert parse_chat(**{field: None}) == parse_chat()


NO_OPS: dict[str, Any] = {
    "metadata": {"a": "b"},
    "store": False,
    "verbosity": "low",
    "reasoning_effort": "high",
    "parallel_tool_calls": True,
    "prompt_cache_retention": "24h",
    "modalities": ["text"],
    "response_format": {"type": "text"},
    "tool_choice": "none",
    "service_tier": "auto",
    "user": "someone",
    "safety_identifier": "someone",
}


@pytest.mark.parametrize("field", NO_OPS)
def test_documented_no_ops_are_accepted(field: str) -> None:
    parse_chat(**{field: NO_OPS[field]})


def test_metadata_has_a_size() -> None:
    refusal("invalid_value", "metadata", metadata={str(index): "x" for index in range(17)})
    with pytest.raises(ApiError):
        parse_chat(metadata={"k" * 65: "x"})
    with pytest.raises(ApiError):
        parse_chat(metadata={"k": "x" * 513})


def test_unknown_fields_are_refused_by_name_or_reported() -> None:
    refusal("unknown_parameter", "foo", foo=1)
    refusal("unknown_parameter", "stream_options.foo", stream=True, stream_options={"foo": 1})
    body = {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "x", "odd": 1}], "extra": 2}],
        "foo": 3,
        "stream": True,
        "stream_options": {"include_usage": True, "bar": {}},
    }
    parsed, ignored = parse(json.dumps(body).encode(), schemas.ChatRequest, report_unknown=True)
    assert sorted(ignored) == ["foo", "messages[0].content[0].odd", "messages[0].extra", "stream_options.bar"]
    assert parsed.includes_usage


def outcome(body: bytes, *, report: bool) -> ApiError | list[str]:
    """The refusal, or the names of ignored fields."""
    try:
        parsed, ignored = parse(body, schemas.ChatRequest, refused=schemas.REFUSED, report_unknown=report)
        chat.check(parsed)
        parsed.sampling()
    except ApiError as error:
        return error
    return ignored


@pytest.mark.parametrize("report", [False, True])
@pytest.mark.parametrize("name", ["a` - at `$.messages", "x - at `$.y`", "`", "\u202e", "n" * 5000])
def test_a_field_name_made_to_confuse_is_still_refused(name: str, report: bool) -> None:
    result = outcome(json.dumps({"messages": USER, name: 1}).encode(), report=report)
    if isinstance(result, ApiError):
        assert result.status == 400
        assert len(result.message) < 300
    else:
        assert report
        assert len(result) == 1


def test_stream_options_need_stream() -> None:
    refusal("invalid_value", "stream_options", stream_options={"include_usage": True})
    assert parse_chat(stream=True, stream_options={"include_usage": None}).includes_usage is False


def test_max_tokens_is_an_alias() -> None:
    assert chat.max_tokens(parse_chat(max_tokens=5)) == 5
    assert chat.max_tokens(parse_chat(max_completion_tokens=6)) == 6
    assert chat.max_tokens(parse_chat(max_completion_tokens=6, max_tokens=6)) == 6
    assert chat.max_tokens(parse_chat()) is None
    refusal("invalid_value", "max_tokens", max_completion_tokens=6, max_tokens=5)


def test_completion_prompts() -> None:
    def shapes(prompt: Any) -> list[Any]:
        parsed = parse_completion(prompt=prompt)
        return [
            getattr(item, "text", getattr(item, "tokens", None))
            for item in completions.engine_prompts(parsed, can_use_special=False)
        ]

    assert shapes("") == [""]
    assert shapes(["a", "b"]) == ["a", "b"]
    assert shapes([1, 2]) == [[1, 2]]
    assert shapes([[1], [2, 3]]) == [[1], [2, 3]]
    for bad in (
        [],
        [[]],
        ["a", 1],
        [1, [2]],
        [-1],
        [1 << 31],
        [[-1]],
        None,
        5,
        {"a": 1},
        [True],
        [1.5],
        ["a"] * 65,
    ):
        with pytest.raises(ApiError) as caught:
            parse_completion(prompt=bad)
        assert caught.value.status == 400
        assert (caught.value.param or "").startswith("prompt")
    for field in ({"suffix": "x"}, {"echo": True}, {"best_of": 2}):
        with pytest.raises(ApiError) as caught:
            parse_completion(**field)
        assert caught.value.code == "unsupported_parameter"
        assert caught.value.param == next(iter(field))
    parse_completion(suffix=None, echo=False, best_of=None)


def test_inp_6_sec_127_model_names() -> None:
    for name in ("a", "a" * 128, "org/repo", "llama-3.2:1b", "default", None):
        check_model_name(name)
    for name in (
        "a" * 129,
        ".",
        "..",
        "",
        "CON",
        "con.gguf",
        "a.gguf ",
        "../x",
        "a/../b",
        "a//b",
        "/a",
        "a\n",
        "é",
        "a\\b",
        "-",
    ):
        with pytest.raises(ApiError):
            check_model_name(name)


def test_grammar_needs_text() -> None:
    assert parse_chat(grammar="root ::= [a]").sampling().grammar == "root ::= [a]"
    refusal("invalid_value", "grammar", grammar="")
    refusal("invalid_value", "grammar", grammar="x" * 65_537)


@pytest.mark.parametrize("body", [b"[]", b"1", b'"x"', b"null", b"true"])
def test_a_body_is_an_object(body: bytes) -> None:
    with pytest.raises(ApiError):
        parse(body, schemas.ChatRequest)


FIELDS = sorted({*schemas.ChatRequest.__struct_fields__, *schemas.REFUSED, "foo", "chat_template"})
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5), st.booleans())
def test_any_object_parses_or_is_a_400(fields: dict[str, Any], report: bool) -> None:
    result = outcome(msgspec.json.encode(fields), report=report)
    assert not isinstance(result, ApiError) or result.status == 400
