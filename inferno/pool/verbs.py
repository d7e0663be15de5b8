"""What the supervisor does on request: one registry of verbs for commands (control socket) and for workers (Ask).

Parts that bring a verb register it with who may call it; the pool itself knows `status`, `models.*`, `reload`,
`drain`. A verb is an async function of (arguments, caller) and returns what msgpack can carry; a refusal is an
ApiError.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from msgspec import Struct

from ..errors import ApiError

_log = logging.getLogger("inferno.pool")


class Caller(Struct, frozen=True):
    """Who asks: a command (uid and pid are the kernel's word) or a worker."""

    kind: str  # "command", "worker"
    pid: int = 0
    uid: int = 0
    worker: int | None = None


Handler = Callable[[dict[str, Any], Caller], Awaitable[Any]]


class Verbs:
    """Names → handlers."""

    def __init__(self) -> None:
        self._handlers: dict[str, tuple[Handler, frozenset[str]]] = {}

    def register(self, name: str, handler: Handler, callers: tuple[str, ...] = ("command", "worker")) -> None:
        """Add a verb. Raises ValueError when the name is taken."""
        if name in self._handlers:
            raise ValueError(f"the verb {name} is registered twice")
        self._handlers[name] = (handler, frozenset(callers))

    def names(self) -> list[str]:
        return sorted(self._handlers)

    async def call(self, name: str, arguments: dict[str, Any], caller: Caller) -> Any:
        """Run a verb. Raises ApiError: unknown or foreign verbs look alike; a handler's own fault is internal_error."""
        handler, callers = self._handlers.get(name, (None, frozenset[str]()))
        if handler is None or caller.kind not in callers:
            raise ApiError("not_found", "Unknown verb.")
        try:
            return await handler(arguments, caller)
        except ApiError:
            raise
        except Exception:
            _log.exception("the verb %s failed", name)
            raise ApiError("internal_error", "The supervisor failed at this; its log says why.") from None
