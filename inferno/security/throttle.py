"""Delays after failed logins: they grow and decay per (account, source block) and per source block, and never lock.

A try is counted before the password is looked at and taken back when it was right, so parallel tries cannot slip
through. While a delay runs every answer is the same 429, also to the right password; nothing is hashed. Names are
those that were typed, known or not. State is in the shared identity table: all workers see one count.

There is no count per account alone: from another address the owner always gets in. Runs in front workers.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from typing import NamedTuple

from inferno_native.epochs import HEAT_UNIT, EpochTable

from ..errors import ApiError


class Curve(NamedTuple):
    """`free` failures cost nothing, then 1, 2, 4 … up to `max_delay_ms`; one failure is forgotten per `decay_ms`."""

    free: int
    max_delay_ms: int
    decay_ms: int

    def delay_ms(self, heat: int) -> int:
        """Return the delay after a failure that made `heat`."""
        excess = heat / HEAT_UNIT - self.free
        if excess <= 0:
            return 0
        return min(self.max_delay_ms, int(1000 * 2.0 ** min(excess - 1, 30)))


PAIR = Curve(free=5, max_delay_ms=60_000, decay_ms=60_000)
SOURCE = Curve(free=20, max_delay_ms=60_000, decay_ms=15_000)


class Attempt(NamedTuple):
    """A try that was let through; give it back with `succeeded` when the password was right."""

    pair: int
    source: int


class LoginThrottle:
    """Asks and tells the shared table."""

    def __init__(
        self,
        table: EpochTable,
        key: bytes,
        *,
        clock: Callable[[], float] = time.monotonic,
        pair: Curve = PAIR,
        source: Curve = SOURCE,
    ) -> None:
        self._table = table
        self._key = hmac.digest(
            key, b"inferno/throttle/v1", "sha256"
        )  # so nobody can aim at another's counter
        self._clock = clock
        self._pair = pair
        self._source = source

    def begin(self, name_key: str, block: str) -> Attempt:
        """Count a try, or raise ApiError(rate_limit_exceeded) while a delay runs."""
        now = int(self._clock() * 1000) & ((1 << 40) - 1)
        attempt = Attempt(self._digest("pair", name_key, block), self._digest("source", "", block))
        wait = max(
            self._wait_ms(attempt.pair, self._pair, now), self._wait_ms(attempt.source, self._source, now)
        )
        if wait > 0:
            raise ApiError(
                "rate_limit_exceeded",
                "Too many failed logins. Wait, then try again.",
                retry_after=wait / 1000,
            )
        self._table.add_heat(attempt.pair, now, HEAT_UNIT, self._pair.decay_ms)
        self._table.add_heat(attempt.source, now, HEAT_UNIT, self._source.decay_ms)
        return attempt

    def succeeded(self, attempt: Attempt) -> None:
        """The password was right: the pair starts anew, the source gets its one try back."""
        self._table.take_heat(attempt.pair, (1 << 32) - 1)
        self._table.take_heat(attempt.source, HEAT_UNIT)

    def give_back(self, attempt: Attempt) -> None:
        """The try was not decided (queue full, database lost): it counts for nothing."""
        self._table.take_heat(attempt.pair, HEAT_UNIT)
        self._table.take_heat(attempt.source, HEAT_UNIT)

    def _wait_ms(self, digest: int, curve: Curve, now: int) -> int:
        heat, last = self._table.heat(digest)
        return last + curve.delay_ms(heat) - now if last <= now else 0

    def _digest(self, kind: str, name_key: str, block: str) -> int:
        data = f"{kind}\0{len(name_key)}\0{name_key}\0{block}".encode("utf-8", "surrogatepass")
        return int.from_bytes(hmac.digest(self._key, data, "sha256")[:8], "big")
