"""The input guard: cleans message content, finds attacks in it, and says which values may be names.

Content is answered normally by default: what is found there is reported, invisible and control characters are removed
(INP-4, INP-5), and only NUL and lone surrogates are refused. Names, header values and URLs are refused when anything
is found in them. `scan_content` and `scan_identifiers` set the strongest action; in block mode content is refused only
when an attack stands there by itself, not when it is quoted or talked about.

It knows text, rules and modes; requests, accounts and audit are the caller's. All work is linear in the text. Refusals
carry a code of inferno.errors (invalid_text, input_too_long, input_blocked), never the text. Runs in the front's workers.
"""

from __future__ import annotations

import dataclasses
import urllib.parse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from inferno_native import textclean

from inferno.errors import ApiError
from inferno.security.rules import ACTIONS, Rule, RuleSet, load_rules

MAX_IDENTIFIER = 128
MAX_HEADER_VALUE = 8192
MAX_DECODINGS = 3
BLOCK_SCORE = 0.6
INJECTION_BLOCK_SCORE = 0.85
LOG_INJECTION = "log-injection"
SYNTAX = "identifier-syntax"
_NAME_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-:/@+")
_RESERVED = frozenset(
    ["con", "prn", "aux", "nul", *(f"com{k}" for k in range(1, 10)), *(f"lpt{k}" for k in range(1, 10))]
)
_LOOK_AGAIN = (
    textclean.FEATURE_SPACED | textclean.FEATURE_LEET | textclean.FEATURE_ENCODED | textclean.FEATURE_LONG_RUN
)
# Words that carry no content of their own (and are no SQL): two of them show that a payload stands in a sentence about it.
_PROSE = frozenset(
    b"the a an is are was were be been do does did has have had will would can could should may might must i you he she it we they my your our "
    b"their this that these those what which who why how when there here but than so because with without about for to "
    b"into of at please review convert fix render tidy summarise summarize compare decode turn explain write make show me us need want use using between difference example question help give tell "
    b"der die das ein eine ist sind war ich du er sie wir ihr und oder nicht aber wenn mit von zu wie was warum bitte auf im den dem "
    b"el la los las un una es son que como por para con de en y o no mi le les des une est sont je tu il nous vous et ou pas pour avec dans sur "
    b"comment pourquoi uma um os as que como para com em e nao meu il lo gli che di per come perche non".split()
)
_TALK = frozenset(
    b"explain describe explains describing example examples blog article post teach teaching readers understand paper quiz course lesson detect detection "
    b"attack attacks attacker vulnerability defend defence defense mitigate prevent called means problem problems why definition beispiel erklare "
    b"explique explica erklar ejemplo exemple translate translation sentence phrase summary".split()
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule that matched; `index` is the text's place in the call."""

    rule: str
    category: str
    score: float
    action: str
    index: int = 0


@dataclass(frozen=True, slots=True)
class Screened:
    """The verdict on one value or on all texts of a request."""

    texts: tuple[str, ...]
    findings: tuple[Finding, ...]
    action: str  # allow, report, strip or block
    score: float
    code: str | None  # of the refusal, when action is block

    @property
    def categories(self) -> tuple[str, ...]:
        """What was found, each category once."""
        return tuple(sorted({finding.category for finding in self.findings}))

    def raise_if_refused(self, param: str | None = None) -> None:
        """Raise the ApiError of a refusal; its text is fixed by the code."""
        if self.code is not None:
            raise ApiError(self.code, _MESSAGES[self.code], param=param)


ScreenedContent = Screened

_MESSAGES = {
    "invalid_text": "A string holds NUL or a lone surrogate.",
    "input_too_long": "A string is longer than max_input_length.",
    "input_blocked": "The text guard refused the input.",
}


class SecurityLike(Protocol):
    """The settings that the guard reads; `[security]` has them."""

    @property
    def input_validation_enabled(self) -> bool: ...
    @property
    def max_input_length(self) -> int: ...
    @property
    def scan_content(self) -> str: ...
    @property
    def scan_identifiers(self) -> str: ...


class Screener:
    """The guard of one worker: compiled rules and the configured modes."""

    def __init__(
        self,
        settings: SecurityLike | None = None,
        *,
        scan_content: str = "report",
        scan_identifiers: str = "block",
        max_input_length: int | None = None,
        enabled: bool = True,
        extra_rules: Iterable[Path] = (),
    ) -> None:
        if settings is not None:
            scan_content, scan_identifiers = settings.scan_content, settings.scan_identifiers
            max_input_length, enabled = settings.max_input_length, settings.input_validation_enabled
        for mode in (scan_content, scan_identifiers):
            if mode not in ("off", "report", "block"):
                raise ValueError(f"a scan mode is off, report or block, got {mode!r}")
        self.rules: RuleSet = load_rules(tuple(extra_rules))
        self.scan_content = scan_content
        self.scan_identifiers = scan_identifiers
        self.max_input_length = max_input_length
        self.enabled = enabled

    def load_rules(self, extra: Iterable[Path]) -> None:
        """Use the shipped rules and these files from now on. Raises ConfigError; then the old ones stay."""
        self.rules = load_rules(tuple(extra))

    def content(self, texts: Sequence[str], *, max_input_length: int | None = None) -> Screened:
        """Screen a request's message texts; `max_input_length` is a key's own limit."""
        if not self.enabled:
            return Screened(tuple(texts), (), "allow", 0.0, None)
        limit = max_input_length if max_input_length is not None else self.max_input_length
        cleaned: list[str] = []
        findings: list[Finding] = []
        code: str | None = None
        for index, text in enumerate(texts):
            if limit is not None and len(text) > limit:
                return Screened(tuple(texts), (), "block", 0.0, "input_too_long")
            features = textclean.features(text)
            if features & textclean.FEATURE_NUL:
                finding = Finding("nul-or-surrogate", "nul-byte", 1.0, "block", index)
                return Screened(tuple(texts), (*findings, finding), "block", 1.0, "invalid_text")
            if not features and self.scan_content != "off" and not self.rules.scanner.scan_text(text):
                cleaned.append(text)
                continue
            shown, found = self._content(text, features, index)
            cleaned.append(shown)
            findings += found
        if not findings:
            return Screened(tuple(cleaned), (), "allow", 0.0, None)
        action = max((f.action for f in findings), key=_strength)
        if action == "block":
            code = "input_blocked"
        return Screened(tuple(cleaned), tuple(findings), action, _combined(findings), code)

    def identifier(self, name: str, value: str) -> Screened:
        """Screen a name (of a model, a key, a scope): an allow-list of characters first, then the rules."""
        reason = _name_fault(value)
        return self._value(value, Finding(f"{SYNTAX}-{reason}", SYNTAX, 0.5, "block") if reason else None)

    def header_value(self, name: str, value: str) -> Screened:
        """Screen a header's value that the server uses: visible ASCII, and nothing that a rule finds."""
        bad = len(value) > MAX_HEADER_VALUE or not all(" " <= c <= "~" or c == "\t" for c in value)
        return self._value(value, Finding(f"{SYNTAX}-header", SYNTAX, 0.5, "block") if bad else None)

    def url_value(self, name: str, value: str) -> Screened:
        """Screen a URL or a part of one that a client gave as a value, and the text that it stands for."""
        bad = len(value) > MAX_HEADER_VALUE or not all("!" <= c <= "~" for c in value)
        verdict = self._value(value, Finding(f"{SYNTAX}-url", SYNTAX, 0.5, "block") if bad else None)
        if verdict.findings or ("%" not in value and "+" not in value):
            return verdict
        # Invisible characters, controls and disguises show only in the text behind the percent signs.
        inside = self._value(urllib.parse.unquote_plus(value), None)
        return dataclasses.replace(inside, texts=(value,))

    def _value(self, value: str, syntax: Finding | None) -> Screened:
        if not self.enabled:
            return Screened((value,), (), "allow", 0.0, None)
        features = textclean.features(value)
        if features & textclean.FEATURE_NUL:
            finding = Finding("nul-or-surrogate", "nul-byte", 1.0, "block")
            return Screened((value,), (finding,), "block", 1.0, "invalid_text")
        findings: list[Finding] = []
        mode = self.scan_identifiers
        if syntax is not None and mode != "off":
            findings.append(Finding(syntax.rule, syntax.category, syntax.score, mode))
        if mode != "off" and len(value) <= MAX_HEADER_VALUE:
            for rule in self._detected(value, features) + self._in_value(value, features):
                action = min(rule.identifier, mode, key=_strength)
                if action != "off":
                    findings.append(Finding(rule.id, rule.category, rule.score, action))
        if not findings:
            return Screened((value,), (), "allow", 0.0, None)
        action = max((f.action for f in findings), key=_strength)
        code = "input_blocked" if action == "block" else None
        return Screened((value,), tuple(findings), action, _combined(findings), code)

    def _in_value(self, value: str, features: int) -> list[Rule]:
        """The rules that a value matches. Forging a log needs a line break in it: its start is none."""
        found = self._matched(value, features)
        if any(rule.category == LOG_INJECTION for rule in found):
            inside = self._matched("x" + value, features)
            found = [rule for rule in found if rule.category != LOG_INJECTION or rule in inside]
        return found

    def _detected(self, value: str, features: int) -> list[Rule]:
        """The detectors that a name sets off: any control character, any invisible one, any disguise."""
        found: list[str] = []
        if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in value):
            found.append("control")
        if features & textclean.FEATURE_WIDE:
            if any(
                len(textclean.fold(c, True)) == 0 or 0xE0000 <= ord(c) <= 0xE0FFF
                for c in value
                if not c.isascii()
            ):
                found.append("invisible")
            if textclean.undisguise(value) != value or textclean.mixed_words(value):
                found.append("disguise")
        return [self.rules.detectors[name] for name in found if name in self.rules.detectors]

    def _matched(self, text: str, features: int) -> list[Rule]:
        """The rules that a text matches in any of its forms, each once."""
        light, hits = self._light(text, features)
        if features & textclean.FEATURE_WIDE:
            hits |= self._scan(textclean.fold(text, True))
        if features & _LOOK_AGAIN:
            hits |= self._other_forms(light, features)
        return [rule for k, rule in enumerate(self.rules.scanned) if k in hits and not rule.hidden_only]

    def _content(self, text: str, features: int, index: int) -> tuple[str, list[Finding]]:
        """The text as it may reach the model, and what was found in it."""
        findings: list[Finding] = []
        shown, found = text, 0
        if features & (textclean.FEATURE_CONTROL | textclean.FEATURE_WIDE):
            shown, found = textclean.clean(text)
        stripped = shown
        for bit, name in ((textclean.CONTROL, "control"), (textclean.INVISIBLE, "invisible")):
            rule = self.rules.detectors.get(name)
            if found & bit and rule is not None:
                action = self._structural(rule)
                if action != "off":
                    findings.append(Finding(rule.id, rule.category, rule.score, action, index))
                if action in ("off", "report"):
                    shown = text
        if self.scan_content == "off":
            return shown, findings
        light, plain_hits = self._light(stripped, features)
        hits = set(plain_hits)
        hidden: set[int] = set()
        if features & textclean.FEATURE_WIDE:
            full = textclean.fold(stripped, True)
            mixed = textclean.mixed_words(stripped)
            if full != light:
                hidden = self._scan(full) - plain_hits
                if not mixed:
                    # Plain words of another script may look like one word of ours by chance: "povece" holds "obey".
                    hidden = {k for k in hidden if not self.rules.scanned[k].hidden_only}
            disguise = self.rules.detectors.get("disguise")
            if disguise is not None and (hidden or mixed >= 2):
                action = self._structural(disguise)
                plain = textclean.undisguise(shown) if action == "strip" else shown
                if action != "off" and (plain != shown or action != "strip"):
                    findings.append(Finding(disguise.id, disguise.category, disguise.score, action, index))
                    shown = plain
        if features & _LOOK_AGAIN:
            hidden |= self._other_forms(light, features) - plain_hits
        hits = {k for k in plain_hits if not self.rules.scanned[k].hidden_only} | hidden
        blocked = (
            self._block_worthy(light, hits, hidden) if self.scan_content == "block" and hits else frozenset()
        )
        for k in sorted(hits):
            rule = self.rules.scanned[k]
            if rule.content == "off":
                continue
            action = "block" if rule.category in blocked and rule.content == "block" else "report"
            findings.append(Finding(rule.id, rule.category, rule.score, action, index))
        return shown, findings

    def _structural(self, rule: Rule) -> str:
        """Characters are stripped in every mode; a rule that says block does so in block mode."""
        return "strip" if rule.content == "block" and self.scan_content != "block" else rule.content

    def _scan(self, data: bytes) -> set[int]:
        return {number for number, _, _ in self.rules.scanner.scan(data)}

    def _light(self, text: str, features: int) -> tuple[bytes, set[int]]:
        light = textclean.fold(text, False) if features & textclean.FEATURE_WIDE else text.encode()
        return light, self._scan(light)

    def _other_forms(self, light: bytes, features: int) -> set[int]:
        """Rules that match once spacing, digits for letters or encodings are undone."""
        hits: set[int] = set()
        scanned = self.rules.scanned
        if features & textclean.FEATURE_SPACED and (joined := textclean.collapse_spaced(light)):
            hits |= {k for k in self._scan(joined) if scanned[k].category == "prompt-injection"}
        if features & textclean.FEATURE_LEET and (plain := textclean.unleet(light)) != light:
            hits |= {
                k
                for k in self._scan(plain)
                if scanned[k].category == "prompt-injection" and not scanned[k].hidden_only
            }
        if features & textclean.FEATURE_ENCODED:
            decoded = light
            for _ in range(MAX_DECODINGS):
                previous, decoded = decoded, textclean.decode_once(decoded)
                if decoded == previous:
                    break
                hits |= {k for k in self._scan(decoded) if not scanned[k].hidden_only}
        if features & textclean.FEATURE_LONG_RUN and (inside := textclean.base64_texts(light)):
            hits |= {k for k in self._scan(inside) if not scanned[k].hidden_only}
        return hits

    def _block_worthy(self, light: bytes, hits: set[int], hidden: set[int]) -> frozenset[str]:
        """The categories in which a text is an attack by itself rather than a text about one."""
        words = {word.strip(b".,;:!?()[]{}\"'`<>") for word in light.lower().split()}
        talked_about = len(words & _TALK) >= 1
        in_prose = len(words & _PROSE) >= 2 or light.rstrip().endswith(b"?")
        unquoted = self._scan(_without_quotes(light)) | hidden
        found: set[str] = set()
        for category in {self.rules.scanned[k].category for k in hits}:
            rules = [self.rules.scanned[k] for k in hits if self.rules.scanned[k].category == category]
            injection = category == "prompt-injection"
            if injection:
                rules = [
                    self.rules.scanned[k]
                    for k in hits & unquoted
                    if self.rules.scanned[k].category == category
                ]
            score = 1.0
            for rule in rules:
                score *= 1 - rule.score
            score = 1 - score
            if (injection and score >= INJECTION_BLOCK_SCORE and not talked_about) or (
                not injection and score >= BLOCK_SCORE and not in_prose and not talked_about
            ):
                found.add(category)
        return frozenset(found)


def _strength(action: str) -> int:
    return ACTIONS.index(action) if action in ACTIONS else -1


def _combined(findings: Iterable[Finding]) -> float:
    """The chance that at least one finding is right, were they independent; rounded."""
    miss = 1.0
    for finding in findings:
        miss *= 1 - finding.score
    return round(1 - miss, 3)


def _without_quotes(light: bytes) -> bytes:
    """The text without what stands in quotes, backticks or code blocks."""
    out: list[bytes] = []
    for mark in (b"```", b"`", b'"', b"\xe2\x80\x9c", b"\xc2\xab"):
        closing = {b"\xe2\x80\x9c": b"\xe2\x80\x9d", b"\xc2\xab": b"\xc2\xbb"}.get(mark, mark)
        out = []
        position = 0
        while True:
            start = light.find(mark, position)
            end = light.find(closing, start + len(mark)) if start >= 0 else -1
            if start < 0 or end < 0:
                out.append(light[position:])
                break
            out.append(light[position:start])
            position = end + len(closing)
        light = b" ".join(out)
    return light


def _name_fault(value: str) -> str | None:
    """Why a value is no name, in one word; None when it is one."""
    if not value:
        return "empty"
    if len(value) > MAX_IDENTIFIER:
        return "length"
    if not _NAME_CHARS.issuperset(value):
        return "characters"
    if not value[0].isalnum() or value[-1] in "./:":
        return "edges"
    parts = value.replace(":", "/").split("/")
    if any(not part or not part.strip(".") for part in parts):
        return "segments"
    if ".." in value:
        return "dots"
    if any(part.partition(".")[0].lower() in _RESERVED for part in parts):
        return "reserved"
    return None
