"""Rate buckets in Redis or Valkey, shared by many hosts: the rules of inferno_native.buckets as Lua scripts.

Owns the connection, the key names and the upkeep of open holds. A charge is one script, one round trip, on the server's
clock. Does not know whose buckets these are. Runs in the front workers, and in the supervisor to settle for dead ones.

A settlement waits for nobody: it is queued and sent by a task, again after a failure. A hold that is neither settled nor
renewed, because its host died, ends by itself: a concurrency slot after LEASE_SECONDS, while a reservation of tokens
stays charged and is given back by time as any charge is. Keys hold digests, not names.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b
from importlib.resources import files
from typing import Any, cast

import redis.asyncio
from inferno_native.buckets import ADMITTED
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from inferno.storage.bucket_store import BucketFamily, HoldId, Part, State, StoreUnavailable

PREFIX = "inferno:{limits}:"
LEASE_SECONDS = 60
RENEW_SECONDS = 20
HOLD_TTL_SECONDS = 3600
TIMEOUT_SECONDS = 2.0
MAX_CONNECTIONS = 16
POOL_TIMEOUT_SECONDS = 2.0
# Redis forgets a bucket this long after it is full again, so that a flood of sources leaves soon.
SLACK_MS = 1000
INJECTED_CLOCK_SLACK_MS = 86_400_000
RETRY_SECONDS = 1.0
MAX_PENDING = 100_000


class RedisOutcome:
    """Result of a charge; what is used came exact, the rest is computed here."""

    def __init__(self, status: int, hold: HoldId, states: tuple[State, ...]) -> None:
        self.status = status
        self.hold = hold
        self.states = states


class RedisBuckets:
    """Implements BucketStore. `owner` names this worker among all hosts: `release_owner` settles what it leaves.

    `now_us` replaces the server's clock (tests); buckets are then kept longer than they need, since Redis forgets by
    its own clock. `breaker_seconds` is how long a store that failed is not asked again, so that requests are answered
    at once meanwhile.
    """

    def __init__(
        self,
        url: str,
        families: Sequence[BucketFamily],
        owner: str,
        *,
        now_us: Callable[[], int] | None = None,
        breaker_seconds: float = RETRY_SECONDS,
        prefix: str = PREFIX,
    ) -> None:
        self.families = tuple(families)
        # The client knows its own names only: valkey:// and valkeys:// are redis:// and rediss:// to it.
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            "redis" + url.removeprefix("valkey") if url.startswith("valkey") else url,
            max_connections=MAX_CONNECTIONS,
            timeout=POOL_TIMEOUT_SECONDS,
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            protocol=2,  # its greeting is one round trip less
            retry=Retry(NoBackoff(), 0),  # a charge that may have happened is not sent again
        )
        self._client = redis.asyncio.Redis.from_pool(pool)
        self._prefix = prefix
        self._owner_key = self._owner_name(owner)
        self._now_us = now_us
        self._slack_ms = SLACK_MS if now_us is None else INJECTED_CLOCK_SLACK_MS
        self._breaker_seconds = breaker_seconds
        self._down_until = 0.0
        common = _script("buckets_common")
        self._take_script = self._client.register_script(common + _script("buckets_take"))
        self._settle_script = self._client.register_script(common + _script("buckets_settle"))
        self._renew_script = self._client.register_script(common + _script("buckets_renew"))
        self._release_script = self._client.register_script(common + _script("buckets_release"))
        self._open: dict[str, int] = {}  # hold → spent so far
        self._pending: dict[str, int] = {}  # hold → what to settle it at
        self._wake = asyncio.Event()
        self._closing = False
        self._upkeep: asyncio.Task[None] | None = None

    async def take(self, parts: tuple[Part, ...], cost: int = 1) -> RedisOutcome:
        return await self._run_take(parts, cost, -1, None)

    async def hold(self, parts: tuple[Part, ...], cost: int, spent: int = 0) -> RedisOutcome:
        self._refuse_while_down()
        hold = f"{self._prefix}hold:{secrets.token_hex(12)}"
        outcome = None
        try:
            outcome = await self._run_take(parts, cost, spent, hold)
        finally:
            if outcome is None:  # cancelled or no answer: it may have been charged, and nobody will settle it
                self._queue(hold, 0)
        if outcome.status == ADMITTED:
            self._open[hold] = spent
            self._start_upkeep()
        return outcome

    def settle(self, hold: HoldId, spent: int) -> None:
        if self._open.pop(str(hold), None) is not None:
            self._queue(str(hold), spent)

    def note(self, hold: HoldId, spent: int) -> None:
        if str(hold) in self._open:
            self._open[str(hold)] = spent

    async def release_owner(self, owner: str) -> int:
        """Settle what a dead worker left open and return how many holds that were."""
        return int(
            await self._run(self._release_script, [self._owner_name(owner)], [self._now(), self._slack_ms])
        )

    async def flush(self) -> None:
        """Send all queued settlements; StoreUnavailable leaves them queued."""
        while self._pending:
            batch = dict(list(self._pending.items())[:500])
            await self._run(self._settle_script, list(batch), [self._now(), self._slack_ms, *batch.values()])
            for hold in batch:
                self._pending.pop(hold, None)

    async def renew(self) -> None:
        """Keep this worker's open holds alive for another lease."""
        holds = list(self._open.items())
        for start in range(0, len(holds), 500):
            batch = dict(holds[start : start + 500])
            await self._run(
                self._renew_script,
                [self._owner_key, *batch],
                [
                    self._now(),
                    self._slack_ms,
                    LEASE_SECONDS * 1_000_000,
                    HOLD_TTL_SECONDS * 1000,
                    *batch.values(),
                ],
            )

    async def close(self) -> None:
        self._closing = True
        self._wake.set()
        if self._upkeep is not None:
            await self._upkeep
        with contextlib.suppress(StoreUnavailable):
            await self.flush()
        await self._client.aclose()

    # --- private

    def _queue(self, hold: str, spent: int) -> None:
        if len(self._pending) < MAX_PENDING:
            self._pending[hold] = spent
            self._wake.set()
            self._start_upkeep()

    def _start_upkeep(self) -> None:
        if self._upkeep is None and not self._closing:
            self._upkeep = asyncio.create_task(self._keep_up())

    async def _run_take(
        self, parts: tuple[Part, ...], cost: int, spent: int, hold: str | None
    ) -> RedisOutcome:
        keys = [self._bucket_name(family, key) for family, key, _ in parts]
        arguments: list[str | int] = [
            self._now(),
            cost,
            self._slack_ms,
            spent,
            LEASE_SECONDS * 1_000_000,
            HOLD_TTL_SECONDS * 1000,
        ]
        for family, _, quotas in parts:
            kind = self.families[family]
            if kind.counting and cost and (hold is None or cost != 1):
                raise ValueError("a counting family is charged by holds of one permit")
            arguments += ["1" if kind.counting else "0", len(quotas)]
            for window_us, quota in zip(kind.windows_us, quotas, strict=True):
                arguments += [window_us, -1 if quota is None else quota]
        if hold is not None:
            keys += [hold, self._owner_key]
        status, *used = [int(number) for number in await self._run(self._take_script, keys, arguments)]
        return RedisOutcome(status, hold or 0, self._states(parts, status, cost, used))

    def _states(self, parts: tuple[Part, ...], status: int, cost: int, used: list[int]) -> tuple[State, ...]:
        states: list[State] = []
        position = 0
        for index, (family, _, quotas) in enumerate(parts):
            kind = self.families[family]
            for window, (window_us, quota) in enumerate(zip(kind.windows_us, quotas, strict=True)):
                scaled = used[position] * window_us + used[position + 1]
                position += 2
                if quota is None:
                    continue
                capacity = quota * window_us
                excess = scaled + cost * window_us - capacity
                waits = status != ADMITTED and cost <= quota and excess > 0 and not kind.counting
                states.append(
                    (
                        index,
                        window,
                        quota,
                        max(0, capacity - scaled) // window_us,
                        -(-scaled // quota),
                        -(-excess // quota) if waits else 0,
                    )
                )
        return tuple(states)

    def _refuse_while_down(self) -> None:
        if time.monotonic() < self._down_until:
            raise StoreUnavailable("the limit store failed a moment ago")

    async def _run(self, script: Any, keys: list[str], arguments: list[Any]) -> Any:
        self._refuse_while_down()
        try:
            return await cast(Awaitable[Any], script(keys=keys, args=arguments))
        except (RedisError, OSError, TimeoutError) as error:
            self._down_until = time.monotonic() + self._breaker_seconds
            raise StoreUnavailable(f"the limit store failed: {type(error).__name__}") from error

    async def _keep_up(self) -> None:
        """Send settlements as they come and renew holds in time; after a failure, again in RETRY_SECONDS."""
        pause = RENEW_SECONDS / 4
        renewed = time.monotonic()
        while not self._closing:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self.flush()
                if time.monotonic() - renewed >= RENEW_SECONDS:
                    await self.renew()
                    renewed = time.monotonic()
                pause = RENEW_SECONDS / 4
            except StoreUnavailable:
                pause = RETRY_SECONDS

    def _now(self) -> str | int:
        return "" if self._now_us is None else self._now_us()

    def _bucket_name(self, family: int, key: bytes) -> str:
        return f"{self._prefix}{int(family)}:{blake2b(key, digest_size=16).hexdigest()}"

    def _owner_name(self, owner: str) -> str:
        return f"{self._prefix}owner:{owner}"


def _script(name: str) -> str:
    return files("inferno.storage").joinpath(f"{name}.lua").read_text("ascii") + "\n"
