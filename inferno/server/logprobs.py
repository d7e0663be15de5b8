"""Log probabilities in OpenAI's two shapes: a list of entries for chat, four parallel lists for text completions.

Token bytes may be a part of a character: `token` shows U+FFFD then, `bytes` is exact. Front workers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..messages import TokenLogprob

NEGLIGIBLE = -9999.0


def chat_entries(logprobs: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    return [
        {
            **_entry(item.token, item.logprob),
            "top_logprobs": [_entry(token, logprob) for token, logprob in item.top],
        }
        for item in logprobs
    ]


class LegacyLists:
    """The lists of one choice, as they grow; `text_offset` counts characters of the completion."""

    def __init__(self) -> None:
        self._offset = 0

    def lists(self, logprobs: Iterable[TokenLogprob]) -> dict[str, Any]:
        """Return the four lists for these tokens; offsets go on from the last call."""
        tokens: list[str] = []
        token_logprobs: list[float] = []
        top_logprobs: list[dict[str, float]] = []
        offsets: list[int] = []
        for item in logprobs:
            text = _text(item.token)
            tokens.append(text)
            token_logprobs.append(_finite(item.logprob))
            top: dict[str, float] = {}
            for token, logprob in item.top:
                top.setdefault(_text(token), _finite(logprob))
            top_logprobs.append(top)
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": tokens,
            "token_logprobs": token_logprobs,
            "top_logprobs": top_logprobs,
            "text_offset": offsets,
        }


def _entry(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": _text(token), "logprob": _finite(logprob), "bytes": list(token)}


def _text(token: bytes) -> str:
    return token.decode("utf-8", "replace")


def _finite(logprob: float) -> float:
    """JSON knows no infinity; the engine's numbers are not trusted to be any."""
    return min(logprob, 0.0) if logprob > NEGLIGIBLE else NEGLIGIBLE
