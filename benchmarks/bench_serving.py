"""How fast does the whole server answer, beside llama-server, in one run?

Measured: output tokens/s (by `usage`), TTFT and inter-token times of streamed chat over loopback HTTP, Inferno with
authentication, limits, guards and audit on, llama-server with none of them. Scenarios: `distinct` prompts at several
numbers of clients, a `shared` prefix from one principal with a cold start, `stall` of running streams while a long
prompt arrives, a conversation that `return`s after others. Alternating pairs, fresh seeds, exactly max_tokens tokens
(ignore_eos); the figure is the median of the pairwise ratios. Not measured: quality, networks, GPUs.

    python benchmarks/bench_serving.py --model FILE [--scenario distinct shared stall return] [--pairs 5]

Reads LLAMA_SERVER for the peer's path. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from servers import HERE, Server, inferno, llama_server


def tool(script: str, server: Server, *arguments: object) -> dict[str, Any]:
    command = [sys.executable, str(HERE / script), *server.arguments(), *(str(argument) for argument in arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    if result.returncode:
        raise SystemExit(f"{script} failed against {server.name}:\n{result.stdout}{result.stderr}")
    figures: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    if figures.get("errors"):
        raise SystemExit(f"{server.name} answered with errors: {figures}")
    return figures


def median_ratio(pairs: list[tuple[dict[str, Any], dict[str, Any]]], key: str) -> float | None:
    ratios = [ours[key] / peer[key] for ours, peer in pairs if ours.get(key) and peer.get(key)]
    return round(statistics.median(ratios), 3) if ratios else None


def summary(pairs: list[tuple[dict[str, Any], dict[str, Any]]], keys: list[str]) -> dict[str, Any]:
    out: dict[str, Any] = {"pairs": len(pairs)}
    for key in keys:
        out[key] = {
            "ours": statistics.median([ours[key] for ours, _ in pairs if ours.get(key) is not None] or [0]),
            "peer": statistics.median([peer[key] for _, peer in pairs if peer.get(key) is not None] or [0]),
            "ratio": median_ratio(pairs, key),
        }
    return out


def distinct(options: argparse.Namespace, clients: int, peer_slots: int | None) -> dict[str, Any]:
    """Distinct 100-word prompts, 64 output tokens, closed loop."""
    pairs = []
    shape = {"slots": 16, "context_size": 2048, "threads": options.threads}
    requests = {1: 6, 4: 16}.get(clients, 3 * clients)
    with inferno(options.model, **shape) as ours, llama_server(
        options.model, slots=peer_slots, context_size=2048, threads=options.threads
    ) as peer:
        for server in (ours, peer):
            tool("loadgen.py", server, "-c", clients, "-n", clients, "--gen", 16, "--seed", 999)
        for pair in range(options.pairs):
            seed = options.seed + 10 * pair
            arguments = ("-c", clients, "-n", requests, "--gen", 64, "--words", 100, *options.sampling)
            order = [ours, peer] if pair % 2 == 0 else [peer, ours]
            figures = {server.name: tool("loadgen.py", server, *arguments, "--seed", seed) for server in order}
            pairs.append((figures[ours.name], figures[peer.name]))
    return summary(pairs, ["out_tok_s", "ttft_p50", "itl_p50", "itl_p99"])


def shared_prefix(options: argparse.Namespace) -> dict[str, Any]:
    """64 requests behind one 400-word prefix, 16 clients, each pair with a prefix that nobody has seen."""
    pairs = []
    with inferno(options.model, slots=16, context_size=2048, threads=options.threads) as ours, llama_server(
        options.model, slots=16, context_size=2048, threads=options.threads
    ) as peer:
        for pair in range(options.pairs):
            seed = options.seed + 10 * pair
            arguments = ("-c", 16, "-n", 64, "--gen", 64, "--words", 100, "--shared", 400, *options.sampling)
            order = [ours, peer] if pair % 2 == 0 else [peer, ours]
            figures = {
                server.name: tool("loadgen.py", server, *arguments, "--seed", seed, "--prefix-seed", seed + 1)
                for server in order
            }
            pairs.append((figures[ours.name], figures[peer.name]))
    return summary(pairs, ["out_tok_s", "ttft_p50"])


def stall(options: argparse.Namespace) -> dict[str, Any]:
    """Four running streams while a 4,000-word prompt arrives."""
    pairs = []
    with inferno(options.model, slots=8, context_size=8192, threads=options.threads) as ours, llama_server(
        options.model, slots=8, context_size=8192, threads=options.threads
    ) as peer:
        for pair in range(options.pairs):
            order = [ours, peer] if pair % 2 == 0 else [peer, ours]
            figures = {server.name: tool("stall.py", server, "--seed", options.seed + pair) for server in order}
            pairs.append((figures[ours.name], figures[peer.name]))
    return summary(pairs, ["gap_before_p50", "gap_during_p50", "gap_during_max", "long_ttft"])


def chat(server: Server, messages: list[dict[str, str]], seed: int) -> tuple[float, str, dict[str, Any]]:
    """Return (TTFT in seconds, text, usage) of one streamed chat."""
    body = {"model": "default", "messages": messages, "max_tokens": 64, "ignore_eos": True, "seed": seed,
            "temperature": 0.8, "stream": True, "stream_options": {"include_usage": True}}  # fmt: skip
    headers = {"Content-Type": "application/json", **dict(header.split(": ", 1) for header in server.headers)}
    request = urllib.request.Request(server.url + "/v1/chat/completions", json.dumps(body).encode(), headers)
    start = time.perf_counter()
    first, text, usage = None, [], {}
    with urllib.request.urlopen(request, timeout=600) as answer:
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                if choice["delta"].get("content"):
                    first = first or time.perf_counter()
                    text.append(choice["delta"]["content"])
    return (first or time.perf_counter()) - start, "".join(text), usage


def returning(options: argparse.Namespace) -> dict[str, Any]:
    """A conversation of >= 1,000 prompt tokens that returns after 32 others, 8 slots; TTFT against a cold one."""
    words = (HERE / "loadgen.py").read_text().split('WORDS = ("')[1].split('")')[0].replace('"', " ").split()

    def prompt(seed: int, count: int) -> str:
        generator = random.Random(seed)
        return " ".join(generator.choice(words) for _ in range(count))

    figures = []
    with inferno(options.model, slots=8, context_size=4096, threads=options.threads) as ours, llama_server(
        options.model, slots=8, context_size=4096, threads=options.threads
    ) as peer:
        for pair in range(options.pairs):
            row = {}
            for server in (ours, peer):
                base = options.seed + 1000 * pair
                messages = [{"role": "user", "content": prompt(base, 900)}]
                cold, text, _ = chat(server, messages, base)
                for other in range(32):
                    chat(server, [{"role": "user", "content": prompt(base + 1 + other, 100)}], base)
                messages += [{"role": "assistant", "content": text}, {"role": "user", "content": prompt(base + 99, 20)}]
                warm, _, usage = chat(server, messages, base)
                cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
                row[server.name] = {"cold": cold, "warm": warm, "part": cached / max(1, usage.get("prompt_tokens", 1))}
            figures.append(row)
    out: dict[str, Any] = {}
    for label, name in (("ours", ours.name), ("peer", peer.name)):
        out[label] = {
            "ttft_warm_over_cold": round(statistics.median(f[name]["warm"] / f[name]["cold"] for f in figures), 3),
            "cached_part": round(statistics.median(f[name]["part"] for f in figures), 3),
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--scenario", nargs="+", default=["distinct"], choices=["distinct", "shared", "stall", "return"])
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000 * 100)
    parser.add_argument("--defaults", action="store_true", help="also 16 clients beside llama-server's defaults")
    parser.add_argument("--sampling", nargs="*", default=[], help="more arguments for the load tool, such as --top-k 40")
    options = parser.parse_args()
    report: dict[str, Any] = {}
    for scenario in options.scenario:
        if scenario == "distinct":
            for clients in options.clients:
                report[f"distinct-{clients}"] = distinct(options, clients, 16)
                print(f"distinct-{clients}", json.dumps(report[f"distinct-{clients}"]), flush=True)
            if options.defaults:
                report["distinct-16-defaults"] = distinct(options, 16, None)
                print("distinct-16-defaults", json.dumps(report["distinct-16-defaults"]), flush=True)
        else:
            report[scenario] = {"shared": shared_prefix, "stall": stall, "return": returning}[scenario](options)
            print(scenario, json.dumps(report[scenario]), flush=True)
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=True)
        report["commit"] = commit.stdout.strip()
    report["machine"] = {"cpus": os.cpu_count(), "cpu": platform.processor() or platform.machine()}
    report["model"] = {"file": options.model.name, "sha256": hashlib.sha256(options.model.read_bytes()).hexdigest()[:16]}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
