"""Which tokens a client must never be able to write, where their texts stand, and how to cut a text between them.

A marker is a control or unknown token, or a user-defined token whose text stands in the chat template's constants or
looks like `<|…|>` in a spelling of that family (fullwidth bars, one bar only, other brackets). Owns the decision and
the search. Does not know templates, requests or where a text came from: inferno.engine.prompts does. Engine process;
everything here is read-only after construction and shared by the prepare threads.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from inferno_native.marker_index import MarkerIndex

# llama.h (0c1e570), enum llama_token_attr
ATTR_UNKNOWN = 1 << 0
ATTR_CONTROL = 1 << 3
ATTR_USER_DEFINED = 1 << 4
_ALWAYS = ATTR_UNKNOWN | ATTR_CONTROL
_SPECIAL = _ALWAYS | ATTR_USER_DEFINED

_OPENING = frozenset("<＜‹〈⟨«《[［{｛")
_CLOSING = frozenset(">＞›〉⟩»》]］}｝")
_BARS = frozenset("|｜¦￤│∣ǀ❘▏")
_BLANKS = " \t\r\n\v\f▁"  # U+2581 is how sentencepiece vocabularies spell a space


class Vocabulary(Protocol):
    """What prompts need of inferno_native.llama.Vocab."""

    @property
    def n_tokens(self) -> int: ...
    @property
    def vocab_type(self) -> int: ...
    @property
    def bos(self) -> int | None: ...
    @property
    def eos(self) -> int | None: ...
    @property
    def add_bos(self) -> bool: ...
    @property
    def add_eos(self) -> bool: ...
    def text(self, token: int, /) -> bytes: ...
    def attr(self, token: int, /) -> int: ...
    def tokenize(self, text: bytes, add_special: bool, parse_special: bool, /) -> Sequence[int]: ...


class Occurrence(NamedTuple):
    """One place in a text where a marker's text stands: characters [start, end)."""

    start: int
    end: int
    marker: int  # index into Markers.texts


class Markers:
    """The markers of one model.

    `characters` are all non-blank characters that occur in any marker; every marker contains one of `key_characters`,
    a set kept small so that hiding only these from a template disturbs it least.
    """

    def __init__(self, vocab: Vocabulary, constants: Iterable[str] = ()) -> None:
        constant_text = "\0".join(constants)
        ids: dict[str, list[int]] = {}
        special: set[int] = set()
        for token in range(vocab.n_tokens):
            attr = vocab.attr(token)
            if not attr & _SPECIAL:
                continue
            special.add(token)
            text = vocab.text(token).decode("utf-8", "replace")
            if text and (attr & _ALWAYS or _is_marker_text(text, constant_text)):
                ids.setdefault(text, []).append(token)
        self.texts = tuple(ids)
        self.ids = frozenset(token for tokens in ids.values() for token in tokens)
        self.special_ids = frozenset(special)
        self.marker_of = {token: number for number, text in enumerate(self.texts) for token in ids[text]}
        self._index = MarkerIndex(self.texts)
        self.characters = frozenset(c for text in self.texts for c in text if not c.isspace())
        self.key_characters = _hitting_set(self.texts)

    def find(self, text: str) -> list[Occurrence]:
        """Return every occurrence, overlapping ones too, in order. Releases the GIL."""
        return [Occurrence(*hit) for hit in self._index.find(text)]


class Cuts(NamedTuple):
    """Where to cut a text: strictly increasing positions, and which pieces are one refused character (by start)."""

    positions: list[int]
    singles: frozenset[int]


def cut(occurrences: Iterable[tuple[Occurrence, bool]]) -> Cuts:
    """Return where to cut a text so that no marker with a client's character in it stays whole.

    `occurrences` are pairs of an occurrence and whether all of it is the template's. A marker is cut after its first
    character; where that would damage a marker of the template, at its first place that does not.
    """
    pairs = list(occurrences)
    kept_starts: list[int] = []
    kept_ends: list[int] = []  # merged intervals of what is the template's
    for occurrence, is_templates in pairs:
        if not is_templates:
            continue
        if kept_ends and occurrence.start < kept_ends[-1]:
            kept_ends[-1] = max(kept_ends[-1], occurrence.end)
        else:
            kept_starts.append(occurrence.start)
            kept_ends.append(occurrence.end)

    def is_inside_kept(position: int) -> bool:
        at = bisect_left(kept_starts, position) - 1
        return at >= 0 and position < kept_ends[at]

    positions: set[int] = set()
    singles: set[int] = set()
    for occurrence, is_templates in pairs:
        if is_templates:
            continue
        if occurrence.end - occurrence.start == 1:
            positions.update((occurrence.start, occurrence.end))
            singles.add(occurrence.start)
            continue
        inner = range(occurrence.start + 1, occurrence.end)
        positions.add(next((p for p in inner if not is_inside_kept(p)), inner[0]))
    return Cuts(sorted(positions), frozenset(singles))


def looks_like_marker(text: str) -> bool:
    """Return whether `text` is spelt like `<|…|>`: brackets around, a bar inside at one end or at both."""
    return (
        len(text) > 3
        and text[0] in _OPENING
        and text[-1] in _CLOSING
        and (text[1] in _BARS or text[-2] in _BARS)
    )


def _is_marker_text(text: str, constant_text: str) -> bool:
    # One character cannot be split, and blanks are what any text is made of: such tokens are ordinary vocabulary.
    if len(text) < 2 or not text.strip(_BLANKS):
        return False
    return looks_like_marker(text) or text in constant_text


def _hitting_set(texts: Sequence[str]) -> frozenset[str]:
    """Return a small set of characters of which every text has one; punctuation first, quotes and letters last."""
    chosen: set[str] = set()
    open_texts = [set(text) - set(_BLANKS) for text in texts]
    open_texts = [characters for characters in open_texts if characters]
    while open_texts:
        counts: dict[str, int] = {}
        for characters in open_texts:
            for character in characters:
                counts[character] = counts.get(character, 0) + 1
        best = max(counts, key=lambda c: (not (c.isalnum() or c in "\"'\\_-."), counts[c], c))
        chosen.add(best)
        open_texts = [characters for characters in open_texts if best not in characters]
    return frozenset(chosen)
