"""Compiles the scanner's patterns: a small regular language into one automaton and the literals that announce it.

A pattern is regular in the strict sense (no back-references, no look-around), so that all patterns of all rules become
one deterministic automaton over bytes that reads each byte once. Every pattern must contain a literal of four
characters, a pair with punctuation or a rare mark: the skip loop looks for those, the automaton runs only around them.

Syntax: literal characters, `\\s \\d \\w \\S`, classes `[a-z]`, `.` (no newline), groups `( | )`, `? * + {m,n}`, and `\\b`
at the start or the end. Letters match in any case. Owns nothing at run time; the tables go to inferno_native.scanner.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import cast

from inferno.errors import ConfigError

MAX_POSITIONS = 60_000
MAX_REPEAT = 100
MAX_LOOKBACK = 16
MAX_FACTORS = 300
LITERAL_BYTES = 8

Node = tuple[
    object, ...
]  # ("set", mask) | ("cat", [nodes]) | ("alt", [nodes]) | ("rep", node, low, high or None)

_SPACE = sum(1 << ord(c) for c in " \t\n\r")
_DIGIT = sum(1 << c for c in range(48, 58))
_LETTER = sum(1 << c for c in (*range(65, 91), *range(97, 123)))
_WORD = _DIGIT | _LETTER | 1 << 95
_ALL = (1 << 256) - 1
_NOT_WORD = _ALL & ~_WORD
_NEWLINE = 1 << 10

# How common pairs of letters are in English prose, on a scale of 0 to 9 (three steps are a factor of ten); rows and
# columns are space, a to z. Counted over documentation.
_PAIRS = [
    "099999998966999995999889674",
    "927882572816989181999765563",
    "773438231660740630653710071",
    "882538318707742941658731050",
    "973469362840644730564631140",
    "985998864623889476999476862",
    "971327600800511800745600040",
    "951318356800536520864711021",
    "993029100800353800557611030",
    "777877870515879963799270606",
    "440206000103100410040400000",
    "751127330600404430153303512",
    "983379541804833850477743070",
    "896239130701573780253610040",
    "983898692715646950289661551",
    "957785862545789680978867411",
    "781458237602832870877721370",
    "300030000000300000100700000",
    "994669572807677840787754070",
    "972639447805544773389744060",
    "982649529912642973888716272",
    "767657450600878370888220200",
    "670108030700122400020000000",
    "770017007800305700551004000",
    "750526203500031060026000320",
    "922454120400445660267114011",
    "430006000300000200000000011",
]

_RAREST_MARKS = frozenset("|&`<>{}$%\\\\^~\x1b")
_RARE_MARKS = _RAREST_MARKS | frozenset(';"()=[]#*@+')


class PatternError(ConfigError):
    """A pattern cannot be compiled; the message says where and why."""


def _both_cases(mask: int) -> int:
    upper, lower = mask >> 65 & 0x3FFFFFF, mask >> 97 & 0x3FFFFFF
    return mask | (upper | lower) << 65 | (upper | lower) << 97


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.pos = 0

    def fail(self, why: str) -> PatternError:
        return PatternError(f"pattern {self.text!r}, character {self.pos}: {why}")

    def peek(self) -> str:
        return self.text[self.pos] if self.pos < len(self.text) else ""

    def alternation(self) -> Node:
        branches = [self.concatenation()]
        while self.peek() == "|":
            self.pos += 1
            branches.append(self.concatenation())
        return branches[0] if len(branches) == 1 else ("alt", branches)

    def concatenation(self) -> Node:
        parts: list[Node] = []
        while self.peek() not in ("", "|", ")"):
            parts.extend(self.repeated())
        return ("cat", parts)

    def repeated(self) -> list[Node]:
        atom = self.atom()
        while (mark := self.peek()) and mark in "?*+{":
            if mark == "{":
                end = self.text.find("}", self.pos)
                low, _, high = self.text[self.pos + 1 : end].partition(",")
                if end < 0 or not low.isdigit() or (high and not high.isdigit()):
                    raise self.fail("expected {m} or {m,n}")
                bounds = int(low), int(high or low)
                self.pos = end
            else:
                bounds = {"?": (0, 1), "*": (0, -1), "+": (1, -1)}[mark]
            if bounds[1] > MAX_REPEAT or 0 <= bounds[1] < bounds[0]:
                raise self.fail(f"a repetition goes to {MAX_REPEAT}")
            self.pos += 1
            node: Node = atom[0] if len(atom) == 1 else ("cat", atom)
            atom = [("rep", node, *bounds)]
        return atom

    def atom(self) -> list[Node]:
        char = self.peek()
        self.pos += 1
        if char == "(":
            if self.text.startswith("?:", self.pos):
                self.pos += 2
            node = self.alternation()
            if self.peek() != ")":
                raise self.fail("expected )")
            self.pos += 1
            return [node]
        if char == "[":
            return [("set", _both_cases(self.char_class()))]
        if char == ".":
            return [("set", _ALL & ~_NEWLINE)]
        if char == "^":
            return [("set", _NEWLINE)]
        if char == "\\":
            return [("set", self.escape())]
        if char in "?*+{":
            raise self.fail("nothing to repeat")
        return [("set", _both_cases(1 << byte)) for byte in char.encode()]

    def escape(self) -> int:
        char = self.peek()
        self.pos += 1
        known: dict[str, int] = {
            "s": _SPACE,
            "S": _ALL & ~_SPACE,
            "d": _DIGIT,
            "w": _WORD,
            "W": _NOT_WORD,
            "n": _NEWLINE,
            "r": 1 << 13,
            "t": 1 << 9,
            "b": _NOT_WORD,
        }
        if char in known:
            return known[char]
        if char == "x":
            self.pos += 2
            byte = int(self.text[self.pos - 2 : self.pos], 16)
            return int(1 << byte)
        if not char or char.isalnum():
            raise self.fail(f"unknown escape \\{char}")
        return _both_cases(1 << ord(char))

    def char_class(self) -> int:
        negated = self.peek() == "^"
        self.pos += negated
        mask = 0
        first = True
        while (char := self.peek()) != "]" or first:
            first = False
            if not char:
                raise self.fail("expected ]")
            self.pos += 1
            if char == "\\":
                mask |= self.escape()
                continue
            if ord(char) > 127:
                raise self.fail("a class holds ASCII only")
            low = high = ord(char)
            if self.peek() == "-" and self.text[self.pos + 1 : self.pos + 2] not in ("]", ""):
                high = ord(self.text[self.pos + 1])
                self.pos += 2
            mask |= ((1 << high + 1) - 1) & ~((1 << low) - 1)
        self.pos += 1
        return (_ALL ^ _both_cases(mask)) & _ALL if negated else mask


def parse(text: str) -> Node:
    parser = _Parser(text)
    node = parser.alternation()
    if parser.pos != len(text):
        raise parser.fail("unbalanced )")
    return node


@lru_cache(maxsize=1024)
def _members(mask: int) -> list[bytes] | None:
    found = {bytes([b]).lower() for b in range(256) if mask >> b & 1} if mask.bit_count() <= 24 else None
    return sorted(found) if found else None


_memo: dict[int, list[bytes] | None] = {}  # by node, while one pattern is looked at


def _strings(node: Node) -> list[bytes] | None:
    """The finite language of a node in lower case, or None when it is too large."""
    if id(node) not in _memo:
        _memo[id(node)] = _language(node)
    return _memo[id(node)]


def _language(node: Node) -> list[bytes] | None:
    kind = node[0]
    if kind == "set":
        mask = cast(int, node[1])
        return _members(mask)
    if kind == "alt":
        total: list[bytes] = []
        for branch in _nodes(node):
            part = _strings(branch)
            if part is None:
                return None
            total += part
        return total if len(total) <= MAX_FACTORS else None
    if kind == "cat":
        result = [b""]
        for part_node in _nodes(node):
            part = _strings(part_node)
            if part is None or len(part) * len(result) > MAX_FACTORS:
                return None
            result = [a + b for a in result for b in part]
        return result
    inner, low, high = cast(tuple[Node, int, int], node[1:])
    part = _strings(inner)
    if part is None or high < 0 or sum(len(part) ** k for k in range(low, high + 1)) > MAX_FACTORS:
        return None
    result = []
    for count in range(low, high + 1):
        grown = [b""]
        for _ in range(count):
            grown = [a + b for a in grown for b in part]
        result += grown
    return result


def _nodes(node: Node) -> list[Node]:
    return cast(list[Node], node[1])


def _longest(node: Node) -> int | None:
    """Most bytes that a node can take; None without a limit."""
    kind = node[0]
    if kind == "set":
        return 1
    if kind in ("alt", "cat"):
        lengths = [_longest(child) for child in _nodes(node)]
        if None in lengths:
            return None
        known = [n for n in lengths if n is not None]
        return max(known, default=0) if kind == "alt" else sum(known)
    inner, high = cast(Node, node[1]), cast(int, node[3])
    longest = _longest(inner)
    return None if high < 0 or longest is None else longest * high


@dataclass(frozen=True)
class Mark:
    """A literal that announces a pattern, and the part of it that the skip loop looks for first."""

    literal: bytes  # lower case; each match of the pattern holds it, or a literal of its other marks
    at: int  # where in the literal the window begins
    size: int  # of the window: four bytes, two of which one is punctuation, or one rare mark
    key: int  # of a short window: which byte the loop looks for
    offset: int  # of the window, at most, from the start of a match
    cost: float  # how common it is in prose: three steps are a factor of ten


_PAIR_COST = {
    a + b: int(_PAIRS[i][k])
    for i, a in enumerate(" abcdefghijklmnopqrstuvwxyz")
    for k, b in enumerate(" abcdefghijklmnopqrstuvwxyz")
}


@lru_cache(maxsize=1 << 16)
def _best_window(string: bytes, limit: int) -> tuple[float, int, int, int] | None:
    """What the skip loop can look for in a literal, the rarest first: (cost, offset, size, key).

    Four bytes of any kind, two of which one is punctuation, or one mark that prose seldom holds.
    """
    best: tuple[float, int, int, int] | None = None

    def offer(cost: float, offset: int, size: int, key: int = 0) -> None:
        nonlocal best
        if offset <= limit and (best is None or cost < best[0]):
            best = (cost, offset, size, key)

    text = string.decode("latin-1")
    pairs = [_PAIR_COST.get(text[i : i + 2], 2) for i in range(len(text) - 1)]
    for i in range(len(text) - 3):
        offer(sum(pairs[i : i + 3]) + i / 8, i, 4)
    for i in range(len(text) - 1):
        punctuation = [k for k in (i, i + 1) if _is_punctuation(text[k])]
        if punctuation:
            key = min(punctuation, key=lambda k: (text[k] not in _RAREST_MARKS, text[k] not in _RARE_MARKS))
            rare = 13 if text[key] in _RAREST_MARKS else 20 if text[key] in _RARE_MARKS else 30
            offer(11 if len(punctuation) == 2 else rare, i, 2, key - i)
    for i, char in enumerate(text):
        if char in _RARE_MARKS:
            offer(14 if char in _RAREST_MARKS else 22, i, 1)
    return best


def _is_punctuation(char: str) -> bool:
    return not char.isalnum() and not char.isspace() and ord(char) < 128


def marks(node: Node, text: str) -> list[Mark]:
    """The literals of which each match of the pattern holds one."""
    _memo.clear()
    found = _factor(node, 0)
    if found is None:
        raise PatternError(
            f"pattern {text!r}: no literal of four characters, and no rare punctuation, stands near its start"
        )
    return found[1]


def _factor(node: Node, before: int) -> tuple[float, list[Mark]] | None:
    """The best set of literals of a node that starts at most `before` bytes into the match, with its cost."""
    if node[0] == "alt":
        whole = _window_set(_strings(node), before)
        parts = [_factor(branch, before) for branch in _nodes(node)]
        if any(part is None for part in parts):
            return whole
        joined = (max(p[0] for p in parts if p), [m for p in parts if p for m in p[1]])
        return joined if whole is None or joined[0] <= whole[0] else whole
    if node[0] == "rep":
        inner, low = cast(Node, node[1]), node[2]
        return _factor(inner, before) if low else None
    if node[0] == "set":
        return _window_set(_strings(node), before)
    best: tuple[float, list[Mark]] | None = None
    children = _nodes(node)
    offset = before
    run_end = 0  # children before this index were part of a run that began earlier
    for i, child in enumerate(children):
        if child[0] != "set":
            inner_best = _factor(child, offset)
            if inner_best and (best is None or inner_best[0] < best[0]):
                best = inner_best
        if i >= run_end - 1:
            run_end, candidate = _run(children, i, offset)
            if candidate and (best is None or candidate[0] < best[0]):
                best = candidate
        longest = _longest(child)
        if longest is None:
            break
        offset += longest
        if offset > MAX_LOOKBACK:
            break
    return best


def _run(children: list[Node], start: int, offset: int) -> tuple[int, tuple[float, list[Mark]] | None]:
    """The literals that the children from `start` spell together: where they stop being few, and the best set of them."""
    best: tuple[float, list[Mark]] | None = None
    strings: list[bytes] = [b""]
    for i in range(start, len(children)):
        part, is_last = _strings(children[i]), False
        if part is None and children[i][0] == "rep" and children[i][2]:
            part, is_last = _strings(cast(Node, children[i][1])), True
        if part is None or len(part) * len(strings) > MAX_FACTORS:
            return i, _better(best, _window_set(strings, offset))
        if len(part) > 1:
            best = _better(best, _window_set(strings, offset))
        strings = [a + b for a in strings for b in part]
        if is_last:
            return i + 1, _better(best, _window_set(strings, offset))
    return len(children), _better(best, _window_set(strings, offset))


def _better(
    a: tuple[float, list[Mark]] | None, b: tuple[float, list[Mark]] | None
) -> tuple[float, list[Mark]] | None:
    if a is None or b is None:
        return a or b
    return a if a[0] <= b[0] else b


def _window_set(strings: list[bytes] | None, before: int) -> tuple[float, list[Mark]] | None:
    if not strings:
        return None
    found: list[Mark] = []
    worst = 0.0
    for string in strings:
        window = _best_window(string, MAX_LOOKBACK - before)
        if window is None:
            return None
        worst = max(worst, window[0])
        cost, at, size, key = window
        # What stands around the window tells it from look-alikes; more than eight bytes would add little.
        start = max(0, min(at - 2, len(string) - LITERAL_BYTES))
        literal = string[start : start + LITERAL_BYTES]
        found.append(Mark(literal, at - start, size, key, before + at, cost))
    return worst + len(strings) / 32 + before / 4, found


@dataclass
class _Positions:
    """Glushkov's automaton: one position per character of the pattern."""

    charset: list[int] = field(default_factory=list)
    follow: list[set[int]] = field(default_factory=list)

    def build(self, node: Node) -> tuple[bool, set[int], set[int]]:
        """(nullable, first, last) of a node; positions and their followers are added."""
        kind = node[0]
        if kind == "set":
            mask = cast(int, node[1])
            self.charset.append(mask)
            self.follow.append(set())
            return False, {len(self.charset) - 1}, {len(self.charset) - 1}
        if kind == "alt":
            nullable, first, last = False, set[int](), set[int]()
            for branch in _nodes(node):
                n, f, la = self.build(branch)
                nullable, first, last = nullable or n, first | f, last | la
            return nullable, first, last
        if kind == "cat":
            nullable, first, last = True, set(), set()
            for part in _nodes(node):
                nullable, first, last = self.join((nullable, first, last), self.build(part))
            return nullable, first, last
        inner, low, high = cast(tuple[Node, int, int], node[1:])
        total: tuple[bool, set[int], set[int]] = (True, set(), set())
        for _ in range(low):
            total = self.join(total, self.build(inner))
        if high < 0:
            n, f, la = self.build(inner)
            for p in la:
                self.follow[p] |= f
            return self.join(total, (True, f, la))
        optional: list[tuple[bool, set[int], set[int]]] = []
        for _ in range(high - low):
            optional.append(self.build(inner))
        tail: tuple[bool, set[int], set[int]] = (True, set(), set())
        for n, f, la in reversed(optional):
            joined = self.join((n, f, la), tail)
            tail = (True, joined[1], joined[2])
        return self.join(total, tail)

    def join(
        self, a: tuple[bool, set[int], set[int]], b: tuple[bool, set[int], set[int]]
    ) -> tuple[bool, set[int], set[int]]:
        for p in a[2]:
            self.follow[p] |= b[1]
        return a[0] and b[0], a[1] | b[1] if a[0] else a[1], a[2] | b[2] if b[0] else b[2]


@dataclass(frozen=True)
class Tables:
    """What the native scanner runs: a position automaton over byte classes, and the skip loop's literals."""

    byte_class: bytes
    num_classes: int
    classes: list[list[int]]  # by position: the byte classes that it takes
    follow: list[list[int]]  # by position: the positions that may come next
    first: list[int]  # positions with which a pattern starts
    accept: list[int]  # by position: the pattern that ends there, or -1
    num_patterns: int
    marks: tuple[tuple[Mark, ...], ...]  # by pattern
    lookback: int


def compile_patterns(patterns: Sequence[str]) -> Tables:
    """One automaton for all patterns; pattern numbers are the indices."""
    positions = _Positions()
    first: set[int] = set()
    accept: dict[int, int] = {}
    found: list[tuple[Mark, ...]] = []
    for number, text in enumerate(patterns):
        node = parse(text)
        found.append(tuple(marks(node, text)))
        nullable, node_first, node_last = positions.build(node)
        if nullable:
            raise PatternError(f"pattern {text!r}: it matches nothing at all")
        first |= node_first
        for p in node_last:
            accept[p] = number
    if len(positions.charset) > MAX_POSITIONS:
        raise PatternError(f"the rules have more than {MAX_POSITIONS} positions")
    byte_class, samples = _byte_classes(positions.charset)
    by_mask = {
        mask: [c for c, byte in enumerate(samples) if mask >> byte & 1] for mask in set(positions.charset)
    }
    return Tables(
        byte_class=byte_class,
        num_classes=len(samples),
        classes=[by_mask[mask] for mask in positions.charset],
        follow=[sorted(f) for f in positions.follow],
        first=sorted(first),
        accept=[accept.get(p, -1) for p in range(len(positions.charset))],
        num_patterns=len(patterns),
        marks=tuple(found),
        # The skip loop may name the second byte of a window.
        lookback=1 + max((mark.offset for few in found for mark in few), default=0),
    )


def _byte_classes(charsets: Iterable[int]) -> tuple[bytes, list[int]]:
    distinct = sorted(set(charsets))
    numbers: dict[tuple[int, ...], int] = {}
    samples: list[int] = []
    table = bytearray(256)
    for byte in range(256):
        signature = tuple(k for k, mask in enumerate(distinct) if mask >> byte & 1)
        if signature not in numbers:
            numbers[signature] = len(samples)
            samples.append(byte)
        table[byte] = numbers[signature]
    return bytes(table), samples
