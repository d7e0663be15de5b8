"""The place of the audit writer in the supervisor: what it must offer, and the log as its stand-in.

The real one is inferno.security.audit; the command that starts the server puts it here, since the pool knows nothing
of security. Records are dicts with the fields of the contract's audit record but those that the writer adds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

_log = logging.getLogger("inferno.audit")


class AuditSink(Protocol):
    """Where audit records go. `append` raises ApiError when a durable record cannot be written.

    `on_failing` is told when writing began to fail, and when it went on.
    """

    on_failing: Callable[[bool], None] | None

    def start(self) -> None: ...
    async def append(self, records: list[dict[str, Any]], *, durable: bool) -> None: ...
    def note(self, fields: dict[str, Any]) -> None: ...
    async def close(self) -> None: ...


class LogSink:
    """Without an audit log (turned off, or not built) events are ordinary log lines."""

    on_failing: Callable[[bool], None] | None = None

    def start(self) -> None:
        pass

    async def append(self, records: list[dict[str, Any]], *, durable: bool) -> None:
        for fields in records:
            self.note(fields)

    def note(self, fields: dict[str, Any]) -> None:
        shown = {name: value for name, value in fields.items() if value and name != "event"}
        _log.info("%s", fields.get("event", "event"), extra={"fields": shown})

    async def close(self) -> None:
        pass


def server_event(
    event: str, *, target: str = "", result: str = "success", reason: str = ""
) -> dict[str, Any]:
    """Return the record of something that the server itself did or saw."""
    return {
        "event": event,
        "actor": "server",
        "actor_type": "server",
        "ip": "",
        "target": target[:256],
        "result": result,
        "reason": reason[:256],
        "request_id": "",
    }
