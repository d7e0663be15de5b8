"""Puts one worker's parts together from what the supervisor sent: which implementation stands behind each interface.

The only place where a setting chooses between a real part and its plain stand-in. Knows no HTTP and no request.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from starlette.routing import BaseRoute

from .. import config, tls
from ..messages import WorkerSettings
from ..pool.engines import Engines
from ..security.addresses import ClientAddresses
from .control import Control
from .http import Scope
from .services import Services


class Assembly:
    """The parts of one worker, and what to do with them at a reload and at the end."""

    def __init__(self, services: Services, routes: Sequence[BaseRoute] = ()) -> None:
        self.services = services
        self.routes = list(routes)
        self._addresses = ClientAddresses(services.settings.server.trusted_proxies)
        self._tls: ssl.SSLContext | None = None

    def source_of(self, scope: Scope) -> str:
        """Return the client's address: the peer's, or what a trusted proxy says."""
        client = scope.get("client")
        return self._addresses.client_address(str(client[0]) if client else "unknown", scope["headers"])

    @property
    def tls_factory(self) -> Callable[..., ssl.SSLContext] | None:
        """What uvicorn asks for its TLS context; None without TLS."""
        if not self.services.settings.server.tls_enabled:
            return None
        return self._tls_context

    def _tls_context(self, *_: Any) -> ssl.SSLContext:
        server = self.services.settings.server
        if self._tls is None:
            self._tls = tls.server_context(
                Path(server.tls_cert_path or ""),
                Path(server.tls_key_path or ""),
                minimum=self.services.settings.security.min_tls_version,
                client_ca=Path(server.tls_client_ca_path) if server.tls_client_ca_path else None,
            )
        return self._tls

    def reload(self, settings: config.Settings) -> None:
        """Take over what may change while the server runs."""
        self.services.settings = settings
        if self._tls is not None and settings.server.tls_cert_path and settings.server.tls_key_path:
            tls.reload_pair(
                self._tls, Path(settings.server.tls_cert_path), Path(settings.server.tls_key_path)
            )

    async def close(self) -> None:
        """Give back what parts hold."""


async def assemble(
    message: WorkerSettings,
    settings: config.Settings,
    engines: Engines,
    control: Control,
    shared: Mapping[str, int],
) -> Assembly:
    """Build the parts of a worker."""
    services = Services(settings, engines, cache_key=message.secrets.get("cache", b""))
    return Assembly(services)
