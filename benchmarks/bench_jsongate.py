"""What does the strict JSON gate add to decoding a request body?

Measured in one process and one run: inferno_native.jsongate over bodies of prose, of many small messages and of token
ids, beside msgspec's decode of the same bytes (which follows in the server) and Python's json.loads as the peer. Warm-up,
median of nine. Not measured: reading the body, the structs. Last line: JSON.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable

import msgspec
from inferno_native import jsongate

ROUNDS = 9


def bodies() -> dict[str, bytes]:
    source = random.Random(7)
    words = ["the", "quick", "brown", "fox", "über", "日本", "jumps", "over", "lazy", "dogs"]
    prose = " ".join(source.choices(words, k=180_000))
    small = [{"role": "user", "content": " ".join(source.choices(words, k=12))} for _ in range(9000)]
    tokens = [source.randrange(50_000) for _ in range(170_000)]
    return {
        "prose": json.dumps({"messages": [{"role": "user", "content": prose}]}, ensure_ascii=False).encode(),
        "escaped": json.dumps({"messages": [{"role": "user", "content": prose}]}).encode(),
        "messages": json.dumps({"messages": small}, ensure_ascii=False).encode(),
        "tokens": json.dumps({"prompt": tokens}).encode(),
    }


def milliseconds(run: Callable[[], object]) -> float:
    run()
    found = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        run()
        found.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(found)


def main() -> None:
    results = {}
    for name, body in bodies().items():
        if jsongate.check(body) is not None:
            raise SystemExit(f"the body {name} was refused")
        gate = milliseconds(lambda body=body: jsongate.check(body))  # type: ignore[misc]
        decode = milliseconds(lambda body=body: msgspec.json.decode(body))  # type: ignore[misc]
        peer = milliseconds(lambda body=body: json.loads(body))  # type: ignore[misc]
        results[name] = {
            "megabytes": round(len(body) / 1e6, 2),
            "gate_ms": round(gate, 3),
            "gate_mb_per_second": round(len(body) / gate / 1e3),
            "msgspec_ms": round(decode, 3),
            "json_ms": round(peer, 3),
        }
        print(
            f"{name:9} {len(body) / 1e6:5.2f} MB   gate {gate:7.3f} ms ({len(body) / gate / 1e3:6.0f} MB/s)   "
            f"msgspec {decode:7.3f} ms   json {peer:7.3f} ms   gate/msgspec {gate / decode:.2f}"
        )
    machine = {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps({"benchmark": "jsongate", **results, **machine}))


if __name__ == "__main__":
    main()
