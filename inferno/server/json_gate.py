"""The strict JSON gate in front of every decoder (INP-1): one native pass, then msgspec.

Owns the limits and the texts of refusals. The pass itself is inferno_native.jsongate. Knows no fields. Front workers.
"""

from __future__ import annotations

from typing import Any

import msgspec
from inferno_native import jsongate

from ..errors import ApiError

MAX_DEPTH = 64  # a ten-level schema of arrays of objects needs 34
MAX_MEMBERS = 4096  # of one object
MAX_TOTAL_MEMBERS = 262_144  # of all objects of a document
MAX_ITEMS = 1_048_576  # of one array

_TEXTS = {
    "syntax": "The body is not one valid JSON document",
    "encoding": "The body is not UTF-8, or starts with a byte order mark",
    "duplicate": "An object names the same member twice",
    "depth": f"The body is nested deeper than {MAX_DEPTH} levels",
    "members": f"An object has more than {MAX_MEMBERS} members, or all objects together too many",
    "items": f"An array has more than {MAX_ITEMS} items",
    "number": "A number is out of range: integers have at most 20 digits and 64 bits, magnitudes stay below 1e308",
    "surrogate": "A string holds a lone surrogate",
    "nul": "A string holds U+0000",
}
_TEXT_FAULTS = frozenset(("surrogate", "nul"))
_DECODER = msgspec.json.Decoder()


def decode(body: bytes) -> Any:
    """Return the decoded document, or raise ApiError with where the fault is."""
    fault = jsongate.check(body, MAX_DEPTH, MAX_MEMBERS, MAX_TOTAL_MEMBERS, MAX_ITEMS)
    if fault is not None:
        reason, offset = fault
        code = "invalid_text" if reason in _TEXT_FAULTS else "invalid_json"
        raise ApiError(code, f"{_TEXTS[reason]} (byte {offset}).")
    try:
        return _DECODER.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise ApiError("invalid_json", f"{_TEXTS['syntax']}.") from None
