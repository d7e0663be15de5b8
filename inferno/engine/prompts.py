"""From a prompt message to token ids, so that nothing a client wrote becomes a marker (CONTRACT 7.7).

A chat is rendered twice by the template child: as it is, and with the marker characters of all client strings mapped
one to one to private-use characters. Where both agree, comparing them tells of each character whether the template or
the client wrote it. Markers that are not wholly the template's are cut before tokenizing; without any, the ids are
those that llama.cpp gives for the rendered whole. Where a template's logic depends on the text, fewer characters are
mapped, in the last resort the rendering of mapped strings is used: that logic is lost then, never the safety. Numbers
and booleans of a request are not mapped.

Owns this decision. Does not know template syntax (inferno.engine.templates), the rules of cutting
(inferno.engine.markers), or what becomes of the ids. Engine process; called from several prepare threads at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import chain
from typing import Any, NamedTuple, Protocol

from inferno_native.marker_index import exchange

from inferno.engine.conversation import Message, Traits, convert_strings
from inferno.engine.markers import ATTR_CONTROL, ATTR_UNKNOWN, Markers, Occurrence, Vocabulary, cut
from inferno.engine.pieces import PieceTokenizer
from inferno.engine.template_constants import constants
from inferno.errors import EngineError
from inferno.messages import ChatPrompt, TextPrompt, TokenPrompt

_ROLES = frozenset(["system", "developer", "user", "assistant", "tool", "function"])
_FLAGS = frozenset(["enable_thinking", "thinking"])
_PRIVATE_PLANES = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


class Template(Protocol):
    """What prompts need of inferno.engine.templates.TemplateProcess; raises EngineError."""

    template: str  # the source

    def render(
        self,
        messages: list[Message],
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **flags: bool,
    ) -> str: ...


class _Rendered(NamedTuple):
    """A text, its marker occurrences and for each whether the template alone wrote it."""

    text: str
    occurrences: list[tuple[Occurrence, bool]]


class PromptBuilder:
    """Builds the token ids of prompts for one model."""

    def __init__(self, vocab: Vocabulary, template: Template | None = None) -> None:
        self._vocab = vocab
        self._template = template
        literals = constants(template.template) if template else frozenset()
        self._constant_characters: set[str] = set().union(*literals)
        self.markers = Markers(vocab, literals)
        self._pieces = PieceTokenizer(vocab, self.markers)
        self._bos_text = _token_text(vocab, vocab.bos)
        self._eos_text = _token_text(vocab, vocab.eos)
        self._traits = Traits(self._probe, literals)

    def build(self, prompt: ChatPrompt | TextPrompt | TokenPrompt) -> list[int]:
        """Return the ids of a prompt. Raises EngineError with a code, a message and where known a param."""
        if isinstance(prompt, TokenPrompt):
            return self._check_tokens(prompt)
        if isinstance(prompt, TextPrompt):
            found = [] if prompt.parse_special else self.markers.find(prompt.text)
            kept = self.markers.find(prompt.text) if prompt.parse_special else []
            ids = self._pieces.tokenize(prompt.text, cut((o, False) for o in found), kept)
            return [*self._pieces.prefix, *ids, *self._pieces.suffix] if prompt.add_special else ids
        return self._chat(prompt)

    def _check_tokens(self, prompt: TokenPrompt) -> list[int]:
        for token in prompt.tokens:
            if not 0 <= token < self._vocab.n_tokens:
                message = f"Token {token} is outside of the vocabulary of {self._vocab.n_tokens}."
                raise EngineError("invalid_value", message, param="prompt")
            if not prompt.allow_special and (
                token in self.markers.ids or self._vocab.attr(token) & (ATTR_CONTROL | ATTR_UNKNOWN)
            ):
                message = f"Token {token} is a control token, which needs the permission use_special_tokens."
                raise EngineError("invalid_value", message, param="prompt")
        return list(prompt.tokens)

    # ------------------------------------------------------------ chats

    def _chat(self, prompt: ChatPrompt) -> list[int]:
        rendered = self._without_added(self._attribute(prompt))
        cuts = cut(rendered.occurrences)
        kept = [occurrence for occurrence, is_templates in rendered.occurrences if is_templates]
        return [*self._pieces.prefix, *self._pieces.tokenize(rendered.text, cuts, kept), *self._pieces.suffix]

    def _attribute(self, prompt: ChatPrompt) -> _Rendered:
        """Render, and tell the template's markers from the client's."""
        if not all(message.get("role") in _ROLES for message in prompt.messages):
            raise EngineError("invalid_value", "A message has an unknown role.", param="messages")
        messages = self._traits.shape(prompt.messages)
        text = self._render(prompt, messages, prompt.tools)
        found = self.markers.find(text)
        if not found:
            return _Rendered(text, [])
        client = _Strings(messages, prompt.tools)
        full = self._masked(prompt, messages, client, self.markers.characters)
        if full.unmasked == text:
            return _Rendered(text, [(o, full.is_unmasked(o)) for o in found])

        # The template's logic depends on the text: hide less of it. `own` are the markers that the template writes
        # around strings of which it sees no marker character.
        own = [o.marker for o in self.markers.find(full.text)]
        partial = self._masked(prompt, messages, client, self.markers.key_characters)
        if partial.unmasked != text:
            if own == [o.marker for o in found] and not any(self.markers.find(string) for string in client.all):
                return _Rendered(text, [(o, True) for o in found])
            found = self.markers.find(partial.unmasked)
        occurrences = [(o, partial.is_unmasked(o)) for o in found]
        if own == [o.marker for o, is_templates in occurrences if is_templates]:
            return _Rendered(partial.unmasked, occurrences)
        return _Rendered(full.unmasked, [(o, full.is_unmasked(o)) for o in self.markers.find(full.unmasked)])

    def _masked(
        self, prompt: ChatPrompt, messages: list[Message], client: _Strings, characters: frozenset[str]
    ) -> _Masked:
        """Render with `characters` of all client strings replaced by private-use ones that nobody used."""
        free = (c for c in map(chr, chain(*_PRIVATE_PLANES)) if not client.has(c) and c not in self._constant_characters)
        hidden = [c for c in sorted(characters) if client.has(c)]
        masks = dict(zip(hidden, free, strict=False))
        if len(masks) < len(hidden):
            raise EngineError("invalid_text", "The text uses every private-use character.", param="messages")
        masked, tools = convert_strings(messages, prompt.tools, lambda string: exchange(string, masks))
        text = _without_escapes(self._render(prompt, masked, tools), masks.values())
        return _Masked(text, exchange(text, {mask: character for character, mask in masks.items()}))

    def _without_added(self, rendered: _Rendered) -> _Rendered:
        """Drop a BOS or EOS that the template wrote where the tokenizer adds one, as llama.cpp's server does."""
        text, occurrences = rendered
        own = [occurrence for occurrence, is_templates in occurrences if is_templates]
        start, end = 0, len(text)
        bos, eos = self._bos_text, self._eos_text
        if bos and self._vocab.add_bos and any(o.start == 0 and o.end == len(bos) for o in own):
            start = len(bos) if text.startswith(bos) else 0
        if eos and self._vocab.add_eos and any(o.end == end and o.start == end - len(eos) for o in own):
            end = end - len(eos) if text.endswith(eos) and end - len(eos) >= start else end
        if (start, end) == (0, len(text)):
            return rendered
        inside = [
            (Occurrence(o.start - start, o.end - start, o.marker), is_templates)
            for o, is_templates in occurrences
            if o.start >= start and o.end <= end
        ]
        return _Rendered(text[start:end], inside)

    def _render(self, prompt: ChatPrompt, messages: list[Message], tools: list[dict[str, Any]] | None) -> str:
        if self._template is None:
            raise EngineError(
                "template_failed", "The model has no chat template; use /v1/completions.", param="messages"
            )
        if not _FLAGS.issuperset(prompt.template_flags):
            raise EngineError(
                "unsupported_parameter",
                f"Only {', '.join(sorted(_FLAGS))} may be given.",
                param="chat_template_kwargs",
            )
        return self._template.render(messages, tools, prompt.add_generation_prompt, **prompt.template_flags)

    def _probe(self, messages: list[Message], tools: list[dict[str, Any]] | None) -> str:
        return self._render(ChatPrompt(messages=messages, tools=tools), messages, tools)


class _Strings:
    """All client strings of one request, keys too."""

    def __init__(self, messages: list[Message], tools: list[dict[str, Any]] | None) -> None:
        self.all: list[str] = []

        def collect(string: str) -> str:
            self.all.append(string)
            return string

        convert_strings(messages, tools, collect)
        self._joined = "\0".join(self.all)

    def has(self, character: str) -> bool:
        """Whether the character stands in any of them."""
        return character in self._joined


class _Masked(NamedTuple):
    """A rendering with client characters masked, and the same with them put back: equal in length and position."""

    text: str
    unmasked: str

    def is_unmasked(self, occurrence: Occurrence) -> bool:
        """Whether no masked character stands in the occurrence."""
        span = slice(occurrence.start, occurrence.end)
        return self.text[span] == self.unmasked[span]


def _token_text(vocab: Vocabulary, token: int | None) -> str:
    return "" if token is None else vocab.text(token).decode("utf-8", "replace")


def _without_escapes(text: str, masks: Iterable[str]) -> str:
    """Return `text` with masks again where a template wrote them escaped, as JSON in ASCII or as Python literals."""
    if "\\u" not in text and "\\U" not in text:
        return text
    escapes = {}
    for mask in masks:
        high, low = divmod(ord(mask) - 0x10000, 0x400)
        escapes[f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"] = mask
        escapes[f"\\U{ord(mask):08x}"] = mask
    return (
        re.sub("|".join(map(re.escape, escapes)), lambda found: escapes[found.group()], text)
        if escapes
        else text
    )
