"""Session tokens: JWT, HS256 only, checked for form before any cryptography.

A token is `header.claims.signature` in canonical base64url. The header is exactly {"alg":"HS256","typ":TYPE,"kid":…};
claims are exactly iss, aud, sub, iat, nbf, exp, jti, epoch with fixed JSON types. `aud` is one string; a list is
refused. The signing key is derived from the configured secret under a label, so no other use of that secret shares
it; `kid` picks the current or the previous secret out of memory and nothing else. Valid while now < exp + skew.

Pure: whether the account lives, its epoch, and ended sessions are asked by inferno.security.auth. Runs in front
workers and in commands.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import re
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

import jwt
from jwt.api_jws import PyJWS

TYPE = "inferno-session+jwt"  # RFC 8725 3.11: explicit typing
ISSUER = "inferno"
AUDIENCE = "inferno"
MAX_TOKEN_LENGTH = 4096
DEFAULT_SKEW_SECONDS = 30
MAX_SKEW_SECONDS = 120
MAX_LIFETIME_HOURS = 168
_MAX_TIME = 1 << 40
_FORM = re.compile(r"[A-Za-z0-9_-]{1,512}\.[A-Za-z0-9_-]{1,2048}\.[A-Za-z0-9_-]{43}", re.ASCII)
_HEADER = {"alg", "typ", "kid"}
_CLAIMS = {"iss", "aud", "sub", "iat", "nbf", "exp", "jti", "epoch"}
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


class InvalidSession(Exception):
    """The token is refused; the reason is for the audit log only."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Session(NamedTuple):
    """The claims of a token whose form, signature and times are right."""

    account_id: str
    jti: str
    epoch: int
    issued_at: int
    expires_at: int  # exp; the token is accepted until exp + skew


class _Key(NamedTuple):
    kid: str
    key: bytes


class SessionTokens:
    """Issues with the current secret; verifies with the current and the previous one."""

    def __init__(
        self,
        secret: bytes,
        previous: bytes | None = None,
        *,
        lifetime_hours: int = 24,
        skew_seconds: int = DEFAULT_SKEW_SECONDS,
    ) -> None:
        if not 1 <= lifetime_hours <= MAX_LIFETIME_HOURS:
            raise ValueError(f"lifetime_hours={lifetime_hours}: expected 1 to {MAX_LIFETIME_HOURS}")
        if not 0 <= skew_seconds <= MAX_SKEW_SECONDS:
            raise ValueError(f"skew_seconds={skew_seconds}: expected 0 to {MAX_SKEW_SECONDS}")
        self._current = _derive(secret)
        self._keys = {self._current.kid: self._current}
        if previous is not None:
            old = _derive(previous)
            self._keys.setdefault(old.kid, old)
        self.lifetime_seconds = lifetime_hours * 3600
        self.skew_seconds = skew_seconds
        self._jws = PyJWS(algorithms=["HS256"])

    def __repr__(self) -> str:
        return f"SessionTokens(kids={sorted(self._keys)})"

    def issue(self, account_id: str, epoch: int, now: int) -> tuple[str, Session]:
        """Return a new token and what it says."""
        session = Session(account_id, secrets.token_urlsafe(18), epoch, now, now + self.lifetime_seconds)
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": account_id,
            "iat": now,
            "nbf": now,
            "exp": session.expires_at,
            "jti": session.jti,
            "epoch": epoch,
        }
        payload = json.dumps(claims, separators=(",", ":")).encode("ascii")
        headers = {"typ": TYPE, "kid": self._current.kid}
        return self._jws.encode(payload, self._current.key, algorithm="HS256", headers=headers), session

    def verify(self, token: str, now: int) -> Session:
        """Return the claims, or raise InvalidSession and nothing else."""
        if len(token) > MAX_TOKEN_LENGTH:
            raise InvalidSession("too_long")
        if _FORM.fullmatch(token) is None:
            raise InvalidSession("malformed")
        head, body, signature = token.split(".")
        header = _json_object(_canonical(head))
        _canonical(signature)
        if set(header) != _HEADER:
            raise InvalidSession("header_members")
        if header["alg"] != "HS256":
            raise InvalidSession("algorithm")
        if header["typ"] != TYPE:
            raise InvalidSession("type")
        kid = header["kid"]
        key = self._keys.get(kid) if isinstance(kid, str) else None
        if key is None:
            raise InvalidSession("unknown_kid")
        payload = _canonical(body)
        try:
            checked = self._jws.decode(token, key.key, algorithms=["HS256"])
        except jwt.InvalidTokenError:
            raise InvalidSession("signature") from None
        if checked != payload:
            raise InvalidSession("signature")
        return self._claims(_json_object(payload), now)

    def _claims(self, claims: dict[str, Any], now: int) -> Session:
        if set(claims) != _CLAIMS:
            raise InvalidSession("claim_members")
        if claims["iss"] != ISSUER or claims["aud"] != AUDIENCE:  # exact, and of type str
            raise InvalidSession("issuer_or_audience")
        for name in ("sub", "jti"):
            if not isinstance(claims[name], str) or _ID.fullmatch(claims[name]) is None:
                raise InvalidSession("claim_types")
        for name in ("iat", "nbf", "exp", "epoch"):
            value = claims[name]
            if type(value) is not int or not 0 <= value < _MAX_TIME:  # bool is no int here
                raise InvalidSession("claim_types")
        issued, starts, expires = claims["iat"], claims["nbf"], claims["exp"]
        if now >= expires + self.skew_seconds:
            raise InvalidSession("expired")
        if starts > now + self.skew_seconds:
            raise InvalidSession("not_yet_valid")
        if issued > now + self.skew_seconds:
            raise InvalidSession("issued_in_the_future")
        if expires - issued > MAX_LIFETIME_HOURS * 3600:
            raise InvalidSession("lifetime")
        return Session(claims["sub"], claims["jti"], claims["epoch"], issued, expires)


def _derive(secret: bytes) -> _Key:
    """Derive the signing key and its public name from a secret, each under its own label."""
    kid = hmac.digest(secret, b"inferno/session-kid/v1", "sha256").hex()[:16]
    return _Key(kid, hmac.digest(secret, b"inferno/session-key/v1", "sha256"))


def _canonical(segment: str) -> bytes:
    """Decode base64url without padding; refuse a second spelling of the same bytes."""
    try:
        data = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    except (binascii.Error, ValueError):
        raise InvalidSession("malformed") from None
    if base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii") != segment:
        raise InvalidSession("malformed")
    return data


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member twice")
    return found


def _refuse(_: str) -> Any:
    raise ValueError("not a JSON number")


def _json_object(data: bytes) -> dict[str, Any]:
    """Parse one strict object: no duplicate members, no NaN or infinity, no deep nesting."""
    if data.count(b"[") + data.count(b"{") > 8:
        raise InvalidSession("malformed")
    try:
        found = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_refuse
        )
    except (ValueError, RecursionError):
        raise InvalidSession("malformed") from None
    if not isinstance(found, dict):
        raise InvalidSession("malformed")
    return found
