"""The bars of both guards per category, over the sample corpora and over variants of the same kinds written apart.

    python -m tests.native.guard_bars

The variants (tests/data/guard_variants) were written after the kinds, in other forms, encodings and languages: they say
whether a kind is known or only its samples. A miss mends the kind. The tests hold the same figures.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from inferno_native.redactor import Redactor, redact

from inferno.security.screening import Screener
from tests.native.guard_cases import leaks, load

VARIANTS = Path(__file__).parents[1] / "data" / "guard_variants"


def variants(name: str) -> list[dict[str, Any]]:
    """The lines of one file of variants."""
    return [json.loads(line) for line in (VARIANTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def attack_bars(cases: list[dict[str, Any]]) -> dict[str, tuple[int, int, int]]:
    """By category: (cases, reported or neutralised as content, refused as name, header and URL value)."""
    screener = Screener()
    total, found, refused = Counter[str](), Counter[str](), Counter[str]()
    for case in cases:
        category, text = case["category"], case["text"]
        verdict = screener.content([text])
        total[category] += 1
        found[category] += category in verdict.categories or verdict.action in ("strip", "block")
        verdicts = [ask("n", text) for ask in (screener.identifier, screener.header_value, screener.url_value)]
        refused[category] += all(each.action == "block" for each in verdicts)
    return {name: (total[name], found[name], refused[name]) for name in sorted(total)}


def benign_bars(cases: list[dict[str, Any]]) -> dict[str, tuple[int, int, int, int]]:
    """By category: (cases, refused by default, refused in block mode, changed)."""
    screener, blocking = Screener(), Screener(scan_content="block")
    total, refused, blocked, changed = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for case in cases:
        category, text = case["category"], case["text"]
        verdict = screener.content([text])
        total[category] += 1
        refused[category] += verdict.action == "block"
        changed[category] += verdict.texts != (text,)
        blocked[category] += blocking.content([text]).action == "block"
    return {name: (total[name], refused[name], blocked[name], changed[name]) for name in sorted(total)}


def leak_bars(cases: list[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    """By kind: (spans, leaks)."""
    total, leaked = Counter[str](), Counter[str]()
    for case in cases:
        output = redact(case["text"], case["profile"])
        for start, end, kind in case["spans"]:
            total[kind] += 1
            leaked[kind] += leaks(case["text"][start:end], output, kind)
    return {name: (total[name], leaked[name]) for name in sorted(total)}


def variant_leaks() -> list[str]:
    """The ids of the variants of which something survives."""
    found = []
    for case in variants("redact_positive"):
        start, end = case["span"]
        if leaks(case["text"][start:end], redact(case["text"]), "private_key" if "-----" in case["text"] else ""):
            found.append(case["id"])
    return found


def changed_bars(cases: list[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    """By category: (cases, changed in a profile in which they must stay)."""
    total, changed = Counter[str](), Counter[str]()
    for case in cases:
        category = case.get("category", "variant")
        profiles = ("default", "strict") if case.get("profile") == "both" else ("default",)
        total[category] += 1
        changed[category] += any(Redactor(each).redact(case["text"]) != case["text"] for each in profiles)
    return {name: (total[name], changed[name]) for name in sorted(total)}


def main() -> None:
    for title, bars in (
        ("attacks: cases, found as content, refused as a value", attack_bars(load("scan_attack"))),
        ("attack variants: the same", attack_bars(variants("scan_attack"))),
        ("benign: cases, refused, refused in block mode, changed", benign_bars(load("scan_benign"))),
        ("to redact: spans, leaks", leak_bars(load("redact_positive"))),
        ("to leave: cases, changed", changed_bars(load("redact_negative"))),
        ("variants to leave: cases, changed", changed_bars(variants("redact_negative"))),
    ):
        print(title)
        for name, figures in bars.items():
            print(f"  {name:24}", *(f"{figure:5}" for figure in figures))
    print(f"variants to redact: {len(variants('redact_positive'))}, leaks {len(variant_leaks())}")


if __name__ == "__main__":
    main()
