"""What handlers of /api/v1 share: strict query parameters, pages, and the caller as an Actor."""

from __future__ import annotations

import urllib.parse
from typing import Any

from ...errors import ApiError
from ...security.accounts import Actor
from ...security.addresses import source_block
from ...security.login import actor_of
from ..http import Reply, Request, json_reply

MAX_ROWS = 1000
DEFAULT_ROWS = 100


def actor(request: Request) -> Actor:
    """Return the caller as changes and the audit log show it."""
    context = request.context
    return actor_of(request.principal, ip=source_block(context.source).text, request_id=context.request_id)


def query(request: Request, *allowed: str) -> dict[str, str]:
    """Return the query's parameters; one that is not allowed or comes twice is refused."""
    try:
        pairs = urllib.parse.parse_qsl(
            request.query.decode("ascii"), keep_blank_values=True, strict_parsing=bool(request.query),
            max_num_fields=32, errors="strict",
        )  # fmt: skip
    except (ValueError, UnicodeDecodeError):
        raise ApiError("invalid_value", "The query cannot be read.") from None
    found: dict[str, str] = {}
    for name, value in pairs:
        if name not in allowed:
            raise ApiError(
                "unknown_parameter", "Unknown query parameter.", param=name if name.isidentifier() else None
            )
        if name in found or len(value) > 512:
            raise ApiError(
                "invalid_value", "A query parameter comes once, with at most 512 characters.", param=name
            )
        found[name] = value
    return found


def num_rows(parameters: dict[str, str]) -> int:
    """Return the page's size from `limit`."""
    text = parameters.get("limit", str(DEFAULT_ROWS))
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_ROWS):
        raise ApiError("invalid_value", f"limit: expected 1 to {MAX_ROWS}.", param="limit")
    return int(text)


def page(rows: list[dict[str, Any]], wanted: int, cursor: str) -> Reply:
    """Answer a list; `rows` may hold one more than wanted, which tells that there is more."""
    has_more = len(rows) > wanted
    rows = rows[:wanted]
    return json_reply({"data": rows, "next": str(rows[-1][cursor]) if has_more and rows else None})
