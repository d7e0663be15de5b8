"""The supervisor's upkeep of identities: changes of other hosts, expired keys, rows that mean nothing any more.

Every FOLLOW_SECONDS it reads which identities were changed since, whoever did it, and bumps their shared epochs: other
hosts' changes take effect here within a second, and so does a change whose process died between its commit and its
bump. Every minute it records expired keys and prunes. A lost database is waited for; cached credentials meanwhile
last at most inferno.security.auth.MAX_AGE_SECONDS.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from inferno_native.epochs import EpochTable

from ..errors import ApiError
from ..storage import identities
from ..storage.store import Store
from ..storage.usage import UsageJournal
from .accounts import Accounts

FOLLOW_SECONDS = 0.4
PRUNE_SECONDS = 60.0
MAX_CHANGES = 1000
_KEEP_CHANGES_SECONDS = 86400
_log = logging.getLogger("inferno.security")


class Keeper:
    """One task. `journal` counts usage that dead workers left."""

    def __init__(
        self,
        store: Store,
        epochs: EpochTable,
        accounts: Accounts,
        *,
        journal: UsageJournal | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._epochs = epochs
        self._accounts = accounts
        self._journal = journal
        self._clock = clock
        self._seen: int | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def follow(self) -> None:
        """Bump what was changed since the last call. Raises ApiError(store_unavailable)."""
        async with self._store.read() as connection:
            if self._seen is None:
                self._seen = await identities.last_change(connection)
                return
            found = await identities.changes_since(connection, self._seen, MAX_CHANGES)
            newest = await identities.last_change(connection) if len(found) == MAX_CHANGES else None
        if newest is not None:
            self._seen = newest
            self._epochs.bump_all()
            return
        for seq, identity in found:
            self._epochs.bump(identity)
            self._seen = seq

    async def prune(self) -> None:
        """Record expiries, forget what is over, count what dead workers left. Raises ApiError."""
        now = int(self._clock())
        await self._accounts.record_expired_keys()
        async with self._store.write() as connection:
            await identities.prune_sessions(connection, now)
            await identities.prune_changes(connection, now - _KEEP_CHANGES_SECONDS)
        if self._journal is not None:
            await self._journal.count(self._store, now)

    async def _run(self) -> None:
        is_lost = False
        pruned_at = float("-inf")
        while True:
            try:
                await self.follow()
                if time.monotonic() - pruned_at >= PRUNE_SECONDS:
                    pruned_at = time.monotonic()
                    await self.prune()
                if is_lost:
                    _log.info("the database is back")
                    self._epochs.bump_all()
                is_lost = False
            except ApiError as error:
                if not is_lost:
                    _log.error("identities cannot be followed: %s", error.code)
                is_lost = True
            await asyncio.sleep(FOLLOW_SECONDS)
