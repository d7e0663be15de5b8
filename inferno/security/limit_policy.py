"""Limits as data: the families of buckets, the operator's settings, whose limits apply, which parts a check charges.

Does not know where buckets live (storage/bucket_store.py) nor what an answer looks like (limit_headers.py). Runs in the
front workers; the supervisor uses FAMILIES to make the shared table.

Costs. A request costs its source one permit before anything else is looked at, and its principal and key one each once
the credential is known: a failed authentication costs the source only. A request that validation refuses has cost its
permit. Model tokens are charged by reservation, logins, key creations and password changes by buckets of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, Protocol

from inferno.security.addresses import DEFAULT_IPV6_PREFIX, SourceBlock, source_block
from inferno.security.principal import KeyLimits, Principal
from inferno.storage.bucket_store import BucketFamily, Part

MINUTE_US = 60_000_000
HOUR_US = 3_600_000_000


class Family(IntEnum):
    """Indexes into FAMILIES; part of the shared table's layout."""

    SOURCE_4 = 0
    SOURCE_6 = 1
    PRINCIPAL = 2
    KEY = 3
    PRINCIPAL_TOKENS = 4
    KEY_TOKENS = 5
    PRINCIPAL_SLOTS = 6
    KEY_SLOTS = 7
    LOGIN_SOURCE = 8
    LOGIN_ACCOUNT = 9
    KEY_CREATION = 10
    PASSWORD = 11


# 200,000 sources of each kind stand in 23 MB; the pages of places that nobody used are not even allocated.
FAMILIES: tuple[BucketFamily, ...] = (
    BucketFamily(200_000, (MINUTE_US, HOUR_US)),
    BucketFamily(200_000, (MINUTE_US, HOUR_US)),
    BucketFamily(100_000, (MINUTE_US, HOUR_US)),
    BucketFamily(100_000, (MINUTE_US, HOUR_US)),
    BucketFamily(100_000, (MINUTE_US,)),
    BucketFamily(100_000, (MINUTE_US,)),
    BucketFamily(50_000, (1,), counting=True),
    BucketFamily(50_000, (1,), counting=True),
    BucketFamily(50_000, (MINUTE_US,)),
    BucketFamily(50_000, (MINUTE_US,)),
    BucketFamily(50_000, (HOUR_US,)),
    BucketFamily(50_000, (MINUTE_US,)),
)

REQUEST_POLICIES = ("minute", "hour")
# The public name of each window of each family (CONTRACT 5), and who is limited, for audit and metrics.
POLICY_NAMES: dict[Family, tuple[str, ...]] = {
    Family.SOURCE_4: REQUEST_POLICIES,
    Family.SOURCE_6: REQUEST_POLICIES,
    Family.PRINCIPAL: REQUEST_POLICIES,
    Family.KEY: REQUEST_POLICIES,
    Family.PRINCIPAL_TOKENS: ("tokens",),
    Family.KEY_TOKENS: ("tokens",),
    Family.PRINCIPAL_SLOTS: ("concurrency",),
    Family.KEY_SLOTS: ("concurrency",),
    Family.LOGIN_SOURCE: ("login",),
    Family.LOGIN_ACCOUNT: ("login",),
    Family.KEY_CREATION: ("key-creation",),
    Family.PASSWORD: ("password",),
}
SCOPES: dict[Family, str] = {
    Family.SOURCE_4: "source",
    Family.SOURCE_6: "source",
    Family.LOGIN_SOURCE: "source",
    Family.LOGIN_ACCOUNT: "account",
    Family.KEY: "key",
    Family.KEY_TOKENS: "key",
    Family.KEY_SLOTS: "key",
}  # all others: "principal"


NO_OWN_LIMITS = KeyLimits()


@dataclass(frozen=True, slots=True)
class Subject:
    """A principal or a key as limits see it: an opaque, stable identity and its own limits.

    An account's own limits stand in place of the configured ones. A key's come on top of its owner's.
    """

    identity: str
    own: KeyLimits = NO_OWN_LIMITS

    @property
    def key_bytes(self) -> bytes:
        return self.identity.encode("utf-8", "surrogatepass")


def subjects(principal: Principal) -> tuple[Subject, Subject | None]:
    """The account behind a request and, if it came with a key, the key: what the Limiter's checks take."""
    account = Subject(principal.id, principal.account_limits or NO_OWN_LIMITS)
    if principal.key_id is None:
        return account, None
    return account, Subject(principal.key_id, principal.key_limits or NO_OWN_LIMITS)


class SecuritySection(Protocol):
    """What is read of the configuration's [security]."""

    @property
    def rate_limiting_enabled(self) -> bool: ...
    @property
    def max_requests_per_minute(self) -> int: ...
    @property
    def max_requests_per_hour(self) -> int: ...
    @property
    def max_requests_per_minute_per_ip(self) -> int: ...
    @property
    def max_requests_per_hour_per_ip(self) -> int: ...
    @property
    def max_tokens_per_minute(self) -> int | None: ...
    @property
    def max_concurrent_requests_per_user(self) -> int: ...
    @property
    def max_logins_per_minute_per_ip(self) -> int: ...
    @property
    def max_key_creations_per_hour(self) -> int: ...


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """The operator's limits at one moment; SIGHUP makes another one, the buckets stay.

    With rate limiting disabled, sources, requests and tokens are not limited; logins, key creations, password changes
    and concurrency still are: they protect accounts and the machine, not the operator's quotas.
    """

    rate_limiting_enabled: bool = True
    max_requests_per_minute: int = 60
    max_requests_per_hour: int = 1000
    max_requests_per_minute_per_ip: int = 300
    max_requests_per_hour_per_ip: int = 10_000
    max_tokens_per_minute: int | None = None
    max_concurrent_requests_per_user: int = 16
    max_logins_per_minute_per_ip: int = 10
    max_key_creations_per_hour: int = 20
    on_failure: Literal["closed", "open"] = "closed"
    ipv6_prefix: int = DEFAULT_IPV6_PREFIX

    @classmethod
    def of(cls, security: SecuritySection, on_failure: Literal["closed", "open"] = "closed") -> LimitSettings:
        """Take what limits need from the configuration's [security] and [limits]."""
        return cls(
            rate_limiting_enabled=security.rate_limiting_enabled,
            max_requests_per_minute=security.max_requests_per_minute,
            max_requests_per_hour=security.max_requests_per_hour,
            max_requests_per_minute_per_ip=security.max_requests_per_minute_per_ip,
            max_requests_per_hour_per_ip=security.max_requests_per_hour_per_ip,
            max_tokens_per_minute=security.max_tokens_per_minute,
            max_concurrent_requests_per_user=security.max_concurrent_requests_per_user,
            max_logins_per_minute_per_ip=security.max_logins_per_minute_per_ip,
            max_key_creations_per_hour=security.max_key_creations_per_hour,
            on_failure=on_failure,
        )

    def source(self, address: str) -> SourceBlock:
        return source_block(address, self.ipv6_prefix)

    def source_parts(self, address: str) -> tuple[Part, ...]:
        source = self.source(address)
        family = Family.SOURCE_6 if source.version == 6 else Family.SOURCE_4
        return (
            (family, source.key, (self.max_requests_per_minute_per_ip, self.max_requests_per_hour_per_ip)),
        )

    def request_parts(self, principal: Subject, key: Subject | None) -> tuple[Part, ...]:
        """The owner's minute and hour, and the key's where it has its own: taken together or not at all."""
        own = principal.own
        minute = (
            self.max_requests_per_minute
            if own.max_requests_per_minute is None
            else own.max_requests_per_minute
        )
        hour = self.max_requests_per_hour if own.max_requests_per_hour is None else own.max_requests_per_hour
        parts: tuple[Part, ...] = ((Family.PRINCIPAL, principal.key_bytes, (minute, hour)),)
        if key is not None:
            quotas = (key.own.max_requests_per_minute, key.own.max_requests_per_hour)
            if quotas != (None, None):
                parts += ((Family.KEY, key.key_bytes, quotas),)
        return parts

    def token_parts(self, principal: Subject, key: Subject | None) -> tuple[Part, ...]:
        """Empty where neither the principal nor the key has a limit of tokens."""
        own = principal.own.max_tokens_per_minute
        quota = self.max_tokens_per_minute if own is None else own
        parts: tuple[Part, ...] = ()
        if quota is not None:
            parts += ((Family.PRINCIPAL_TOKENS, principal.key_bytes, (quota,)),)
        if key is not None and key.own.max_tokens_per_minute is not None:
            parts += ((Family.KEY_TOKENS, key.key_bytes, (key.own.max_tokens_per_minute,)),)
        return parts

    def slot_parts(self, principal: Subject, key: Subject | None) -> tuple[Part, ...]:
        own = principal.own.max_concurrent_requests
        quota = self.max_concurrent_requests_per_user if own is None else own
        parts: tuple[Part, ...] = ((Family.PRINCIPAL_SLOTS, principal.key_bytes, (quota,)),)
        if key is not None and key.own.max_concurrent_requests is not None:
            parts += ((Family.KEY_SLOTS, key.key_bytes, (key.own.max_concurrent_requests,)),)
        return parts

    def login_parts(self, address: str) -> tuple[Part, ...]:
        return ((Family.LOGIN_SOURCE, self.source(address).key, (self.max_logins_per_minute_per_ip,)),)

    def account_parts(self, account: str) -> tuple[Part, ...]:
        key = account.casefold().encode("utf-8", "surrogatepass")
        return ((Family.LOGIN_ACCOUNT, key, (self.max_logins_per_minute_per_ip,)),)

    def key_creation_parts(self, principal: Subject) -> tuple[Part, ...]:
        return ((Family.KEY_CREATION, principal.key_bytes, (self.max_key_creations_per_hour,)),)

    def password_parts(self, principal: Subject) -> tuple[Part, ...]:
        return ((Family.PASSWORD, principal.key_bytes, (self.max_logins_per_minute_per_ip,)),)
