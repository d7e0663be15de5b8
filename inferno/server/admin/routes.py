"""The list of all routes of identity and operation, each method with its policy."""

from __future__ import annotations

from starlette.routing import BaseRoute

from ...security.permissions import Policy
from ..control import Control
from ..identity import WorkerIdentity
from ..routing import ApiRoute, Operation
from ..services import Services
from .auth import AuthRoutes
from .operations import MetricsPage, OperationRoutes
from .users import UserRoutes

PUBLIC = Policy(public=True)
ANYBODY = Policy()  # with a valid credential
MANAGE_USERS = Policy(permissions=("manage_users",))
VIEW_AUDIT = Policy(permissions=("view_audit_logs",))
READ_MODELS = Policy(permissions=("read_models",))
WRITE_MODELS = Policy(permissions=("write_models",))
DELETE_MODELS = Policy(permissions=("delete_models",))
WRITE_CONFIG = Policy(permissions=("write_config",))
MANAGE_CACHE = Policy(permissions=("manage_cache",))
READ_METRICS = Policy(permissions=("read_metrics",))


def admin_routes(services: Services, identity: WorkerIdentity, control: Control) -> list[BaseRoute]:
    """Return the routes of this package."""
    auth = AuthRoutes(identity)
    users = UserRoutes(identity)
    operations = OperationRoutes(services, identity, control)
    return [
        ApiRoute("/api/v1/auth/login", {"POST": Operation(auth.login, PUBLIC)}),
        ApiRoute("/api/v1/auth/logout", {"POST": Operation(auth.logout, ANYBODY)}),
        ApiRoute("/api/v1/auth/logout-all", {"POST": Operation(auth.logout_all, ANYBODY)}),
        ApiRoute("/api/v1/auth/password", {"POST": Operation(auth.password, ANYBODY)}),
        ApiRoute("/api/v1/auth/me", {"GET": Operation(auth.me, ANYBODY)}),
        ApiRoute(
            "/api/v1/auth/api-keys",
            {"GET": Operation(auth.list_keys, ANYBODY), "POST": Operation(auth.create_key, ANYBODY)},
        ),
        ApiRoute("/api/v1/auth/api-keys/{id}", {"DELETE": Operation(auth.revoke_key, ANYBODY)}),
        ApiRoute(
            "/api/v1/users",
            {
                "GET": Operation(users.list_users, MANAGE_USERS),
                "POST": Operation(users.create_user, MANAGE_USERS),
            },
        ),
        ApiRoute(
            "/api/v1/users/{id}",
            {
                "GET": Operation(users.get_user, MANAGE_USERS),
                "PATCH": Operation(users.change_user, MANAGE_USERS),
                "DELETE": Operation(users.delete_user, MANAGE_USERS),
            },
        ),
        ApiRoute("/api/v1/audit", {"GET": Operation(operations.search_audit, VIEW_AUDIT)}),
        ApiRoute("/api/v1/audit/verify", {"GET": Operation(operations.verify_audit, VIEW_AUDIT)}),
        ApiRoute("/api/v1/usage", {"GET": Operation(operations.usage, ANYBODY)}),
        ApiRoute("/api/v1/models", {"GET": Operation(operations.list_models, READ_MODELS)}),
        ApiRoute(
            "/api/v1/models/{name}/load",
            {"POST": Operation(operations.load_model, WRITE_MODELS)},
            encoded=True,
        ),
        ApiRoute(
            "/api/v1/models/{name}/unload",
            {"POST": Operation(operations.unload_model, WRITE_MODELS)},
            encoded=True,
        ),
        ApiRoute(
            "/api/v1/models/{name}/verify",
            {"POST": Operation(operations.verify_model, WRITE_MODELS)},
            encoded=True,
        ),
        ApiRoute(
            "/api/v1/models/{name}",
            {"DELETE": Operation(operations.delete_model, DELETE_MODELS)},
            encoded=True,
        ),
        ApiRoute(
            "/api/v1/config",
            {
                "GET": Operation(operations.get_config, WRITE_CONFIG),
                "PATCH": Operation(operations.change_config, WRITE_CONFIG),
            },
        ),
        ApiRoute(
            "/api/v1/cache",
            {
                "GET": Operation(operations.get_cache, MANAGE_CACHE),
                "DELETE": Operation(operations.clear_cache, MANAGE_CACHE),
            },
        ),
        metrics_route(services),
    ]


def metrics_route(services: Services) -> ApiRoute:
    """Return the one route of these that is there without authentication too."""
    return ApiRoute("/metrics", {"GET": Operation(MetricsPage(services), READ_METRICS)})
