"""One worker's half of identity: its store, authenticator, login, audit sink and usage, from what the supervisor sent.

Also the small adapters between the front's interfaces (services) and inferno.security: the audit sink over the control
socket, the recorder that counts usage, and the buckets of logins, key creation and password changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from typing import Any

from inferno_native.epochs import EpochTable

from ..config import Settings
from ..errors import ApiError, StartError
from ..messages import WorkerSettings
from ..security import keys
from ..security.accounts import Accounts
from ..security.addresses import source_block
from ..security.audit_format import record
from ..security.auth import Authenticator
from ..security.host import EPOCHS, key_policy, usage_folder
from ..security.keys import KeyHasher
from ..security.limit_headers import Decision
from ..security.limit_policy import subjects
from ..security.limits import Limiter
from ..security.login import Login
from ..security.passwords import Hasher, HashQueue
from ..security.principal import Principal
from ..security.sessions import SessionTokens
from ..security.throttle import LoginThrottle
from ..storage.store import Store
from ..storage.usage import UsageJournal
from .control import Control
from .http import Context

COUNT_SECONDS = 1.0
PROBE_SECONDS = 1.0
MAX_BATCH = 256
_log = logging.getLogger("inferno.security")


class WorkerAudit:
    """Sends records to the supervisor's writer. Notes of one moment share a message."""

    def __init__(self, control: Control, *, is_enabled: bool = True) -> None:
        self._control = control
        self._is_enabled = is_enabled
        self._notes: list[dict[str, Any]] = []
        self._is_sending = False
        self._good_until = 0.0

    async def append(self, records: list[dict[str, Any]], *, durable: bool) -> None:
        """Raises ApiError(audit_unavailable)."""
        if self._is_enabled:
            await self._control.audit(records, durable=durable)

    def note(self, fields: dict[str, Any]) -> None:
        if not self._is_enabled:
            return
        self._notes.append(fields)
        if not self._is_sending:
            self._is_sending = True
            asyncio.get_running_loop().call_later(0.02, self.flush)

    def flush(self) -> None:
        """Send what waits."""
        self._is_sending = False
        while self._notes:
            batch, self._notes = self._notes[:MAX_BATCH], self._notes[MAX_BATCH:]
            task = asyncio.get_running_loop().create_task(self._control.audit(batch, durable=False))
            task.add_done_callback(_ignore)

    def limited(self, context: Context, decision: Decision) -> None:
        """A limit refused a request: LimitMeter's on_refused."""
        principal = context.principal
        self.note(
            record(
                "limit.exceeded",
                result="failure",
                reason=f"policy={decision.policy}" if not decision.unavailable else "store_unavailable",
                actor="" if principal is None else principal.id,
                actor_type="" if principal is None else principal.actor_type,
                ip=source_block(context.source).text,
                request_id=context.request_id,
            )
        )

    async def ensure(self) -> None:
        """Raise ApiError(audit_unavailable) when the log cannot be written now (audit_on_failure = "refuse")."""
        if not self._is_enabled or time.monotonic() < self._good_until:
            return
        await self._control.audit([], durable=True)
        self._good_until = time.monotonic() + PROBE_SECONDS


def _ignore(task: asyncio.Task[None]) -> None:
    """The supervisor counts what its disk refuses; without a supervisor this worker ends."""
    if not task.cancelled() and task.exception() is not None:
        _log.error("audit records could not be handed over")


class UsageRecorder:
    """Implements services.Recorder: usage into the journal, refusals into the audit log."""

    def __init__(self, journal: UsageJournal, audit: WorkerAudit) -> None:
        self.journal = journal
        self._audit = audit

    def finished(
        self,
        context: Context,
        principal: Principal,
        model: str,
        prompt_tokens: int,
        completion_tokens: int,
        result: str,
    ) -> None:
        self.journal.add(principal.id, principal.key_id, model, prompt_tokens, completion_tokens, time.time())

    def refused(self, context: Context, principal: Principal, reason: str) -> None:
        self._audit.note(
            record(
                "auth.failure",
                result="failure",
                reason=reason,
                actor=principal.id,
                actor_type=principal.actor_type,
                ip=source_block(context.source).text,
                target=principal.key_id or principal.name,
                request_id=context.request_id,
            )
        )


class TightBuckets:
    """The buckets of logins, key creations and password changes; without a limiter there are none."""

    def __init__(self, limiter: Limiter | None) -> None:
        self._limiter = limiter

    async def login(self, source: str, username: str) -> float:
        """Return how many seconds to hold the answer back. Raises ApiError."""
        if self._limiter is None:
            return 0.0
        decision = await self._limiter.check_login(source, username)
        self._check(decision)
        return float(decision.delay_seconds)

    async def key_creation(self, principal: Principal) -> None:
        if self._limiter is not None:
            self._check(await self._limiter.check_key_creation(subjects(principal)[0]))

    async def password_change(self, principal: Principal) -> None:
        if self._limiter is not None:
            self._check(await self._limiter.check_password_change(subjects(principal)[0]))

    async def left(self, principal: Principal) -> list[dict[str, Any]]:
        """Return what is left of each policy, for /api/v1/auth/me."""
        if self._limiter is None:
            return []
        return [
            {
                "policy": state.name,
                "scope": state.scope,
                "limit": state.quota,
                "remaining": state.remaining,
                "reset_seconds": state.reset_seconds,
            }
            for decision in await self._limiter.remaining(*subjects(principal))
            for state in decision.policies
        ]

    @staticmethod
    def _check(decision: Decision) -> None:
        if decision.allowed:
            return
        if decision.unavailable:
            raise ApiError("store_unavailable", "The limits cannot be asked now.", retry_after=5)
        raise ApiError(
            "rate_limit_exceeded",
            "Too many of these requests. Try again later.",
            retry_after=decision.retry_after,
        )


class WorkerIdentity:
    """All of it. `await start()`, `await close()`."""

    def __init__(
        self,
        settings: Settings,
        *,
        pepper: bytes,
        jwt: bytes,
        jwt_previous: bytes | None,
        epochs_fd: int,
        audit: WorkerAudit,
        limiter: Limiter | None = None,
        hasher: Hasher | None = None,
    ) -> None:
        security = settings.security
        self.settings = settings
        self.audit = audit
        self.store = Store(settings.storage.url)
        self.epochs = EpochTable.attach(epochs_fd)
        self.passwords = HashQueue(hasher or Hasher(), lock_fd=epochs_fd)
        self.buckets = TightBuckets(limiter)
        key_hasher = KeyHasher(pepper)
        self.tokens = SessionTokens(jwt, jwt_previous, lifetime_hours=security.token_expiry_hours)
        self.accounts = Accounts(
            self.store, self.audit, self.epochs, key_hasher, self.passwords, policy=key_policy(security)
        )
        self.login = Login(
            self.store,
            self.accounts,
            self.audit,
            self.tokens,
            self.passwords,
            LoginThrottle(self.epochs, pepper),
        )
        self.authenticator = Authenticator(
            self.store,
            self.audit,
            self.epochs,
            key_hasher,
            self.tokens,
            fingerprint_key=keys.fingerprint_key(pepper),
            keys_enabled=security.api_key_enabled,
        )
        self.journal = UsageJournal(usage_folder(settings))
        self.recorder = UsageRecorder(self.journal, self.audit)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises StartError when the database cannot be used."""
        await self.store.open()
        self.authenticator.start()
        self._task = asyncio.get_running_loop().create_task(self._count())

    def reload(self, settings: Settings) -> None:
        self.settings = settings
        self.accounts.policy = key_policy(settings.security)

    async def count_usage(self) -> None:
        """Bring this worker's finished requests into the store. Raises ApiError."""
        await self.journal.count(self.store, time.time())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        with contextlib.suppress(ApiError):
            await self.count_usage()
        self.audit.flush()
        await self.authenticator.close()
        self.journal.close()
        self.passwords.close()
        await self.store.close()

    async def _count(self) -> None:
        is_lost = False
        while True:
            await asyncio.sleep(COUNT_SECONDS)
            try:
                await self.count_usage()
                is_lost = False
            except ApiError as error:
                if not is_lost:
                    _log.error("usage is not counted now: %s; it is kept in the journal", error.code)
                is_lost = True


def worker_identity(
    message: WorkerSettings,
    settings: Settings,
    audit: WorkerAudit,
    limiter: Limiter | None,
    shared: Mapping[str, int],
) -> WorkerIdentity | None:
    """Return the identity parts; None with authentication off. Raises StartError when something was not sent."""
    if not settings.security.auth_enabled:
        return None
    try:
        return WorkerIdentity(
            settings,
            pepper=message.secrets["pepper"],
            jwt=message.secrets["jwt"],
            jwt_previous=message.secrets.get("jwt_previous"),
            epochs_fd=shared[EPOCHS],
            audit=audit,
            limiter=limiter,
        )
    except KeyError as error:
        raise StartError(f"the supervisor did not send {error}, which authentication needs") from None
