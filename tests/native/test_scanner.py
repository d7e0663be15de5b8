"""The scanner against its twin, its laws, and the tables that it is built from."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inferno_native.scanner import Scanner

from inferno.security.patterns import PatternError, compile_patterns, parse
from inferno.security.rules import load_rules, stages_of
from tests.native import reference_scanner
from tests.native.guard_cases import load

PATTERNS = [
    "ignore\\b",
    "(all|the) rules",
    "<[a-z]+ on[a-z]*=",
    "\\.\\./",
    "union +(all +)?select",
    "\\{\\{ ?[0-9]+",
    "a{2,4}bcd",
    "\\bcat ;",
    "<[^;]*;;",
    "(abcd|cdab)+<<",
]
RULES = [
    [([0], 20)],
    [([0], 20), ([1], 20)],
    [([2], 20)],
    [([3], 20)],
    [([4], 20)],
    [([5], 20)],
    [([6], 20)],
    [([7], 20)],
    [([8], 20)],
    [([9], 20)],
    [([3, 5], 9), ([0], 9), ([1, 3], 9)],
]
PIECES = st.sampled_from(
    ["ignore", " ", "all rules", "the rules", "<a on", "x=", "../", "union", "  all ", "select", "{{", " 7", "aab", "bcd", "aaaaabcd", "cat ;", "x", ";;", ";", "abcd", "cdab", "<<", "\n", "q", "IGNORE", "é"]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=9).map("".join)


@pytest.fixture(scope="module")
def scanner() -> Scanner:
    return Scanner(compile_patterns(PATTERNS), RULES)


@pytest.fixture(scope="module")
def portable() -> Scanner:
    return Scanner(compile_patterns(PATTERNS), RULES, portable=True)


def numbers(scanner: Scanner, text: str) -> set[int]:
    return {number for number, _, _ in scanner.scan(text.encode())}


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_inp_9_law_native_and_twin_agree(scanner: Scanner, text: str) -> None:
    assert numbers(scanner, text) == reference_scanner.scan(PATTERNS, RULES, text.encode())


def test_inp_9_every_shipped_rule_agrees_with_its_twin() -> None:
    rules = load_rules()
    patterns, sequences = stages_of(rules.scanned)
    fired: set[int] = set()
    for case in load("scan_attack") + load("scan_benign"):
        text = case["text"].encode("utf-8", "replace").lower()[:160]
        expected = reference_scanner.scan(patterns, sequences, text)
        assert {number for number, _, _ in rules.scanner.scan(text)} == expected, case["id"]
        fired |= expected
    assert len(fired) > len(sequences) / 2


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.text(alphabet="qwrz", max_size=40))
def test_law_what_is_found_is_found_in_a_longer_text(scanner: Scanner, text: str, more: str) -> None:
    assert numbers(scanner, text) <= numbers(scanner, f"{more}\n{text}\n{more}")


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_law_vector_and_portable_loops_agree(scanner: Scanner, portable: Scanner, text: str) -> None:
    for padding in ("", "x" * 31, "word " * 13):
        data = (padding + text).encode()
        assert scanner.scan(data) == portable.scan(data)
        assert scanner.steps == portable.steps


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_law_case_does_not_matter(scanner: Scanner, text: str) -> None:
    assert numbers(scanner, text.upper().replace("É", "é")) == numbers(scanner, text.lower())


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_scanned(data: bytes) -> None:
    scanner = load_rules().scanner
    scanner.scan(data)
    assert scanner.steps <= 5 * len(data) + 40


@pytest.mark.parametrize(
    "text", ["abc", "(abcd", "abcd)", "[abcd", "*abcd", "abcd{2", "abcd{9,2}", "\\qabcd", "a*", "[a-z]+"]
)
def test_a_bad_pattern_is_refused(text: str) -> None:
    with pytest.raises(PatternError):
        compile_patterns([text])


def test_parse_knows_the_syntax() -> None:
    assert parse("a|b")[0] == "alt"
    assert parse("[^a]")[0] == "cat"


def test_a_scanner_is_built_once(scanner: Scanner) -> None:
    with pytest.raises(TypeError):
        scanner.__init__(compile_patterns(PATTERNS), RULES)  # type: ignore[misc]
    with pytest.raises(ValueError, match="stages"):
        Scanner(compile_patterns(PATTERNS), [[([0], 1)] * 5])
