"""A slow twin of inferno_native.jsongate: the same verdicts by plain Python's json and recursion-free checks."""

from __future__ import annotations

import json
import re
from typing import Any

INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")


class _Refused(Exception):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def check(
    data: bytes,
    max_depth: int = 64,
    max_members: int = 4096,
    max_total_members: int = 262144,
    max_items: int = 1048576,
) -> str | None:
    """Return None, or one of the reasons that apply (the native pass names the first by position)."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return "encoding"
    if text.startswith("\ufeff"):
        return "encoding"
    if _depth(text) > max_depth:
        return "depth"
    total = 0

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal total
        total += len(pairs)
        if len(pairs) > max_members or total > max_total_members:
            raise _Refused("members")
        names = [name for name, _ in pairs]
        if len(set(names)) != len(names):
            raise _Refused("duplicate")
        for name in names:
            _text(name)
        return dict(pairs)

    def integer(literal: str) -> int:
        if len(literal.lstrip("-")) > 20 or not -(2**63) <= int(literal) < 2**64:
            raise _Refused("number")
        return int(literal)

    def real(literal: str) -> float:
        mantissa, _, exponent = literal.lower().partition("e")
        digits = len(mantissa.lstrip("-").split(".")[0])
        power = int(exponent or 0)
        if digits > 20 or (power >= 0 and not exponent.startswith("-") and digits + power > 308):
            raise _Refused("number")
        return 0.0

    def constant(literal: str) -> None:
        raise _Refused("syntax")

    try:
        value = json.loads(
            text,
            object_pairs_hook=members,
            parse_int=integer,
            parse_float=real,
            parse_constant=constant,
            strict=True,
        )
        _walk(value, max_items)
    except _Refused as refusal:
        return refusal.reason
    except ValueError:
        return "syntax"
    return None


def _depth(text: str) -> int:
    """The deepest nesting outside of strings."""
    deepest = depth = 0
    in_string = is_escaped = False
    for character in text:
        if in_string:
            if is_escaped:
                is_escaped = False
            elif character == "\\":
                is_escaped = True
            elif character == '"':
                in_string = False
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _walk(value: Any, max_items: int) -> None:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            _text(item)
        elif isinstance(item, list):
            if len(item) > max_items:
                raise _Refused("items")
            stack.extend(item)
        elif isinstance(item, dict):
            stack.extend(item.values())


def _text(text: str) -> None:
    if "\x00" in text:
        raise _Refused("nul")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise _Refused("surrogate")
