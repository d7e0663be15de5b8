"""The plain twin of inferno_native.textstream: all bytes at once, the answer by definition."""

from __future__ import annotations

from collections.abc import Sequence


def cut_at_stop(data: bytes, stops: Sequence[bytes]) -> tuple[bytes, bool]:
    """Return the bytes before the stop string that is complete first (of those the longest), and whether one was."""
    for end in range(1, len(data) + 1):
        ending = [stop for stop in stops if data[:end].endswith(stop)]
        if ending:
            return data[: end - len(max(ending, key=len))], True
    return data, False


def text_of(data: bytes, stops: Sequence[bytes]) -> tuple[str, bool]:
    before, stopped = cut_at_stop(data, stops)
    return before.decode("utf-8", "replace"), stopped
