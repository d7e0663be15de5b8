"""The sample corpora of both guards, and the rules by which a leak and an over-redaction are counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CASES = Path(__file__).parents[1] / "data" / "cases"


def load(name: str) -> list[dict[str, Any]]:
    """The lines of one corpus."""
    return [json.loads(line) for line in (CASES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def leaks(span: str, output: str, kind: str) -> bool:
    """Whether eight characters of a span (five of a short one) survive; white space and PEM marker lines do not count."""
    if kind == "private_key":
        span = "\n".join(line for line in span.replace("\\n", "\n").split("\n") if "-----" not in line)
    span, output = "".join(span.split()), "".join(output.split())
    size = 5 if len(span) < 12 else 8
    return any(span[i : i + size] in output for i in range(len(span) - size + 1))
