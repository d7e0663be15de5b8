"""Routes that carry their policy: one path, and for each method a handler with who may call it.

Owns matching (on the raw path, so that a percent-encoded or doubled variant never reaches a handler), the method table,
and the step from a matched route to the gate and the handler. Does not know how a caller is identified. Front workers.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from starlette.datastructures import URLPath
from starlette.routing import BaseRoute, Match, NoMatchFound, Router

from ..errors import ApiError, EngineError, StartError
from ..security.permissions import Policy
from .http import (
    ClientGone,
    Receive,
    Reply,
    Request,
    Scope,
    Send,
    StreamReply,
    error_reply,
    send_reply,
    send_stream,
    to_api_error,
)

Handler = Callable[[Request], Awaitable[Reply | StreamReply]]
_PARAMETER = re.compile(r"\{([a-z_]+)\}")
_PLAIN_SEGMENT = r"[A-Za-z0-9._~-]{1,128}"
# A model id: one raw segment; its slashes come as %2F. Decoded, then looked up exactly.
_ID_SEGMENT = r"(?:[A-Za-z0-9._~:@+!$&'()*,=-]|%[0-9A-Fa-f]{2}){1,400}"


class Operation(NamedTuple):
    """What one method of a path does and who may call it."""

    handler: Handler
    policy: Policy


class Gate(Protocol):
    """Decides on source bucket, credential, request buckets and policy, in this order. Raises ApiError."""

    async def admit(self, request: Request, policy: Policy) -> None: ...
    def answered(self, request: Request, route: str) -> None: ...


class ApiRoute(BaseRoute):
    """A path with its operations. `{id}` in a path takes one segment; `encoded=True` lets it hold %XX."""

    def __init__(
        self,
        path: str,
        operations: Mapping[str, Operation],
        *,
        encoded: bool = False,
        max_body_bytes: int = 4 << 20,
    ) -> None:
        self.path = path
        self.operations = dict(operations)
        if "GET" in self.operations and "HEAD" not in self.operations:
            self.operations["HEAD"] = self.operations["GET"]
        self.max_body_bytes = max_body_bytes
        self.gate: Gate | None = None
        self.raw_path = path.encode()
        self.is_administration = path.startswith("/api/v1/")
        self.is_encoded = encoded
        segment = _ID_SEGMENT if encoded else _PLAIN_SEGMENT
        self._names = _PARAMETER.findall(path)
        self._pattern: re.Pattern[bytes] | None = None
        if self._names:
            pattern = "".join(
                f"({segment})" if index % 2 else re.escape(part)
                for index, part in enumerate(_PARAMETER.split(path))
            )
            self._pattern = re.compile(pattern.encode())

    @property
    def is_plain(self) -> bool:
        """Whether the path has no parameter."""
        return self._pattern is None

    def check(self) -> None:
        """Refuse the start when an operation has no policy."""
        if not self.operations:
            raise StartError(f"the route {self.path} has no operation")
        for method, operation in self.operations.items():
            if not isinstance(operation.policy, Policy):
                raise StartError(f"the route {method} {self.path} declares no policy")

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] != "http":
            return Match.NONE, {}
        raw: bytes = scope["raw_path"]
        if self._pattern is None:
            return (Match.FULL, {}) if raw == self.raw_path else (Match.NONE, {})
        found = self._pattern.fullmatch(raw)
        if found is None or found[1] in (b".", b".."):
            return Match.NONE, {}
        values = (urllib.parse.unquote_to_bytes(value) for value in found.groups())
        try:
            params = {name: value.decode() for name, value in zip(self._names, values, strict=True)}
        except UnicodeDecodeError:
            return Match.NONE, {}
        return Match.FULL, {"path_params": params}

    def url_path_for(self, name: str, /, **path_params: Any) -> URLPath:
        raise NoMatchFound(name, path_params)  # routes have no names: no URL is built from one

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, scope.get("path_params") or {}, self.max_body_bytes)
        try:
            await run(request, send, self._answer)
        finally:
            if self.gate is not None:
                self.gate.answered(request, self.path)

    async def _answer(self, request: Request) -> Reply | StreamReply:
        operation = self.operations.get(request.method)
        if self.gate is None:
            raise StartError("a route outside of the application")
        request.context.is_administration = self.is_administration
        if operation is None:
            strictest = max(
                (entry.policy for entry in self.operations.values()), key=lambda policy: not policy.public
            )
            await self.gate.admit(request, Policy(public=strictest.public, buckets=strictest.buckets))
            allowed = ", ".join(sorted({*self.operations, "OPTIONS"}))
            if request.method == "OPTIONS":
                return Reply(204, b"", [(b"allow", allowed.encode())])
            raise ApiError(
                "method_not_allowed", "The path exists, the method does not.", headers=(("allow", allowed),)
            )
        await self.gate.admit(request, operation.policy)
        return await operation.handler(request)


class ExactRouter(Router):
    """Starlette's router, which asks one route after the other; a plain path is looked up first."""

    def __init__(self, routes: Sequence[BaseRoute], lifespan: Any = None) -> None:
        super().__init__(routes=routes, lifespan=lifespan, redirect_slashes=False)
        self._plain = {
            route.raw_path: route for route in routes if isinstance(route, ApiRoute) and route.is_plain
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._plain.get(scope["raw_path"]) if scope["type"] == "http" else None
        if route is not None:
            await route.handle(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class UnknownRoute(BaseRoute):
    """The end of the list: 404 for everything, under /v1 and /api/v1 only for callers with a valid credential."""

    def __init__(self) -> None:
        self.gate: Gate | None = None

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return (Match.FULL, {}) if scope["type"] == "http" else (Match.NONE, {})

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, {}, 0)
        try:
            await run(request, send, self._answer)
        finally:
            if self.gate is not None:
                self.gate.answered(request, "unknown")

    async def _answer(self, request: Request) -> Reply | StreamReply:
        # Both ends are refusals; the path decides only whether a stranger learns that nothing is here.
        policy = Policy() if self._is_private(request.raw_path) else Policy(public=True)
        if self.gate is not None:
            await self.gate.admit(request, policy)
        raise ApiError("not_found", "Nothing is here.")

    @staticmethod
    def _is_private(raw_path: bytes) -> bool:
        return raw_path.startswith((b"/v1/", b"/api/v1/")) or raw_path in (b"/v1", b"/api/v1")


async def run(request: Request, send: Send, handler: Handler) -> None:
    """Run a handler and write its answer or its error. Faults of ours go on to the outermost middleware."""
    try:
        try:
            reply = await handler(request)
        except ApiError as error:
            reply = error_reply(error)
        except EngineError as error:
            reply = error_reply(to_api_error(error))
        if isinstance(reply, StreamReply):
            await send_stream(send, reply, request.writer)
        else:
            await send_reply(send, reply)
    except ClientGone:
        request.is_gone = True
    finally:
        request.close()
