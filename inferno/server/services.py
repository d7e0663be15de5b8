"""What the handlers of one worker share, as small interfaces: identity, limits, guards, records.

The real parts live in inferno.security; each has here the few methods that the front calls, and a plain implementation
for the setting that turns it off. Front workers.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from ..config import Settings
from ..messages import PrincipalTag
from ..pool.engines import Engines
from ..security.addresses import source_block
from ..security.permissions import ROLES
from ..security.principal import Principal
from .guarding import Guards
from .http import Context, Header
from .observing import NoObserver, Observer
from .timeline import Timeline

ANONYMOUS_PERMISSIONS = ROLES["user"] | {"use_grammar", "use_special_tokens"}


class Authenticator(Protocol):
    """Turns any credential into a principal. Every failure is the same ApiError 401; ambiguity is 400."""

    async def authenticate(
        self, headers: list[Header], query: bytes, source: str, request_id: str = ""
    ) -> Principal: ...

    def is_current(self, principal: Principal) -> bool:
        """Whether a principal of a running stream still stands (asked at least once a second)."""
        ...


class Lease(Protocol):
    """A concurrency slot."""

    def release(self) -> bool: ...


class Reservation(Protocol):
    """Model tokens charged before the work."""

    @property
    def granted_max_tokens(self) -> int: ...
    def note(self, num_tokens: int) -> None: ...
    def settle(self, num_tokens: int) -> bool: ...


class Meter(Protocol):
    """Limits in the contract's order. Each step raises ApiError when it refuses."""

    async def source(self, context: Context) -> None: ...
    async def requests(self, context: Context, principal: Principal) -> None: ...
    async def slot(self, context: Context, principal: Principal) -> Lease: ...
    async def tokens(
        self,
        context: Context,
        principal: Principal,
        num_prompt_tokens: int,
        max_tokens: int | None,
        context_left: int,
    ) -> Reservation: ...


class Recorder(Protocol):
    """Told once about every finished generation, for usage, audit and metrics. Never waits or raises."""

    def finished(
        self,
        context: Context,
        principal: Principal,
        model: str,
        prompt_tokens: int,
        completion_tokens: int,
        result: str,
    ) -> None: ...

    def refused(self, context: Context, principal: Principal, reason: str) -> None:
        """A caller lacks a permission."""
        ...


class Tracer(Protocol):
    """Makes traces of requests. Never waits or raises."""

    def timeline(self, context: Context, model: str) -> Timeline: ...
    def answered(self, context: Context, headers: Sequence[Header], route: str, method: str) -> None: ...


class OpenAuthenticator:
    """Authentication off (loopback only): the principal is the source address, with a user's permissions."""

    async def authenticate(
        self, headers: list[Header], query: bytes, source: str, request_id: str = ""
    ) -> Principal:
        block = source_block(source).text
        return Principal(
            id=f"ip:{block}",
            name=block,
            actor_type="anonymous",
            role="user",
            permissions=frozenset(ANONYMOUS_PERMISSIONS),
        )

    def is_current(self, principal: Principal) -> bool:
        return True


class _NoLease:
    def release(self) -> bool:
        return True


class _NoReservation:
    def __init__(self, granted_max_tokens: int) -> None:
        self.granted_max_tokens = granted_max_tokens

    def note(self, num_tokens: int) -> None:
        pass

    def settle(self, num_tokens: int) -> bool:
        return True


class NoMeter:
    """No limits but the engine's own queue and the context."""

    async def source(self, context: Context) -> None:
        pass

    async def requests(self, context: Context, principal: Principal) -> None:
        pass

    async def slot(self, context: Context, principal: Principal) -> Lease:
        return _NoLease()

    async def tokens(
        self,
        context: Context,
        principal: Principal,
        num_prompt_tokens: int,
        max_tokens: int | None,
        context_left: int,
    ) -> Reservation:
        return _NoReservation(context_left if max_tokens is None else min(max_tokens, context_left))


class NoRecorder:
    def finished(
        self,
        context: Context,
        principal: Principal,
        model: str,
        prompt_tokens: int,
        completion_tokens: int,
        result: str,
    ) -> None:
        pass

    def refused(self, context: Context, principal: Principal, reason: str) -> None:
        pass


class Services:
    """The parts of one worker. `cache_key` keys the tags that engines know principals by."""

    def __init__(
        self,
        settings: Settings,
        engines: Engines,
        *,
        authenticator: Authenticator | None = None,
        meter: Meter | None = None,
        recorder: Recorder | None = None,
        cache_key: bytes = b"",
        before_inference: Callable[[], Awaitable[None]] | None = None,
        guards: Guards | None = None,
        observer: Observer | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.settings = settings
        self.engines = engines
        self.before_inference = (
            before_inference  # audit_on_failure = "refuse": raises while nothing can be recorded
        )
        self.authenticator: Authenticator = authenticator or OpenAuthenticator()
        self.meter: Meter = meter or NoMeter()
        self.recorder: Recorder = recorder or NoRecorder()
        self.guards = guards or Guards()
        self.observer: Observer = observer or NoObserver()
        self.tracer = tracer  # None: traces are off, and nothing is noted for them
        self.is_draining = False
        self.clock: Callable[[], float] = time.monotonic
        self.ends_at = math.inf  # by that clock: answers that still run are ended with an error
        self._cache_key = hashlib.blake2b(cache_key).digest() if cache_key else secrets.token_bytes(32)

    def tag(self, principal: Principal) -> PrincipalTag:
        """Return the opaque 16 bytes under which engines partition caches and queues."""
        return hashlib.blake2b(principal.id.encode(), key=self._cache_key, digest_size=16).digest()
