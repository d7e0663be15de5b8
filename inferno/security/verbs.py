"""Verbs over accounts, keys and the audit log: what commands ask of the supervisor, and workers of the audit key.

Arguments are checked by structs, unknown ones refused. A command acts with all permissions (it has the uid of the
server, as the kernel says) and appears in the audit log as `uid:N`. Results are plain data; a key's text is in the
answer to keys.create only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any, Protocol, TypeVar

import msgspec
from msgspec import Meta, Struct

from ..errors import ApiError
from ..storage.identities import Account, ApiKey
from . import audit_log
from .accounts import Accounts, Actor, AuditSink, KeySpec, decode_limits
from .audit_format import timestamp
from .host import AuditPlace, IdentityHost
from .permissions import PERMISSIONS
from .principal import KeyLimits

T = TypeVar("T")
Text = Annotated[str, Meta(max_length=4096)]
Rows = Annotated[int, Meta(ge=1, le=1000)]


class Caller(Protocol):
    """inferno.pool.verbs.Caller, as far as it matters here."""

    @property
    def kind(self) -> str: ...
    @property
    def uid(self) -> int: ...


Handler = Callable[[dict[str, Any], Any], Awaitable[Any]]


class _Arguments(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of arguments."""


class _Page(_Arguments, frozen=True):
    after: Text = ""
    limit: Rows = 100


class _AddUser(_Arguments, frozen=True):
    username: Text
    password: Text
    role: Text = "user"


class _User(_Arguments, frozen=True):
    user: Text  # an id or a name


class _Password(_Arguments, frozen=True):
    user: Text
    password: Text


class _UpdateUser(_Arguments, frozen=True):
    user: Text
    role: Text | None = None
    disabled: bool | None = None
    limits: KeyLimits | None = None


class _CreateKey(_Arguments, frozen=True):
    user: Text
    name: Text
    permissions: list[Text] | None = None
    expires_in_days: int | None = None
    models: list[Text] | None = None
    limits: KeyLimits = KeyLimits()
    redact_profile: Text | None = None
    replace: bool = False  # revoke the owner's keys of this name first


class _ListKeys(_Arguments, frozen=True):
    user: Text | None = None
    after: Text = ""
    limit: Rows = 100


class _Key(_Arguments, frozen=True):
    key: Text  # its id


class _Search(_Arguments, frozen=True):
    filter: audit_log.Filter = audit_log.Filter()
    limit: Rows = 100
    before: int | None = None


def identity_verbs(host: IdentityHost) -> dict[str, tuple[Handler, tuple[str, ...]]]:
    """Return verb → (handler, who may call it)."""
    handlers = {
        "users.list": _list_users,
        "users.add": _add_user,
        "users.passwd": _set_password,
        "users.update": _update_user,
        "users.delete": _delete_user,
        "keys.create": _create_key,
        "keys.list": _list_keys,
        "keys.revoke": _revoke_key,
    }
    return {name: (partial(handler, host), ("command",)) for name, handler in handlers.items()}


def audit_verbs(place: AuditPlace, audit: AuditSink) -> dict[str, tuple[Handler, tuple[str, ...]]]:
    """Return the verbs that need the audit key or the log's files; workers ask for the API's routes."""
    return {
        "audit.search": (partial(_search, place, audit), ("command", "worker")),
        "audit.verify": (partial(_verify, place, audit), ("command", "worker")),
    }


def shown_account(account: Account) -> dict[str, Any]:
    """Return an account as clients and commands see it."""
    return {
        "id": account.id,
        "username": account.name,
        "role": account.role,
        "disabled": account.disabled,
        "limits": shown_limits(account.limits),
        "created_at": timestamp(account.created_at),
        "updated_at": timestamp(account.updated_at),
    }


def shown_key(key: ApiKey, now: float) -> dict[str, Any]:
    """Return a key as clients and commands see it: never its secret."""
    return {
        "id": key.id,
        "name": key.name,
        "owner": key.account_id,
        "last_four": key.last_four,
        "permissions": msgspec.json.decode(key.permissions),
        "models": None if key.models is None else msgspec.json.decode(key.models),
        "limits": shown_limits(key.limits),
        "redact_profile": key.redact_profile,
        "created_at": timestamp(key.created_at),
        "expires_at": timestamp(key.expires_at),
        "expired": now >= key.expires_at,
        "last_used_at": None if key.last_used_at is None else timestamp(key.last_used_at),
    }


def shown_limits(text: str) -> dict[str, int | None]:
    return msgspec.structs.asdict(decode_limits(text))


def _read(arguments: dict[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(arguments, kind)
    except msgspec.ValidationError as error:
        raise ApiError("invalid_value", f"Arguments that do not fit: {error}.") from None


def _actor(caller: Caller) -> Actor:
    return Actor(
        id=f"uid:{caller.uid}", actor_type="command", permissions=frozenset(PERMISSIONS), ip="local"
    )


async def _find(accounts: Accounts, user: str) -> Account:
    """Return an account by id, else by name."""
    if user.startswith("acct_"):
        try:
            return await accounts.account(user)
        except ApiError as error:
            if error.code != "not_found":
                raise
    return await accounts.account_named(user)


async def _list_users(host: IdentityHost, arguments: dict[str, Any], caller: Caller) -> Any:
    page = _read(arguments, _Page)
    return [shown_account(found) for found in await host.accounts.list_accounts(page.after, page.limit)]


async def _add_user(host: IdentityHost, arguments: dict[str, Any], caller: Caller) -> Any:
    wanted = _read(arguments, _AddUser)
    return shown_account(
        await host.accounts.create_account(
            _actor(caller), username=wanted.username, password=wanted.password, role=wanted.role
        )
    )


async def _set_password(host: IdentityHost, arguments: dict[str, Any], caller: Caller) -> Any:
    wanted = _read(arguments, _Password)
    found = await _find(host.accounts, wanted.user)
    await host.accounts.set_password(_actor(caller), found.id, wanted.password)
    return shown_account(found)


async def _update_user(host: IdentityHost, arguments: dict[str, Any], caller: Caller) -> Any:
    wanted = _read(arguments, _UpdateUser)
    found = await _find(host.accounts, wanted.user)
    return shown_account(
        await host.accounts.update_account(
            _actor(caller), found.id, role=wanted.role, disabled=wanted.disabled, limits=wanted.limits
        )
    )


async def _delete_user(host: IdentityHost, arguments: dict[str, Any], caller: Caller) -> Any:
    found = await _find(host.accounts, _read(arguments, _User).user)
    await host.accounts.delete_account(_actor(caller), found.id)
    return shown_account(found)


async def _create_key(host: IdentityHost, arguments: dict[str, Any], caller: Caller) -> Any:
    wanted = _read(arguments, _CreateKey)
    owner = await _find(host.accounts, wanted.user)
    spec = KeySpec(
        name=wanted.name,
        permissions=wanted.permissions,
        expires_in_days=wanted.expires_in_days,
        models=wanted.models,
        limits=wanted.limits,
        redact_profile=wanted.redact_profile,
    )
    if wanted.replace:
        for old in await host.accounts.list_keys(owner.id, num_rows=1000):
            if old.name == wanted.name:
                await host.accounts.revoke_key(_actor(caller), old.id, owner_id=None)
    key, text = await host.accounts.create_key(_actor(caller), owner.id, spec)
    return {**shown_key(key, key.created_at), "key": text}


async def _list_keys(host: IdentityHost, arguments: dict[str, Any], caller: Caller) -> Any:
    wanted = _read(arguments, _ListKeys)
    owner = None if wanted.user is None else (await _find(host.accounts, wanted.user)).id
    now = host.accounts.now()
    return [shown_key(key, now) for key in await host.accounts.list_keys(owner, wanted.after, wanted.limit)]


async def _revoke_key(host: IdentityHost, arguments: dict[str, Any], caller: Caller) -> Any:
    wanted = _read(arguments, _Key)
    await host.accounts.revoke_key(_actor(caller), wanted.key, owner_id=None)
    return {"id": wanted.key, "revoked": True}


async def _search(place: AuditPlace, audit: AuditSink, arguments: dict[str, Any], caller: Caller) -> Any:
    wanted = _read(arguments, _Search)
    await _settle(audit)
    return await asyncio.to_thread(
        audit_log.search, place.path, wanted.filter, num_rows=wanted.limit, before=wanted.before
    )


async def _verify(place: AuditPlace, audit: AuditSink, arguments: dict[str, Any], caller: Caller) -> Any:
    _read(arguments, _Arguments)
    await _settle(audit)
    return msgspec.structs.asdict(await asyncio.to_thread(verify_place, place))


def verify_place(place: AuditPlace) -> audit_log.Verification:
    """Verify the log against its exported head. A log without a head, or with a foreign one, is broken."""
    try:
        head = audit_log.read_head(place.head_path, place.key)
        has_log = any(file.stat().st_size for file in audit_log.files(place.path))
    except ValueError as error:
        return audit_log.Verification(audit_log.BROKEN, 0, 0, "", 1, place.head_path.name, str(error))
    except OSError as error:
        reason = f"cannot be read: {type(error).__name__}"
        return audit_log.Verification(audit_log.UNREADABLE, 0, 0, "", reason=reason)
    if head is None and has_log:
        found = audit_log.verify(place.path, place.key, None)
        if found.status == audit_log.INTACT:
            reason = "the exported head is missing: the end of the log is not proven"
            return msgspec.structs.replace(found, status=audit_log.BROKEN, first_bad=found.last_seq + 1, reason=reason)
        return found
    return audit_log.verify(place.path, place.key, head)


async def _settle(audit: AuditSink) -> None:
    """Let what waits be written first, where the disk allows it."""
    try:
        await audit.append([], durable=True)
    except ApiError as error:
        if error.code != "audit_unavailable":
            raise
