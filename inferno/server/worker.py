"""A front worker process: `python -I -m inferno.server.worker FD`, FD being its control socket to the supervisor.

Owns the process's life: WorkerSettings with the listeners and shared tables → services and application → uvicorn with
our protocol class on the inherited sockets → WorkerReady; then pings, engines that come and go, reloads, drain. The end
of the control socket ends the worker: nothing outlives its supervisor. Reads no file and no environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from .. import config, telemetry
from ..errors import InfernoError, ProtocolError
from ..messages import (
    PROTOCOL_VERSION,
    Drain,
    EngineGone,
    EngineUp,
    Ping,
    Pong,
    Reload,
    WorkerReady,
    WorkerSettings,
)
from ..pool.engines import Engines
from .app import create_app
from .assembly import Assembly, assemble
from .control import Control
from .observing import Observer
from .protocol import Edge, EdgeProtocol
from .tls_listener import TlsListener

logger = logging.getLogger("inferno.server")
SETTINGS_TIMEOUT_SECONDS = 30.0
OPEN_SECONDS = 1.0  # how old the gauges of connections and requests are at most
ENDING_SECONDS = 1.0  # of the grace: for the error events of answers that are cut


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handling: the worker decides when to stop."""

    def __init__(self, settings: uvicorn.Config, edge: Edge, on_started: Callable[[], None]) -> None:
        super().__init__(settings)
        self.edge = edge
        self._on_started = on_started

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self.config.ssl is None:
            await super().startup(sockets=sockets)
        else:
            await super().startup(sockets=[])
            for sock in sockets or ():
                self.servers.append(
                    TlsListener(sock, self.config.ssl, self.edge, self._make_protocol)  # type: ignore[arg-type]
                )
        self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.gather(
            *(listener.finish() for listener in self.servers if isinstance(listener, TlsListener))
        )
        await super().shutdown(sockets=sockets)

    def _make_protocol(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made


class Worker:
    """One worker. `run` returns its exit status."""

    def __init__(self, sock: socket.socket) -> None:
        self._control = Control(sock, self._received, self._control_closed)
        self._first: asyncio.Future[tuple[WorkerSettings, list[int]]] | None = None
        self._engines = Engines()
        self._assembly: Assembly | None = None
        self._servers: list[_Server] = []
        self._num_started = 0
        self._number = 0
        self._is_orphan = False
        self._is_stopped_early = False  # told to drain while it was being put together

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        self._first = loop.create_future()
        loop.add_signal_handler(signal.SIGTERM, self._drain, None)
        loop.add_signal_handler(signal.SIGINT, lambda: None)  # Ctrl-C goes to the supervisor, which drains
        self._control.start()
        try:
            async with asyncio.timeout(SETTINGS_TIMEOUT_SECONDS):
                message, descriptors = await self._first
        except (TimeoutError, ProtocolError):
            return 1
        try:
            await self._serve(message, descriptors)
        except InfernoError as error:
            logger.error("the worker cannot serve: %s", error)
            return 1
        finally:
            self._engines.close()
            if self._assembly is not None:
                await self._assembly.close()
            status = 1 if self._is_orphan else 0
            self._control.close()
        return status

    async def _serve(self, message: WorkerSettings, descriptors: list[int]) -> None:
        settings = config.decode(message.settings)
        telemetry.setup(settings)
        telemetry.protect(message.secrets.values())
        self._number = message.worker
        names = [*message.listeners, *message.shared]
        if message.version != PROTOCOL_VERSION or len(descriptors) != len(names):
            raise ProtocolError("worker settings that do not fit")
        listeners = [socket.socket(fileno=number) for number in descriptors[: len(message.listeners)]]
        shared = dict(zip(message.shared, descriptors[len(message.listeners) :], strict=True))
        self._engines.default = settings.models.default
        self._engines.register(message.models)
        self._assembly = await assemble(message, settings, self._engines, self._control, shared)
        if self._is_stopped_early:
            return
        for name, listener in zip(message.listeners, listeners, strict=True):
            self._servers.append(self._make_server(name, settings))
            listener.setblocking(False)
        counting = asyncio.get_running_loop().create_task(self._tell_open(self._assembly.services.observer))
        try:
            await asyncio.gather(
                *(
                    server.serve(sockets=[listener])
                    for server, listener in zip(self._servers, listeners, strict=True)
                )
            )
        finally:
            counting.cancel()

    async def _tell_open(self, observer: Observer) -> None:
        """Keep the gauges of connections and requests up to date."""
        while True:
            observer.open(
                sum(len(server.edge.connections) for server in self._servers),
                sum(len(server.server_state.tasks) for server in self._servers),
            )
            await asyncio.sleep(OPEN_SECONDS)

    def _make_server(self, name: str, settings: config.Settings) -> _Server:
        if self._assembly is None:
            raise ProtocolError("no settings came")
        server = settings.server
        counts = self._assembly.connection_counts(name)
        shares = 1 if counts is not None else max(1, server.workers)
        edge = Edge(
            max_body_bytes=server.max_body_bytes,
            header_timeout_seconds=server.header_timeout_seconds,
            idle_timeout_seconds=server.idle_timeout_seconds,
            max_connections=math.ceil(server.max_connections / shares),
            max_connections_per_ip=math.ceil(server.max_connections_per_ip / shares),
            counts=counts,
            trusted_proxies=server.trusted_proxies,
        )
        app = create_app(
            self._assembly.services,
            more_routes=self._assembly.routes,
            is_admin=name == "admin",
            source_of=self._assembly.source_of,
        )
        uvicorn_settings = uvicorn.Config(
            app,
            http=functools.partial(EdgeProtocol, edge=edge),  # type: ignore[arg-type]
            loop="none",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=True,
            timeout_graceful_shutdown=math.ceil(server.shutdown_grace_seconds),
            ssl_context_factory=self._assembly.tls_factory if needs_tls(name, settings) else None,
        )
        return _Server(uvicorn_settings, edge, self._started)

    def _started(self) -> None:
        self._num_started += 1
        if self._num_started == len(self._servers):
            self._control.send(WorkerReady(worker=self._number, pid=os.getpid()))

    def _received(self, message: Any, descriptors: list[int]) -> None:
        match message:
            case WorkerSettings() if self._first is not None and not self._first.done():
                self._first.set_result((message, descriptors))
                return
            case EngineUp() if len(descriptors) == 1:
                self._engines.engine_up(message, descriptors[0])
                return
            case EngineGone():
                self._engines.engine_gone(message)
            case Ping():
                self._control.send(Pong(serial=message.serial))
            case Drain():
                self._drain(message.grace_seconds)
            case Reload() if self._assembly is not None:
                self._assembly.reload(config.decode(message.settings))
            case _:
                logger.error("the supervisor sent a message that does not belong here")
        for number in descriptors:
            os.close(number)

    def _drain(self, grace_seconds: float | None) -> None:
        """Stop accepting; running answers may finish within the grace; then the process ends with 0."""
        if self._assembly is None:
            self._is_stopped_early = True
            if self._first is not None and not self._first.done():
                self._first.set_exception(ProtocolError("stopped before the start"))
            return
        services = self._assembly.services
        if grace_seconds is None:
            grace_seconds = services.settings.server.shutdown_grace_seconds
        services.is_draining = True
        services.ends_at = services.clock() + grace_seconds - min(ENDING_SECONDS, grace_seconds / 4)
        for server in self._servers:
            server.config.timeout_graceful_shutdown = math.ceil(grace_seconds)
            server.should_exit = True

    def _control_closed(self) -> None:
        """The supervisor is gone: answers that run are cut, nothing is left behind."""
        self._is_orphan = True
        if self._first is not None and not self._first.done():
            self._first.set_exception(ProtocolError("the control socket is closed"))
        for server in self._servers:
            server.should_exit = server.force_exit = True
            for task in tuple(server.server_state.tasks):
                task.cancel()


def needs_tls(listener: str, settings: config.Settings) -> bool:
    """Whether a listener speaks TLS when TLS is on: all but the operators' on loopback where it is not required."""
    is_local = config.is_loopback(settings.server.admin_host or "")
    return listener == "main" or settings.security.tls_required is True or not is_local


def main(arguments: list[str]) -> int:
    """Run a worker on the control socket whose descriptor is the only argument; return the exit status."""
    if len(arguments) != 1 or not arguments[0].isdigit():
        sys.stderr.write("this program is started by `inferno serve`\n")
        return 2
    sock = socket.socket(fileno=int(arguments[0]))
    worker = Worker(sock)
    try:
        import uvloop
    except ImportError:
        return asyncio.run(worker.run())
    return int(uvloop.run(worker.run()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
