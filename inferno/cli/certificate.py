"""The TLS certificate of a running server: checked before each use, its end counted down.

A pair (and the clients' authorities, where they are asked for) is checked at the start and at each reload, before anything
is taken over. A server that runs for months is told once a day when its certificate ends soon, and the metric of its end
is kept. Knows no sockets; the supervisor runs it as one of its parts.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from ..config import Loaded

if TYPE_CHECKING:
    from ..tls import Certificate

_log = logging.getLogger("inferno.tls")
COUNT_SECONDS = 86400.0


class CertificateWatch:
    """Implements ServerPart."""

    def __init__(self) -> None:
        self._facts: Certificate | None = None
        self._has_metrics = False
        self._is_started = False
        self._task: asyncio.Task[None] | None = None

    def checked(self, loaded: Loaded) -> Loaded:
        """Return `loaded` with what is to be said of its certificate. Raises ConfigError when it cannot be served."""
        server = loaded.settings.server
        if not server.tls_enabled or server.tls_cert_path is None or server.tls_key_path is None:
            return loaded
        from .. import tls  # cryptography is loaded only where TLS is on

        facts = tls.check_pair(Path(server.tls_cert_path), Path(server.tls_key_path))
        if server.tls_client_ca_path is not None:
            tls.load_client_ca(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), Path(server.tls_client_ca_path))
        self._facts = facts
        self._has_metrics = loaded.settings.telemetry.metrics_enabled
        if self._is_started:  # a reload: the start prints the warnings of `loaded` itself
            self.count_down()
        return replace(loaded, warnings=[*loaded.warnings, *facts.warnings])

    async def start(self) -> None:
        self._is_started = True
        if self._facts is not None:
            self._measure()
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def count_down(self, now: datetime.datetime | None = None) -> None:
        """Say when the certificate in use ends soon or has ended."""
        if self._facts is None:
            return
        from ..tls import EXPIRY_WARNING

        self._measure()
        left = self._facts.not_after - (now or datetime.datetime.now(datetime.UTC))
        if left < EXPIRY_WARNING:
            what = "expired" if left < datetime.timedelta(0) else f"expires in {left.days} days,"
            _log.warning("the TLS certificate %s on %s", what, f"{self._facts.not_after:%Y-%m-%d}")

    def _measure(self) -> None:
        if self._facts is not None and self._has_metrics:
            from .. import metrics  # looks at its import for the folder that the supervisor has made

            metrics.CERTIFICATE_EXPIRY.set(self._facts.not_after.timestamp())

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(COUNT_SECONDS)
            self.count_down()
