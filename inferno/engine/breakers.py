"""DRY's sequence breakers as token ids: which tokens end a repeat, alone or together with those that follow.

The rules are llama.cpp's (llama-sampler.cpp, 0c1e570): a token whose text holds the breaker breaks alone; a token that
ends in a breaker's beginning breaks when the tokens of the rest follow. One pass over the vocabulary, so results are
kept by their texts. Engine process.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

MAX_BREAKER_BYTES = 40
MAX_TAIL_TOKENS = 20
_KEPT = 16  # sets of breakers; almost every request uses the default

Breakers = tuple[tuple[int, ...], ...]


class BreakerVocabulary(Protocol):
    """What is needed of inferno_native.llama.Vocab."""

    @property
    def n_tokens(self) -> int: ...
    def tokenize(self, text: bytes, add_special: bool, parse_special: bool, /) -> Sequence[int]: ...
    def detokenize(self, tokens: Sequence[int], special: bool = False) -> bytes: ...


class BreakerTable:
    """Finds and remembers the breakers of one vocabulary. Safe for several threads."""

    def __init__(self, vocab: BreakerVocabulary) -> None:
        self._vocab = vocab
        self._lock = threading.Lock()
        self._words: list[bytes] | None = None
        self._known: dict[tuple[str, ...], Breakers] = {}

    def sequences(self, texts: Sequence[str]) -> Breakers:
        """Return the sequences of token ids (head, then its tail) of these breakers."""
        key = tuple(texts)
        with self._lock:
            if key not in self._known:
                if len(self._known) >= _KEPT:
                    self._known.pop(next(iter(self._known)))
                self._known[key] = self._find(key)
            return self._known[key]

    def _find(self, texts: tuple[str, ...]) -> Breakers:
        if self._words is None:
            self._words = [self._vocab.detokenize([token], True) for token in range(self._vocab.n_tokens)]
        found: set[tuple[int, ...]] = set()
        for text in texts:
            breaker = text.encode("utf-8", "replace")[:MAX_BREAKER_BYTES]
            for token, word in enumerate(self._words):
                if breaker in word:
                    found.add((token,))
                    continue
                for length in range(1, min(len(breaker), len(word) + 1)):
                    if word.endswith(breaker[:length]):
                        tail = self._vocab.tokenize(breaker[length:], False, False)
                        found.add((token, *tail[:MAX_TAIL_TOKENS]))
        found.discard(())
        return tuple(sorted(found))
