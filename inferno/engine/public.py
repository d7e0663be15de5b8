"""From the operator's public prefixes to token ids: what every prompt that begins with one has in common.

A prefix is the text of a system message, since that is what applications share. The model's template decides what
stands around it, so two conversations with it are rendered and what both begin with is taken. Without a chat template
the text itself is the beginning. Engine process, before the first request.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import EngineError
from ..messages import ChatPrompt, TextPrompt

_OPENINGS = ("A", "\u4e00")  # of the two user messages: they differ in their first byte
_log = logging.getLogger("inferno.engine")


def public_prefix(build: Callable[[Any], Sequence[int]], text: str, *, has_template: bool) -> array[int]:
    """Return the ids that `text` stands for; none (and a warning) when the template does not take it."""
    try:
        prompts = [array("i", build(_prompt(text, opening, has_template))) for opening in _OPENINGS]
    except EngineError as error:
        _log.warning("a public prefix cannot be used: %s", error.message)
        return array("i")
    length = 0
    for one, other in zip(*prompts, strict=False):
        if one != other:
            break
        length += 1
    return prompts[0][:length]


def _prompt(text: str, opening: str, has_template: bool) -> ChatPrompt | TextPrompt:
    if has_template:
        messages = [{"role": "system", "content": text}, {"role": "user", "content": opening}]
        return ChatPrompt(messages=messages)
    return TextPrompt(text=text + opening)
