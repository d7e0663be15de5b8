"""The plain-Python twin of inferno_native.buckets: the same rules with dictionaries and integers of any size.

No table of fixed size, hence no eviction and no overflow bucket; no processes. Written from the rules, not from the
native code: a bucket is kept as what is *left* and its fraction, as exact fractions of a permit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

Part = tuple[int, bytes, tuple["int | None", ...]]


@dataclass
class Bucket:
    used: list[Fraction]
    quota: list[int | None]
    updated_us: int


@dataclass
class ReferenceBuckets:
    """Families as for BucketTable.create: (num_entries, windows_us, counting)."""

    families: list[tuple[int, tuple[int, ...], bool]]
    now_us: int = 1
    buckets: dict[tuple[int, bytes], Bucket] = field(default_factory=dict)
    holds: dict[int, tuple[tuple[Part, ...], int]] = field(default_factory=dict)
    next_hold: int = 1

    def take(self, parts: tuple[Part, ...], cost: int) -> tuple[str, list[tuple[int, int, int, int, int, int]]]:
        """Return the status and the states, one (part, window, quota, remaining, full in us, fits in us) per limit."""
        status = "admitted"
        planned = []
        states = []
        for family, key, quotas in parts:
            used = self._used_now(family, key, quotas)
            planned.append(used)
            for left, quota in zip(used, quotas, strict=True):
                if quota is None:
                    continue
                if cost > quota:
                    status = "too large"
                elif left + cost > quota and status == "admitted":
                    status = "refused"
        for number, (family, key, quotas) in enumerate(parts):
            _, windows_us, counting = self.families[family]
            used = planned[number]
            for window, quota in enumerate(quotas):
                if quota is None:
                    continue
                excess = used[window] + cost - quota
                wait = -(-excess * windows_us[window] // quota) if excess > 0 and cost <= quota and not counting else 0
                after = used[window] + cost if status == "admitted" else used[window]
                states.append((number, window, quota, max(0, int(quota - after)),
                               -(-after * windows_us[window] // quota), wait))
                if status == "admitted":
                    used[window] = after
            if status == "admitted" and cost:
                self.buckets[family, key] = Bucket(used, list(quotas), self.now_us)
        return status, states

    def hold(self, parts: tuple[Part, ...], cost: int) -> tuple[str, list[tuple[int, int, int, int, int, int]], int]:
        status, states = self.take(parts, cost)
        if status != "admitted":
            return status, states, 0
        self.next_hold += 1
        self.holds[self.next_hold] = (parts, cost)
        return status, states, self.next_hold

    def settle(self, hold: int, spent: int) -> bool:
        if hold not in self.holds:
            return False
        parts, cost = self.holds.pop(hold)
        for family, key, _ in parts:
            bucket = self.buckets[family, key]
            used = self._used_now(family, key, tuple(bucket.quota))
            for window, quota in enumerate(bucket.quota):
                if quota is not None:
                    most = quota if spent > cost else used[window]
                    used[window] = max(Fraction(0), min(Fraction(most), used[window] + spent - cost))
            self.buckets[family, key] = Bucket(used, bucket.quota, self.now_us)
        return True

    def _used_now(self, family: int, key: bytes, quotas: tuple[int | None, ...]) -> list[Fraction]:
        _, windows_us, counting = self.families[family]
        bucket = self.buckets.get((family, key)) or Bucket([Fraction(0)] * len(windows_us), list(quotas), self.now_us)
        result = []
        for window, quota in enumerate(quotas):
            used = bucket.used[window]
            if quota is None:
                used = Fraction(0)
            elif not counting:
                back = Fraction((self.now_us - bucket.updated_us) * quota, windows_us[window])
                used = max(Fraction(0), min(used, Fraction(quota)) - back)
            result.append(used)
        return result
