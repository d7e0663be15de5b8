"""Every route of the application with its policy, read from the same lists that the worker serves."""

from types import SimpleNamespace

from inferno.server.admin.routes import admin_routes
from inferno.server.app import api_routes, health_routes
from inferno.server.reference.routes import Reference


def all_routes():
    parts = SimpleNamespace(accounts=None)
    reference = Reference(is_open=False).routes()
    return [*api_routes(parts), *health_routes(parts), *admin_routes(parts, parts, None), *reference]


def operations():
    """Return (method, path, policy) of every operation."""
    return sorted(
        (
            (method, route.path, operation.policy)
            for route in all_routes()
            for method, operation in route.operations.items()
        ),
        key=lambda entry: (entry[1], entry[0]),
    )


def shown(policy):
    who = "public" if policy.public else " + ".join(policy.permissions) or "authenticated"
    return who if policy.buckets else f"{who}, no buckets"
