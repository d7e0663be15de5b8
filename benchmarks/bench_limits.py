"""What does one rate-limit check cost, and how does it compare with the PyPI package `limits` in memory?

Measured: CPU time of one call from Python (a busy neighbour does not count), in nanoseconds, as the median (and p99) of many batches, the contestants
taking turns in batches of about equal time, so that a busy machine is busy for all. Ours charges a minute and an hour together; `limits` is given its
cheapest strategy (fixed window), once for one window and once for both. Also our check over 200,000 sources in random
order (memory-bound), owner and key together, a hold with its settlement, and the whole Limiter step as the front calls it.

Not measured: contention between workers, Redis, HTTP. `limits` keeps its counts in one process; ours is shared by all.
The peer is needed: pip install limits. Last line: JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

from inferno_native.buckets import MAX_QUOTA, BucketTable
from limits import RateLimitItemPerHour, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from inferno.security.limit_policy import FAMILIES, Family
from inferno.security.limits import Limiter, LimitSettings, Subject
from inferno.storage.bucket_store import SharedBuckets

BATCH = 2000  # calls of the native table
SLOW_BATCH = 100  # calls of the Limiter and of the peer
SLOW = ("inferno: Limiter", "limits:")
QUOTAS = (MAX_QUOTA, MAX_QUOTA)


def contestants() -> dict[str, Callable[[], None]]:
    rng = random.Random(1)
    table = BucketTable.create(FAMILIES, num_owners=1, seed=bytes(16))
    table.bind(0, table.open_owner(0))
    family, owner, key = int(Family.SOURCE_4), b"0b6d1bd2-5a39-4d4e-8f19-0d8ff5b3c111", b"key 1"
    sources = [rng.randbytes(4) for _ in range(200_000)]
    pair = ((int(Family.PRINCIPAL), owner, QUOTAS), (int(Family.KEY), key, QUOTAS))
    tokens = ((int(Family.PRINCIPAL_TOKENS), owner, (MAX_QUOTA,)),)
    limiter = Limiter(SharedBuckets(table), LimitSettings(
        max_requests_per_minute_per_ip=MAX_QUOTA, max_requests_per_hour_per_ip=MAX_QUOTA,
        max_requests_per_minute=MAX_QUOTA, max_requests_per_hour=MAX_QUOTA))  # fmt: skip
    peer = FixedWindowRateLimiter(MemoryStorage())
    minute, hour = RateLimitItemPerMinute(MAX_QUOTA), RateLimitItemPerHour(MAX_QUOTA)
    principal = Subject(owner.decode())
    runner = asyncio.Runner()

    def ours(check=table.check, source=b"\xc0\x00\x02\x01"):
        for _ in range(BATCH):
            check(family, source, QUOTAS)

    def ours_refused(check=table.check, source=b"\xc0\x00\x02\x02"):
        for _ in range(BATCH):
            check(family, source, (1, 1))

    def ours_many(check=table.check):
        for source in rng.choices(sources, k=BATCH):
            check(family, source, QUOTAS)

    def choices_alone():
        for _source in rng.choices(sources, k=BATCH):
            pass

    def ours_pair(take=table.take):
        for _ in range(BATCH):
            take(pair)

    def ours_hold(hold=table.hold, settle=table.settle):
        for _ in range(BATCH):
            settle(hold(tokens, 100).hold, 10)

    async def steps():
        for _ in range(SLOW_BATCH):
            await limiter.check_source("192.0.2.1")

    async def request_steps():
        for _ in range(SLOW_BATCH):
            await limiter.check_requests(principal)

    def peer_one(hit=peer.hit):
        for _ in range(SLOW_BATCH):
            hit(minute, "192.0.2.1")

    def peer_both(hit=peer.hit):
        for _ in range(SLOW_BATCH):
            hit(minute, "192.0.2.1")
            hit(hour, "192.0.2.1")

    return {
        "inferno: minute and hour of one source": ours,
        "inferno: the same, refused": ours_refused,
        "inferno: one of 200,000 sources at random": ours_many,
        "(choosing the source at random)": choices_alone,
        "inferno: owner and key, minute and hour of each": ours_pair,
        "inferno: hold and settle": ours_hold,
        "inferno: Limiter.check_source, with its Decision": lambda: runner.run(steps()),
        "inferno: Limiter.check_requests, with its Decision": lambda: runner.run(request_steps()),
        "limits: one window": peer_one,
        "limits: minute and hour": peer_both,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=150)
    rounds = parser.parse_args().rounds
    running = contestants()
    times: dict[str, list[float]] = {name: [] for name in running}
    for round_number in range(rounds + 5):
        for name, batch in running.items():
            begin = time.thread_time_ns()
            batch()
            if round_number >= 5:  # the first are warm-up
                calls = SLOW_BATCH if name.startswith(SLOW) else BATCH
                times[name].append((time.thread_time_ns() - begin) / calls)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        print(f"{name:52} median {medians[name]:8.0f} ns   best {min(values):8.0f}   p99 {statistics.quantiles(values, n=100)[-1]:8.0f}")
    best = {name: min(values) for name, values in times.items()}
    ours, one, both = "inferno: minute and hour of one source", "limits: one window", "limits: minute and hour"
    ratio_one, ratio_both, ratio_best = medians[one] / medians[ours], medians[both] / medians[ours], best[one] / best[ours]
    print(f"limits / inferno: {ratio_one:.1f} x (its one window to our two), {ratio_both:.1f} x (both windows);"
          f" of the best batches {ratio_best:.1f} x")
    print(json.dumps({
        "question": "cost of one rate-limit check", "unit": "ns", "medians": {k: round(v) for k, v in medians.items()},
        "best": {k: round(v) for k, v in best.items()}, "ratio_best_one_window": round(ratio_best, 1),
        "ratio_one_window": round(ratio_one, 1), "ratio_both_windows": round(ratio_both, 1),
        "limits_version": version("limits"), "python": platform.python_version(), "machine": platform.machine(),
        "rounds": rounds, "batch": [BATCH, SLOW_BATCH],
    }))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
