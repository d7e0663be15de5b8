"""What a store of rate buckets must do, and the store in shared memory.

Owns the seam between limits (security/limits.py: whose bucket, which quota) and where buckets live: this host's shared
memory, or Redis for many hosts (storage/redis.py). Does not know what families and keys mean. Runs in the front workers.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from inferno_native.buckets import BucketsError, BucketTable


class BucketFamily(NamedTuple):
    """Buckets of one kind: how many the shared table keeps, their windows, and whether they count instead of refill."""

    num_entries: int
    windows_us: tuple[int, ...]
    counting: bool = False


HOLDS_PER_OWNER = 8192
Quotas = tuple[int | None, ...]
Part = tuple[int, bytes, Quotas]  # family (index), key, permits per window
State = tuple[
    int, int, int, int, int, int
]  # part, window, quota, remaining, us until full, us until the cost fits
HoldId = int | str


class Outcome(Protocol):
    """Result of a charge; `status` is one of inferno_native.buckets' ADMITTED, REFUSED, TOO_LARGE, NO_HOLD."""

    @property
    def status(self) -> int: ...
    @property
    def hold(self) -> HoldId: ...
    @property
    def states(self) -> tuple[State, ...]: ...


class StoreUnavailable(Exception):
    """The store did not answer, or not in time: nobody knows whether the charge fits."""


class BucketStore(Protocol):
    """Charges are all or nothing over their parts; a hold is a charge that is settled once."""

    async def take(self, parts: tuple[Part, ...], cost: int = 1) -> Outcome:
        """Charge `cost` to every part, or look only when it is 0; StoreUnavailable when that cannot be known."""

    async def hold(self, parts: tuple[Part, ...], cost: int, spent: int = 0) -> Outcome:
        """Charge and keep open; `spent` stays charged if this process dies before it settles."""

    def settle(self, hold: HoldId, spent: int) -> None:
        """Correct the charge, once. Never waits and never raises: it is called while things go wrong."""

    def note(self, hold: HoldId, spent: int) -> None:
        """Remember what was spent so far, for whoever settles if this process dies."""

    async def close(self) -> None: ...


class SharedBuckets:
    """The buckets of this host, in the table that the supervisor made and every worker maps."""

    def __init__(self, table: BucketTable) -> None:
        self.table = table

    async def take(self, parts: tuple[Part, ...], cost: int = 1) -> Outcome:
        try:
            if len(parts) == 1:
                return self.table.check(*parts[0], cost)
            return self.table.take(parts, cost)
        except BucketsError as error:
            raise StoreUnavailable(str(error)) from error

    async def hold(self, parts: tuple[Part, ...], cost: int, spent: int = 0) -> Outcome:
        try:
            return self.table.hold(parts, cost, spent)
        except BucketsError as error:
            raise StoreUnavailable(str(error)) from error

    def settle(self, hold: HoldId, spent: int) -> None:
        try:
            self.table.settle(int(hold), spent)
        except BucketsError:
            pass  # the supervisor settles what this owner leaves open

    def note(self, hold: HoldId, spent: int) -> None:
        try:
            self.table.note(int(hold), spent)
        except BucketsError:
            pass

    async def close(self) -> None:
        self.table.close()


def create_shared_table(
    families: Sequence[BucketFamily],
    num_owners: int,
    holds_per_owner: int = HOLDS_PER_OWNER,
    *,
    manual_clock: bool = False,
) -> BucketTable:
    """Make the table in the supervisor; pass `table.fd` and open_owner's generation to each worker."""
    return BucketTable.create(
        families, num_owners=num_owners, holds_per_owner=holds_per_owner, manual_clock=manual_clock
    )


def attach_shared_buckets(fd: int, slot: int, generation: int) -> SharedBuckets:
    """Map the supervisor's table in a worker, as the owner that open_owner(slot) prepared."""
    table = BucketTable.attach(fd)
    table.bind(slot, generation)
    return SharedBuckets(table)
