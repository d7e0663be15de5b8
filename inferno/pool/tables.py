"""Shared tables: anonymous memory that the supervisor makes before any worker and that outlives all of them.

Each is known by a name ("epochs", "buckets") and handed to every worker as a descriptor. What lies in one is the
matter of who made it.
"""

from __future__ import annotations

from typing import Protocol


class SharedTable(Protocol):
    """One table. `worker_gone` frees what a dead worker held."""

    @property
    def fd(self) -> int: ...
    def worker_gone(self, worker: int) -> None: ...
    def close(self) -> None: ...
