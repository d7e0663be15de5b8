"""Tokenizes a text in pieces so that the ids spell exactly the text, whatever the kind of vocabulary.

Without cuts the ids are llama.cpp's for the whole text. With cuts each piece is tokenized alone, as the continuation
of the one before: sentencepiece vocabularies would otherwise put a space in front of it. Afterwards the ids are
checked: no more of a marker than the template itself wrote. Does not decide where to cut (inferno.engine.markers).
Engine process, prepare threads; read-only after construction.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

from inferno.engine.markers import Cuts, Markers, Occurrence, Vocabulary
from inferno.errors import EngineError

NO_VOCABULARY, SPM, UGM = 0, 1, 4  # llama.h (0c1e570), enum llama_vocab_type
_SPACE_PREFIXING = (SPM, UGM)
_SEPARATORS = ("\x1f", "\x1e", "\x1d", "\x1c", *map(chr, range(0xE000, 0xE010)))
_PROBE = "a"
_UNKNOWN_PROBES = (
    "\U000f1234",
    "\x1b",
    "\ua66f",
    "\u08a0",
    "\ua4a2",
    "\U00010380",
    "\U0002a6d6",
)  # rare letters


class PieceTokenizer:
    """Turns (text, occurrences, cuts) into ids."""

    def __init__(self, vocab: Vocabulary, markers: Markers) -> None:
        if vocab.vocab_type == NO_VOCABULARY:
            raise EngineError("engine_failed", "The model has no vocabulary to tokenize with.")
        self._vocab = vocab
        self._markers = markers
        # What llama.cpp adds around a prompt, found by asking, since it depends on the kind of vocabulary.
        bare, wrapped = self._ids(_PROBE, special=False), list(vocab.tokenize(_PROBE.encode(), True, False))
        start = next(i for i in range(len(wrapped)) if wrapped[i : i + len(bare)] == bare)
        self.prefix, self.suffix = wrapped[:start], wrapped[start + len(bare) :]
        # What text that the vocabulary does not know becomes is no forged marker.
        self._unknown_ids = {
            token
            for text in _UNKNOWN_PROBES
            for token in self._ids(text, special=False)
            if token in markers.ids
        }
        self._separator, self._separator_ids = self._find_separator()

    def tokenize(self, text: str, cuts: Cuts, kept: Sequence[Occurrence]) -> list[int]:
        """Return the ids of `text` without what is added around a prompt. `kept` are the template's own markers.

        Raises EngineError for a lone surrogate, or where the vocabulary can spell a text with a marker only.
        """
        bounds = [0, *(p for p in cuts.positions if 0 < p < len(text)), len(text)]
        kept_starts = [occurrence.start for occurrence in kept]
        ids: list[int] = []
        for start, end in pairwise(bounds):
            if start == end:
                continue
            inside = [
                o
                for o in kept[bisect_left(kept_starts, start) : bisect_left(kept_starts, end)]
                if o.end <= end
            ]
            piece = text[start:end]
            found = self._piece(piece, ids, special=start not in cuts.singles)
            if self._has_forged(found, inside):
                found = self._apart(text, start, end, inside, ids)
            ids += found
        return ids

    def _piece(self, piece: str, before: Sequence[int], *, special: bool) -> list[int]:
        """Return the ids of `piece` standing after `before`."""
        follows_text = before and (
            before[-1] not in self._markers.special_ids or before[-1] in self._unknown_ids
        )
        if follows_text and self._separator:
            ids = self._ids(self._separator + piece, special=special)
            if ids[: len(self._separator_ids)] == self._separator_ids:
                return ids[len(self._separator_ids) :]
        return self._ids(piece, special=special)

    def _has_forged(self, ids: Sequence[int], kept: Sequence[Occurrence]) -> bool:
        suspects = self._markers.ids.intersection(ids) - self._unknown_ids
        if not suspects:
            return False
        allowed: dict[int, int] = {}
        for occurrence in kept:
            allowed[occurrence.marker] = allowed.get(occurrence.marker, 0) + 1
        counts: dict[int, int] = {}
        for token in ids:
            if token in suspects:
                marker = self._markers.marker_of[token]
                counts[marker] = counts.get(marker, 0) + 1
        return any(count > allowed.get(marker, 0) for marker, count in counts.items())

    def _apart(
        self, text: str, start: int, end: int, kept: Sequence[Occurrence], before: Sequence[int]
    ) -> list[int]:
        """Tokenize a piece whose ordinary text merges into a marker: the template's markers, the rest by characters."""
        ids: list[int] = []
        position = start
        for occurrence in [*kept, Occurrence(end, end, -1)]:
            if occurrence.start < position:
                continue  # overlaps a marker that was taken
            if position < occurrence.start:
                ids += self._run(text[position : occurrence.start], [*before[-1:], *ids])
            ids += self._ids(text[occurrence.start : occurrence.end], special=True)
            position = occurrence.end
        return ids

    def _run(self, run: str, before: Sequence[int]) -> list[int]:
        found = self._piece(run, before, special=False)
        if not self._has_forged(found, ()):
            return found
        ids: list[int] = []
        for character in run:
            found = self._piece(character, [*before[-1:], *ids], special=False)
            if self._has_forged(found, ()):
                raise EngineError(
                    "invalid_value", "The model can read a character of the text as a control token only."
                )
            ids += found
        return ids

    def _ids(self, text: str, *, special: bool) -> list[int]:
        try:
            data = text.encode()
        except UnicodeEncodeError:
            raise EngineError("invalid_text", "A string holds a lone surrogate.") from None
        return list(self._vocab.tokenize(data, False, special))

    def _find_separator(self) -> tuple[str, list[int]]:
        """Return a character that never joins its neighbours, and its ids; ("", []) where none is needed.

        Behind it a text is tokenized as one that goes on, not as one that starts, so no space is put in front.
        """
        if self._vocab.vocab_type not in _SPACE_PREFIXING:
            return "", []
        texts = [self._vocab.text(t).decode("utf-8", "replace") for t in range(self._vocab.n_tokens)]
        joining = set("".join(text for text in texts if len(text) > 1))
        # A unigram vocabulary joins unknown characters, so there it must be a token of its own.
        alone = [text for text in texts if len(text) == 1 and text not in joining and text.isalpha()]
        for character in (*(() if self._vocab.vocab_type == UGM else _SEPARATORS), *alone[:64]):
            if character in joining:
                continue
            ids = self._ids(character, special=False)
            following = (
                self._ids(character + text, special=False) for text in (_PROBE, " a", "<", character)
            )
            if ids and all(found[: len(ids)] == ids and len(found) > len(ids) for found in following):
                return character, ids
        return "", []
