"""Fuzzing of the scanner and the redactor, guided by the edges that their own C code reports.

    python tests/fuzz/fuzz_guards.py SECONDS [--inputs N] [--seed N]     (or: make fuzz-guards SECONDS=600)

Mutates the corpora of both guards; inputs that reach something new join them. Laws, each broken one a finding and exit 1:
the redactor gives the same for any split, the same as its slow twin, and nothing new when it reads its own result; the
scanner gives the same with and without vector instructions and the same as its slow twin (for rules of its own, the
shipped ones are too slow there); neither fails, and the work of both stays linear. The modules are built by clang with
-fsanitize=fuzzer-no-link into build/coverage; the run prints how many edges it found, and none is a failure.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.fuzz.coverage_build import ROOT, build, conclude

MODULES = "redact_judge redact_literals redact_numbers redact_pem redact_secrets redact_tokens redact_words redactor scanner textclean"
FINDINGS = ROOT / "build" / "fuzz-guards"
MAX_CHARACTERS = 600
MAX_FINDINGS = 20
PATTERNS = [
    "ignore\\b", "(all|the) rules", "<[a-z]+ on[a-z]*=", "\\.\\./", "union +(all +)?select", "\\{\\{ ?[0-9]+", "a{2,4}bcd",
    "\\bcat ;", "<[^;]*;;", "(abcd|cdab)+<<", "( ok[ \\n]|granted)",
]  # fmt: skip
RULES = [[([number], 20)] for number in range(len(PATTERNS))] + [[([3, 5], 9), ([0], 9), ([1, 3], 9)]]
DICTIONARY = [
    "ghp_", "S2v6km97eVQArzOzCx2NEv3Np3BGthcxOq6c", "AKIA", "password", " = ", '"', "'", ": ", "\n", "eyJ", ".eyJ", "-----BEGIN RSA PRIVATE KEY-----",
    "-----END", "\\n", "://", "@", "4242 4242 ", "GB82 WEST 1234 5698 7654 32", "+1 ", "(202) ", "tel ", "ssn ", "[REDACTED:", "Bearer ", "Basic ",
    "is ", "é", "\u3000", "😀", "token", "sk-", "value:", "<", "</", ">", "&sig=", "identified by '", "hooks.slack.com/services/", "ignore", "the rules",
    "<a on", "x=", "../", "union", "select", "{{", " 7", "aab", "bcd", ";;", "<<", " ok", "10.0.0.1", "-", "_", "\\", "\u202e", "%27", "&lt;",
    "пароль", "это ", "密码", "是", "：", "パスワード", "は", "「", "—", "كلمة المرور", " هي ", "hasło", " to ", "Şifre", "clé api", "mật khẩu", "k8Yp2mNq", "İ",
]  # fmt: skip


def mutate(text: str, rng: random.Random, other: str) -> str:
    """One to four random changes."""
    for _ in range(rng.randint(1, 4)):
        i, k = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        choice = rng.randrange(7)
        if choice == 0:
            text = text[:i] + text[k:]
        elif choice == 1:
            text = text[:i] + rng.choice(DICTIONARY) + text[i:]
        elif choice == 2:
            text = text[:i] + chr(rng.choice((rng.randrange(32, 127), rng.randrange(0x2100), 10, 9))) + text[i + 1 :]
        elif choice == 3:
            text = text[:k] + text[i:k] + text[k:]
        elif choice == 4:
            start = rng.randint(0, len(other))
            text = text[:i] + other[start : start + rng.randint(1, 40)] + text[i:]
        elif choice == 5:
            text = text[:i] + text[i:k].swapcase() + text[k:]
        else:
            text = text[:i] + rng.choice(DICTIONARY) + text[k:]
    return text[:MAX_CHARACTERS]


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("seconds", type=float)
    arguments.add_argument("--inputs", type=int, default=1 << 62, help="end after so many, though time is left")
    arguments.add_argument("--seed", type=int, default=1)
    options = arguments.parse_args()
    counters = build(MODULES)
    from inferno_native import redactor, textclean
    from inferno_native.scanner import Scanner

    from inferno.security.patterns import compile_patterns
    from inferno.security.rules import load_rules
    from tests.native import reference_redactor, reference_scanner
    from tests.native.guard_bars import variants
    from tests.native.guard_cases import load

    scanner = Scanner(compile_patterns(PATTERNS), RULES)
    portable = Scanner(compile_patterns(PATTERNS), RULES, portable=True)
    shipped = load_rules().scanner
    seeds = [case["text"][:MAX_CHARACTERS] for name in ("redact_positive", "redact_negative", "scan_attack", "scan_benign")
             for case in load(name)]
    seeds += [case["text"] for name in ("redact_positive", "scan_attack") for case in variants(name)]
    seeds = [text for text in seeds if not any(0xD800 <= ord(c) < 0xE000 for c in text)] + DICTIONARY
    rng = random.Random(options.seed)
    pool = list(seeds)
    findings: list[str] = []

    def finding(law: str, text: str, said: object) -> None:
        FINDINGS.mkdir(parents=True, exist_ok=True)
        path = FINDINGS / f"{law}-{len(findings)}.txt"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        findings.append(law)
        print("FINDING", law, repr(text)[:400], said, path.relative_to(ROOT), flush=True)

    def redacting(text: str) -> None:
        profile = rng.choice(("default", "strict", "secrets"))
        whole = redactor.Redactor(profile)
        expected = whole.redact(text)
        if whole.steps > 120 * len(text) + 2000:
            finding("linear-redactor", text, whole.steps)
        cuts = sorted(rng.randint(0, len(text)) for _ in range(rng.randint(1, 6)))
        for edges in ([0, *cuts, len(text)], [*range(len(text)), len(text)]):
            stream = redactor.Redactor(profile)
            got = "".join(stream.feed(text[a:b]) for a, b in itertools.pairwise(edges)) + stream.finish()
            if got != expected:
                finding("split", text, (profile, cuts, got, expected))
                break
        if (its := reference_redactor.redact(text, profile)) != expected:
            finding("twin-redactor", text, (profile, its, expected))
        if (again := redactor.redact(expected, profile)) != expected:
            finding("idempotence", text, (profile, again, expected))

    def scanning(text: str) -> None:
        data = text.encode("utf-8", "surrogatepass")
        found = scanner.scan(data)
        if found != portable.scan(data):
            finding("portable", text, found)
        short = data[:120]
        numbers = {number for number, _, _ in scanner.scan(short)}
        if (its := reference_scanner.scan(PATTERNS, RULES, short)) != numbers:
            finding("twin-scanner", text, (its, numbers))
        shipped.scan(data)
        if shipped.steps > 5 * len(data) + 40:
            finding("linear-scanner", text, shipped.steps)
        textclean.features(text)
        once = textclean.clean(text)[0]
        if textclean.clean(once)[0] != once:
            finding("clean", text, once)

    count = 0
    start = time.monotonic()
    while time.monotonic() - start < options.seconds and count < options.inputs and len(findings) < MAX_FINDINGS:
        text = seeds[count] if count < len(seeds) else mutate(rng.choice(pool), rng, rng.choice(pool))
        count += 1
        try:
            redacting(text)
            scanning(text)
        except Exception as error:  # whatever is raised is a finding
            finding("failure", text, repr(error))
        if counters.take_new() and count > len(seeds) and len(pool) < 20000:
            pool.append(text)
    print(f"{count} inputs in {time.monotonic() - start:.0f} s, {len(pool) - len(seeds)} kept")
    return conclude(counters, redactor.__file__, len(findings), options.seed)


if __name__ == "__main__":
    raise SystemExit(main())
