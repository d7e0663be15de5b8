"""The redactor's slow twin: whole texts, every position asked, no stream, no skip loop, no holding back.

It shares the native tables (literals, issuers, words) and none of the code: recognisers are written anew over a string.
Own secrets, allowed values and JSON mode are not part of it.
"""

from __future__ import annotations

import base64
import importlib
import math
import re
from collections import Counter
from typing import Any, NamedTuple

from inferno_native.redactor import KIND_NAMES

_literals: Any = importlib.import_module("inferno_native.redact_literals")
_numbers: Any = importlib.import_module("inferno_native.redact_numbers")
_secrets: Any = importlib.import_module("inferno_native.redact_secrets")
_words: Any = importlib.import_module("inferno_native.redact_words")
_judge: Any = importlib.import_module("inferno_native.redact_judge")

KIND = {name: number for number, name in enumerate(KIND_NAMES)}
KEYED, WORD, PEM, BASIC, BEARER, HOOK = range(6)
EXACT, MIX, BODY, STRONG = 1, 2, 4, 8
MAX_RUN, MAX_VALUE = 512, 256
IS, OPENING, FAR = -1, -2, 40  # marks beside those of words, which are numbers of its table plus one
PLAIN, FOREIGN, LATIN, BARE, IS_ENDING = range(5)
CLASS = {0: "0-9A-Za-z", 1: r"0-9A-Za-z_\-", 2: "0-9a-fA-F", 3: "A-Z0-9", 4: "0-9A-Za-z+/=", 5: r"0-9A-Za-z_\-.",
         6: "0-9A-Za-z_", 7: r"0-9A-Za-z_\-/", 8: "0-9A-Za-z+/=%"}  # fmt: skip
IBAN = {entry[:2]: int(entry[2:]) for entry in _numbers._IBAN.split()}
VALUE_STOP = set(" \t\n\r\"'`,;<>&)}]|\\\x81")
URL_STOP = set(" \t\n\r\"'<>`\\\x81/?#")


class Literal(NamedTuple):
    text: str
    recogniser: int
    kind: int
    alphabet: int
    shortest: int
    longest: int
    flags: int
    offset: int
    fold: bool
    pair: bool


LITERALS = [Literal(*entry) for entry in _literals.TABLE]


class Hit(NamedTuple):
    start: int
    end: int
    kind: int
    swallow: str = ""


def shadow(text: str) -> str:
    """One character below 0x82 for each of the text."""
    return "".join(map(_shadow, text))


def _shadow(char: str) -> str:
    c = ord(char)
    if c < 128:
        return char
    if c in (0xA0, 0x202F, 0x205F, 0x3000) or 0x2000 <= c <= 0x200A:
        return " "
    if c in (0x85, 0x2028, 0x2029):
        return "\n"
    if c == 0x2011:
        return "-"
    if 0xFF01 <= c <= 0xFF5E:
        return "\x81" if c in (0xFF02, 0xFF07, 0xFF3C) else chr(c - 0xFEE0)
    if c < 0xC0:
        return "\x80" if c in (0xAA, 0xB5, 0xBA) else "\x81"
    marks = c in (0xD7, 0xF7) or 0x2010 <= c <= 0x206F or 0x3001 <= c <= 0x303F or 0xFF5F <= c <= 0xFF65
    return "\x81" if marks else "\x80"


def marks(text: str) -> dict[int, int]:
    """Where words of other scripts end, and near them what may join one to its value."""
    lower = "".join(c.lower()[0] for c in text)
    found: dict[int, int] = {}
    word = -10000
    for i, c in enumerate(lower):
        if c < "\x80":
            continue
        ending = [
            (len(head), number) for number, (head, *_) in enumerate(_words.TABLE) if lower.endswith(head, 0, i + 1)
        ]
        if ending:
            found[i] = max(ending)[1] + 1
            word = i
        elif i - word >= FAR:
            continue
        elif c in _words.OPENINGS:
            found[i] = OPENING
        else:
            for joiner in _words.JOINERS:
                if lower.endswith(joiner, 0, i + 1):
                    before = lower[i - len(joiner)] if i >= len(joiner) else "\0"
                    if c >= "\u3040" or (before < "\x80" and not before.isalnum()):
                        found[i] = IS
    return found


def redact(text: str, profile: str = "default") -> str:
    """The whole text with markers."""
    return Twin(text, profile).run()


def _entropy(value: str) -> float:
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())


def _holds(value: str, *parts: str) -> bool:
    return any(part in value.lower() for part in parts)


def _is_stand_in(value: str) -> bool:
    return _holds(value, *_judge._stand_ins)


def _is_real(body: str, flags: int) -> bool:
    body = body[:64]
    if len(set(body)) < 5:
        return False
    if flags & MIX and not (re.search("[0-9]", body) and re.search("[A-Za-z]", body)):
        return False
    return not _holds(body, "example", "xxxxx", "your", "redacted", "placeholder")


def _decode(text: str) -> bytes:
    body = text.split("=")[0].replace("-", "+").replace("_", "/")
    if len(body) % 4 == 1:
        body = body[:-1]
    return base64.b64decode(body + "=" * (-len(body) % 4))


def _luhn(digits: str) -> bool:
    doubled = [int(c) * (1 + k % 2) for k, c in enumerate(reversed(digits))]
    return sum(x - 9 if x > 9 else x for x in doubled) % 10 == 0


def _is_wordlike(s: str, strong: bool) -> bool:
    if not re.fullmatch(r"([A-Za-z\x80]*[0-9]{0,4}[._\-/ :])*[A-Za-z\x80]*[0-9]{0,4}", s):
        return False
    parts = len(re.split(r"[._\-/ :]", s)) - (s[-1] in "._-/ :")
    digits = len(re.findall("[0-9]", s))
    raised = len(re.findall("[a-z](?=[A-Z])", s))
    if parts == 1 and strong and digits:
        return False
    return not (digits == 0 and parts <= 2 and raised * 4 >= len(s) and len(s) >= 12)


def _is_secret_value(s: str, quoted: bool, strong: bool, loose: bool) -> bool:
    n = len(s)
    digits, letters = len(re.findall("[0-9]", s)), len(re.findall(r"[A-Za-z\x80]", s))
    spaces, marks = s.count(" "), len(re.findall(r"[^0-9A-Za-z\x80 _.\-]", s))
    checks = (
        n < 8 or s.startswith(("[REDACT", "-----BEG")),
        not quoted and ("<" in s or ">" in s),
        any(part in s for part in ("${", "$(", "{{", "%(")),
        (letters == 0 or (digits == 0 and marks == 0 and (not quoted or spaces > 0)))
        and not (letters and digits == marks == spaces == 0 and not _is_wordlike(s, False)),
        s[0] + s[-1] in ("<>", "{}", "%%"),
        spaces > 0 and (digits == 0 or spaces > 4),
        loose and digits == 0,
        re.fullmatch(r"\$[A-Za-z_:]*", s) is not None,
        "://" in s or (s.startswith(("/", "~", "./")) and re.fullmatch(r"[a-z0-9/._\-~]*", s) is not None),
        _is_wordlike(s, strong) or _is_stand_in(s),
    )
    return not any(checks) and (_entropy(s) >= 3.0 or (strong and n < 12 and _entropy(s) >= 2.5))


class Twin:
    def __init__(self, text: str, profile: str) -> None:
        self.text = text
        self.s = "\n" + shadow(text)
        self.n = len(self.s)
        self.marks = {i + 1: code for i, code in marks(text).items()}
        self.floor = 1
        self.personal, self.strict = profile != "secrets", profile == "strict"

    def run(self) -> str:
        out: list[str] = []
        done, t = 1, 0
        while t < self.n:
            hit = self.at(t)
            if hit is not None and hit.start < self.floor:
                hit = None
            again = False
            if hit is not None and hit.start > t + 1 and (inner := self.between(t, hit.start)) is not None:
                hit, again = inner, True
            if hit is None:
                t = max(t + 1, self.floor)
                continue
            end = self.swallowed(hit) if hit.swallow else hit.end
            out += [self.text[done - 1 : hit.start - 1], f"[REDACTED:{KIND_NAMES[hit.kind]}]"]
            self.s = self.s[: hit.start] + "]" * (end - hit.start) + self.s[end:]
            self.floor = done = end
            t = t if again and not hit.swallow else end - 1
        return "".join([*out, self.text[done - 1 :]])

    def between(self, t: int, stop: int) -> Hit | None:
        """What stands between a trigger and the span that it announces."""
        for i in range(max(t + 1, self.floor), stop):
            hit = self.at(i)
            if hit is not None and self.floor <= hit.start < stop:
                return hit
        return None

    def swallowed(self, hit: Hit) -> int:
        """Where a proven secret really ends."""
        if hit.swallow == "pem":
            return self.pem_end(hit.end)
        if hit.swallow == "run":
            return self.match(r"[0-9A-Za-z_\-+=]*", hit.end).end()
        found = self.match(r"[0-9A-Za-z_\-]*(\.[0-9A-Za-z_\-]+){0,3}", hit.end)
        return found.end()

    def match(self, pattern: str, start: int) -> re.Match[str]:
        found = re.compile(pattern).match(self.s, start)
        assert found is not None
        return found

    def at(self, t: int) -> Hit | None:
        """The verdict on a trigger at t."""
        for literal in reversed(LITERALS):
            if not literal.pair and (hit := self.literal(literal, t - literal.offset)) is not None:
                return hit
        if self.marks.get(t, 0) > 0 and (hit := self.foreign(t)) is not None:
            return hit
        if t + 1 >= self.n:
            return None
        a, b = self.s[t], self.s[t + 1]
        if (a in "kf8w" and b in "-_") or a + b == "G.":
            for literal in LITERALS:
                if literal.pair and (hit := self.literal(literal, t - literal.offset)) is not None:
                    return hit
        hit = None
        if a + b == "yJ" and t > self.floor and self.s[t - 1] == "e":
            hit = self.jwt(t - 1)
        if hit is None and a + b == ":/":
            hit = self.url(t)
        if hit is None and b == "@" and (a.isalnum() or a in "._-+%"):
            hit = self.email(t)
        if hit is None and a.isalpha() and b.isdigit() and t > self.floor:
            hit = self.iban(t)
        if hit is None and not a.isdigit() and b.isdigit():
            hit = self.number(t)
        return hit

    def boundary(self, pos: int) -> bool:
        if pos == 0 or not self.s[pos - 1].isalnum():
            return True
        if pos >= 2 and self.s[pos - 2] == "\\":
            return self.s[pos - 1] in "ntrbf"
        return pos >= 6 and re.fullmatch(r"\\u[0-9a-fA-F]{4}", self.s[pos - 6 : pos]) is not None

    def literal(self, literal: Literal, start: int) -> Hit | None:
        if start < 0 or (start < self.floor and literal.recogniser != WORD):
            return None
        here = self.s[start : start + len(literal.text)]
        if (here.lower() if literal.fold else here) != literal.text:
            return None
        judge = (self.keyed, self.word, self.pem, self.basic, self.bearer, self.hook)[literal.recogniser]
        return judge(start, literal)

    def keyed(self, start: int, literal: Literal) -> Hit | None:
        if not self.boundary(start):
            return None
        body = start + len(literal.text)
        end = stop = self.match(f"[{CLASS[literal.alphabet]}]{{0,{MAX_RUN}}}", body).end()
        if literal.alphabet == 5:
            end = body + len(self.s[body:stop].rstrip("."))
        if end - body < literal.shortest:
            return None
        if literal.flags & EXACT and (end - body > literal.longest or re.match("[0-9A-Za-z_]", self.s[end:])):
            return None
        if not _is_real(self.s[body:end], literal.flags):
            return None
        swallow = "run" if end == body + MAX_RUN else ""
        return Hit(body if literal.flags & BODY else start, end, literal.kind, swallow)

    def hook(self, start: int, literal: Literal) -> Hit | None:
        body = start + len(literal.text)
        end = self.match(rf"[0-9A-Za-z_\-/]{{0,{MAX_RUN}}}", body).end()
        first = start - 8 if start - 8 >= self.floor and self.s[start - 8 : start] == "https://" else start
        if self.boundary(first) and end - body >= literal.shortest and _is_real(self.s[body:end], MIX):
            return Hit(first, end, literal.kind)
        return None

    def jwt(self, start: int) -> Hit | None:
        if not self.boundary(start) or (start > 0 and self.s[start - 1] == "_"):
            return None
        found = self.match(r"([0-9A-Za-z_\-]*)(\.[0-9A-Za-z_\-]{4,8})?", start)
        if not 16 <= len(found[1]) < MAX_RUN or found[2] is None:
            return None
        header = _decode(found[1])
        if len(header) >= 8 and header[:1] == b"{" and b'"alg"' in header.lower():
            return Hit(start, found.end(), KIND["jwt"], "jwt")
        return None

    def pem(self, start: int, literal: Literal) -> Hit | None:
        head = self.match("([A-Z0-9 ]{0,48})(-----)?", start + len(literal.text))
        label = head[1]
        if not head[2] or not (label.endswith("PRIVATE KEY") or label.endswith("PRIVATE KEY BLOCK")):
            return None
        run = 0
        for i in range(head.end(), min(self.n, head.end() + 256)):
            if self.s[i] == "-" and run < 20 and i + 5 < self.n and self.s.startswith("-----", i):
                return None
            if self.s.startswith("[REDACTED:", i):
                return None
            if re.match("[0-9A-Za-z+/=]", self.s[i]) and not (i > head.end() and self.s[i - 1] == "\\"):
                run += 1
                if run == 20:
                    return Hit(start, i + 1, literal.kind, "pem")
            else:
                run = 0
        return None

    def pem_end(self, pos: int) -> int:
        """Where a private key's body ends: runs, and between them white space, quotes, escapes, prefixes of lines."""
        while True:
            i, newline, spaced, quote = pos, False, False, False
            while i < self.n and i - pos < 48:
                c = self.s[i]
                if c == "\\" and self.s[i + 1 : i + 2] in ("n", "r", "t"):
                    newline = True
                    i += 2
                    continue
                if c in " \t\n\r":
                    newline, spaced = newline or c in "\n\r", True
                elif c in "\"'`":
                    quote = True
                elif c not in "\\>,*#|":
                    break
                i += 1
            if i >= self.n or i - pos >= 48:
                return pos
            if self.s.startswith("-----END", i):
                return self.match("-----END[A-Z0-9 ]{0,56}-{0,5}", i).end()
            end = self.match("[0-9A-Za-z+/=]{0,16}", i).end()
            if end == i or ((quote or (spaced and not newline)) and end - i < 16):
                return pos
            pos = end

    def url(self, colon: int) -> Hit | None:
        if colon == 0 or not self.s[colon - 1].isalnum() or not self.s.startswith("://", colon):
            return None
        i = user = colon + 3
        while i < self.n and i - user < 128 and self.s[i] not in ":@" and self.s[i] not in URL_STOP:
            i += 1
        if i >= self.n or self.s[i] != ":" or self.s[user:i].endswith("[REDACTED"):
            return None
        first = i + 1
        end = first
        while end < self.n and end - first < MAX_VALUE and self.s[end] not in URL_STOP:
            end += 1
        value = self.s[first:end]
        at = value.rfind("@")
        value = value[:at]
        if at < 4 or value == self.s[user : first - 1] or value[0] in "${[*" or (value[0] == "%" and at < 6):
            return None
        odd = re.search("[^A-Za-z]", value) is not None
        if _is_stand_in(value) or (at <= 6 and not odd) or "${" in value or value.lower() == "secret":
            return None
        inner = self.token(first)
        if inner is not None and inner.end >= first + at:
            return None
        return Hit(first, first + at, KIND["url_password"])

    def token(self, start: int) -> Hit | None:
        """A token that stands exactly here and is named by its own kind."""
        for literal in LITERALS:
            if literal.recogniser == KEYED and self.s.startswith(literal.text, start):
                hit = self.keyed(start, literal)
                if hit is not None:
                    return hit
        return self.jwt(start) if self.s.startswith("eyJ", start) else None

    def basic(self, start: int, literal: Literal) -> Hit | None:
        found = self.match(f"[0-9A-Za-z+/=]{{0,{MAX_VALUE}}}", start + len(literal.text))
        if not self.boundary(start) or len(found[0]) < 10:
            return None
        text = _decode(found[0])
        if len(text) < 6 or any(c < 32 or c == 127 for c in text) or b":" not in text[:-1]:
            return None
        if b":password" in text.lower() or b"your" in text.lower():
            return None
        return Hit(found.start(), found.end(), literal.kind)

    def bearer(self, start: int, literal: Literal) -> Hit | None:
        found = self.match(rf"[0-9A-Za-z_\-+/=.~]{{0,{MAX_RUN}}}", start + len(literal.text))
        value = found[0].rstrip(".")
        end = found.start() + len(value)
        if not self.boundary(start) or len(value) < 16:
            return None
        if not re.search("[0-9]", value) or not re.search("[A-Za-z]", value) or _is_stand_in(value) or _entropy(value) < 3:
            return None
        inner = self.token(found.start())
        if inner is not None and (inner.end >= end - 1 or inner.kind == KIND["jwt"]):
            return None
        return Hit(found.start(), end, literal.kind, "run" if len(value) == MAX_RUN else "")

    def word(self, start: int, literal: Literal) -> Hit | None:
        strong = bool(literal.flags & STRONG)
        first = start
        while first > 0 and start - first < 40 and re.match(r"[0-9A-Za-z_\-]", self.s[first - 1]):
            first -= 1
        if self.s[:first].endswith("REDACTED:"):
            return None
        i = start + len(literal.text)
        if i + 1 < self.n and self.s[i] == "\x80" and len(literal.text) == 8 and self.s[i - 1] != "d":
            i += 1
        if self.s[i - 1].isalnum() or self.s[i - 1] == "\x80":
            suffix = self.match(r"[0-9A-Za-z_\-]{0,24}", i)[0]
            i += len(suffix)
            if i == self.n or len(suffix) == 24 or (suffix and suffix.lower() not in _secrets._suffixes):
                return None
        else:
            i -= 1
        return self.value(first, start, start + len(literal.text), i, strong, PLAIN)

    def foreign(self, t: int) -> Hit | None:
        """A word of another script, its endings, and the value."""
        _, strong, tails, latin = _words.TABLE[self.marks[t] - 1]
        if self.s[t] == "]":
            return None
        i = t + 1
        if tails:
            tail = next((tail for tail in tails if self.s[i : i + len(tail)].lower() == tail), None)
            if tail is None:
                return None
            i += len(tail)
        ending = self.match("[\x80A-Za-z]{0,8}" if latin else "\x80{0,8}", i)
        start, i = i, ending.end()
        if i == self.n:
            return None
        how = LATIN if latin else FOREIGN
        if i > start and self.marks.get(i - 1) == IS:
            how = IS_ENDING
        elif i == start and not latin:
            how = BARE
        return self.value(t, t, t + 1, i, strong, how)

    def value(self, first: int, start: int, name_end: int, i: int, strong: bool, how: int) -> Hit | None:
        joiner = self.match(r"\\?(?P<closing>[\"'`]\]?)?(?P<gap>[ \t]{0,8})", i)
        joined = self.join(first, start, joiner, how)
        if joined is None:
            return None
        i, loose, element = joined
        i = self.match("[ \t]{0,8}", i).end()
        i += self.s[i : i + 1] == "\x81"
        if self.s[i : i + 1] in tuple("bfru") and self.s[i + 1 : i + 2] in ('"', "'"):
            i += 1
        if i + 1 >= self.n:
            return None
        escaped = self.s[i] == "\\" and self.s[i + 1] in "\"'"
        i += escaped
        quote = self.s[i] if self.s[i] in "\"'`" else ""
        i += len(quote)
        quote = quote or ("<" if element else "")
        beside = how not in (PLAIN, LATIN) and self.s[i : i + 1] != "\x80"
        end = self.value_end(i, quote, escaped, beside)
        if end is None:
            return None
        value = self.s[i:end]
        whole = len(value) == MAX_VALUE
        if not quote:
            value = value.rstrip(".:?")
        if len(value) < 8 or not _is_secret_value(value, bool(quote), strong, loose):
            return None
        if (loose and not quote and len(value) < 16 and not strong) or self.token(i) is not None:
            return None
        kind = KIND["generic_secret"]
        around = name_end + 12
        if len(value) == 40 and (_holds(self.s[first:around], "aws") or _holds(self.s[start:around], "access")):
            kind = KIND["aws_secret_access_key"]
        return Hit(i, i + len(value), kind, "run" if whole and len(value) == MAX_VALUE and not quote else "")

    def join(self, first: int, start: int, joiner: re.Match[str], how: int) -> tuple[int, bool, bool] | None:
        """What joins a name to its value: (index behind it, loosely, as an XML element); None when nothing does."""
        i, gap = joiner.end(), len(joiner["gap"])
        rest = self.s[i : i + 8].lower()
        if i >= self.n:
            return None
        if rest[0] in ":=":
            if i + 1 >= self.n or rest.startswith("=="):
                return None
            return i + 1 + (self.s[i + 1] in "=>"), False, False
        if rest.startswith("value=") and gap:
            return i + 6, False, False
        if rest.startswith(("is ", "is: ")):
            return i + 3, True, False
        for word in ("was ", "ist ", "est ", "lautet ", "es "):
            if rest.startswith(word):
                return i + len(word), True, False
        if how == PLAIN and gap and rest.startswith("\x80 ") and self.s[start:].lower().startswith(("senha", "pa")):
            return i + 2, True, False
        if rest[0] in "\n\r":
            i = self.match(r"[ \t\n\r]{0,32}", i).end()
            return (i + 6, False, False) if self.s[i : i + 6].lower() == "value:" else None
        if rest[0] == ">" and first > 0 and self.s[first - 1] == "<":
            return i + 1, False, True
        if gap and rest[0] in "\"'" and joiner["closing"] is None:
            return i, True, False
        is_option = start - first >= 2 and self.s.startswith("--", first)
        if gap and (is_option or self.s[:first].lower().endswith("authorization: ")):
            return i, True, False
        if how == PLAIN:
            return None
        if rest[0] == "\x81" and self.marks.get(i) == OPENING:
            return i + 1, True, False
        if how == IS_ENDING or (how == BARE and not gap and joiner["closing"] is None and re.match("[0-9a-z]", rest)):
            return i, True, False
        if how == LATIN and rest.startswith(("to ", "\x80r ", "l\x80 ", "er ")):
            return i + 3, True, False
        m = self.match("\x80{0,24}", i).end()
        if gap and i < m < self.n and (self.s[m] == ":" or (self.s[m] == " " and self.marks.get(m - 1) == IS)):
            return m + 1, True, False
        return None

    def value_end(self, start: int, quote: str, escaped: bool, beside: bool) -> int | None:
        end = start
        if not quote:
            while end < self.n and end - start < MAX_VALUE and self.s[end] not in VALUE_STOP:
                if beside and self.s[end] == "\x80":
                    break
                if self.s[end] == "(" or (self.s[end] in "[{" and end > start):
                    return None
                end += 1
            return end
        while end < self.n and end - start < MAX_VALUE and self.s[end] not in "\n\r":
            if self.s[end] == "\\":
                if escaped or end + 1 >= self.n:
                    break
                end += 1
            elif self.s[end] == quote:
                break
            end += 1
        return min(end, self.n)

    def iban(self, pos: int) -> Hit | None:
        start = pos - 1
        if not self.personal or start < 0 or not self.s[start].isalpha() or not self.boundary(start):
            return None
        if start > 0 and self.s[start - 1] == "_":
            return None
        country = self.s[start : pos + 1]
        wanted = IBAN.get(country.upper())
        if wanted is None or not (country.isupper() or country.islower()):
            return None
        letters = "A-Z" if country.isupper() else "a-z"
        found = re.compile(rf"[{letters}]{{2}}[0-9]{{2}}[ -]?(?:[0-9{letters}][ -]?){{{wanted - 5}}}[0-9{letters}]").match(
            self.s, start
        )
        if found is None or re.match("[0-9A-Za-z_]", self.s[found.end() :]):
            return None
        plain = re.sub("[ -]", "", found[0])
        if len(plain) != wanted:
            return None
        number = "".join(str(int(c, 36)) for c in plain[4:] + plain[:4])
        return Hit(start, found.end(), KIND["iban"]) if int(number) % 97 == 1 else None

    def email(self, pos: int) -> Hit | None:
        if not self.personal:
            return None
        at = start = pos + 1
        while start > self.floor and at - start < 64 and re.match(r"[0-9A-Za-z._\-+%]", self.s[start - 1]):
            start -= 1
        if start > 0 and self.s[start - 1] == "\\" and start < at and self.s[start] in "nrt":
            start += 1
        while start < at and self.s[start] in ".-%":
            start += 1
        domain = self.match(r"@(?:(?!\.\.|(?<=@)\.)[0-9A-Za-z\-.]){0,253}", at)[0][1:]
        domain = domain.rstrip(".-")
        top = domain.rpartition(".")[2]
        if start >= at or len(domain) - len(top) - 1 < 1 or len(top) < 2 or not top.isalpha():
            return None
        if re.search(r"(^|\.)example\.(com|net|org)\Z|(^|\.)(test|example|invalid|localhost)\Z", domain.lower()):
            return None
        if self.s[start:at].lower() == "git":
            return None
        back = start - 1
        for _ in range(90):
            if back <= 1 or self.s[back] in " \t\n\r\"'":
                break
            if self.s[back - 2 : back + 1] == "://":
                return None
            if self.s[back] in "/?=,":
                break
            back -= 1
        return Hit(start, at + 1 + len(domain), KIND["email"])

    def context(self, start: int, words: list[bytes]) -> bool:
        """One of the words stands before start, with at most two fillers in between."""
        i, gap, fillers = start - 1, 0, 0
        fill = {w.decode("latin-1") for w in _numbers._fillers}
        known = {w.decode("latin-1") for w in words}
        while i >= 0 and gap < 40:
            word = re.search(r"[A-Za-z\x80]*\Z", self.s[: i + 1])
            assert word is not None
            if not word[0]:
                if self.s[i] not in " \t:=\"'.(#-+_>\x81\\":
                    return False
                i, gap = i - 1, gap + 1
                continue
            size = len(word[0])
            if size >= 16:
                return False
            if word[0].lower() in known:
                return not self.s[: i - size + 1].endswith("REDACTED:")
            if fillers == 2 or word[0].lower() not in fill:
                return False
            i, gap, fillers = i - size, gap + size, fillers + 1
        return False

    def number(self, pos: int) -> Hit | None:
        start, lead = pos + 1, self.s[pos]
        before = self.s[pos - 1] if pos > 0 else "\n"
        if (lead.isalnum() and not self.boundary(start)) or lead in "_^%":
            return None
        if (lead in "-./" and before.isalnum()) or (lead in ":," and before.isdigit()):
            return None
        groups = _Groups(self.s, start)
        if groups.too_long:
            return None
        if lead != "+" and len(groups.digits) >= 4 and groups.separators[:3] == [".", ".", "."]:
            return self.quad(start, groups)
        if not self.personal:
            return None
        return self.ssn(start, groups) or self.card(start, groups) or self.phone(start, lead, groups)

    def clean(self, end: int) -> bool:
        return re.match(r"[0-9A-Za-z_]|[-.][0-9]", self.s[end:]) is None

    def quad(self, start: int, g: _Groups) -> Hit | None:
        if (len(g.digits) > 4 and g.separators[3] == ".") or any(len(d) > 3 or int(d) > 255 for d in g.digits[:4]):
            return None
        a, b = int(g.digits[0]), int(g.digits[1])
        is_private = a == 10 or (a == 172 and 16 <= b <= 31) or (a == 192 and b == 168)
        if self.strict and is_private and not re.match("[0-9A-Za-z_]", self.s[g.ends[3] :]):
            return Hit(start, g.ends[3], KIND["ipv4_private"])
        return None

    def ssn(self, start: int, g: _Groups) -> Hit | None:
        if [len(d) for d in g.digits[:3]] != [3, 2, 4] or g.separators[0] != g.separators[1]:
            return None
        if (len(g.digits) > 3 and g.separators[2] not in (" ", "()")) or not self.clean(g.ends[2]):
            return None
        if g.digits[0] in ("000", "666") or g.digits[0] >= "900" or g.digits[1] == "00" or g.digits[2] == "0000":
            return None
        if g.separators[0] == "-" or (g.separators[0] == " " and self.context(start, _numbers._ssn_words)):
            return Hit(start, g.ends[2], KIND["us_ssn"])
        return None

    def card(self, start: int, g: _Groups) -> Hit | None:
        best = None
        for k in range(len(g.digits)):
            digits = "".join(g.digits[: k + 1])
            if k and (g.separators[k - 1] not in (" ", "-") or g.separators[k - 1] != g.separators[0]):
                break
            if (k and len(g.digits[k]) < 2 and len(digits) < 14) or len(digits) > 19:
                break
            if len(digits) < 13 or not self.clean(g.ends[k]) or len(set(digits)) == 1 or not _luhn(digits):
                continue
            six = int(digits[:6])
            if len(digits) == 13 and digits[0] == "4":
                known = self.context(start, _numbers._card_words)
            else:
                known = any(a <= six <= b and c <= len(digits) <= d for a, b, c, d in _numbers._issuers)
            if known:
                best = Hit(start, g.ends[k], KIND["credit_card"])
        return best

    def phone(self, start: int, lead: str, g: _Groups) -> Hit | None:
        totals = [sum(map(len, g.digits[: k + 1])) for k in range(len(g.digits))]
        last = len(g.digits) - 1
        while last >= 0 and totals[last] > 15:
            last -= 1
        if lead == "+":
            if not self.boundary(start - 1) or g.digits[0][0] == "0":
                return None
            if g.separators[0] == "." and len(g.digits) == 2 and len(g.digits[0]) > 3:
                return None
            while last > 0 and totals[last - 1] >= 11 and g.separators[last - 1] == " ":
                last -= 1
            if last < 0 or totals[last] < 8 or (last < len(g.digits) - 1 and g.separators[last] not in (" ", "()")):
                return None
            return Hit(start - 1, g.ends[last], KIND["phone"]) if self.clean(g.ends[last]) else None
        bracket = lead == "(" and g.separators[0] == "()" and self.s[g.ends[0]] == ")"
        first = start - 1 - (start > 1 and self.s[start - 2] == "+") if bracket else start
        sizes = [len(d) for d in g.digits]
        if bracket and sizes[:3] == [3, 3, 4] and g.digits[0][0] >= "2" and self.clean(g.ends[2]):
            return Hit(first, g.ends[2], KIND["phone"])
        if last < 0 or totals[last] < 8 or (last < len(sizes) - 1 and g.separators[last] not in (" ", "()")):
            return None
        if not self.clean(g.ends[last]) or g.is_date() or sizes == [3, 2, 4]:
            return None
        return Hit(first, g.ends[last], KIND["phone"]) if self.context(first, _numbers._phone_words) else None


class _Groups:
    """Groups of digits joined by one separator, or by a bracket with one; at most 12 groups and 24 digits."""

    def __init__(self, s: str, start: int) -> None:
        self.digits: list[str] = []
        self.ends: list[int] = []
        self.separators: list[str] = []
        self.too_long = False
        i, total = start, 0
        while True:
            end = i
            while end < len(s) and s[end] in "0123456789":
                end += 1
            total += end - i
            if total > 24:
                self.too_long = not self.digits
                break
            self.digits.append(s[i:end])
            self.ends.append(end)
            self.separators.append("")
            found = re.compile(r"[ \-./()]{1,3}(?=[0-9])").match(s, end)
            if found is None or len(self.digits) == 12:
                break
            sep = found[0]
            if len(sep) == 1 and sep not in "()":
                self.separators[-1] = sep
            elif len(sep) == 1 or sep[0] == ")" or sep[1] in "()":
                self.separators[-1] = "()"
            else:
                break
            i = found.end()

    def is_date(self) -> bool:
        sizes, sep = [len(d) for d in self.digits], self.separators
        if len(sizes) < 3 or sep[0] != sep[1] or sep[0] in (" ", "()"):
            return False
        a, b, c = (int(d) for d in self.digits[:3])
        if sizes[0] == 4 and sizes[1] <= 2 and sizes[2] <= 2:
            return b <= 12 and c <= 31
        return sizes[0] <= 2 and sizes[1] <= 2 and sizes[2] in (2, 4) and a <= 31 and b <= 31 and len(sizes) == 3
