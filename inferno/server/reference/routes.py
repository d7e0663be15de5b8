"""GET /openapi.json and GET /docs: the description of the routes of this listener, for any authenticated caller.

Made at the first request and kept: routes do not change while a worker lives. Front workers.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.routing import BaseRoute

from ...security.permissions import Policy
from ..http import JSON_TYPE, Reply, Request, encode_json
from ..routing import ApiRoute, Operation
from . import document, page

ANYBODY = Policy()  # with a valid credential


class Reference:
    """Handlers. `describe` tells them the routes, their own included, before the first request."""

    def __init__(self, *, is_open: bool) -> None:
        self._is_open = is_open
        self._routes: Sequence[BaseRoute] = ()
        self._document: bytes | None = None
        self._page: bytes | None = None

    def routes(self) -> list[BaseRoute]:
        return [
            ApiRoute("/openapi.json", {"GET": Operation(self.openapi, ANYBODY)}),
            ApiRoute("/docs", {"GET": Operation(self.docs, ANYBODY)}),
        ]

    def describe(self, routes: Sequence[BaseRoute]) -> None:
        self._routes = routes

    async def openapi(self, request: Request) -> Reply:
        if self._document is None:
            self._document = encode_json(document.build(self._routes, is_open=self._is_open))
        return Reply(200, self._document, [JSON_TYPE])

    async def docs(self, request: Request) -> Reply:
        if self._page is None:
            self._page = page.render(document.build(self._routes, is_open=self._is_open))
        headers = [
            (b"content-type", b"text/html; charset=utf-8"),
            (b"content-security-policy", page.POLICY.encode("ascii")),
        ]
        return Reply(200, self._page, headers)
