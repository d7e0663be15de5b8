"""What a server holds beside the pool: the audit log, the shared tables, the accounts and their upkeep.

Built by `inferno serve` from settings and secrets and handed to the supervisor, which knows them as an AuditSink, as
SharedTables and as ServerParts. Each part is here only when its setting is on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from inferno_native.buckets import BucketTable
from inferno_native.epochs import EpochTable

from ..config import Settings
from ..datadir import DataDir
from ..pool.audit_sink import AuditSink, LogSink
from ..pool.tables import SharedTable
from ..pool.verbs import Verbs
from ..security import connection_limits
from ..security.audit import AuditLog, AuditWriter
from ..security.host import EPOCHS, IdentityHost, audit_place
from ..security.limits import FAMILIES
from ..security.verbs import audit_verbs, identity_verbs
from ..storage.bucket_store import HOLDS_PER_OWNER, BucketFamily, create_shared_table
from . import model_audit

# Owners of bucket holds: each worker, and as many again while SIGUSR2 replaces them.
_SPARE_OWNERS = 8


def make_audit(settings: Settings, data: DataDir) -> AuditSink:
    """Open the audit log, or let events go to the ordinary log when it is off. Raises StartError."""
    if not settings.security.audit_logging_enabled:
        return LogSink()
    place = audit_place(settings, data.read_key("audit"))
    writer = AuditWriter(place.path, place.head_path, place.key)
    writer.open()
    return AuditLog(writer)


class EpochsTable:
    """The identity epochs, as a shared table: nothing in it belongs to one worker."""

    def __init__(self) -> None:
        self.epochs = EpochTable.create()

    @property
    def fd(self) -> int:
        return self.epochs.fd

    def worker_started(self, worker: int) -> list[int]:
        return []

    def worker_gone(self, worker: int) -> None:
        """It may have died between a commit and its bump."""
        self.epochs.bump_all()

    def close(self) -> None:
        self.epochs.close()


class BucketsTable:
    """The rate buckets, or the counts of connections.

    Each worker is one owner of holds (a slot and its generation), settled when it ends.
    """

    def __init__(
        self,
        num_workers: int,
        families: Sequence[BucketFamily] = FAMILIES,
        holds_per_owner: int = HOLDS_PER_OWNER,
    ) -> None:
        num_owners = 2 * num_workers + _SPARE_OWNERS
        self.buckets: BucketTable = create_shared_table(families, num_owners, holds_per_owner)
        self._free = list(range(num_owners))
        self._owners: dict[int, tuple[int, int]] = {}

    @property
    def fd(self) -> int:
        return self.buckets.fd

    def worker_started(self, worker: int) -> list[int]:
        slot = self._free.pop(0)
        generation = self.buckets.open_owner(slot)
        self._owners[worker] = slot, generation
        return [slot, generation]

    def worker_gone(self, worker: int) -> None:
        owner = self._owners.pop(worker, None)
        if owner is not None:
            self.buckets.release_owner(*owner)
            self._free.append(owner[0])

    def close(self) -> None:
        self.buckets.close()


def make_verbs(
    settings: Settings, data: DataDir, audit: AuditSink, identities: IdentityHost | None
) -> Verbs:
    """Return the verbs of accounts, keys, audit and model notes, as far as they are on."""
    verbs = Verbs()
    found = {} if identities is None else identity_verbs(identities)
    if settings.security.audit_logging_enabled:
        found |= audit_verbs(audit_place(settings, data.read_key("audit")), audit)
        model_audit.register(verbs, audit)
    for name, (handler, callers) in found.items():
        verbs.register(name, handler, callers)
    return verbs


def table_maker(settings: Settings, epochs: EpochsTable | None) -> Callable[[], dict[str, SharedTable]]:
    """Return what makes the shared tables at the start."""

    def make() -> dict[str, SharedTable]:
        tables: dict[str, SharedTable] = {}
        if epochs is not None:
            tables[EPOCHS] = epochs
        server = settings.server
        tables[connection_limits.TABLE_NAME] = BucketsTable(
            server.workers,
            connection_limits.CONNECTION_FAMILIES,
            connection_limits.holds_for(server.max_connections),
        )
        if settings.limits.url == "shm:":  # logins, key creations and concurrency are limited whatever else is
            tables["buckets"] = BucketsTable(server.workers)
        if settings.limits.url != "shm:":
            from ..storage import redis_owners  # an extra: imported only where it is configured

            tables[redis_owners.TABLE_NAME] = redis_owners.RedisOwners(settings.limits.url, FAMILIES)
        return tables

    return make
