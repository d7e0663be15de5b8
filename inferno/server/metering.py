"""The limits as the front asks them: decisions become ApiErrors, and headers of the answer.

Over inferno.security.limits, whose steps do not know HTTP. Audit and metrics learn of refusals through `on_refused`.
Front workers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from ..errors import ApiError
from ..security.limit_headers import Decision
from ..security.limit_policy import Subject, subjects
from ..security.limits import Lease, Limiter, Reservation
from ..security.principal import Principal
from .http import Context

MAX_SUBJECTS = 4096
Refusal = Callable[[Context, Decision], None]


def _ignore(context: Context, decision: Decision) -> None:
    """Nobody listens."""


class LimitMeter:
    """Implements services.Meter. Each decision is kept in the Context, which the answer's headers are made of."""

    def __init__(self, limiter: Limiter, on_refused: Refusal = _ignore) -> None:
        self.limiter = limiter
        self._on_refused = on_refused
        self._subjects: dict[str, tuple[Principal, Subject, Subject | None]] = {}

    async def source(self, context: Context) -> None:
        decision = await self.limiter.check_source(context.source, administration=context.is_administration)
        if not decision.allowed:
            self._refuse(context, decision, "requests of this address")

    async def requests(self, context: Context, principal: Principal) -> None:
        account, key = self._subjects_of(principal)
        decision = await self.limiter.check_requests(account, key, administration=context.is_administration)
        if not decision.allowed:
            self._refuse(context, decision, "requests")
        context.decisions.append(decision)

    async def slot(self, context: Context, principal: Principal) -> Lease:
        account, key = subjects(principal)
        lease = await self.limiter.acquire_concurrency(account, key)
        if isinstance(lease, Decision):
            self._refuse(context, lease, "requests at once")
        return lease

    async def tokens(
        self,
        context: Context,
        principal: Principal,
        num_prompt_tokens: int,
        max_tokens: int | None,
        context_left: int,
    ) -> Reservation:
        account, key = subjects(principal)
        reservation = await self.limiter.reserve_tokens(
            account, key, num_prompt_tokens, max_tokens, context_left
        )
        if isinstance(reservation, Decision):
            self._refuse(context, reservation, "tokens", num_tokens=num_prompt_tokens + (max_tokens or 1))
        context.decisions.append(reservation.decision)
        return reservation

    def _subjects_of(self, principal: Principal) -> tuple[Subject, Subject | None]:
        """The same as `subjects`, remembered while the principal is the very same object: every request asks."""
        name = principal.key_id or principal.id
        known = self._subjects.get(name)
        if known is not None and known[0] is principal:
            return known[1], known[2]
        account, key = subjects(principal)
        if len(self._subjects) >= MAX_SUBJECTS:
            self._subjects.clear()
        self._subjects[name] = principal, account, key
        return account, key

    def _refuse(self, context: Context, decision: Decision, what: str, *, num_tokens: int = 0) -> NoReturn:
        context.decisions.append(decision)
        self._on_refused(context, decision)
        if decision.unavailable:
            raise ApiError("store_unavailable", "The limits cannot be asked now.")
        if decision.too_large:
            message = (
                f"The request may use {num_tokens} tokens; the limit's size is {decision.limit} a minute."
            )
            raise ApiError("tokens_exceed_limit", message, param="max_tokens")
        raise ApiError("rate_limit_exceeded", f"The limit of {what} is reached (policy {decision.policy}).")
