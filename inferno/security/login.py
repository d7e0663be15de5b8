"""Login, logout and the change of one's own password.

Unknown names, wrong passwords and disabled accounts take one path: the same checks, one argon2id verification (of a
dummy hash where there is none), one durable audit record, one answer. The reason is in the audit log only. A hash of
older parameters is replaced at the first right login. Runs in front workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from msgspec import Struct

from ..errors import ApiError
from ..storage import identities
from ..storage.identities import Account
from ..storage.store import Store
from .accounts import Accounts, Actor, AuditSink
from .audit_format import record
from .names import MAX_NAME_LENGTH, name_key
from .passwords import MAX_LENGTH, HashQueue
from .principal import Principal
from .sessions import SessionTokens
from .throttle import LoginThrottle


class LoginResult(Struct, frozen=True):
    """A new session. `expires_at` is in UNIX seconds."""

    token: str
    expires_at: int
    account: Account

    def __repr__(self) -> str:
        return f"LoginResult(account={self.account.id!r})"


class Login:
    """Turns a name and a password into a session, and back."""

    def __init__(
        self,
        store: Store,
        accounts: Accounts,
        audit: AuditSink,
        tokens: SessionTokens,
        passwords: HashQueue,
        throttle: LoginThrottle,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._accounts = accounts
        self._audit = audit
        self._tokens = tokens
        self._passwords = passwords
        self._throttle = throttle
        self._clock = clock

    async def login(self, username: str, password: str, *, block: str, request_id: str = "") -> LoginResult:
        """Raises ApiError: invalid_api_key (401), rate_limit_exceeded while a delay runs, overloaded, and 503s."""
        _check_length(password)
        account = await self._verified(username, password, block, request_id)
        if self._passwords.hasher.needs_rehash(account.password_hash):
            await self._rehash(account, password)
        token, session = self._tokens.issue(account.id, account.epoch, int(self._clock()))
        await self._audit.append(
            [
                record(
                    "auth.login",
                    actor=account.id,
                    actor_type="user",
                    ip=block,
                    target=account.name,
                    request_id=request_id,
                )
            ],
            durable=True,
        )
        return LoginResult(token, session.expires_at, account)

    async def logout(self, principal: Principal, by: Actor) -> None:
        """End the caller's session. Raises ApiError(invalid_request) when it is no session."""
        if principal.session_id is None or principal.session_expires_at is None:
            raise ApiError(
                "insufficient_permissions", "Only a session can log out; an API key is revoked."
            )
        until = principal.session_expires_at + self._tokens.skew_seconds
        await self._accounts.end_session(by, principal.id, principal.session_id, until)

    async def change_password(self, principal: Principal, by: Actor, current: str, new: str) -> None:
        """Set the caller's password after checking the current one; ends all of its sessions."""
        if principal.session_id is None:
            raise ApiError("insufficient_permissions", "A password is changed from a session, not with an API key.")
        _check_length(current)
        account = await self._accounts.account(principal.id)
        attempt = self._throttle.begin(account.name_key, by.ip)
        try:
            is_right = await self._passwords.verify(account.password_hash, current)
        except ApiError:
            self._throttle.give_back(attempt)
            raise
        if not is_right:
            await self._audit.append(
                [
                    record(
                        "user.password",
                        result="failure",
                        reason="wrong_current_password",
                        actor=by.id,
                        actor_type=by.actor_type,
                        ip=by.ip,
                        target=account.id,
                        request_id=by.request_id,
                    )
                ],
                durable=True,
            )
            raise ApiError("insufficient_permissions", "The current password is wrong.")
        self._throttle.succeeded(attempt)
        await self._accounts.set_password(by, account.id, new, expected_hash=account.password_hash)

    async def _verified(self, username: str, password: str, block: str, request_id: str) -> Account:
        """Return the account whose password this is. One path for all failures."""
        typed = username[: MAX_NAME_LENGTH + 1]
        attempt = self._throttle.begin(name_key(typed), block)
        try:
            async with self._store.read() as connection:
                account = await identities.account_by_name(connection, name_key(typed))
            is_right = await self._passwords.verify(account.password_hash if account is not None else "", password)
        except BaseException:
            self._throttle.give_back(attempt)
            raise
        if account is not None and is_right and not account.disabled:
            self._throttle.succeeded(attempt)
            return account
        reason = "unknown_user" if account is None else "wrong_password" if not is_right else "disabled"
        await self._audit.append(
            [
                record(
                    "auth.login",
                    result="failure",
                    reason=reason,
                    actor="" if account is None else account.id,
                    actor_type="user",
                    ip=block,
                    target=typed,
                    request_id=request_id,
                )
            ],
            durable=True,
        )
        raise ApiError("invalid_api_key", "The user name or the password is wrong.")

    async def _rehash(self, account: Account, password: str) -> None:
        fresh = await self._passwords.hash(password)
        async with self._store.write() as connection:
            current = await identities.account_by_id(connection, account.id)
            if current is not None and current.password_hash == account.password_hash:
                await identities.update_account(connection, account.id, password_hash=fresh)


def actor_of(principal: Principal, *, ip: str, request_id: str) -> Actor:
    """Return how a caller appears in changes and in the audit log."""
    return Actor(
        id=principal.id,
        actor_type=principal.actor_type,
        permissions=principal.permissions,
        ip=ip,
        request_id=request_id,
    )


def _check_length(password: str) -> None:
    if len(password) > MAX_LENGTH:
        raise ApiError("invalid_value", f"A password has at most {MAX_LENGTH} characters.", param="password")
