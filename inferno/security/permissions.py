"""Permissions and roles as data, and the one decision that every route asks.

Owns what may be done by whom. Does not know how a caller was identified (auth.py) or routes (server/app.py).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from .principal import Principal

PERMISSIONS: Final = (
    "read_models",
    "write_models",
    "delete_models",
    "run_inference",
    "use_streaming",
    "use_grammar",
    "use_special_tokens",
    "manage_cache",
    "read_metrics",
    "write_config",
    "manage_users",
    "view_audit_logs",
)
_USER: Final = ("read_models", "run_inference", "use_streaming")
ROLES: Final[dict[str, frozenset[str]]] = {
    "admin": frozenset(PERMISSIONS),
    "user": frozenset(_USER),
    "service": frozenset((*_USER, "use_grammar", "use_special_tokens", "manage_cache", "read_metrics")),
    "guest": frozenset(("read_models", "run_inference")),
}
# A role's share of the engine while requests of several accounts wait: half a turn for guests, two for services, behind
# which many people may stand. Shares are an account's, whatever its keys.
WEIGHTS: Final[dict[str, float]] = {"admin": 2.0, "user": 1.0, "service": 2.0, "guest": 0.5}


class Policy(NamedTuple):
    """Who may call one route and method: `public`, `authenticated`, or a permission (all of them needed).

    `buckets`: whether source and request buckets are charged (only health routes are outside).
    """

    public: bool = False
    permissions: tuple[str, ...] = ()
    buckets: bool = True


class Verdict(NamedTuple):
    """A decision with its reason: `ok`, `anonymous` (401) or `missing:<permission>` (403)."""

    allowed: bool
    reason: str


def allow(policy: Policy, principal: Principal | None) -> Verdict:
    """Decide whether `principal` (None: no valid credential) may use a route with `policy`."""
    if policy.public:
        return Verdict(True, "ok")
    if principal is None:
        return Verdict(False, "anonymous")
    for permission in policy.permissions:
        if permission not in principal.permissions:
            return Verdict(False, f"missing:{permission}")
    return Verdict(True, "ok")
