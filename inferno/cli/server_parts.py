"""What a server holds beside the pool: the audit log, the shared tables, the accounts and their upkeep.

Built by `inferno serve` from settings and secrets and handed to the supervisor, which knows them as an AuditSink, as
SharedTables and as ServerParts. Each part is here only when its setting is on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from inferno_native.buckets import BucketTable
from inferno_native.epochs import EpochTable

from ..config import Settings
from ..datadir import DataDir
from ..errors import ApiError, ConfigError
from ..pool.audit_sink import AuditSink, LogSink
from ..pool.tables import SharedTable
from ..secrets import Secret
from ..security.accounts import Accounts, KeyPolicy
from ..security.audit import AuditLog, AuditWriter
from ..security.keeper import Keeper
from ..security.keys import KeyHasher
from ..security.limits import FAMILIES
from ..security.passwords import Hasher, HashQueue
from ..security.principal import KeyLimits
from ..storage.bucket_store import create_shared_table
from ..storage.store import Store
from ..storage.usage import UsageJournal

# Owners of bucket holds: each worker, and as many again while SIGUSR2 replaces them.
_SPARE_OWNERS = 8


def make_audit(settings: Settings, data: DataDir) -> AuditSink:
    """Open the audit log, or let events go to the ordinary log when it is off. Raises StartError."""
    if not settings.security.audit_logging_enabled:
        return LogSink()
    writer = AuditWriter(Path(settings.security.audit_path), data.root / "audit.head", data.read_key("audit"))
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
        pass

    def close(self) -> None:
        self.epochs.close()


class BucketsTable:
    """The rate buckets: each worker is one owner of holds (a slot and its generation), settled when it ends."""

    def __init__(self, num_workers: int) -> None:
        num_owners = 2 * num_workers + _SPARE_OWNERS
        self.buckets: BucketTable = create_shared_table(FAMILIES, num_owners)
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


class Identities:
    """The accounts in the supervisor: migrations, the first account, and what follows changes of other hosts."""

    def __init__(
        self,
        settings: Settings,
        data: DataDir,
        epochs: EpochTable,
        audit: AuditSink,
        *,
        pepper: bytes,
        admin_password: Secret,
    ) -> None:
        security = settings.security
        self._store = Store(settings.storage.url)
        self._passwords = HashQueue(Hasher(), lock_fd=epochs.fd)
        self._admin_password = admin_password
        self._journal = UsageJournal(data.root / "usage")
        policy = KeyPolicy(
            enabled=security.api_key_enabled,
            default_days=security.api_key_default_days,
            max_per_account=security.max_keys_per_user,
            caps=key_caps(settings),
        )
        self.accounts = Accounts(
            self._store, audit, epochs, KeyHasher(pepper), self._passwords, policy=policy
        )
        self._keeper = Keeper(self._store, epochs, self.accounts, journal=self._journal)

    async def start(self) -> None:
        """Bring the store up to date and make the first account in an empty one. Raises StartError, ConfigError."""
        await self._store.open(migrate=True)
        try:
            await self.accounts.bootstrap(self._admin_password.reveal())
        except ApiError as error:
            if error.code != "weak_password":
                raise
            raise ConfigError(f"INFERNO_ADMIN_PASSWORD: {error.message}") from None
        self._keeper.start()

    async def close(self) -> None:
        await self._keeper.close()
        self._passwords.close()
        self._journal.close()
        await self._store.close()


def key_caps(settings: Settings) -> KeyLimits:
    """Return the operator's limits, which no key's own may exceed."""
    security = settings.security
    return KeyLimits(
        max_requests_per_minute=security.max_requests_per_minute,
        max_requests_per_hour=security.max_requests_per_hour,
        max_tokens_per_minute=security.max_tokens_per_minute,
        max_concurrent_requests=security.max_concurrent_requests_per_user,
    )


def table_maker(settings: Settings, epochs: EpochsTable | None) -> Callable[[], dict[str, SharedTable]]:
    """Return what makes the shared tables at the start."""

    def make() -> dict[str, SharedTable]:
        tables: dict[str, SharedTable] = {}
        if epochs is not None:
            tables["epochs"] = epochs
        if settings.security.rate_limiting_enabled and settings.limits.url == "shm:":
            tables["buckets"] = BucketsTable(settings.server.workers)
        return tables

    return make
