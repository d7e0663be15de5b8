"""The reviewed table of routes and policies against the router."""

from pathlib import Path

from inferno.security.permissions import PERMISSIONS
from tests.route_table import operations, shown

REVIEWED = Path(__file__).parent / "route_policies.txt"


def test_aut_1_the_router_is_what_was_reviewed():
    """A new route or another policy must be written into route_policies.txt by whoever reviews it."""
    found = [f"{method:<6} {path:<40} {shown(policy)}".rstrip() for method, path, policy in operations()]
    assert found == REVIEWED.read_text().splitlines()


def test_aut_1_policies_name_permissions_that_exist_and_few_routes_are_public():
    assert {permission for _, _, policy in operations() for permission in policy.permissions} <= set(
        PERMISSIONS
    )
    assert {(method, path) for method, path, policy in operations() if policy.public} == {
        ("POST", "/api/v1/auth/login"),
        *((method, path) for method in ("GET", "HEAD") for path in ("/", "/healthz", "/readyz")),
    }
