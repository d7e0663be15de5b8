"""What do the text guards cost: the scanner on prose against Hyperscan and Python's re, the redactor, a request, a token?

Measured: CPU time on one core, in process, the contestants taking turns in batches so that a busy neighbour is busy for
all; median and the best batch. Texts: 10 kB of benign prose of three kinds (a story, documentation, code with comments)
for the scanner; the story for the redactor. "request" is everything that guards and limits together do to one request
with a 2 kB prompt: headers, query, names, content, personal values, the redactor's making, source, principal, concurrency, token
reservation and their settlement. "token" is one streamed token through the output guard with the reservation's note.
The redactor's share of decode time is its time per token at --tokens-per-second, all 16 streams together; with --live that
rate is not assumed but measured: a server with the demo model streams to 16 clients at once, and what they got is fed to
a redactor piece by piece.

Not measured: HTTP, the audit writer, text outside ASCII, what a match costs. Hyperscan and re get the same patterns, each
as one database or one list, and no distances between stages: less work than ours. Hyperscan is optional: pip install
hyperscan. Last line: JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from inferno_native.buckets import MAX_QUOTA, BucketTable
from inferno_native.redactor import Redactor, redact

from inferno.security.limit_policy import FAMILIES
from inferno.security.limits import Limiter, LimitSettings, Subject
from inferno.security.principal import Principal
from inferno.security.rules import load_rules, stages_of
from inferno.security.screening import Screener
from inferno.server.guarding import Guards
from inferno.server.http import Context
from inferno.server.redactors import NativeRedactors
from inferno.storage.bucket_store import SharedBuckets
from tests.native.reference_scanner import as_regex

STORY = (
    "The committee met on a rainy afternoon to discuss how the town library could stay open later during the winter "
    "months. Several members spoke about their own children, who read more when the building is warm and the lights "
    "are on. Nobody disagreed, yet the vote was put off until spring, because the heating had to be paid first. "
) * 40
TEXTS = {
    "story": STORY[:10_000],
    "documentation": " ".join(filter(None, (inspect.getdoc(m) for m in vars(subprocess.Popen).values())))[:2_500]
    + (textwrap.__doc__ or "") + (argparse.__doc__ or "") + (re.__doc__ or "") + (statistics.__doc__ or ""),
    "code": inspect.getsource(textwrap)[:10_000],
}  # fmt: skip
STREAMS = 16
LIVE_TOKENS = 160
HEADERS = [  # of the official client
    (b"host", b"127.0.0.1:8080"), (b"accept-encoding", b"gzip, deflate"), (b"connection", b"keep-alive"), (b"accept", b"application/json"),
    (b"content-type", b"application/json"), (b"user-agent", b"OpenAI/Python 2.9.0"), (b"x-stainless-lang", b"python"),
    (b"x-stainless-package-version", b"2.9.0"), (b"x-stainless-os", b"Linux"), (b"x-stainless-arch", b"x64"),
    (b"x-stainless-runtime", b"CPython"), (b"x-stainless-runtime-version", b"3.11.7"), (b"authorization", b"Bearer inf_x"),
    (b"x-stainless-async", b"false"), (b"x-stainless-retry-count", b"0"), (b"x-stainless-read-timeout", b"600"), (b"content-length", b"2100"),
]  # fmt: skip


def timed(contestants: dict[str, tuple[Callable[[], object], int]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of one call of each, in turns; the int is a batch's size."""
    batches: dict[str, list[float]] = {name: [] for name in contestants}
    for function, _ in contestants.values():
        function()
    for _ in range(rounds):
        for name, (function, size) in contestants.items():
            start = time.process_time()
            for _ in range(size):
                function()
            batches[name].append((time.process_time() - start) / size)
    return {name: statistics.median(values) for name, values in batches.items()}


def hyperscan_of(patterns: list[str]) -> Callable[[bytes], object] | None:
    """The patterns in one Hyperscan database; None where it is not installed."""
    try:
        import hyperscan
    except ImportError:
        return None
    database = hyperscan.Database()
    flags = hyperscan.HS_FLAG_CASELESS | hyperscan.HS_FLAG_SINGLEMATCH
    sources = [as_regex(pattern).pattern for pattern in patterns]
    database.compile(expressions=sources, ids=list(range(len(sources))), elements=len(sources), flags=[flags] * len(sources))

    def on_match(number: int, start: int, end: int, flags: int, context: object) -> None:
        return None

    return lambda data: database.scan(data, match_event_handler=on_match)


def request_cost(rounds: int) -> tuple[float, float]:
    """Seconds that guards and limits add to a request with a 2 kB prompt, and to a streamed token."""
    table = BucketTable.create(FAMILIES, num_owners=1, seed=bytes(16))
    table.bind(0, table.open_owner(0))
    limiter = Limiter(SharedBuckets(table), LimitSettings(
        max_requests_per_minute_per_ip=MAX_QUOTA, max_requests_per_hour_per_ip=MAX_QUOTA, max_requests_per_minute=MAX_QUOTA,
        max_requests_per_hour=MAX_QUOTA, max_tokens_per_minute=MAX_QUOTA))  # fmt: skip
    guards = Guards(screener=Screener(max_input_length=10_000), redactors=NativeRedactors({"jwt": b"a" * 40}))
    principal, account = Principal("0b6d1bd2", "ada", "user", "user", frozenset()), Subject("0b6d1bd2")
    context = Context(request_id="r", source="192.0.2.1")
    prompt = STORY[:2_000]
    tokens = re.findall(r" ?\w+| ?[^\w\s]+|\s+", STORY)

    async def requests(count: int) -> None:
        for _ in range(count):
            await limiter.check_source("192.0.2.1")
            await limiter.check_requests(account)
            guards.headers(context, HEADERS)
            guards.query(context, b"")
            guards.identifiers(context, [("model", "smollm2-135m-instruct")])
            guards.content(context, principal, [("messages[0].content", prompt)])
            lease = await limiter.acquire_concurrency(account)
            reservation = await limiter.reserve_tokens(account, None, 500, 256, 1024)
            output = guards.output(context, principal, [prompt])
            assert output is not None
            output.pass_on(0, "x", None, is_last=True)
            output.close()
            reservation.settle(600)
            lease.release()

    async def stream() -> None:
        reservation = await limiter.reserve_tokens(account, None, 500, 256, 1024)
        output = guards.output(context, principal, [prompt])
        assert output is not None
        for number, token in enumerate(tokens):
            output.pass_on(0, token, None, is_last=False)
            reservation.note(500 + number)
        output.pass_on(0, "", None, is_last=True)
        reservation.settle(600)

    with asyncio.Runner() as runner:
        found = timed(
            {"request": (lambda: runner.run(requests(200)), 1), "stream": (lambda: runner.run(stream()), 1)}, rounds
        )
    return found["request"] / 200, found["stream"] / len(tokens)


def tokens_held() -> tuple[float, float]:
    """Tokens that ordinary text waits for on average, and CPU seconds of the redactor for one token."""
    tokens = re.findall(r" ?\w+| ?[^\w\s]+|\s+", STORY)
    redactor, held, start = Redactor(), 0, time.process_time()
    for token in tokens:
        redactor.feed(token)
    seconds = (time.process_time() - start) / len(tokens)
    redactor = Redactor()
    for token in tokens:
        redactor.feed(token)
        held += redactor.held
    return held / sum(map(len, tokens)), seconds


def live() -> tuple[float, float]:
    """Tokens a second of 16 streams of a server, all together, and CPU seconds of a redactor for one of their pieces."""
    from tests.end_to_end.harness import GENEROUS, running

    config = GENEROUS.replace("slots = 8", f"slots = {STREAMS}")
    pieces: list[str] = []
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), config=config) as server:
        key = str(server.create_key()["key"])

        def stream(number: int) -> tuple[float, float, int]:
            body = {"model": "demo", "prompt": f"Story number {number}:", "max_tokens": LIVE_TOKENS, "ignore_eos": True,
                    "stream": True, "seed": number}  # fmt: skip
            first = last = 0.0
            count = 0
            with (
                server.http(headers={"X-API-Key": key}, timeout=120) as client,
                client.stream("POST", "/v1/completions", json=body) as answer,
            ):
                for line in answer.iter_lines():
                    if line.startswith("data: {"):
                        text = json.loads(line[6:])["choices"][0]["text"]
                        if text:
                            last = time.perf_counter()
                            first = first or last
                            count += 1
                            pieces.append(text)
            return first, last, count

        with ThreadPoolExecutor(STREAMS) as pool:
            list(pool.map(stream, range(STREAMS)))  # warm
            pieces.clear()
            ends = list(pool.map(stream, range(STREAMS)))
    seconds = max(last for _, last, _ in ends) - min(first for first, _, _ in ends)
    redactor, start = Redactor(), time.process_time()
    for piece in pieces:
        redactor.feed(piece)
    return STREAMS * LIVE_TOKENS / seconds, (time.process_time() - start) / len(pieces)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--tokens-per-second", type=float, default=2000, help="of all 16 streams together")
    arguments.add_argument("--live", action="store_true", help="measure that rate on a server with the demo model")
    options = arguments.parse_args()
    rules = load_rules()
    patterns, _ = stages_of(rules.scanned)
    compiled = [as_regex(pattern) for pattern in patterns]
    hyperscan = hyperscan_of(patterns)
    result: dict[str, float | str | None] = {"machine": platform.machine(), "patterns": len(patterns)}
    for name, text in TEXTS.items():
        data = text.encode()
        contestants: dict[str, tuple[Callable[[], object], int]] = {
            "ours": (lambda text=text: rules.scanner.scan_text(text), 100),  # type: ignore[misc]
            "re": (lambda data=data: [pattern.search(data) for pattern in compiled], 1),  # type: ignore[misc]
        }
        if hyperscan is not None:
            contestants["hyperscan"] = (lambda data=data: hyperscan(data), 20)  # type: ignore[misc]
        found = timed(contestants, options.rounds if name == "story" else 5)
        result[f"scan_{name}_mb_per_s"] = round(len(data) / found["ours"] / 1e6, 1)
        result[f"re_{name}_mb_per_s"] = round(len(data) / found["re"] / 1e6, 3)
        result[f"scan_over_re_{name}"] = round(found["re"] / found["ours"], 1)
        if hyperscan is not None:
            result[f"hyperscan_{name}_mb_per_s"] = round(len(data) / found["hyperscan"] / 1e6, 1)
            result[f"scan_over_hyperscan_{name}"] = round(found["hyperscan"] / found["ours"], 2)
    story = TEXTS["story"]
    found = timed({"redact": (lambda: redact(story), 100)}, options.rounds)
    request, token = request_cost(options.rounds)
    held, redact_token = tokens_held()
    result |= {
        "redact_mb_per_s": round(len(story) / found["redact"] / 1e6, 1),
        "request_2kb_us": round(request * 1e6, 1),
        "stream_token_us": round(token * 1e6, 2),
        "redact_token_us": round(redact_token * 1e6, 3),
        "redact_share_of_decode_percent": round(100 * redact_token * options.tokens_per_second, 3),
        "tokens_held": round(held, 2),
    }
    if options.live:
        rate, piece = live()
        result |= {
            "live_tokens_per_s": round(rate, 1),
            "live_redact_piece_us": round(piece * 1e6, 3),
            "live_redact_share_of_decode_percent": round(100 * piece * rate, 4),
        }
    for name, value in result.items():
        print(f"{name:34} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
