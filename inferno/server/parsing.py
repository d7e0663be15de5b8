"""From body bytes to a validated struct: JSON gate, null = absent, unknown and refused fields, error paths.

Owns how a fault of a field becomes an ApiError with its code and `param` path. The fields themselves stand in
inferno.server.schemas. Runs in front workers.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from ..errors import ApiError
from . import json_gate, schemas

T = TypeVar("T")

MAX_IGNORED = 32  # unknown fields that "report" names; more are refused
_MISSING = re.compile(r"Object missing required field `([^`]+)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_STEP = re.compile(r"\.([A-Za-z_][A-Za-z0-9_]*)|\[(\d{1,9})\]")


def parse(
    body: bytes, kind: type[T], *, refused: dict[str, str] | None = None, report_unknown: bool = False
) -> tuple[T, list[str]]:
    """Decode a body strictly into `kind`; return it and the names of ignored fields. Raises ApiError."""
    value = json_gate.decode(body)
    if not isinstance(value, dict):
        raise ApiError("invalid_value", "The body must be a JSON object.")
    return convert(value, kind, refused=refused, report_unknown=report_unknown)


def convert(
    value: dict[str, Any],
    kind: type[T],
    *,
    refused: dict[str, str] | None = None,
    report_unknown: bool = False,
) -> tuple[T, list[str]]:
    """Validate a decoded object. Top-level nulls of known fields are dropped: absent."""
    known = kind.__struct_fields__  # type: ignore[attr-defined]
    fields: dict[str, Any] = {}
    for name, item in value.items():
        if name in schemas.FORBIDDEN:
            raise ApiError("unsupported_parameter", "This field cannot be set by a client.", param=name)
        if refused and name in refused:
            if item is None:
                continue
            raise ApiError("unsupported_parameter", refused[name], param=name)
        if item is None and name in known:
            continue
        fields[name] = item
    ignored: list[str] = []
    while True:
        try:
            return msgspec.convert(fields, kind), ignored
        except msgspec.ValidationError as error:
            text = str(error)
        except RecursionError:
            raise ApiError("invalid_value", "A value is nested too deeply.") from None
        reason, path = _split(text)
        unknown = _UNKNOWN.fullmatch(reason)
        if unknown is None or not report_unknown or len(ignored) >= MAX_IGNORED:
            raise _fault(reason, path)
        if not _remove(fields, path, unknown[1]):
            raise _fault(reason, path)
        ignored.append(_printable(path + "." + unknown[1] if path else unknown[1]))


def check_model_name(name: str | None) -> None:
    """Refuse what can be no model's name (INP-4); whether there is one is the registry's answer."""
    if name is None:
        return
    if not _MODEL.fullmatch(name) or _DOTS.search(name) or name.split(".", 1)[0].lower() in _DEVICES:
        raise ApiError("invalid_value", "Not a model name.", param="model")


_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+/-]{0,127}")
_DOTS = re.compile(r"//|(?:^|/)\.{1,2}(?:/|$)|\.\.|[/.]$")
_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))]
)


def _fault(reason: str, path: str) -> ApiError:
    missing = _MISSING.fullmatch(reason)
    if missing is not None:
        param = _printable(f"{path}.{missing[1]}" if path else missing[1])
        return ApiError("missing_required_parameter", f"Missing required parameter: {param}.", param=param)
    unknown = _UNKNOWN.fullmatch(reason)
    if unknown is not None:
        param = _printable(f"{path}.{unknown[1]}" if path else unknown[1])
        return ApiError("unknown_parameter", f"Unknown parameter: {param}.", param=param)
    if reason.startswith(("Invalid enum value", "Invalid value")):
        reason = "Not one of the allowed values"
    elif "matching regex" in reason:
        reason = "The text has not the expected form"
    elif not reason.startswith("Expected ") or len(reason) > 200:
        reason = "Not of the expected form"
    return ApiError("invalid_value", f"Invalid value: {reason}.", param=_printable(path) or None)


def _split(text: str) -> tuple[str, str]:
    """Split msgspec's message into the reason and the path as clients write it: messages[0].content."""
    start = text.rfind(" - at `")
    if start < 0:
        return text, ""
    path = text[start + 7 :].rstrip("`").removeprefix("key` in `")
    return text[:start], path.removeprefix("$").removeprefix(".").replace("[...]", "")


def _printable(path: str) -> str:
    """A field name is client text: what is unusual in it is not echoed."""
    if len(path) > 120 or not re.fullmatch(r"[A-Za-z0-9_.\[\]-]+", path):
        shown = re.sub(r"[^A-Za-z0-9_.\[\]-]", "?", path[:120])
        return shown
    return path


def _remove(fields: dict[str, Any], path: str, name: str) -> bool:
    """Take a member out where it stands; the decoded body is ours. False: it is not there."""
    holder: Any = fields
    for step in _STEP.finditer("." + path if path else ""):
        try:
            holder = holder[step[1]] if step[1] is not None else holder[int(step[2] or 0)]
        except (KeyError, IndexError, TypeError):
            return False
    if not isinstance(holder, dict) or name not in holder:
        return False
    del holder[name]
    return True
