"""How fast is the engine alone: decode tokens/s at 1, 4 and 16 sequences, beside llama-server in the same run.

Measured: an engine process driven over its sockets (queue, sampling, text, messages; no HTTP), and a llama-server with
the same file, threads, slots and context (`-np SLOTS -no-kvu`), driven over HTTP, streaming as ours does. Both get the same
prompts as token ids, fresh for each round, ignore the end token and generate exactly N tokens. Pairs alternate; the
figure is the median of the pairwise ratios. Not measured: our HTTP front, templates, tokenizing.

    python benchmarks/bench_engine.py MODEL [--llama-server PATH] [--rounds 5] [--threads 2]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from inferno.messages import Sampling
from tests.inferno.engine.client import EngineUnderTest, Worker

SLOTS = 16


def prompt(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(1000, 40000) for _ in range(length)]


def ours(worker: Worker, prompts: list[list[int]], num_tokens: int, temperature: float) -> float:
    """Return output tokens per second for prompts that arrive together."""
    begin = time.perf_counter()
    sampling = Sampling(temperature=temperature)
    numbers = [
        worker.submit(p, max_tokens=num_tokens, ignore_eos=True, sampling=sampling, seed=i)
        for i, p in enumerate(prompts)
    ]
    answers = worker.finish(numbers, timeout=600)
    count = sum(answer.usages[0].completion_tokens for answer in answers)
    if count != num_tokens * len(prompts):
        raise SystemExit(f"{count} tokens instead of {num_tokens * len(prompts)}")
    return count / (time.perf_counter() - begin)


class Peer:
    """A llama-server in its best configuration."""

    def __init__(self, program: str, model: str, threads: int, context: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._process = subprocess.Popen(
            [program, "-m", model, "--host", "127.0.0.1", "--port", str(self._port), "-np", str(SLOTS), "-no-kvu",
             "-c", str(SLOTS * context), "-t", str(threads), "-tb", str(threads), "--no-webui"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "LD_LIBRARY_PATH": str(Path(program).parent)},
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health", timeout=2) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.2)
        raise SystemExit("llama-server did not start")

    def _one(self, tokens: list[int], num_tokens: int, temperature: float, seed: int) -> int:
        body = {"prompt": tokens, "n_predict": num_tokens, "ignore_eos": True, "temperature": temperature, "top_k": 0,
                "top_p": 1.0, "min_p": 0.0, "seed": seed, "stream": True, "samplers": ["temperature"]}  # fmt: skip
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/completion",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            last = {}
            for line in answer:
                if line.startswith(b"data: {"):
                    last = json.loads(line[6:])
            return int(last["tokens_predicted"])

    def run(self, prompts: list[list[int]], num_tokens: int, temperature: float) -> float:
        begin = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
            jobs = [pool.submit(self._one, p, num_tokens, temperature, i) for i, p in enumerate(prompts)]
            count = sum(job.result() for job in jobs)
        if count != num_tokens * len(prompts):
            raise SystemExit(f"the peer made {count} tokens")
        return count / (time.perf_counter() - begin)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--llama-server")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=130, help="tokens")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--flash-attention", default="auto")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 4, 16])
    options = parser.parse_args()
    context = max(512, (options.prompt + options.tokens + 255) // 256 * 256)
    rng = random.Random(7)
    result: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "cpus": os.cpu_count(),
                              "model": Path(options.model).name, "rounds": options.rounds, "clients": {}}  # fmt: skip
    with EngineUnderTest(Path(options.model).resolve(), slots=SLOTS, context_size=context, threads=options.threads,
                         flash_attention=options.flash_attention) as engine:  # fmt: skip
        worker = engine.attach()
        print("engine:", worker.model.settings, engine.ready.calibration if engine.ready else "")
        peer = (
            Peer(options.llama_server, options.model, options.threads, context)
            if options.llama_server
            else None
        )
        try:
            for clients in options.clients:
                pairs = []
                for number in range(options.rounds + 1):  # the first round warms up
                    here = ours(
                        worker,
                        [prompt(rng, options.prompt) for _ in range(clients)],
                        options.tokens,
                        options.temperature,
                    )
                    there = (
                        peer.run(
                            [prompt(rng, options.prompt) for _ in range(clients)],
                            options.tokens,
                            options.temperature,
                        )
                        if peer
                        else 0.0
                    )
                    if number:
                        pairs.append((here, there))
                mine = statistics.median(a for a, _ in pairs)
                entry = {"tokens_per_second": round(mine, 1)}
                if peer:
                    entry["peer"] = round(statistics.median(b for _, b in pairs), 1)
                    entry["ratio"] = round(statistics.median(a / b for a, b in pairs), 3)
                result["clients"][clients] = entry
                print(f"{clients:3d} clients: {entry}", flush=True)
        finally:
            if peer:
                peer.close()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
