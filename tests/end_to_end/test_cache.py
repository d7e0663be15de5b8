"""The prefix store over HTTP: counts through the official client, what /api/v1/cache shows, who may empty what."""

import pytest

from tests.end_to_end.harness import ADMIN_PASSWORD, RunningServer, eventually
from tests.end_to_end.test_identity import Api, login

pytestmark = pytest.mark.e2e
LONG = "The quiet river bends around seven grey stones and a paper lamp. " * 20


def make_service(admin: Api, name: str) -> None:
    answer = admin("POST", "/api/v1/users", {"username": name, "password": "plum-orbit-Yonder7", "role": "service"})
    assert answer.status_code in {200, 201}, answer.text


def cached(server: RunningServer, token: str) -> tuple[int, int]:
    """Ask the same question; return cached and all prompt tokens of its usage."""
    answer = server.client(token).chat.completions.create(
        model="demo", messages=[{"role": "user", "content": LONG}], max_tokens=2, temperature=0
    )
    return answer.usage.prompt_tokens_details.cached_tokens, answer.usage.prompt_tokens


def test_each_account_has_its_own_part_and_empties_only_that(server: RunningServer) -> None:
    admin = Api(server, login(server, "admin", ADMIN_PASSWORD))
    tokens = []
    for name in ("cache-ann", "cache-bob"):
        make_service(admin, name)
        tokens.append(login(server, name, "plum-orbit-Yonder7"))
    ann, bob = tokens
    assert cached(server, ann)[0] == 0
    hit, prompt = cached(server, ann)
    assert hit >= 0.5 * prompt
    assert cached(server, bob)[0] == 0  # the same prompt, of somebody else
    assert cached(server, bob)[0] == hit

    def store() -> dict:
        return Api(server, ann)("GET", "/api/v1/cache").json()["data"][0]

    assert eventually(lambda: store()["entries"] >= 2 and store()["hit_tokens"] >= 2 * hit)
    assert 0 < store()["bytes"] <= store()["max_bytes"]
    assert Api(server, ann)("DELETE", "/api/v1/cache?scope=all").status_code == 403
    assert Api(server, ann)("DELETE", "/api/v1/cache").json() == {"scope": "own", "models": ["demo"]}
    assert eventually(lambda: cached(server, ann)[0] == 0 or None)
    assert cached(server, bob)[0] == hit
    assert admin("DELETE", "/api/v1/cache").json() == {"scope": "all", "models": ["demo"]}
    assert eventually(lambda: store()["entries"] == 0)
    assert cached(server, bob)[0] == 0
