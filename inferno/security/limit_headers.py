"""Verdicts of the limits, and how an answer tells them to the client.

Owns the fields `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers, list form), OpenAI's
`x-ratelimit-*`, `Retry-After` (RFC 9110) and `retry-after-ms`. Names of policies only: never an address, account or key.
Does not know buckets. Runs in the front workers.

`r` is what is left, `t` is when: on an answer that was admitted, the seconds until the policy is full again; on a
refused one, only the violated policies carry `t`, the seconds until the same request would fit, so that `Retry-After`
is never less than any `t`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from msgspec import Struct

Headers = list[tuple[bytes, bytes]]

# A slot comes free when some answer ends: nobody knows when, so ask again soon.
CONCURRENCY_RETRY_MS = 1000
# The store of the buckets is away; it is asked again for every request.
UNAVAILABLE_RETRY_MS = 5000
REQUEST_POLICIES = ("minute", "hour")
ORDER = ("minute", "hour", "tokens", "login", "key-creation", "password", "concurrency")


class PolicyState(Struct, frozen=True):
    """One policy at one moment. `window_seconds` is None for concurrency, which time does not give back."""

    name: str
    scope: str  # "source", "principal", "key" or "account": for audit and metrics, never for headers
    quota: int
    window_seconds: int | None
    remaining: int
    reset_us: int  # until the bucket is full
    wait_us: int  # until the refused cost would fit; 0 where it fits
    violated: bool

    @property
    def reset_seconds(self) -> int:
        return _seconds(self.reset_us)


class Decision(Struct, frozen=True):
    """What the limits say to one step of a request, with the state of every policy that was asked."""

    allowed: bool
    policies: tuple[PolicyState, ...] = ()
    too_large: bool = False  # the cost is above a bucket's size: 400, waiting cannot help
    unavailable: bool = False  # refused because the store is away: 503
    degraded: bool = False  # admitted without being counted because the store is away (on_failure = "open")
    delay_seconds: float = 0.0  # logins only: how long to hold the answer back, right or wrong

    @property
    def decisive(self) -> PolicyState | None:
        """The violated policy with the longest wait; of an admitted request the one with the least left."""
        if not self.policies:
            return None
        violated = [policy for policy in self.policies if policy.violated]
        if violated:
            return max(violated, key=lambda policy: policy.wait_us)
        return min(self.policies, key=lambda policy: policy.remaining)

    @property
    def policy(self) -> str | None:
        return self.decisive.name if self.decisive else None

    @property
    def limit(self) -> int | None:
        return self.decisive.quota if self.decisive else None

    @property
    def remaining(self) -> int | None:
        return self.decisive.remaining if self.decisive else None

    @property
    def reset_seconds(self) -> int | None:
        return self.decisive.reset_seconds if self.decisive else None

    @property
    def retry_after_ms(self) -> int | None:
        """Milliseconds after which the same request fits (if nobody else draws on the bucket); None if none helps."""
        if self.allowed or self.too_large:
            return None
        if self.unavailable or not self.policies:
            return UNAVAILABLE_RETRY_MS
        waits = [policy.wait_us for policy in self.policies if policy.violated and policy.wait_us]
        return max(1, -(-max(waits) // 1000)) if waits else CONCURRENCY_RETRY_MS

    @property
    def retry_after(self) -> int | None:
        """The same in whole seconds, rounded up, at least 1."""
        milliseconds = self.retry_after_ms
        return None if milliseconds is None else -(-milliseconds // 1000)


ADMITTED_UNCOUNTED = Decision(allowed=True)


def headers(decisions: Iterable[Decision]) -> Headers:
    """The response headers for all decisions of one request, in any order; a refused one adds `Retry-After`.

    Policies of one name (owner's and key's) are told as one: the violated one that takes longest, else the one with the
    least left.
    """
    decisions = list(decisions)
    if len(decisions) == 1 and decisions[0].allowed and _are_requests(decisions[0].policies):
        return _admitted(*decisions[0].policies)
    refused = [decision for decision in decisions if not decision.allowed]
    policies = _merged(decisions)
    result: Headers = []
    if policies:
        result.append((b"ratelimit-policy", ", ".join(_policy_item(policy) for policy in policies).encode()))
        result.append(
            (b"ratelimit", ", ".join(_limit_item(policy, bool(refused)) for policy in policies).encode())
        )
    requests = [policy for policy in policies if policy.name in REQUEST_POLICIES]
    if requests:
        result += _openai_trio("requests", min(requests, key=lambda policy: policy.remaining))
    result += [
        header for policy in policies if policy.name == "tokens" for header in _openai_trio("tokens", policy)
    ]
    waits = [decision.retry_after_ms for decision in refused if decision.retry_after_ms is not None]
    if waits:
        result.append((b"retry-after", b"%d" % -(-max(waits) // 1000)))
        result.append((b"retry-after-ms", b"%d" % max(waits)))
    return result


def _are_requests(policies: tuple[PolicyState, ...]) -> bool:
    """Whether these are just minute and hour, as nearly every answer has them."""
    return len(policies) == 2 and (policies[0].name, policies[1].name) == REQUEST_POLICIES


def _admitted(minute: PolicyState, hour: PolicyState) -> Headers:
    """The same as the general way, in one go: this is on the path of every answer."""
    least = minute if minute.remaining <= hour.remaining else hour
    item = b'"minute";r=%d;t=%d, "hour";r=%d;t=%d'
    minute_reset, hour_reset = _seconds(minute.reset_us), _seconds(hour.reset_us)
    return [
        (b"ratelimit-policy", _request_policies(minute.quota, hour.quota)),
        (b"ratelimit", item % (minute.remaining, minute_reset, hour.remaining, hour_reset)),
        (b"x-ratelimit-limit-requests", b"%d" % least.quota),
        (b"x-ratelimit-remaining-requests", b"%d" % least.remaining),
        (b"x-ratelimit-reset-requests", _duration(minute_reset if least is minute else hour_reset)),
    ]


@lru_cache(maxsize=1024)
def _request_policies(minute: int, hour: int) -> bytes:
    return b'"minute";q=%d;w=60, "hour";q=%d;w=3600' % (minute, hour)


@lru_cache(maxsize=4096)
def _duration(seconds: int) -> bytes:
    return duration(seconds).encode()


def duration(seconds: int) -> str:
    """Seconds as OpenAI writes them: 1s, 6m0s, 1h0m0s."""
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _merged(decisions: list[Decision]) -> list[PolicyState]:
    chosen: dict[str, PolicyState] = {}
    for decision in decisions:
        for policy in decision.policies:
            other = chosen.get(policy.name)
            if other is None or _rank(policy) < _rank(other):
                chosen[policy.name] = policy
    return sorted(chosen.values(), key=lambda policy: ORDER.index(policy.name))


def _rank(policy: PolicyState) -> tuple[bool, int, int]:
    return (not policy.violated, -policy.wait_us, policy.remaining)


def _policy_item(policy: PolicyState) -> str:
    if policy.window_seconds is None:
        return f'"{policy.name}";q={policy.quota};qu="concurrent-requests"'
    return f'"{policy.name}";q={policy.quota};w={policy.window_seconds}'


def _limit_item(policy: PolicyState, refused: bool) -> str:
    item = f'"{policy.name}";r={policy.remaining}'
    if policy.window_seconds is None:
        return item
    if refused:
        return f"{item};t={_seconds(policy.wait_us)}" if policy.violated and policy.wait_us else item
    return f"{item};t={policy.reset_seconds}"


def _openai_trio(unit: str, policy: PolicyState) -> Headers:
    return [
        (f"x-ratelimit-limit-{unit}".encode(), b"%d" % policy.quota),
        (f"x-ratelimit-remaining-{unit}".encode(), b"%d" % policy.remaining),
        (f"x-ratelimit-reset-{unit}".encode(), duration(policy.reset_seconds).encode()),
    ]


def _seconds(microseconds: int) -> int:
    return -(-microseconds // 1_000_000)
