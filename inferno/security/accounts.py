"""Accounts and API keys: every change, with its checks, its audit record and its effect on all processes.

A change is one transaction: the rows, the note for other hosts, then the audit record on disk, then the commit; what
cannot be recorded does not happen. After the commit the shared epochs are bumped, so that no cache of any worker
answers with the former state to a request that starts after the answer. A record whose commit then fails is followed
by one with result "error".

The API's handlers (front workers) and the commands' verbs (supervisor, or a command that holds the writer's lock) call
the same methods. Does not know HTTP, nor where the caller's rights come from.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any, Protocol, TypeVar

import msgspec
from inferno_native.epochs import EpochTable
from msgspec import Struct
from sqlalchemy.ext.asyncio import AsyncConnection

from ..errors import ApiError
from ..storage import identities
from ..storage.identities import Account, ApiKey
from ..storage.store import Conflict, Store
from .audit_format import record
from .keys import KeyHasher
from .names import check_key_name, check_username, name_key, skeleton
from .passwords import HashQueue, check_new
from .permissions import PERMISSIONS, ROLES
from .principal import KeyLimits

BOOTSTRAP_NAME = "admin"
MAX_KEY_DAYS = 3650
DEFAULT_KEY_PERMISSIONS = frozenset(("read_models", "run_inference", "use_streaming"))
REDACT_PROFILES = ("default", "strict", "secrets")
_log = logging.getLogger("inferno.security")
T = TypeVar("T")


class AuditSink(Protocol):
    """Where records go: AuditLog itself, or a worker's way to it."""

    async def append(self, records: list[dict[str, Any]], *, durable: bool) -> None: ...
    def note(self, fields: dict[str, Any]) -> None: ...


class Actor(Struct, frozen=True):
    """Who makes a change, as the audit log shows it. `permissions` bounds what the change may grant."""

    id: str
    actor_type: str  # "user", "key", "command", "server"
    permissions: frozenset[str]
    ip: str = ""
    request_id: str = ""


SERVER = Actor(id="server", actor_type="server", permissions=frozenset(PERMISSIONS))


class KeyPolicy(Struct, frozen=True):
    """What the configuration says about keys. `caps`: no key's own limit is above these."""

    enabled: bool = True
    default_days: int = 90
    max_per_account: int = 50
    caps: KeyLimits = KeyLimits()


class KeySpec(Struct, frozen=True):
    """What a new key should be. `permissions` None: inference, as far as owner and maker have it."""

    name: str
    permissions: list[str] | None = None
    expires_in_days: int | None = None
    models: list[str] | None = None
    limits: KeyLimits = KeyLimits()
    redact_profile: str | None = None


def account_identity(account_id: str) -> bytes:
    return b"u:" + account_id.encode("ascii")


def key_identity(key_id: str) -> bytes:
    return b"k:" + key_id.encode("ascii")


def session_identity(jti: str) -> bytes:
    return b"s:" + jti.encode("ascii")


def decode_limits(text: str) -> KeyLimits:
    return msgspec.json.decode(text, type=KeyLimits)


def encode_limits(limits: KeyLimits) -> str:
    return msgspec.json.encode({k: v for k, v in msgspec.structs.asdict(limits).items() if v is not None}).decode()


def not_found(what: str) -> ApiError:
    return ApiError("not_found", f"No such {what}.")


class Accounts:
    """All changes to accounts and keys."""

    def __init__(
        self,
        store: Store,
        audit: AuditSink,
        epochs: EpochTable,
        key_hasher: KeyHasher,
        passwords: HashQueue,
        *,
        policy: KeyPolicy = KeyPolicy(),  # noqa: B008  frozen
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self.policy = policy
        self._audit = audit
        self._epochs = epochs
        self._key_hasher = key_hasher
        self._passwords = passwords
        self._clock = clock

    # ------------------------------------------------------------ reading

    async def account(self, account_id: str) -> Account:
        """Raises ApiError(not_found)."""
        async with self.store.read() as connection:
            found = await identities.account_by_id(connection, account_id)
        if found is None:
            raise not_found("user")
        return found

    async def account_named(self, name: str) -> Account:
        """Raises ApiError(not_found)."""
        async with self.store.read() as connection:
            found = await identities.account_by_name(connection, name_key(name))
        if found is None:
            raise not_found("user")
        return found

    async def list_accounts(self, after: str = "", num_rows: int = 100) -> list[Account]:
        async with self.store.read() as connection:
            return await identities.list_accounts(connection, after, num_rows)

    async def list_keys(self, owner_id: str | None, after: str = "", num_rows: int = 100) -> list[ApiKey]:
        """Return the keys of one account, or of all (None)."""
        async with self.store.read() as connection:
            return await identities.list_keys(connection, owner_id, after, num_rows)

    # ------------------------------------------------------------ accounts

    async def bootstrap(self, password: str) -> Account | None:
        """Create the administrator in an empty store; None where accounts exist (the password then means nothing)."""
        async with self.store.read() as connection:
            if await identities.num_accounts(connection):
                return None
        return await self._create_account(SERVER, BOOTSTRAP_NAME, password, "admin", KeyLimits(), only_if_empty=True)

    async def create_account(
        self, by: Actor, *, username: str, password: str, role: str, limits: KeyLimits = KeyLimits()  # noqa: B008
    ) -> Account:
        """Raises ApiError: invalid_value, weak_password, conflict."""
        made = await self._create_account(by, username, password, role, limits)
        if made is None:
            raise ApiError("conflict", "The store is not empty.")
        return made

    async def _create_account(
        self, by: Actor, username: str, password: str, role: str, limits: KeyLimits, *, only_if_empty: bool = False
    ) -> Account | None:
        check_username(username)
        _check_role(role, by)
        _check_limits(limits)
        check_new(password, username=username)
        password_hash = await self._passwords.hash(password)
        now = self.now()
        made = Account(
            id="acct_" + uuid.uuid4().hex,
            name=username,
            name_key=name_key(username),
            skeleton=skeleton(username),
            role=role,
            disabled=False,
            password_hash=password_hash,
            epoch=0,
            limits=encode_limits(limits),
            created_at=now,
            updated_at=now,
        )

        async def change(connection: AsyncConnection) -> Account | None:
            if only_if_empty and await identities.num_accounts(connection):
                return None
            if await identities.account_by_name(connection, made.name_key) is not None:
                raise ApiError("conflict", "A user of this name exists.", param="username")
            if await identities.has_admin_like(connection, made.skeleton) or (
                not username.isascii() and await identities.has_account_like(connection, made.skeleton)
            ):
                raise ApiError("conflict", "The name looks like another user's.", param="username")
            await identities.insert_account(connection, made)
            return made

        said = self._record(by, "user.create", target=made.id, reason=f"name={username} role={role}")
        return await self._apply(change, said, [])

    async def update_account(
        self,
        by: Actor,
        account_id: str,
        *,
        role: str | None = None,
        disabled: bool | None = None,
        limits: KeyLimits | None = None,
    ) -> Account:
        """Raises ApiError: not_found, conflict (the last admin), invalid_value."""
        if role is not None:
            _check_role(role, by)
        if limits is not None:
            _check_limits(limits)

        async def change(connection: AsyncConnection) -> Account:
            found = await identities.account_by_id(connection, account_id)
            if found is None:
                raise not_found("user")
            _protect(by, found)
            loses_admin = found.role == "admin" and not found.disabled and (role not in (None, "admin") or disabled)
            if loses_admin and not await identities.num_other_admins(connection, account_id):
                raise ApiError("conflict", "This is the last administrator.")
            values: dict[str, Any] = {"updated_at": self.now()}
            if role is not None:
                if role == "admin" and await identities.has_admin_like(connection, found.skeleton, account_id):
                    raise ApiError("conflict", "The name looks like another administrator's.", param="role")
                values["role"] = role
            if disabled is not None:
                values["disabled"] = disabled
                if disabled and not found.disabled:
                    values["epoch"] = found.epoch + 1  # its sessions do not come back with the account
            if limits is not None:
                values["limits"] = encode_limits(limits)
            await identities.update_account(connection, account_id, **values)
            return msgspec.structs.replace(found, **values)

        changed = [f"role={role}"] if role is not None else []
        changed += [f"disabled={str(disabled).lower()}"] if disabled is not None else []
        changed += ["limits"] if limits is not None else []
        said = self._record(by, "user.update", target=account_id, reason=" ".join(changed))
        return await self._apply(change, said, [account_identity(account_id)])

    async def delete_account(self, by: Actor, account_id: str) -> None:
        """Remove an account with its keys. Raises ApiError: not_found, conflict (the last admin)."""

        async def change(connection: AsyncConnection) -> None:
            found = await identities.account_by_id(connection, account_id)
            if found is None:
                raise not_found("user")
            _protect(by, found)
            is_admin = found.role == "admin" and not found.disabled
            if is_admin and not await identities.num_other_admins(connection, account_id):
                raise ApiError("conflict", "This is the last administrator.")
            await identities.delete_account(connection, account_id)

        said = self._record(by, "user.delete", target=account_id)
        await self._apply(change, said, [account_identity(account_id)])

    async def set_password(
        self, by: Actor, account_id: str, password: str, *, expected_hash: str | None = None
    ) -> None:
        """Set a password and end all sessions. `expected_hash`: refuse when it was changed meanwhile."""
        found = await self.account(account_id)
        check_new(password, username=found.name)
        password_hash = await self._passwords.hash(password)

        async def change(connection: AsyncConnection) -> None:
            current = await identities.account_by_id(connection, account_id)
            if current is None:
                raise not_found("user")
            if expected_hash is not None and current.password_hash != expected_hash:
                raise ApiError("conflict", "The password was changed by someone else at this moment.")
            _protect(by, current)
            await identities.update_account(
                connection,
                account_id,
                password_hash=password_hash,
                epoch=current.epoch + 1,
                updated_at=self.now(),
            )

        said = self._record(by, "user.password", target=account_id)
        await self._apply(change, said, [account_identity(account_id)])

    async def end_all_sessions(self, by: Actor, account_id: str) -> None:
        """Log an account out everywhere."""

        async def change(connection: AsyncConnection) -> None:
            current = await identities.account_by_id(connection, account_id)
            if current is None:
                raise not_found("user")
            await identities.update_account(connection, account_id, epoch=current.epoch + 1)

        said = self._record(by, "auth.logout", target=account_id, reason="all")
        await self._apply(change, said, [account_identity(account_id)])

    async def end_session(self, by: Actor, account_id: str, jti: str, expires_at: int) -> None:
        """End one session; `expires_at` is when its token would be refused anyway (exp + skew)."""

        async def change(connection: AsyncConnection) -> None:
            await identities.revoke_session(connection, jti, account_id, expires_at)

        said = self._record(by, "auth.logout", target=account_id, reason="one")
        await self._apply(change, said, [session_identity(jti)])

    # ------------------------------------------------------------ keys

    async def create_key(self, by: Actor, owner_id: str, spec: KeySpec) -> tuple[ApiKey, str]:
        """Return the key's row and its text, which is nowhere else. Raises ApiError."""
        if not self.policy.enabled:
            raise ApiError("insufficient_permissions", "API keys are turned off (api_key_enabled).")
        check_key_name(spec.name)
        days = self.policy.default_days if spec.expires_in_days is None else spec.expires_in_days
        if not 1 <= days <= MAX_KEY_DAYS:
            raise ApiError("invalid_value", f"A key lives 1 to {MAX_KEY_DAYS} days.", param="expires_in_days")
        self._check_key_limits(by, spec)
        for name in spec.permissions or ():
            if name not in PERMISSIONS:
                raise ApiError("invalid_value", "An unknown permission.", param="permissions")
            if name not in by.permissions:
                raise ApiError("insufficient_permissions", "A key cannot have a permission that its maker lacks.")
        now = self.now()
        secret = self._key_hasher.create()

        async def change(connection: AsyncConnection) -> ApiKey:
            owner = await identities.account_by_id(connection, owner_id)
            if owner is None:
                raise not_found("user")
            rights = ROLES[owner.role]
            if spec.permissions is None:
                granted = DEFAULT_KEY_PERMISSIONS & rights & by.permissions
            else:
                granted = frozenset(spec.permissions)
                if not granted <= rights:
                    raise ApiError(
                        "insufficient_permissions", "A key cannot have a permission that its owner lacks."
                    )
            if await identities.num_live_keys(connection, owner_id, now) >= self.policy.max_per_account:
                raise ApiError("conflict", f"A user has at most {self.policy.max_per_account} keys.")
            made = ApiKey(
                id=secret.id,
                account_id=owner_id,
                name=spec.name,
                digest=secret.digest,
                last_four=secret.last_four,
                permissions=msgspec.json.encode(sorted(granted)).decode(),
                models=None if spec.models is None else msgspec.json.encode(sorted(set(spec.models))).decode(),
                limits=encode_limits(spec.limits),
                redact_profile=spec.redact_profile,
                created_at=now,
                expires_at=now + days * 86400,
            )
            await identities.insert_key(connection, made)
            return made

        said = self._record(by, "key.create", target=secret.id, reason=f"owner={owner_id} days={days}")
        made = await self._apply(change, said, [key_identity(secret.id)])
        return made, secret.text

    async def revoke_key(self, by: Actor, key_id: str, *, owner_id: str | None) -> None:
        """Revoke a key at once. `owner_id`: only a key of this account (None: of any). Raises ApiError(not_found)."""

        async def change(connection: AsyncConnection) -> None:
            found = await identities.key_with_account(connection, key_id)
            if found is None or found[0].revoked_at is not None or owner_id not in (None, found[0].account_id):
                raise not_found("API key")
            if found[0].account_id != by.id:
                _protect(by, found[1])
            await identities.update_key(connection, key_id, revoked_at=self.now())

        if not key_id.isascii() or not key_id.isalnum():
            raise not_found("API key")
        said = self._record(by, "key.revoke", target=key_id)
        await self._apply(change, said, [key_identity(key_id)])

    async def record_expired_keys(self) -> int:
        """Write key.expire for keys that expired since the last look; returns how many."""
        now = self.now()

        async def change(connection: AsyncConnection) -> int:
            found = await identities.expired_keys(connection, now, 500)
            for key in found:
                await identities.update_key(connection, key.id, expiry_recorded=True)
                said.append(self._record(SERVER, "key.expire", target=key.id)[0])
            return len(found)

        said: list[dict[str, Any]] = []
        return await self._apply(change, said, [])

    # ------------------------------------------------------------ inside

    def now(self) -> int:
        """UNIX seconds, by this object's clock."""
        return int(self._clock())

    @staticmethod
    def _record(by: Actor, event: str, *, target: str, reason: str = "") -> list[dict[str, Any]]:
        return [
            record(
                event,
                actor=by.id,
                actor_type=by.actor_type,
                ip=by.ip,
                target=target,
                reason=reason,
                request_id=by.request_id,
            )
        ]

    async def _apply(
        self,
        change: Callable[[AsyncConnection], Awaitable[T]],
        said: list[dict[str, Any]],
        touched: Collection[bytes],
    ) -> T:
        """Run a change to its end, whatever happens to the caller's task."""
        task = asyncio.get_running_loop().create_task(self._transact(change, said, touched))
        return await asyncio.shield(task)

    async def _transact(
        self,
        change: Callable[[AsyncConnection], Awaitable[T]],
        said: list[dict[str, Any]],
        touched: Collection[bytes],
    ) -> T:
        is_recorded = False
        try:
            async with self._written() as connection:
                result = await change(connection)
                for identity in touched:
                    await identities.note_change(connection, identity, self.now())
                if said and (result is not None or touched):
                    await self._audit.append(said, durable=True)
                    is_recorded = True
            return result
        except ApiError as error:
            for fields in said:
                if is_recorded:  # the log says it happened; it did not
                    self._audit.note({**fields, "result": "error", "reason": "not_committed"})
                elif error.status < 500:
                    self._audit.note({**fields, "result": "failure", "reason": error.code})
            raise
        finally:
            for identity in touched:
                self._epochs.bump(identity)

    @contextlib.asynccontextmanager
    async def _written(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with self.store.write() as connection:
                yield connection
        except Conflict:
            raise ApiError("conflict", "The object exists already or was changed at this moment.") from None

    def _check_key_limits(self, by: Actor, spec: KeySpec) -> None:
        _check_limits(spec.limits)
        caps = self.policy.caps
        for name in spec.limits.__struct_fields__:
            wanted, cap = getattr(spec.limits, name), getattr(caps, name)
            if wanted is None or cap is None or wanted <= cap:
                continue
            if name == "max_input_length" and "manage_users" in by.permissions:
                continue  # an operator may give one key longer inputs
            raise ApiError("invalid_value", f"At most {cap}, the server's own limit.", param=f"limits.{name}")
        if spec.redact_profile is not None:
            if spec.redact_profile not in REDACT_PROFILES:
                raise ApiError("invalid_value", "An unknown redaction profile.", param="redact_profile")
            if "manage_users" not in by.permissions:
                raise ApiError("insufficient_permissions", "Only who manages users sets redact_profile.")


def _protect(by: Actor, target: Account) -> None:
    """A caller with fewer rights than an account has (such as a key that manages users) cannot take it over."""
    if not ROLES[target.role] <= by.permissions:
        raise ApiError("insufficient_permissions", "This user has permissions that the caller lacks.")


def _check_role(role: str, by: Actor) -> None:
    if role not in ROLES:
        raise ApiError("invalid_value", f"A role is one of {', '.join(ROLES)}.", param="role")
    if not ROLES[role] <= by.permissions:
        raise ApiError("insufficient_permissions", "Nobody gives a role with permissions that they lack.")


def _check_limits(limits: KeyLimits) -> None:
    for name in limits.__struct_fields__:
        value = getattr(limits, name)
        if value is not None and not 1 <= value <= 1_000_000_000:
            raise ApiError("invalid_value", "A limit is at least 1.", param=f"limits.{name}")
