"""The shared table of rate buckets in the supervisor: made before any worker, owners given out, the dead settled.

Implements the pool's SharedTable. A worker asks with the verb `buckets.owner` which place of the table is its own;
what it held there when it ended is settled by `worker_gone`. Knows no limits. Runs in the supervisor.
"""

from __future__ import annotations

from typing import Any, Protocol

from ..errors import ApiError
from ..storage.bucket_store import create_shared_table
from .limit_policy import FAMILIES

TABLE_NAME = "buckets"
OWNER_VERB = "buckets.owner"


class _Caller(Protocol):
    @property
    def worker(self) -> int | None: ...


class LimitTable:
    """`num_workers` is how many live at once; twice as many may while workers are replaced."""

    def __init__(self, num_workers: int) -> None:
        num_owners = 2 * num_workers + 2
        self._table = create_shared_table(FAMILIES, num_owners)
        self._free = list(range(num_owners - 1, -1, -1))
        self._owners: dict[int, tuple[int, int]] = {}  # worker → (place, generation)

    @property
    def fd(self) -> int:
        return self._table.fd

    async def owner(self, arguments: dict[str, Any], caller: _Caller) -> dict[str, int]:
        """The verb: give the calling worker its place. Raises ApiError."""
        worker = caller.worker
        if worker is None:
            raise ApiError("not_found", "Only a worker owns a part of the table.")
        if worker not in self._owners:
            if not self._free:
                raise ApiError("overloaded", "Every place of the table of limits is taken.")
            place = self._free.pop()
            self._owners[worker] = (place, self._table.open_owner(place))
        place, generation = self._owners[worker]
        return {"slot": place, "generation": generation}

    def worker_gone(self, worker: int) -> None:
        found = self._owners.pop(worker, None)
        if found is not None:
            self._table.release_owner(*found)
            self._free.append(found[0])

    def close(self) -> None:
        self._table.close()
