"""The text that a Jinja template can write by itself: what stands between its tags, and its string literals.

Lexing only, in one linear pass; nothing is parsed or run, so a hostile template costs nothing here. What a template
joins at run time is not seen: inferno.engine.markers knows the usual spelling of markers for that.
"""

from __future__ import annotations

import re
import warnings

_TAG = re.compile(r"\{\{|\{%|\{#")
_CLOSING = {"{{": "}}", "{%": "%}", "{#": "#}"}
_LITERAL = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"", re.DOTALL)


def constants(source: str) -> frozenset[str]:
    """Return the non-empty constants of a template."""
    found: set[str] = set()
    position = 0
    while position < len(source):
        tag = _TAG.search(source, position)
        found.add(source[position : tag.start() if tag else len(source)])
        if tag is None:
            break
        opening = tag.group()
        if opening == "{#":
            end = source.find("#}", tag.end())
            position = len(source) if end < 0 else end + 2
            continue
        position = _skip_code(source, tag.end(), _CLOSING[opening], found)
    found.discard("")
    return frozenset(found)


def _skip_code(source: str, position: int, closing: str, found: set[str]) -> int:
    """Collect the literals of one tag that starts at `position`; return where the text after it starts."""
    stops = re.compile(f"['\"]|{re.escape(closing)}")
    while stop := stops.search(source, position):
        if stop.group() == closing:
            return stop.end()
        literal = _LITERAL.match(source, stop.start())
        if literal is None:
            position = stop.end()
            continue
        found.add(_unescape(literal.group(1) if literal.group(1) is not None else literal.group(2)))
        position = literal.end()
    return len(source)


def _unescape(literal: str) -> str:
    """Undo escapes as Jinja does; one that Python does not know leaves the literal as it stands."""
    if "\\" not in literal:
        return literal
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of an escape that Python does not know
            return literal.encode("ascii", "backslashreplace").decode("unicode-escape")
    except UnicodeDecodeError:
        return literal
