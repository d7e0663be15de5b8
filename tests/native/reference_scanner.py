"""The scanner's slow twin: Python's `re` on every stretch of the text, then the rules' distances by their definition."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

_OUTSIDE = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[^\\\[]", re.DOTALL)


def _piece(match: re.Match[str]) -> str:
    piece = match.group()
    if piece.startswith("["):
        return piece.replace(r"\s", r" \t\n\r")
    if not piece.isascii():
        return f"(?:{piece})"  # what repeats is the character, not its last byte
    return {r"\b": "[^0-9A-Za-z_]", "^": r"\n", r"\s": r"[ \t\n\r]", r"\S": r"[^ \t\n\r]"}.get(piece, piece)


@lru_cache(maxsize=1024)
def as_regex(pattern: str) -> re.Pattern[bytes]:
    """The pattern in Python's own syntax, over bytes."""
    return re.compile(_OUTSIDE.sub(_piece, pattern).encode(), re.IGNORECASE)


def pattern_ends(pattern: str, text: bytes) -> list[int]:
    """All indices at which a match of the pattern ends; the text stands between two line ends."""
    framed = b"\n" + text + b"\n"
    compiled = as_regex(pattern)
    ends: set[int] = set()
    found = compiled.search(framed)
    while found:
        start = found.start()
        ends.update(end for end in range(start + 1, len(framed) + 1) if compiled.fullmatch(framed, start, end))
        found = compiled.search(framed, start + 1)
    return sorted(end - 1 for end in ends)


def scan(
    patterns: Sequence[str], rules: Sequence[Sequence[tuple[Sequence[int], int]]], text: bytes
) -> set[int]:
    """The numbers of the rules that match."""
    ends = [pattern_ends(pattern, text) for pattern in patterns]
    found = set()
    for number, sequence in enumerate(rules):
        reached = sorted({end for pattern in sequence[0][0] for end in ends[pattern]})
        for numbers, within in sequence[1:]:
            here = sorted({end for pattern in numbers for end in ends[pattern]})
            reached = [end for end in here if any(before < end <= before + within for before in reached)]
        if reached:
            found.add(number)
    return found
