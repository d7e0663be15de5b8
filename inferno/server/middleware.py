"""The outermost ASGI layer: request id, host allow-list, CORS, security headers, the last-resort answer.

Order, outside in: request id → host check (not for health routes) → CORS preflight → application; on the way out every
response gets the id, the security headers, and the limit headers that the gate left in the Context. A plain ASGI class:
streams pass untouched. Does not know who calls. Runs in front workers.
"""

from __future__ import annotations

import itertools
import logging
import re
import secrets
import socket
from collections.abc import Callable, Sequence

from .. import telemetry
from ..errors import ApiError
from ..security import limit_headers
from .http import (
    JSON_TYPE,
    ClientGone,
    Context,
    Header,
    Message,
    Receive,
    Reply,
    Scope,
    Send,
    error_reply,
    send_reply,
)

logger = logging.getLogger("inferno.server")

HEALTH_PATHS = frozenset((b"/healthz", b"/readyz"))
SECURITY_HEADERS: list[Header] = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
]
_OVERRIDABLE = frozenset((b"content-security-policy", b"cache-control", b"cross-origin-resource-policy"))
_HSTS: Header = (b"strict-transport-security", b"max-age=31536000")
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?")
_IPV4 = re.compile(rb"(?:[0-9]{1,3}\.){3}[0-9]{1,3}")
_CORS_METHODS = b"GET, POST, PATCH, DELETE"
_CORS_HEADERS = re.compile(rb"[A-Za-z0-9, -]{0,2048}")
_CORS_EXPOSED = b"x-request-id, retry-after, ratelimit, ratelimit-policy, x-inferno-ignored-fields"


_PROCESS = secrets.token_hex(8)
_serials = itertools.count(secrets.randbelow(1 << 31))


def new_request_id() -> str:
    """Return an id that no other process and no other request of this one has; it is no secret."""
    return f"req_{_PROCESS}{next(_serials) & 0xFFFFFFFF:08x}"


class HostCheck:
    """Which Host values are ours. An empty list: localhost, IP literals and this machine's own name.

    An entry is a name, `*.name` for every name below it, either with `:port` to ask for that port too. With
    `allows_addresses` IP literals are ours in any case: scrapers go by address, and a name that was pointed here by
    somebody else is still refused.
    """

    def __init__(
        self, allowed_hosts: Sequence[str], bind_host: str = "", *, allows_addresses: bool = False
    ) -> None:
        self._known: dict[bytes, bool] = {}
        self._literals = allows_addresses or not allowed_hosts
        if not allowed_hosts:
            own = socket.gethostname().lower()
            allowed_hosts = sorted({"localhost", own, own.split(".", 1)[0], bind_host} - {""})
        entries = [entry.lower().encode() for entry in allowed_hosts]
        self._names = frozenset(entry.rstrip(b".") for entry in entries if not entry.startswith(b"*."))
        self._suffixes = tuple(entry[1:] for entry in entries if entry.startswith(b"*."))

    def allows(self, value: bytes) -> bool:
        known = self._known.get(value)
        if known is None:
            known = self._decide(value)
            if len(self._known) < 256:
                self._known[value] = known
        return known

    def _decide(self, value: bytes) -> bool:
        found = _HOST.fullmatch(value)
        if found is None:
            return False
        name = found[1].lower().rstrip(b".")
        if self._literals and (name.startswith(b"[") or _IPV4.fullmatch(name) is not None):
            return True
        forms = (name, name + b":" + found[2]) if found[2] else (name,)
        return any(
            form in self._names or (not form.startswith(b".") and form.endswith(self._suffixes))
            for form in forms
        )


class Cors:
    """Exact origins only, never `*`, never credentials. No origins: off."""

    def __init__(self, origins: Sequence[str]) -> None:
        self._origins = frozenset(origin.encode() for origin in origins)

    def origin(self, headers: Sequence[Header]) -> bytes | None:
        """Return the request's origin when it is allowed."""
        if not self._origins:
            return None
        values = [value for name, value in headers if name == b"origin"]
        return values[0] if len(values) == 1 and values[0] in self._origins else None

    @staticmethod
    def response_headers(origin: bytes) -> list[Header]:
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", _CORS_EXPOSED),
            (b"vary", b"Origin"),
        ]

    @staticmethod
    def preflight(headers: Sequence[Header]) -> Reply:
        wanted = next((value for name, value in headers if name == b"access-control-request-headers"), b"")
        allowed = wanted if _CORS_HEADERS.fullmatch(wanted) else b"authorization, content-type, x-api-key"
        return Reply(
            204,
            b"",
            [
                (b"access-control-allow-methods", _CORS_METHODS),
                (b"access-control-allow-headers", allowed),
                (b"access-control-max-age", b"600"),
            ],
        )


class Shell:
    """The application's outermost layer."""

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], object],
        *,
        hosts: HostCheck,
        cors: Cors,
        source_of: Callable[[Scope], str],
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._cors = cors
        self._source_of = source_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)  # type: ignore[misc]
            return
        context = scope["inferno"] = Context(new_request_id(), self._source_of(scope))
        telemetry.request_id.set(context.request_id)  # for log lines; each request runs in a task of its own
        headers: list[Header] = scope["headers"]
        origin = self._cors.origin(headers)
        extra = self._cors.response_headers(origin) if origin is not None else []
        if scope["scheme"] == "https":
            extra.append(_HSTS)
        has_started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                context.status = message["status"]
                own: list[Header] = message["headers"]
                own.append((b"x-request-id", context.request_id.encode()))
                # Nearly all answers have only type, length and id, and need no look.
                is_plain = len(own) == 3 and own[0] is JSON_TYPE
                given = None if is_plain else _OVERRIDABLE.intersection([name for name, _ in own])
                own += (
                    [header for header in SECURITY_HEADERS if header[0] not in given]
                    if given
                    else SECURITY_HEADERS
                )
                if context.decisions:
                    own += limit_headers.headers(context.decisions)
                own += extra
            await send(message)

        try:
            if scope["raw_path"] not in HEALTH_PATHS and not self._host_is_ours(headers):
                error = ApiError("invalid_host", "The Host header names no host of this server.")
                await send_reply(send_with_headers, error_reply(error))
                return
            if origin is not None and scope["method"] == "OPTIONS" and self._is_preflight(headers):
                await send_reply(send_with_headers, self._cors.preflight(headers))
                return
            await self._app(scope, receive, send_with_headers)  # type: ignore[misc]
        except ClientGone:
            pass
        except Exception as error:
            # The door: whatever it was, the client gets one fixed text, the log gets the type and the request id.
            logger.exception("request %s failed: %s", context.request_id, type(error).__name__)
            if has_started:
                raise
            await send_reply(
                send_with_headers, error_reply(ApiError("internal_error", "Something went wrong here."))
            )

    def _host_is_ours(self, headers: Sequence[Header]) -> bool:
        values = [value for name, value in headers if name == b"host"]
        return len(values) == 1 and self._hosts.allows(values[0])

    @staticmethod
    def _is_preflight(headers: Sequence[Header]) -> bool:
        return any(name == b"access-control-request-method" for name, _ in headers)
