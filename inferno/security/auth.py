"""The one function that turns any credential into a principal, and the cache that makes it cheap.

A credential is a session token or an API key, in `Authorization: Bearer` or in `X-API-Key`; where it stands changes
nothing. Two different ones, a header twice, or one in the query are ambiguous: 400. Every other fault is one and the
same 401; its reason goes to the audit log, the credential only as a fingerprint.

An entry of the cache is keyed by SHA-256 of the whole credential and remembers the shared epochs of its account and
of its key or session, read before the store was asked. It is used only while both still read the same, so whoever
changes an account or key in any process ends it for the next request, and a slow answer of the store can never bring
a revoked credential back. Entries also end at the credential's expiry and after MAX_AGE_SECONDS.

When the database is lost: a cached credential whose epochs stand still goes on for at most MAX_AGE_SECONDS since the
store last confirmed it; everything else is refused with store_unavailable. Runs in front workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import urllib.parse
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

import msgspec
from inferno_native.epochs import EpochTable

from ..errors import ApiError
from ..storage import identities
from ..storage.identities import Account, ApiKey
from ..storage.store import Store
from .accounts import (
    Accounts,
    AuditSink,
    account_identity,
    decode_limits,
    key_identity,
    session_identity,
)
from .addresses import source_block
from .audit_format import record
from .keys import DUMMY_DIGEST, KeyHasher, fingerprint, key_id_of, looks_like_key
from .permissions import ROLES, WEIGHTS
from .principal import KeyLimits, Principal
from .sessions import InvalidSession, SessionTokens

MAX_AGE_SECONDS = 60.0
MAX_ENTRIES = 20_000
MAX_CREDENTIAL_BYTES = 4096
TOUCH_SECONDS = 60  # last_used is written at most so often
WATCH_SECONDS = 0.2  # how often the callers of running streams are looked at
_FORGET_SECONDS = 30.0  # a stream that was not asked about for so long is over
_QUERY_NAMES = frozenset(
    ("api_key", "apikey", "api-key", "x-api-key", "key", "token", "access_token", "authorization", "bearer", "auth")
)
_log = logging.getLogger("inferno.security")
Header = tuple[bytes, bytes]


class _Refused(Exception):
    """The credential is not accepted; the reason is for the audit log."""

    def __init__(self, reason: str, account_id: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.account_id = account_id


class _Entry:
    """A credential that the store confirmed."""

    __slots__ = (
        "account_epoch", "account_identity", "expires_at", "fresh_until", "own_epoch", "own_identity", "principal",
    )  # fmt: skip

    def __init__(self, principal: Principal, own_identity: bytes, expires_at: float) -> None:
        self.principal = principal
        self.account_identity = account_identity(principal.id)
        self.own_identity = own_identity
        self.account_epoch = -1
        self.own_epoch = -1
        self.expires_at = expires_at  # wall clock; refused at now >= expires_at
        self.fresh_until = 0.0  # monotonic clock


class _Watch:
    """The caller of a running stream."""

    __slots__ = ("asked_at", "epochs", "is_live", "principal")

    def __init__(self, principal: Principal, epochs: tuple[int, int], asked_at: float) -> None:
        self.principal = principal
        self.epochs = epochs
        self.asked_at = asked_at
        self.is_live = True


class Authenticator:
    """Asks the cache, then the store. `tokens` None: no sessions; `keys_enabled` False: every key is refused."""

    def __init__(
        self,
        store: Store,
        audit: AuditSink,
        epochs: EpochTable,
        key_hasher: KeyHasher,
        tokens: SessionTokens,
        *,
        fingerprint_key: bytes,
        keys_enabled: bool = True,
        accounts: Accounts | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._audit = audit
        self._epochs = epochs
        self._key_hasher = key_hasher
        self._tokens = tokens
        self._fingerprint_key = fingerprint_key
        self._keys_enabled = keys_enabled
        self._accounts = accounts
        self._clock = clock
        self._monotonic = monotonic
        self._cache: dict[bytes, _Entry] = {}
        self._used: dict[str, int] = {}  # key id → last use not written yet
        self._uses: dict[tuple[str, str], list[int]] = {}  # (key id, source) → [hour, uses in it]
        self._watched: dict[tuple[str, str | None, str | None], _Watch] = {}
        self._task: asyncio.Task[None] | None = None

    # ------------------------------------------------------------ the hot path

    async def authenticate(
        self, headers: Sequence[Header], query: bytes, source: str, request_id: str = ""
    ) -> Principal:
        """Return who calls. Raises ApiError: ambiguous_credentials, invalid_api_key, store_unavailable."""
        principal = self.cached(headers, query, source)
        if principal is not None:
            return principal
        return await self._from_store(headers, source, request_id)

    def cached(self, headers: Sequence[Header], query: bytes, source: str) -> Principal | None:
        """Return the principal of a cached credential that still stands. Raises ApiError(ambiguous_credentials)."""
        credential = _credential_of(headers, query)
        if credential is None:
            return None
        entry = self._cache.get(sha256(credential).digest())
        if entry is None:
            return None
        read = self._epochs.read
        if (
            read(entry.account_identity) != entry.account_epoch
            or read(entry.own_identity) != entry.own_epoch
            or self._clock() >= entry.expires_at
            or self._monotonic() >= entry.fresh_until
        ):
            return None
        principal = entry.principal
        if principal.key_id is not None:
            self._note_use(principal, source)
        return principal

    # ------------------------------------------------------------ the store

    async def _from_store(self, headers: Sequence[Header], source: str, request_id: str) -> Principal:
        raw = _credential_of(headers, b"")
        account_id = ""
        shown = ""
        try:
            if raw is None:
                raise _Refused("missing")
            text = _text_of(raw)
            shown = fingerprint(self._fingerprint_key, text)
            entry = await self._load(text)
        except _Refused as refused:
            reason, account_id = refused.reason, refused.account_id
        else:
            self._keep(sha256(raw).digest(), entry)
            if entry.principal.key_id is not None:
                self._note_use(entry.principal, source)
            return entry.principal
        self._audit.note(
            record(
                "auth.failure",
                result="failure",
                reason=reason,
                actor=account_id,
                actor_type="user" if account_id else "",
                ip=source_block(source).text,
                target=f"credential:{shown}" if shown else "",
                request_id=request_id,
            )
        )
        raise ApiError("invalid_api_key", "No valid credential was sent.")

    async def _load(self, text: str) -> _Entry:
        """Judge a credential by form, then by the store. Raises _Refused and ApiError(store_unavailable)."""
        if looks_like_key(text):
            return await self._load_key(text)
        return await self._load_session(text)

    async def _load_key(self, text: str) -> _Entry:
        if not self._keys_enabled:
            raise _Refused("api_keys_disabled")
        key_id = key_id_of(text)
        if key_id is None:
            raise _Refused("malformed_key")
        own = key_identity(key_id)
        own_epoch = self._epochs.read(own)
        async with self._store.read() as connection:
            found = await identities.key_with_account(connection, key_id)
        account_epoch = -1
        if found is not None:
            # An epoch must be older than the row that it vouches for, and only the row names the account: read twice.
            account_epoch = self._epochs.read(account_identity(found[1].id))
            async with self._store.read() as connection:
                found = await identities.key_with_account(connection, key_id)
        # Unknown ids take the same comparison; the answer is the same.
        is_right = self._key_hasher.matches(text, DUMMY_DIGEST if found is None else found[0].digest)
        if found is None or not is_right:
            raise _Refused("unknown_key")
        key, account = found
        _check_key(key, account, self._clock())
        entry = _Entry(_principal_of_key(key, account), own, key.expires_at)
        entry.own_epoch, entry.account_epoch = own_epoch, account_epoch
        return entry

    async def _load_session(self, text: str) -> _Entry:
        try:
            session = self._tokens.verify(text, int(self._clock()))
        except InvalidSession as invalid:
            raise _Refused(invalid.reason) from None
        own = session_identity(session.jti)
        own_epoch = self._epochs.read(own)
        account_epoch = self._epochs.read(account_identity(session.account_id))
        async with self._store.read() as connection:
            account = await identities.account_by_id(connection, session.account_id)
            is_revoked = await identities.is_session_revoked(connection, session.jti)
        if account is None:
            raise _Refused("unknown_account")
        if is_revoked:
            raise _Refused("revoked", account.id)
        if account.disabled:
            raise _Refused("disabled", account.id)
        if account.epoch != session.epoch:
            raise _Refused("ended", account.id)
        principal = Principal(
            id=account.id,
            name=account.name,
            actor_type="user",
            role=account.role,
            permissions=ROLES.get(account.role, frozenset()),
            account_limits=_limits(account.limits),
            session_id=session.jti,
            session_expires_at=session.expires_at,
            weight=WEIGHTS.get(account.role, 1.0),
        )
        entry = _Entry(principal, own, session.expires_at + self._tokens.skew_seconds)
        entry.own_epoch, entry.account_epoch = own_epoch, account_epoch
        return entry

    def _keep(self, digest: bytes, entry: _Entry) -> None:
        while len(self._cache) >= MAX_ENTRIES:
            del self._cache[next(iter(self._cache))]
        self._cache.pop(digest, None)
        entry.fresh_until = self._monotonic() + MAX_AGE_SECONDS
        self._cache[digest] = entry

    # ------------------------------------------------------------ running streams

    def is_current(self, principal: Principal) -> bool:
        """Whether the caller of a running stream still stands, as of at most WATCH_SECONDS ago."""
        if principal.actor_type == "anonymous":
            return True
        place = (principal.id, principal.key_id, principal.session_id)
        watch = self._watched.get(place)
        if watch is None:
            # The epochs are taken as of now: what came between is found by the look at the store that follows.
            watch = self._watched[place] = _Watch(principal, (-1, -1), 0.0)
        watch.asked_at = self._monotonic()
        expires = principal.session_expires_at
        if expires is not None and self._clock() >= expires + self._tokens.skew_seconds:
            return False
        return watch.is_live

    async def check_streams(self) -> None:
        """Look again at every watched caller whose epochs moved."""
        now = self._monotonic()
        for place, watch in list(self._watched.items()):
            if now - watch.asked_at > _FORGET_SECONDS:
                del self._watched[place]
                continue
            if not watch.is_live:
                continue
            principal = watch.principal
            if principal.key_id is not None:
                own = key_identity(principal.key_id)
            else:
                own = session_identity(principal.session_id or "")
            epochs = (self._epochs.read(account_identity(principal.id)), self._epochs.read(own))
            if epochs != watch.epochs:
                with contextlib.suppress(ApiError):  # the store is lost: looked at again next time
                    watch.is_live = await self._still_stands(principal)
                    watch.epochs = epochs

    async def _still_stands(self, principal: Principal) -> bool:
        async with self._store.read() as connection:
            if principal.key_id is not None:
                found = await identities.key_with_account(connection, principal.key_id)
                if found is None:
                    return False
                try:
                    _check_key(*found, self._clock())
                except _Refused:
                    return False
                permissions = _principal_of_key(*found).permissions
            else:
                account = await identities.account_by_id(connection, principal.id)
                if account is None or account.disabled:
                    return False
                if await identities.is_session_revoked(connection, principal.session_id or ""):
                    return False
                permissions = ROLES.get(account.role, frozenset())
        return "run_inference" in permissions

    # ------------------------------------------------------------ in the background

    def start(self) -> None:
        """Start the background work: streams, last_used."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        with contextlib.suppress(ApiError):
            await self.write_uses()

    async def write_uses(self) -> None:
        """Write last_used of the keys that were used since. Lost on a crash: harmless."""
        used, self._used = self._used, {}
        if not used:
            return
        async with self._store.write() as connection:
            await identities.touch_keys(connection, used)

    async def _run(self) -> None:
        written_at = self._monotonic()
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            await self.check_streams()
            if self._monotonic() - written_at >= TOUCH_SECONDS:
                written_at = self._monotonic()
                try:
                    await self.write_uses()
                except ApiError as error:
                    _log.warning("last use of keys was not written: %s", error.code)

    def _note_use(self, principal: Principal, source: str) -> None:
        """Count a use of a key; the first in an hour and source block goes to the audit log."""
        key_id = principal.key_id or ""
        now = int(self._clock())
        self._used[key_id] = now
        uses = self._uses.get((key_id, source))
        if uses is not None and uses[0] == now // 3600:
            uses[1] += 1
            return
        told = 0 if uses is None else uses[1]
        while len(self._uses) >= MAX_ENTRIES:
            del self._uses[next(iter(self._uses))]
        self._uses[key_id, source] = [now // 3600, 1]
        self._audit.note(
            record(
                "auth.key",
                reason=f"count={told}",
                actor=principal.id,
                actor_type="key",
                ip=source_block(source).text,
                target=key_id,
            )
        )


def _credential_of(headers: Sequence[Header], query: bytes) -> bytes | None:
    """Return the one credential, or None. Raises ApiError(ambiguous_credentials)."""
    bearer: bytes | None = None
    api_key: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            if bearer is not None:
                raise _ambiguous()
            bearer = value
        elif name == b"x-api-key":
            if api_key is not None:
                raise _ambiguous()
            api_key = value
    if query:
        _check_query(query)
    if bearer is None:
        return api_key
    # RFC 9110 11.1: the scheme's name has no case. Another scheme is a credential that no store knows.
    if bearer[:7].lower() == b"bearer ":
        bearer = bearer[7:]
    if api_key is not None and api_key != bearer:
        raise _ambiguous()
    return bearer


def _check_query(query: bytes) -> None:
    """Refuse credentials in the URL: by the parameter's name, or a value that has their form."""
    for pair in query.split(b"&"):
        name, _, value = pair.partition(b"=")
        if not name and not value:
            continue
        plain = urllib.parse.unquote_plus(name.decode("latin-1")).strip().casefold()
        text = urllib.parse.unquote_plus(value.decode("latin-1")).strip()
        if plain in _QUERY_NAMES or looks_like_key(text) or (text.startswith("eyJ") and text.count(".") == 2):
            raise ApiError("ambiguous_credentials", "A credential is sent in a header, never in the URL.")


def _ambiguous() -> ApiError:
    return ApiError("ambiguous_credentials", "Send one credential, once: Authorization: Bearer or X-API-Key.")


def _text_of(raw: bytes) -> str:
    if len(raw) > MAX_CREDENTIAL_BYTES:
        raise _Refused("too_long")
    if not raw:
        raise _Refused("missing")
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError:
        raise _Refused("malformed") from None


def _check_key(key: ApiKey, account: Account, now: float) -> None:
    if key.revoked_at is not None:
        raise _Refused("revoked", account.id)
    if now >= key.expires_at:
        raise _Refused("expired", account.id)
    if account.disabled:
        raise _Refused("disabled", account.id)


def _limits(text: str) -> KeyLimits | None:
    limits = decode_limits(text)
    return None if limits == KeyLimits() else limits


def _principal_of_key(key: ApiKey, account: Account) -> Principal:
    granted: list[str] = msgspec.json.decode(key.permissions, type=list[str])
    models: Any = None if key.models is None else frozenset(msgspec.json.decode(key.models, type=list[str]))
    return Principal(
        id=account.id,
        name=account.name,
        actor_type="key",
        role=account.role,
        permissions=frozenset(granted) & ROLES.get(account.role, frozenset()),
        key_id=key.id,
        models=models,
        account_limits=_limits(account.limits),
        key_limits=_limits(key.limits),
        redact_profile=key.redact_profile,
        weight=WEIGHTS.get(account.role, 1.0),
    )
