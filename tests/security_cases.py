"""Which test proves each line of the security cases: read from the tests themselves.

A test names a case in its function's name (`test_sec_057_…`) or in its docstring (`sec_057`). Run as a program it prints
docs/security_cases.md:

    python -m tests.security_cases > docs/security_cases.md
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CASES = ROOT / "tests" / "data" / "cases" / "security_cases.jsonl"
PAGE = ROOT / "docs" / "security_cases.md"
MARK = re.compile(r"(?<![a-z])sec[_-](\d{3})(?!\d)")

# Why a case has no test of its own; reviewed.
REASONS: dict[str, str] = {}
INTRODUCTION = """# Security cases

Every line of `tests/data/cases/security_cases.jsonl` (state, action, expected result of a known way to go wrong) and the tests
that prove it. `tests/test_security_cases.py` checks that no line is missing and that every test named here exists and names
the case; `python -m tests.security_cases > docs/security_cases.md` writes this page.

| case | given → input | test |
|---|---|---|
"""


def cases() -> dict[str, dict[str, str]]:
    """Return id → case, in the file's order."""
    found = (json.loads(line) for line in CASES.read_text().splitlines())
    return {case["id"]: case for case in found}


def find_tests() -> dict[str, list[str]]:
    """Return id → tests that name it, each as `path::function` below tests/."""
    found: dict[str, set[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                named = MARK.findall(node.name) + MARK.findall(ast.get_docstring(node) or "")
                for number in named:
                    found.setdefault(f"sec-{number}", set()).add(f"{path.relative_to(ROOT / 'tests')}::{node.name}")
    return {case: sorted(names) for case, names in found.items()}


def page() -> str:
    """Return docs/security_cases.md."""
    tests = find_tests()
    rows = []
    for name, case in cases().items():
        what = f"{case['given']} → {case['input']}".replace("|", "\\|").replace("\n", " ")
        proof = "<br>".join(f"`{test}`" for test in tests.get(name, ())) or REASONS.get(name, "none")
        rows.append(f"| {name} | {what} | {proof} |")
    return INTRODUCTION + "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(page(), end="")
