"""The limiter that every request meets: source, principal and key, concurrency, model tokens, logins, key creations.

Owns the order-independent steps; the front calls them in the contract's order. Turns the store's outcomes into
decisions, and a store that is away into the operator's choice (closed unless told otherwise; always closed for logins
and administration). Does not know HTTP routes or statuses. Runs in the front workers, one Limiter each.
"""

from __future__ import annotations

from inferno_native.buckets import ADMITTED, NO_HOLD, REFUSED, TOO_LARGE

from inferno.security.limit_headers import ADMITTED_UNCOUNTED, Decision, PolicyState, headers
from inferno.security.limit_policy import (
    FAMILIES,
    NO_OWN_LIMITS,
    POLICY_NAMES,
    SCOPES,
    Family,
    LimitSettings,
    Subject,
    subjects,
)
from inferno.security.principal import KeyLimits
from inferno.storage.bucket_store import BucketStore, HoldId, Outcome, Part, StoreUnavailable

__all__ = [
    "FAMILIES",
    "NO_OWN_LIMITS",
    "Decision",
    "KeyLimits",
    "Lease",
    "LimitSettings",
    "Limiter",
    "PolicyState",
    "Reservation",
    "Subject",
    "headers",
    "subjects",
]

# An account that many sources try at once is slowed, not locked: its owner still gets in, this much later.
MAX_LOGIN_DELAY_SECONDS = 4.0


class Lease:
    """A concurrency slot of a principal and its key; streams keep it until their last byte."""

    def __init__(self, store: BucketStore, hold: HoldId | None, decision: Decision) -> None:
        self.decision = decision
        self._store = store
        self._hold = hold

    def release(self) -> bool:
        """Free the slot; True the first time. Never waits or raises: call it in `finally`."""
        hold, self._hold = self._hold, None
        if hold is None:
            return False
        self._store.settle(hold, 0)
        return True


class Reservation:
    """Model tokens charged before the work. `granted_max_tokens` is how many may be generated: stop with `length` there.

    Counts are prompt plus completion. Settle once, after finish, error, disconnect, timeout or engine death alike.
    """

    def __init__(
        self, store: BucketStore, hold: HoldId | None, granted_max_tokens: int, decision: Decision
    ) -> None:
        self.granted_max_tokens = granted_max_tokens
        self.decision = decision
        self._store = store
        self._hold = hold

    def note(self, num_tokens: int) -> None:
        """Tell how many tokens were used so far: this much stays charged if this worker is killed."""
        if self._hold is not None:
            self._store.note(self._hold, num_tokens)

    def settle(self, num_tokens: int) -> bool:
        """Charge what was really used and give the rest back; True the first time. Never waits or raises."""
        hold, self._hold = self._hold, None
        if hold is None:
            return False
        self._store.settle(hold, num_tokens)
        return True


class Limiter:
    """One worker's view of all limits; the buckets are shared by the whole server, or by all hosts."""

    def __init__(self, store: BucketStore, settings: LimitSettings) -> None:
        self.store = store
        self.settings = settings

    def update(self, settings: LimitSettings) -> None:
        """Use other limits from now on (SIGHUP); what was used stays used."""
        self.settings = settings

    async def check_source(self, address: str, *, administration: bool = False) -> Decision:
        """Charge one request to a client's address (IPv6: its /64); the first check of all."""
        if not self.settings.rate_limiting_enabled:
            return ADMITTED_UNCOUNTED
        parts = self.settings.source_parts(address)
        try:
            outcome = await self.store.take(parts)
        except StoreUnavailable:
            return self._failed(administration)
        # A client is not told what is left of its address, so an admitted request needs no description of it.
        return ADMITTED_UNCOUNTED if outcome.status == ADMITTED else _decision(parts, outcome)

    async def check_requests(
        self, principal: Subject, key: Subject | None = None, *, administration: bool = False
    ) -> Decision:
        """Charge one request to the principal's minute and hour and to the key's own limits, all or none."""
        if not self.settings.rate_limiting_enabled:
            return ADMITTED_UNCOUNTED
        return await self._take(self.settings.request_parts(principal, key), closed=administration)

    async def acquire_concurrency(self, principal: Subject, key: Subject | None = None) -> Lease | Decision:
        """Take a concurrency slot, or tell that all are in use."""
        parts = self.settings.slot_parts(principal, key)
        try:
            outcome = await self.store.hold(parts, 1)
        except StoreUnavailable:
            failed = self._failed(closed=False)
            return Lease(self.store, None, failed) if failed.allowed else failed
        decision = _decision(parts, outcome)
        return Lease(self.store, outcome.hold, decision) if decision.allowed else decision

    async def reserve_tokens(
        self,
        principal: Subject,
        key: Subject | None,
        num_prompt_tokens: int,
        max_tokens: int | None,
        context_left: int,
    ) -> Reservation | Decision:
        """Reserve a request's tokens between prepare and start.

        With max_tokens: prompt and max_tokens (no more than the context holds). Without: prompt and the smaller of the
        context left and what the bucket's size leaves beside the prompt. `too_large` if no wait could ever help.
        """
        if num_prompt_tokens < 0 or context_left < 0 or (max_tokens is not None and max_tokens < 0):
            raise ValueError("token counts must not be negative")
        granted = context_left if max_tokens is None else min(max_tokens, context_left)
        parts = self.settings.token_parts(principal, key) if self.settings.rate_limiting_enabled else ()
        if not parts:
            return Reservation(self.store, None, granted, ADMITTED_UNCOUNTED)
        bucket_size = min(quota for _, _, (quota,) in parts if quota is not None)
        least = 1 if max_tokens is None else max_tokens
        if num_prompt_tokens + least > bucket_size:
            return Decision(allowed=False, too_large=True, policies=_sizes(parts, num_prompt_tokens + least))
        granted = min(granted, bucket_size - num_prompt_tokens)
        cost = max(1, num_prompt_tokens + granted)
        try:
            outcome = await self.store.hold(parts, cost, num_prompt_tokens)
        except StoreUnavailable:
            failed = self._failed(closed=False)
            return Reservation(self.store, None, granted, failed) if failed.allowed else failed
        decision = _decision(parts, outcome)
        return Reservation(self.store, outcome.hold, granted, decision) if decision.allowed else decision

    async def check_login(self, address: str, account: str) -> Decision:
        """Charge a login attempt to its source. Tries at one account from anywhere only delay it, never lock it."""
        decision = await self._take(self.settings.login_parts(address), closed=True)
        if not decision.allowed:
            return decision
        attempts = await self._take(self.settings.account_parts(account), closed=True)
        if attempts.allowed or attempts.unavailable:
            return decision if attempts.allowed else attempts
        delay = max(policy.wait_us for policy in attempts.policies) / 1_000_000
        return Decision(True, decision.policies, delay_seconds=min(delay, MAX_LOGIN_DELAY_SECONDS))

    async def check_key_creation(self, principal: Subject) -> Decision:
        return await self._take(self.settings.key_creation_parts(principal), closed=True)

    async def check_password_change(self, principal: Subject) -> Decision:
        return await self._take(self.settings.password_parts(principal), closed=True)

    async def remaining(self, principal: Subject, key: Subject | None = None) -> list[Decision]:
        """What is left of requests, tokens and concurrency, without charging anything (/api/v1/auth/me)."""
        settings = self.settings
        asked = [settings.slot_parts(principal, key)]
        if settings.rate_limiting_enabled:
            asked = [settings.request_parts(principal, key), settings.token_parts(principal, key), *asked]
        return [await self._take(parts, closed=True, cost=0) for parts in asked if parts]

    async def _take(self, parts: tuple[Part, ...], *, closed: bool, cost: int = 1) -> Decision:
        try:
            outcome: Outcome = await self.store.take(parts, cost)
        except StoreUnavailable:
            return self._failed(closed)
        return _decision(parts, outcome)

    def _failed(self, closed: bool) -> Decision:
        if closed or self.settings.on_failure == "closed":
            return Decision(allowed=False, unavailable=True)
        return Decision(allowed=True, degraded=True)


def _describe(family: Family) -> tuple[bool, str, tuple[tuple[str, int | None], ...]]:
    kind = FAMILIES[family]
    seconds = [None if kind.counting else window_us // 1_000_000 for window_us in kind.windows_us]
    return kind.counting, SCOPES.get(family, "principal"), tuple(zip(POLICY_NAMES[family], seconds, strict=True))


# By family: counting, scope, and name and seconds of each window. One list look-up a policy: every request passes here.
_KINDS = [_describe(family) for family in Family]


def _decision(parts: tuple[Part, ...], outcome: Outcome) -> Decision:
    status = outcome.status
    policies = []
    for part, window, quota, remaining, reset_us, wait_us in outcome.states:
        counting, scope, windows = _KINDS[parts[part][0]]
        name, window_seconds = windows[window]
        violated = wait_us > 0
        if counting:
            violated = status == NO_HOLD or (status == REFUSED and remaining == 0)
            reset_us = 0
        policies.append(PolicyState(name, scope, quota, window_seconds, remaining, reset_us, wait_us, violated))
    return Decision(status == ADMITTED, tuple(policies), status == TOO_LARGE)


def _sizes(parts: tuple[Part, ...], cost: int) -> tuple[PolicyState, ...]:
    """The policies of a cost that is above some bucket's whole size, without asking the store."""
    policies = []
    for family, _, (quota,) in parts:
        if quota is not None:
            _, scope, ((name, window_seconds),) = _KINDS[family]
            policies.append(PolicyState(name, scope, quota, window_seconds, quota, 0, 0, cost > quota))
    return tuple(policies)
