"""What do the text guards cost: the scanner on prose against Python's re, the redactor on prose, a request, a token?

Measured: one core, in process, best of several repeats, warm caches; 10 kB of ordinary prose and a 2 kB prompt. Not
measured: the HTTP front, the audit writer, text outside ASCII. The peer is Python's re with the same patterns, searched
one after the other. The last line is JSON.
"""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Callable

from inferno_native.redactor import Redactor, redact

from inferno.security.patterns import PatternError
from inferno.security.rules import load_rules
from inferno.security.screening import Screener

PROSE = (
    "The committee met on a rainy afternoon to discuss how the town library could stay open later during the winter "
    "months. Several members spoke about their own children, who read more when the building is warm and the lights "
    "are on. Nobody disagreed, yet the vote was put off until spring, because the heating had to be paid first. "
) * 40


def best(function: Callable[[], object], number: int) -> float:
    """Seconds of one call: the best of seven runs."""
    function()
    runs = []
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(number):
            function()
        runs.append((time.perf_counter() - start) / number)
    return min(runs)


def main() -> None:
    prose = PROSE[:10_000]
    rules = load_rules()
    scan = best(lambda: rules.scanner.scan_text(prose), 50)
    compiled = []
    for rule in rules.scanned:
        for stage in rule.stages:
            try:
                compiled.append(re.compile(stage, re.IGNORECASE))
            except (re.error, PatternError):
                continue
    peer = best(lambda: [pattern.search(prose) for pattern in compiled], 1)
    cover = best(lambda: redact(prose), 50)
    screener, prompt = Screener(max_input_length=10_000), PROSE[:2_000]
    request = best(lambda: screener.content([prompt]), 200)
    tokens = re.findall(r" ?\w+| ?[^\w\s]+|\s+", PROSE)

    def stream() -> None:
        redactor = Redactor()
        for token in tokens:
            redactor.feed(token)
        redactor.finish()

    token = best(stream, 1) / len(tokens)
    result = {
        "machine": platform.machine(),
        "scan_mb_per_s": round(len(prose) / scan / 1e6, 1),
        "re_mb_per_s": round(len(prose) / peer / 1e6, 2),
        "scan_over_re": round(peer / scan, 1),
        "redact_mb_per_s": round(len(prose) / cover / 1e6, 1),
        "screen_2kb_us": round(request * 1e6, 2),
        "redact_token_us": round(token * 1e6, 3),
    }
    for name, value in result.items():
        print(f"{name:20} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
