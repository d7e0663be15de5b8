"""Puts one worker's parts together from what the supervisor sent: which implementation stands behind each interface.

The only place where a setting chooses between a real part and its plain stand-in. Knows no HTTP and no request.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferno_native.buckets import BucketTable
from starlette.routing import BaseRoute

from .. import config, tls
from ..errors import ConfigError, StartError
from ..messages import WorkerSettings
from ..pool.engines import Engines
from ..security import connection_limits
from ..security.addresses import ClientAddresses
from ..security.connection_limits import ConnectionCounts
from ..security.limit_headers import Decision
from ..security.limit_policy import FAMILIES
from ..security.limits import Limiter, LimitSettings
from ..security.rules import operator_rules
from ..security.screening import Screener
from ..storage.bucket_store import attach_shared_buckets
from .admin.routes import admin_routes, metrics_route
from .control import Control
from .guarding import Guards
from .http import Context, Scope
from .identity import WorkerAudit, WorkerIdentity, worker_identity
from .metering import LimitMeter
from .observing import GuardReports, Metrics, NoObserver
from .redactors import NativeRedactors
from .services import Services

if TYPE_CHECKING:
    from .tracing import Tracer

TABLE_NAME = "buckets"
logger = logging.getLogger("inferno.server")


class Assembly:
    """The parts of one worker, and what to do with them at a reload and at the end."""

    def __init__(
        self,
        services: Services,
        routes: Sequence[BaseRoute] = (),
        *,
        limiter: Limiter | None = None,
        identity: WorkerIdentity | None = None,
        tracer: Tracer | None = None,
        connections: BucketTable | None = None,
    ) -> None:
        self.services = services
        self._connections = connections
        self._tracer = tracer
        self._limiter = limiter
        self._identity = identity
        self.routes = list(routes)
        self._addresses = ClientAddresses(services.settings.server.trusted_proxies)
        self._tls: tls.ReloadableContext | None = None

    def source_of(self, scope: Scope) -> str:
        """Return the client's address: the peer's, or what a trusted proxy says."""
        client = scope.get("client")
        return self._addresses.client_address(str(client[0]) if client else "unknown", scope["headers"])

    def connection_counts(self, listener: str) -> ConnectionCounts | None:
        """What counts a listener's connections over all workers; None where the supervisor made no table."""
        if self._connections is None:
            return None
        server = self.services.settings.server
        return ConnectionCounts(
            self._connections,
            listener,
            max_connections=server.max_connections,
            max_connections_per_ip=server.max_connections_per_ip,
        )

    @property
    def tls_factory(self) -> Callable[..., ssl.SSLContext] | None:
        """What uvicorn asks for its TLS context; None without TLS."""
        if not self.services.settings.server.tls_enabled:
            return None
        return self._tls_context

    def _tls_context(self, *_: Any) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = tls.ReloadableContext(_tls_context(self.services.settings))
        return self._tls

    def reload(self, settings: config.Settings) -> None:
        """Take over what may change while the server runs."""
        self.services.settings = settings
        try:
            self.services.guards.reload(settings.security.max_input_length, operator_rules(settings.storage.data_dir))
        except ConfigError as error:  # they were sound when the supervisor looked, a moment ago
            logger.error("the guard's rules are not reloaded, the old ones stay: %s", error)
        if self._limiter is not None:
            self._limiter.update(LimitSettings.of(settings.security, settings.limits.on_failure))
        if self._identity is not None:
            self._identity.reload(settings)
        if self._tls is not None:
            try:
                self._tls.in_force = _tls_context(settings)
            except (ConfigError, OSError) as error:  # it was sound when the supervisor looked, a moment ago
                logger.error("the TLS certificate is not reloaded, the old one stays: %s", error)

    async def close(self) -> None:
        """Give back what parts hold."""
        self.services.observer.flush()
        if self._limiter is not None:
            await self._limiter.store.close()
        if self._identity is not None:
            await self._identity.close()
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)
        if self._connections is not None:
            self._connections.close()


async def assemble(
    message: WorkerSettings,
    settings: config.Settings,
    engines: Engines,
    control: Control,
    shared: Mapping[str, int],
) -> Assembly:
    """Build the parts of a worker."""
    limiter = _limiter(message, settings, shared)
    audit = WorkerAudit(control, is_enabled=settings.security.audit_logging_enabled)
    identity = worker_identity(message, settings, audit, limiter, shared)
    observer = Metrics() if settings.telemetry.metrics_enabled else NoObserver()
    tracer = _tracer(settings, message.worker)

    def refused(context: Context, decision: Decision) -> None:
        observer.limited(decision.policy or "store")
        audit.limited(context, decision)

    services = Services(
        settings,
        engines,
        authenticator=None if identity is None else identity.authenticator,
        meter=None if limiter is None else LimitMeter(limiter, refused),
        recorder=None if identity is None else identity.recorder,
        cache_key=message.secrets.get("cache", b""),
        before_inference=audit.ensure if settings.security.audit_on_failure == "refuse" else None,
        observer=observer,
        tracer=tracer,
        guards=_guards(message, settings, GuardReports(audit, observer)),
    )
    connections = None
    if connection_limits.TABLE_NAME in shared:
        name = connection_limits.TABLE_NAME
        connections = connection_limits.attach_counts(shared[name], *message.table_arguments[name])
    if identity is None:
        return Assembly(
            services, [metrics_route(services)], limiter=limiter, tracer=tracer, connections=connections
        )
    await identity.start()
    routes = admin_routes(services, identity, control)
    return Assembly(
        services, routes, limiter=limiter, identity=identity, tracer=tracer, connections=connections
    )


def _tracer(settings: config.Settings, worker: int) -> Tracer | None:
    """Return what makes traces where they are sent somewhere."""
    if settings.telemetry.otlp_endpoint is None:
        return None
    from .tracing import Tracer  # an extra: imported only where it is configured

    return Tracer(settings.telemetry.otlp_endpoint, worker)


def _tls_context(settings: config.Settings) -> ssl.SSLContext:
    server = settings.server
    return tls.server_context(
        Path(server.tls_cert_path or ""),
        Path(server.tls_key_path or ""),
        minimum=settings.security.min_tls_version,
        client_ca=Path(server.tls_client_ca_path) if server.tls_client_ca_path else None,
    )


def _guards(message: WorkerSettings, settings: config.Settings, reports: GuardReports) -> Guards:
    """Return the text guards, each only where its setting is on."""
    security = settings.security
    return Guards(
        screener=Screener(security, extra_rules=operator_rules(settings.storage.data_dir))
        if security.input_validation_enabled
        else None,
        redactors=NativeRedactors(message.secrets) if security.output_sanitization_enabled else None,
        profile=security.redact_profile,
        events=reports,
    )


def _limiter(message: WorkerSettings, settings: config.Settings, shared: Mapping[str, int]) -> Limiter | None:
    """Return the limiter over Redis or the shared table; None where the supervisor made no table."""
    limits = LimitSettings.of(settings.security, settings.limits.on_failure)
    if settings.limits.url != "shm:":
        from ..storage.redis import RedisBuckets  # an extra: imported only where it is configured
        from ..storage.redis_owners import TABLE_NAME as OWNERS
        from ..storage.redis_owners import owner_name

        if OWNERS not in shared:
            raise StartError("limits are in Redis, but the supervisor sent no name for this worker")
        owner = owner_name(shared[OWNERS], message.worker)
        return Limiter(RedisBuckets(settings.limits.url, FAMILIES, owner), limits)
    if TABLE_NAME not in shared:
        if settings.security.rate_limiting_enabled:
            raise StartError("rate limits are enabled, but the supervisor sent no table for them")
        return None
    slot, generation = message.table_arguments[TABLE_NAME]
    return Limiter(attach_shared_buckets(shared[TABLE_NAME], slot, generation), limits)
