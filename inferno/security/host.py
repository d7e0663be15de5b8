"""The supervisor's half of identity: the store, the audit log, the shared epochs, upkeep, and the verbs over them.

`inferno serve` builds one and hands its parts to the supervisor; a command without a running server builds one for
itself, under the writer's lock, and calls the same verbs. Workers have their own Store and ask here only for what
needs the audit key. The audit key is nowhere else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inferno_native.epochs import EpochTable

from ..config import Security, Settings
from ..storage.store import Store
from ..storage.usage import UsageJournal
from .accounts import Accounts, AuditSink, KeyPolicy
from .audit import AuditLog, AuditWriter
from .keeper import Keeper
from .keys import KeyHasher
from .passwords import Hasher, HashQueue
from .principal import KeyLimits

EPOCHS = "epochs"  # the shared table's name


class SharedEpochs:
    """The epoch table as the supervisor holds shared tables."""

    def __init__(self) -> None:
        self.table = EpochTable.create()

    @property
    def fd(self) -> int:
        return self.table.fd

    def worker_gone(self, worker: int) -> None:
        """It may have died between a commit and its bump."""
        self.table.bump_all()

    def close(self) -> None:
        self.table.close()


class NoAudit:
    """audit_logging_enabled=false: records go nowhere; changes are not refused."""

    is_failing = False

    def start(self) -> None:
        """Nothing to open."""

    async def append(self, records: list[dict[str, Any]], *, durable: bool) -> None:
        """Nothing is kept."""

    def note(self, fields: dict[str, Any]) -> None:
        """Nothing is kept."""

    async def close(self) -> None:
        """Nothing to close."""


def key_policy(security: Security) -> KeyPolicy:
    """Return what the configuration says about keys."""
    return KeyPolicy(
        enabled=security.api_key_enabled,
        default_days=security.api_key_default_days,
        max_per_account=security.max_keys_per_user,
        caps=KeyLimits(
            max_requests_per_minute=security.max_requests_per_minute,
            max_requests_per_hour=security.max_requests_per_hour,
            max_tokens_per_minute=security.max_tokens_per_minute,
            max_concurrent_requests=security.max_concurrent_requests_per_user,
            max_input_length=security.max_input_length,
        ),
    )


def audit_head_path(settings: Settings) -> Path:
    """Where the head is exported to: outside of the log's own folder."""
    return Path(settings.storage.data_dir) / "audit.head"


class IdentityHost:
    """Make it, hand `tables()` and `audit` on, `await open()`, `start()`, `await close()`."""

    def __init__(
        self,
        settings: Settings,
        *,
        audit_key: bytes,
        pepper: bytes,
        hasher: Hasher | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self.audit_key = audit_key
        self.pepper = pepper
        self.audit_path = Path(settings.security.audit_path)
        self.head_path = audit_head_path(settings)
        self.audit: AuditLog | NoAudit
        if settings.security.audit_logging_enabled:
            self.audit = AuditLog(AuditWriter(self.audit_path, self.head_path, audit_key, clock=clock), clock=clock)
        else:
            self.audit = NoAudit()
        self.epochs = SharedEpochs()
        self.store = Store(settings.storage.url, num_readers=2)
        self.passwords = HashQueue(hasher or Hasher(), lock_fd=self.epochs.fd)
        sink: AuditSink = self.audit
        self.accounts = Accounts(
            self.store,
            sink,
            self.epochs.table,
            KeyHasher(pepper),
            self.passwords,
            policy=key_policy(settings.security),
            clock=clock,
        )
        self._journal: UsageJournal | None = None
        self._keeper: Keeper | None = None
        self._clock = clock

    def tables(self) -> dict[str, SharedEpochs]:
        return {EPOCHS: self.epochs}

    async def open(self, *, admin_password: str | None = None) -> None:
        """Bring the schema up to date; with an empty store and a password make the first administrator.

        Raises StartError, and ApiError(audit_unavailable) when that could not be recorded.
        """
        await self.store.open(migrate=True)
        if admin_password is not None:
            await self.accounts.bootstrap(admin_password)

    def start(self) -> None:
        """Start the upkeep; the audit log must have been started."""
        self._journal = UsageJournal(usage_folder(self.settings))
        self._keeper = Keeper(
            self.store, self.epochs.table, self.accounts, journal=self._journal, clock=self._clock
        )
        self._keeper.start()

    async def close(self) -> None:
        """End upkeep and close the store; audit log and tables are closed by who started them."""
        if self._keeper is not None:
            await self._keeper.close()
        if self._journal is not None:
            self._journal.close()
        self.passwords.close()
        await self.store.close()


def usage_folder(settings: Settings) -> Path:
    return Path(settings.storage.data_dir) / "usage"
