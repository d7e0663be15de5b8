"""Does hashing a model through its descriptor cost more than the library's own hashing of it?

Measured, in one process, on a file in the page cache: `inferno.digests.sha256_fd`, `corruption_check_fd` (xxh3) and `digests_fd` (both), beside
hashlib.file_digest and the same library over reads of 1 MiB (its own speed on a file), and over bytes that are in memory
already (its speed without any reading: an upper bound that no reader reaches). Not measured: disk, verification.

    python benchmarks/bench_digest.py FILE

Contenders take turns; medians, ratios of medians; the last line is JSON. The bar is 0.9 for SHA-256 beside
hashlib.file_digest.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import xxhash

from inferno.digests import corruption_check_fd, digests_fd, sha256_fd

ROUNDS = 9


def main(path: str) -> int:
    data = Path(path).read_bytes()
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def file_digest() -> str:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def xxh3_reads() -> str:
        state = xxhash.xxh3_128()
        with open(path, "rb") as file:
            while part := file.read(1 << 20):
                state.update(part)
        return state.hexdigest()

    contenders: dict[str, Callable[[], str]] = {
        "sha256 ours": lambda: sha256_fd(fd),
        "both ours": lambda: digests_fd(fd).sha256,
        "sha256 hashlib.file_digest": file_digest,
        "sha256 in memory": lambda: hashlib.sha256(data).hexdigest(),
        "xxh3 ours": lambda: corruption_check_fd(fd),
        "xxh3 1 MiB reads": xxh3_reads,
        "xxh3 in memory": lambda: xxhash.xxh3_128(data).hexdigest(),
    }
    rounds: dict[str, list[float]] = {name: [] for name in contenders}
    for function in contenders.values():
        function()
    for _ in range(ROUNDS):
        for name, function in contenders.items():
            start = time.perf_counter()
            function()
            rounds[name].append(time.perf_counter() - start)
    speed = {name: len(data) / statistics.median(values) / 1e9 for name, values in rounds.items()}
    for name, value in speed.items():
        print(f"{name:28} {value:7.2f} GB/s")
    ratios = {
        "sha256_to_file_digest": speed["sha256 ours"] / speed["sha256 hashlib.file_digest"],
        "both_to_file_digest": speed["both ours"] / speed["sha256 hashlib.file_digest"],
        "sha256_to_memory": speed["sha256 ours"] / speed["sha256 in memory"],
        "xxh3_to_reads": speed["xxh3 ours"] / speed["xxh3 1 MiB reads"],
        "xxh3_to_memory": speed["xxh3 ours"] / speed["xxh3 in memory"],
    }
    print(json.dumps({
        "benchmark": "digest", "machine": platform.machine(), "cpus": os.cpu_count(), "load": os.getloadavg()[0],
        "bytes": len(data), "gb_per_s": {name: round(value, 3) for name, value in speed.items()},
        "ratios": {name: round(value, 3) for name, value in ratios.items()},
    }))
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    raise SystemExit(main(sys.argv[1]))
