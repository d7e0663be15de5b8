"""How many connections are open over all workers: in total for each listener, and from each source.

The kernel spreads connections over workers as it likes, so a share for each worker would refuse some while others have
room. Counted in a table of its own (inferno_native.buckets, families that count): what a dead worker held, the
supervisor gives back. The supervisor makes the table, front workers count in it. Does not know HTTP.
"""

from __future__ import annotations

from inferno_native.buckets import ADMITTED, BucketsError, BucketTable

from ..storage.bucket_store import BucketFamily, Part

TABLE_NAME = "connections"
MAX_HOLDS = 65_536  # of one worker: more connections than that in one process are refused
SPARE_HOLDS = 256
LISTENERS, SOURCES = 0, 1
CONNECTION_FAMILIES = (
    BucketFamily(16, (1,), counting=True),
    BucketFamily(50_000, (1,), counting=True),
)


def holds_for(max_connections: int) -> int:
    """Return how many connections one worker's part of the table has room for."""
    return min(MAX_HOLDS, max_connections + SPARE_HOLDS)


class ConnectionCounts:
    """One listener of one worker."""

    def __init__(
        self, table: BucketTable, listener: str, *, max_connections: int, max_connections_per_ip: int
    ) -> None:
        self._table = table
        self._listener = listener.encode()
        self._max_connections = max_connections
        self._max_connections_per_ip = max_connections_per_ip

    def take(self, source: str | None) -> int | str:
        """Count one more connection; return what `give_back` is told, or the error code when there are too many.

        `source` None: a trusted proxy, whose connections only count in total.
        """
        parts: tuple[Part, ...] = ((LISTENERS, self._listener, (self._max_connections,)),)
        if source is not None:
            key = self._listener + b" " + source.encode()
            parts += ((SOURCES, key, (self._max_connections_per_ip,)),)
        try:
            outcome = self._table.hold(parts, 1, 0)
        except BucketsError:
            return "overloaded"
        if outcome.status == ADMITTED:
            return outcome.hold
        is_source = any(part == SOURCES and remaining == 0 for part, _, _, remaining, _, _ in outcome.states)
        has_room = any(part == LISTENERS and remaining > 0 for part, _, _, remaining, _, _ in outcome.states)
        return "rate_limit_exceeded" if is_source and has_room else "overloaded"

    def give_back(self, hold: int) -> None:
        """Count one less. Never raises: what stays is given back when this worker ends."""
        try:
            self._table.settle(hold, 0)
        except BucketsError:
            pass


def attach_counts(fd: int, slot: int, generation: int) -> BucketTable:
    """Map the supervisor's table in a worker, as the owner that open_owner(slot) prepared."""
    table = BucketTable.attach(fd)
    table.bind(slot, generation)
    return table
