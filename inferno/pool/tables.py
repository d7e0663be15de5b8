"""Shared tables: anonymous memory that the supervisor makes before any worker and that outlives all of them.

Each is known by a name ("epochs", "buckets") and handed to every worker as a descriptor, with the few numbers that the
table wants this worker to have (WorkerSettings.table_arguments). What lies in one is the matter of who made it.
"""

from __future__ import annotations

from typing import Protocol


class SharedTable(Protocol):
    """One table."""

    @property
    def fd(self) -> int: ...

    def worker_started(self, worker: int) -> list[int]:
        """Make room for a worker before it starts; return what it is told."""
        ...

    def worker_gone(self, worker: int) -> None:
        """Free what an ended worker held."""
        ...

    def close(self) -> None: ...


class ServerPart(Protocol):
    """Something that works in the supervisor beside the pool: upkeep, a store, a writer. Started before the workers
    in the order given, closed after them in the opposite order."""

    async def start(self) -> None: ...
    async def close(self) -> None: ...
