"""Client strings inside of a conversation: which they are, and the shapes that templates of different ages expect.

`convert_strings` is the one place that knows which strings of messages and tools are a client's. Everything is, keys
too, except roles, the field names of the API and JSON Schema, and type words. `Traits` asks a template, by rendering
probes, what it can read, and `shape` changes a conversation accordingly, as llama.cpp's server does. Engine process;
renders nothing itself.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

from inferno.errors import EngineError

Message = dict[str, Any]
Convert = Callable[[str], str]
Render = Callable[[list[Message], list[dict[str, Any]] | None], str]

_LIMITS = frozenset(["loop", "memory", "output", "crashed"])  # inferno.engine.templates.TemplateError.kind
_TYPES = frozenset(
    [
        "function",
        "text",
        "string",
        "number",
        "integer",
        "boolean",
        "array",
        "object",
        "null",
        "any",
        "float",
        "int",
    ]
)
_TOOL_KEYS = frozenset(["type", "function", "name", "description", "parameters", "strict", "input_schema"])
_CALL_KEYS = frozenset(["type", "id", "index", "function", "name", "arguments"])
_PART_KEYS = frozenset(["type", "text"])
_SCHEMA_MAPS = frozenset(["properties", "patternProperties", "$defs", "definitions", "dependentSchemas"])
_SCHEMA_DATA = frozenset(["enum", "const", "default", "example", "examples", "required", "dependentRequired"])
_SCHEMA_KEYS = (
    _SCHEMA_MAPS
    | _SCHEMA_DATA
    | frozenset(
        [
            "type",
            "description",
            "title",
            "items",
            "prefixItems",
            "additionalItems",
            "contains",
            "minItems",
            "maxItems",
        ]
        + [
            "uniqueItems",
            "additionalProperties",
            "propertyNames",
            "minProperties",
            "maxProperties",
            "anyOf",
            "allOf",
        ]
        + [
            "oneOf",
            "not",
            "if",
            "then",
            "else",
            "format",
            "pattern",
            "minLength",
            "maxLength",
            "minimum",
            "maximum",
        ]
        + [
            "exclusiveMinimum",
            "exclusiveMaximum",
            "multipleOf",
            "nullable",
            "deprecated",
            "readOnly",
            "writeOnly",
        ]
        + ["$ref", "$schema", "$id", "$comment", "unevaluatedProperties", "strict", "return", "response"]
    )
)


def convert_strings(
    messages: list[Message], tools: list[dict[str, Any]] | None, convert: Convert
) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """Return copies in which `convert` was applied to every string that a client chose."""
    converted = [_message(message, convert) for message in messages]
    return converted, None if tools is None else [_tool(tool, convert) for tool in tools]


def _message(message: Message, convert: Convert) -> Message:
    result: Message = {}
    for key, value in message.items():
        if key == "role":
            result[key] = value
        elif key == "content" and isinstance(value, list):
            result[key] = [_fields(part, _PART_KEYS, convert) for part in value]
        elif key == "tool_calls" and isinstance(value, list):
            result[key] = [_fields(call, _CALL_KEYS, convert) for call in value]
        elif key == "function_call":
            result[key] = _fields(value, _CALL_KEYS, convert)
        else:
            result[key] = _everything(value, convert)
    return result


def _fields(value: Any, names: frozenset[str], convert: Convert) -> Any:
    """Convert an object of the API whose field names `names` are ours."""
    if not isinstance(value, dict):
        return _everything(value, convert)
    result = {}
    for key, inner in value.items():
        if key not in names:
            result[convert(key)] = _everything(inner, convert)
        elif key == "type":
            result[key] = _type_word(inner, convert)
        elif key == "function":
            result[key] = _fields(inner, names, convert)
        elif key in ("parameters", "input_schema"):
            result[key] = _schema(inner, convert)
        else:
            result[key] = _everything(inner, convert)
    return result


def _tool(tool: Any, convert: Convert) -> Any:
    return _fields(tool, _TOOL_KEYS, convert)


def _schema(schema: Any, convert: Convert) -> Any:
    if isinstance(schema, list):
        return [_schema(item, convert) for item in schema]
    if not isinstance(schema, dict):
        return _everything(schema, convert)
    result = {}
    for key, value in schema.items():
        if key not in _SCHEMA_KEYS:
            result[convert(key)] = _everything(value, convert)
        elif key == "type":
            result[key] = _type_word(value, convert)
        elif key in _SCHEMA_MAPS and isinstance(value, dict):
            result[key] = {convert(name): _schema(inner, convert) for name, inner in value.items()}
        elif key in _SCHEMA_DATA:
            result[key] = _everything(value, convert)
        else:
            result[key] = _schema(value, convert)
    return result


def _type_word(value: Any, convert: Convert) -> Any:
    if isinstance(value, str) and value in _TYPES:
        return value
    if isinstance(value, list):
        return [_type_word(item, convert) for item in value]
    return _everything(value, convert)


def _everything(value: Any, convert: Convert) -> Any:
    if isinstance(value, str):
        return convert(value)
    if isinstance(value, list):
        return [_everything(item, convert) for item in value]
    if isinstance(value, dict):
        return {convert(key): _everything(inner, convert) for key, inner in value.items()}
    return value


class Traits:
    """What a template can read, found out by rendering probes when first needed, then remembered."""

    def __init__(self, render: Render, constants: frozenset[str]) -> None:
        self._render = render
        self._lock = threading.Lock()
        self._known: dict[str, bool] = {}
        self._knows_developer = any("developer" in constant for constant in constants)

    def shape(self, messages: list[Message]) -> list[Message]:
        """Return the conversation in the form that this template reads."""
        shaped = [dict(message) for message in messages]
        for message in shaped:
            if message.get("role") == "developer" and not self._knows_developer:
                message["role"] = "system"
            content = message.get("content")
            if content is None:
                message["content"] = ""
            elif isinstance(content, list):
                message["content"] = _joined(content)
        if shaped and shaped[0].get("role") == "system" and not self._has("system", self._reads_system):
            first = shaped.pop(0)
            if shaped:
                shaped[0]["content"] = f"{first['content']}\n{shaped[0]['content']}"
        if any(message.get("tool_calls") for message in shaped) and self._has("objects", self._reads_objects):
            for message in shaped:
                _parse_arguments(message)
        if self._has("parts", self._needs_parts):
            for message in shaped:
                message["content"] = [{"type": "text", "text": message["content"]}]
        return shaped

    def _has(self, trait: str, probe: Callable[[], bool]) -> bool:
        with self._lock:
            if trait not in self._known:
                self._known[trait] = probe()
            return self._known[trait]

    def _shows(self, messages: list[Message], *needles: str) -> bool:
        try:
            text = self._render(messages, None)
        except EngineError as error:
            if error.code != "template_failed" or getattr(error, "kind", "error") in _LIMITS:
                raise  # the child met a limit or died: nothing was learnt
            return False
        return all(needle in text for needle in needles)

    def _reads_system(self) -> bool:
        user = {"role": "user", "content": "needle-user"}
        return self._shows(
            [{"role": "system", "content": "needle-system"}, user], "needle-system", "needle-user"
        )

    def _needs_parts(self) -> bool:
        if self._shows([{"role": "user", "content": "needle-user"}], "needle-user"):
            return False
        return self._shows(
            [{"role": "user", "content": [{"type": "text", "text": "needle-user"}]}], "needle-user"
        )

    def _reads_objects(self) -> bool:
        function = {"name": "needle_name", "arguments": {"needle_key": "needle_value"}}
        call = {"id": "needle001", "type": "function", "function": function}
        messages: list[Message] = [
            {"role": "user", "content": "needle-user"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        return self._shows(messages, "needle_key", "needle_value")


def _joined(parts: list[Any]) -> str:
    """Return text parts as one string, a line break between two, as llama.cpp's server joins them."""
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise EngineError("unsupported_parameter", "A content part is not text.", param="messages")
    return "\n".join(texts)


def _parse_arguments(message: Message) -> None:
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return
    parsed = []
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            try:
                arguments = json.loads(function["arguments"])
            except (ValueError, RecursionError):
                raise EngineError(
                    "invalid_value", "A tool call's arguments are not JSON.", param="messages"
                ) from None
            call = {**call, "function": {**function, "arguments": arguments}}
        parsed.append(call)
    message["tool_calls"] = parsed
