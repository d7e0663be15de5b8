"""Who is calling: the one value that any credential becomes, and that limits, caches and fairness are keyed by."""

from __future__ import annotations

from msgspec import Struct


class KeyLimits(Struct, frozen=True, forbid_unknown_fields=True):
    """A key's (or account's) own limits, on top of the principal's; None: no own limit."""

    max_requests_per_minute: int | None = None
    max_requests_per_hour: int | None = None
    max_tokens_per_minute: int | None = None
    max_concurrent_requests: int | None = None
    max_input_length: int | None = None


class Principal(Struct, frozen=True):
    """The account behind a request (with authentication off: the source address).

    `id` is stable and never reused: the account's id, or `ip:<address block>`. `actor_type` is what the audit shows.
    """

    id: str
    name: str
    actor_type: str  # "user", "key", "anonymous"
    role: str
    permissions: frozenset[str]
    key_id: str | None = None
    models: frozenset[str] | None = None  # None: all
    account_limits: KeyLimits | None = None
    key_limits: KeyLimits | None = None
    redact_profile: str | None = None  # None: the configured one
    session_id: str | None = None  # the JWT's jti
    session_expires_at: int | None = None  # its exp, UNIX seconds
    weight: float = 1.0  # share of the engine
