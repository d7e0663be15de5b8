"""The scanner's slow twin: Python's `re` on every stretch of the text, then the rules' distances by their definition."""

from __future__ import annotations

import re
from collections.abc import Sequence


def pattern_ends(pattern: str, text: bytes) -> list[int]:
    """All indices at which a match of the pattern ends; the text stands between two line ends."""
    framed = b"\n" + text + b"\n"
    source = pattern.replace("\\b", "[^0-9A-Za-z_]")
    compiled = re.compile(source.encode(), re.IGNORECASE)
    ends = {
        end
        for start in range(len(framed))
        for end in range(start + 1, len(framed) + 1)
        if compiled.fullmatch(framed, start, end)
    }
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
