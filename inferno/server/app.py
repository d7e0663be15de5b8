"""create_app: the whole HTTP application as lists, in one place.

Routes (each operation with its policy), the outermost layer, error handlers, lifespan. A route without a policy stops
the start. Decisions read the matched route, never a URL rebuilt from headers. Front workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from starlette.routing import BaseRoute

from ..errors import StartError
from ..security.permissions import Policy
from .chat import Chat
from .completions import Completions
from .health import Health
from .http import Scope
from .middleware import Cors, HostCheck, Shell
from .models import Models
from .pipeline import FrontGate
from .reference.routes import Reference
from .routing import ApiRoute, ExactRouter, Gate, Operation, UnknownRoute
from .services import Services

PUBLIC = Policy(public=True)
HEALTH = Policy(public=True, buckets=False)
METRICS_PATH = "/metrics"
INFERENCE = Policy(permissions=("run_inference",))
READ_MODELS = Policy(permissions=("read_models",))


def api_routes(services: Services) -> list[BaseRoute]:
    """Return the routes of this file's own handlers, those that are asked most first."""
    models = Models(services)
    return [
        ApiRoute("/v1/chat/completions", {"POST": Operation(Chat(services), INFERENCE)}),
        ApiRoute("/v1/completions", {"POST": Operation(Completions(services), INFERENCE)}),
        ApiRoute("/v1/models", {"GET": Operation(models.list_models, READ_MODELS)}),
        ApiRoute("/v1/models/{id}", {"GET": Operation(models.get_model, READ_MODELS)}, encoded=True),
        ApiRoute("/v1/tokenize", {"POST": Operation(models.tokenize, INFERENCE)}),
        ApiRoute("/v1/detokenize", {"POST": Operation(models.detokenize, INFERENCE)}),
    ]


def health_routes(services: Services) -> list[BaseRoute]:
    health = Health(services)
    return [
        ApiRoute("/healthz", {"GET": Operation(health.healthz, HEALTH)}),
        ApiRoute("/readyz", {"GET": Operation(health.readyz, HEALTH)}),
        ApiRoute("/", {"GET": Operation(health.page, PUBLIC)}),
    ]


def create_app(
    services: Services,
    *,
    more_routes: Sequence[BaseRoute] = (),
    is_admin: bool = False,
    source_of: Callable[[Scope], str] | None = None,
    lifespan: Any = None,
) -> Shell:
    """Return the ASGI application of one listener. Raises StartError for a route without a policy.

    The operators' listener (`is_admin`) has everything but inference, so that it stays free when the other is full.
    """
    own = health_routes(services) if is_admin else [*api_routes(services), *health_routes(services)]
    more = [_opened(route) for route in more_routes] if is_admin else more_routes
    reference = Reference(is_open=not services.settings.security.auth_enabled)
    routes = [*own, *more, *reference.routes(), UnknownRoute()]
    reference.describe(routes)
    bind(routes, FrontGate(services), services.settings.server.max_body_bytes)
    server = services.settings.server
    return Shell(
        ExactRouter(routes, lifespan),
        hosts=HostCheck(server.allowed_hosts, server.host, allows_addresses=is_admin),
        cors=Cors(server.cors_origins),
        source_of=source_of or peer_of,
    )


def _opened(route: BaseRoute) -> BaseRoute:
    """On the operators' listener a scraper needs no credential; who reaches the address is the operator's matter."""
    if not isinstance(route, ApiRoute) or route.path != METRICS_PATH:
        return route
    return ApiRoute(METRICS_PATH, {"GET": Operation(route.operations["GET"].handler, HEALTH)})


def bind(routes: Sequence[BaseRoute], gate: Gate, max_body_bytes: int) -> None:
    """Give every route the gate, after checking that it has a policy and that no path stands twice."""
    paths: set[str] = set()
    for route in routes:
        if isinstance(route, ApiRoute):
            route.check()
            if route.path in paths:
                raise StartError(f"the route {route.path} is declared twice")
            paths.add(route.path)
            route.max_body_bytes = max_body_bytes
        elif not isinstance(route, UnknownRoute):
            raise StartError(f"a route of kind {type(route).__name__} declares no policy")
        route.gate = gate


def peer_of(scope: Scope) -> str:
    """The peer's address; forwarding headers are read by nobody but inferno.security's address rules."""
    client = scope.get("client")
    return str(client[0]) if client else "unknown"
