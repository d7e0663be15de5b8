"""The workers of this server as owners of holds in Redis: named for each, settled for when one dies.

A concurrency slot of a dead worker would otherwise stay taken until its lease ends. The names start with a random part
that the supervisor makes at its start and every worker reads from a shared descriptor, as it reads any shared table.
Knows no limits. The names are made in front workers, the rest runs in the supervisor.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import tempfile
from collections.abc import Callable, Sequence

from .bucket_store import BucketFamily, StoreUnavailable
from .redis import RedisBuckets

TABLE_NAME = "redis_owners"
_NAME_BYTES = 16
_log = logging.getLogger("inferno.limits")


def owner_name(fd: int, worker: int) -> str:
    """Return the name of a worker of the server whose shared descriptor this is."""
    return f"{socket.gethostname()}-{os.pread(fd, _NAME_BYTES, 0).hex()}-{worker}"


class RedisOwners:
    """Implements pool.tables.SharedTable: what is shared is the server's random name."""

    def __init__(
        self,
        url: str,
        families: Sequence[BucketFamily],
        *,
        connect: Callable[..., RedisBuckets] = RedisBuckets,
    ) -> None:
        self._url = url
        self._families = tuple(families)
        self._connect = connect
        self._tasks: set[asyncio.Task[None]] = set()
        self.fd = _anonymous_file()
        os.write(self.fd, secrets.token_bytes(_NAME_BYTES))

    def worker_started(self, worker: int) -> list[int]:
        return []

    def worker_gone(self, worker: int) -> None:
        """Settle what it left open, in the background: an unreachable store must not hold up its successor."""
        task = asyncio.get_running_loop().create_task(self._release(owner_name(self.fd, worker)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def released(self) -> None:
        """Wait until everything that was begun is done."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        os.close(self.fd)

    async def _release(self, owner: str) -> None:
        store = self._connect(self._url, self._families, "supervisor")
        try:
            num_holds = await store.release_owner(owner)
        except StoreUnavailable as error:
            _log.warning("holds of an ended worker stay until their lease ends: %s", error)
        else:
            if num_holds:
                _log.info("%d holds of an ended worker are settled", num_holds)
        finally:
            await store.close()


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("inferno-owners", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
