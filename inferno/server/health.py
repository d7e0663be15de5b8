"""/healthz (alive), /readyz (can serve) and the plain page at /. Public; health is outside host checks and buckets."""

from __future__ import annotations

from .http import Reply, Request, json_reply
from .services import Services

_PAGE = b"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Inferno</title></head>
<body><h1>Inferno</h1>
<p>An inference server with an OpenAI-compatible API. The API is under <code>/v1</code>.</p>
</body></html>
"""


class Health:
    def __init__(self, services: Services) -> None:
        self._services = services

    async def healthz(self, request: Request) -> Reply:
        return json_reply({"status": "ok"})

    async def readyz(self, request: Request) -> Reply:
        if self._services.is_draining:
            return json_reply({"status": "stopping"}, status=503, headers=[(b"retry-after", b"5")])
        if not self._services.engines.is_ready():
            return json_reply({"status": "no model is ready"}, status=503, headers=[(b"retry-after", b"5")])
        return json_reply({"status": "ok"})

    async def page(self, request: Request) -> Reply:
        return Reply(200, _PAGE, [(b"content-type", b"text/html; charset=utf-8")])
