"""The supervisor's half of identity: the store, the first account, upkeep, and what the verbs work on.

`inferno serve` builds one as a part of the supervisor; a command without a running server builds one for itself, under
the writer's lock, and calls the same verbs (inferno.security.verbs). Workers have their own Store.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from inferno_native.epochs import EpochTable
from msgspec import Struct

from ..config import Security, Settings
from ..errors import ApiError, ConfigError
from ..storage import identities
from ..storage.store import Store
from ..storage.usage import UsageJournal
from .accounts import Accounts, AuditSink, KeyPolicy
from .keeper import Keeper
from .keys import KeyHasher
from .passwords import Hasher, HashQueue
from .principal import KeyLimits

EPOCHS = "epochs"  # the shared table's name


class AuditPlace(Struct, frozen=True):
    """Where the log is and the key that proves it; in the supervisor and in commands only."""

    path: Path
    head_path: Path
    key: bytes

    def __repr__(self) -> str:
        return "AuditPlace()"


def audit_place(settings: Settings, key: bytes) -> AuditPlace:
    """The head is exported to the data directory, outside of the log's own folder."""
    return AuditPlace(Path(settings.security.audit_path), Path(settings.storage.data_dir) / "audit.head", key)


def usage_folder(settings: Settings) -> Path:
    return Path(settings.storage.data_dir) / "usage"


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


class IdentityHost:
    """A part of the supervisor: `await start()` after the audit log was started, `await close()` before it ends."""

    def __init__(
        self,
        settings: Settings,
        audit: AuditSink,
        epochs: EpochTable,
        *,
        pepper: bytes,
        admin_password: str | None = None,
        has_upkeep: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = Store(settings.storage.url, num_readers=2)
        self._passwords = HashQueue(Hasher(), lock_fd=epochs.fd)
        self._admin_password = admin_password
        self.accounts = Accounts(
            self._store,
            audit,
            epochs,
            KeyHasher(pepper),
            self._passwords,
            policy=key_policy(settings.security),
            clock=clock,
        )
        self._journal: UsageJournal | None = None
        self._keeper: Keeper | None = None
        if has_upkeep:
            self._journal = UsageJournal(usage_folder(settings))
            self._keeper = Keeper(self._store, epochs, self.accounts, journal=self._journal, clock=clock)

    async def start(self) -> None:
        """Bring the schema up to date; make the first administrator in an empty store.

        Raises StartError, ConfigError, and ApiError(audit_unavailable) when that could not be recorded.
        """
        await self._store.open(migrate=True)
        if self._admin_password is not None:
            try:
                await self.accounts.bootstrap(self._admin_password)
            except ApiError as error:
                if error.code != "weak_password":
                    raise
                raise ConfigError(f"INFERNO_ADMIN_PASSWORD: {error.message}") from None
        if self._keeper is not None:
            self._keeper.start()

    async def is_empty(self) -> bool:
        """Whether there is no account yet."""
        async with self._store.read() as connection:
            return not await identities.num_accounts(connection)

    def reload(self, settings: Settings) -> None:
        """Take over what may change in a running server: commands make keys under the same limits as workers."""
        self.accounts.policy = key_policy(settings.security)

    async def close(self) -> None:
        if self._keeper is not None:
            await self._keeper.close()
        if self._journal is not None:
            self._journal.close()
        self._passwords.close()
        await self._store.close()
