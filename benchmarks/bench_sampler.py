"""How long does one row of logits take to sample, ours beside llama.cpp's chain?

Measured: one call per row through each side's Python door (about 1 µs for ours, 3 µs for the peer's), the same rows, the
same parameters, interleaved in one process and thread; median of the rows, best of the rounds. The peer's rows are laid
out as its token arrays before the clock starts, which its server has to do for each row as well. Vocabularies of 49,152 and
131,072; two kinds of rows, both made from a fixed seed: `sharp` (entropy about 1 nat, as most steps of a chat are) and
`broad` (about 5 nats). Not measured: real models' rows, several threads, grammars.

    python benchmarks/bench_sampler.py [--rows 64] [--rounds 5]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from inferno_native.candidates import simd
from inferno_native.sampler import Sampler

from tests.native.llama_chain import Chain

CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.8},
    "temperature 1": {},
    "top_p 0.95": {"top_p": 0.95, "temperature": 0.8},
    "top_k 40": {"top_k": 40, "temperature": 0.8},
    "top_k 40, top_p 0.95, min_p 0.05": {"top_k": 40, "top_p": 0.95, "min_p": 0.05, "temperature": 0.8},
    "min_p 0.05": {"min_p": 0.05, "temperature": 0.8},
    "penalties": {"repeat_penalty": 1.1, "presence_penalty": 0.2, "temperature": 0.8},
    "typical 0.9": {"typical_p": 0.9},
    "mirostat 2": {"mirostat": 2},
}


def make_rows(kind: str, size: int, count: int) -> np.ndarray:
    generator = np.random.default_rng(20260101)
    rows = generator.normal(0, 2.2, (count, size))
    for row in rows:
        best = generator.integers(0, size, 400)
        row[best] += generator.gamma(2, 2.5 if kind == "sharp" else 1.6, 400)
    return (rows if kind == "sharp" else rows * 0.85).astype(np.float32)


def entropy(rows: np.ndarray) -> float:
    shares = np.exp(rows.astype(np.float64) - rows.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return float(np.mean(-(shares * np.log(shares + 1e-300)).sum(axis=1)))


def run(size: int, kind: str, rows: int, rounds: int) -> list[dict[str, Any]]:
    data = make_rows(kind, size, rows)
    print(f"\nvocabulary {size}, {kind} rows (entropy {entropy(data):.1f} nats)")
    print(f"{'':34}{'ours µs':>10}{'llama.cpp µs':>14}{'ratio':>8}")
    results = []
    for name, case in CASES.items():
        ours, peer = Sampler(size, seed=1, **case), Chain(size, seed=1, **case)
        history = list(range(64))
        ours.accept(history)
        peer.accept(history)
        layout = peer.rows(data[0])
        medians: tuple[list[float], list[float]] = ([], [])
        for turn in range(rounds + 1):
            times: tuple[list[int], list[int]] = ([], [])
            for row in data:
                start = time.perf_counter_ns()
                ours.sample(row)
                times[0].append(time.perf_counter_ns() - start)
                fresh = layout.copy()
                fresh["logit"] = row
                start = time.perf_counter_ns()
                peer.apply(fresh)
                times[1].append(time.perf_counter_ns() - start)
            if turn:  # the first round warms up
                for side in (0, 1):
                    medians[side].append(statistics.median(times[side]) / 1000)
        mine, theirs = min(medians[0]), min(medians[1])
        print(f"{name:34}{mine:10.1f}{theirs:14.1f}{theirs / mine:8.1f}")
        results.append({"vocabulary": size, "rows": kind, "case": name, "ours_us": round(mine, 1),
                        "llama_cpp_us": round(theirs, 1), "ratio": round(theirs / mine, 2)})  # fmt: skip
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    results = [
        result
        for size in (49_152, 131_072)
        for kind in ("sharp", "broad")
        for result in run(size, kind, arguments.rows, arguments.rounds)
    ]
    print(json.dumps({"benchmark": "sampler", "machine": platform.machine(), "simd": simd(), "results": results}))


if __name__ == "__main__":
    main()
