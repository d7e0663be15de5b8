"""What the user's guide promises of a running server and no other file shows from outside: how long a token lives, what the
audit log captures, what the limit of an hour is for."""

import base64
import json
import signal
from datetime import datetime

import httpx
import pytest

from tests.end_to_end.harness import GENEROUS, RunningServer, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture
def start(tmp_path):
    """Start a server without a model; these sentences need none."""
    started = []

    def begin(config):
        server = RunningServer(tmp_path, config=config)
        started.append(server)
        return server.start(ready=False)

    yield begin
    for server in started:
        if server.process is not None and server.process.poll() is None:
            server.stop()


def test_guide_a_token_lives_for_token_expiry_hours(start):
    server = start(GENEROUS.replace("[security]", "[security]\ntoken_expiry_hours = 2"))
    token = server.admin_token()
    payload = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert claims["exp"] - claims["iat"] == 2 * 3600
    me = httpx.get(f"{server.url}/api/v1/auth/me", headers={"Authorization": f"Bearer {token}"}, timeout=30).json()
    assert datetime.fromisoformat(me["expires_at"]).timestamp() == claims["exp"]


def test_guide_the_audit_log_captures_what_the_guide_lists(start):
    """Authentication tries, keys, accounts, configuration: each done over HTTP or by a signal, each found in the log."""
    server = start(GENEROUS)
    with server.http(headers={"Authorization": f"Bearer {server.admin_token()}"}) as admin:
        bad = {"username": "admin", "password": "not-this-one-at-all"}
        assert httpx.post(f"{server.url}/api/v1/auth/login", json=bad, timeout=30).status_code == 401
        key = admin.post("/api/v1/auth/api-keys", json={"name": "guide"}).json()
        assert admin.delete(f"/api/v1/auth/api-keys/{key['id']}").status_code == 200
        stranger = {"X-API-Key": key["key"]}
        assert httpx.get(f"{server.url}/v1/models", headers=stranger, timeout=30).status_code == 401
        body = {"username": "ann", "password": "wombat-cathedral-47-yew", "role": "user"}
        user = admin.post("/api/v1/users", json=body).json()
        assert admin.patch(f"/api/v1/users/{user['id']}", json={"disabled": True}).status_code == 200
        assert admin.delete(f"/api/v1/users/{user['id']}").status_code == 200
        changed = admin.patch("/api/v1/config", json={"security": {"max_requests_per_minute": 5000}})
        assert changed.status_code == 200, changed.text
        server.config.write_text(GENEROUS.replace("max_requests_per_hour = 1000000", "max_requests_per_hour = 900000"))
        server.process.send_signal(signal.SIGHUP)
        wanted = {
            ("auth.login", "success"), ("auth.login", "failure"), ("auth.failure", "failure"),
            ("key.create", "success"), ("key.revoke", "success"),
            ("user.create", "success"), ("user.update", "success"), ("user.delete", "success"),
            ("config.change", "success"), ("config.reload", "success"),
        }  # fmt: skip
        found = set()

        def is_complete():
            rows = admin.get("/api/v1/audit", params={"limit": "500", "since": "2020-01-01"}).json()["data"]
            found.update((row["event"], row["result"]) for row in rows)
            return wanted <= found

        assert eventually(is_complete, 30), wanted - found
        assert admin.get("/api/v1/audit/verify").json()["verdict"] == "intact"


def test_guide_the_hour_ends_what_each_minute_allows(start):
    """Sustained use: the minute would let every request pass, the hour does not, and says for how long."""
    server = start(
        "[security]\nmax_requests_per_minute = 1000\nmax_requests_per_hour = 20\nmax_requests_per_minute_per_ip = 1000\n"
    )
    with server.http(headers={"Authorization": f"Bearer {server.admin_token()}"}) as client:
        answers = [client.get("/api/v1/auth/me") for _ in range(25)]
    statuses = [answer.status_code for answer in answers]
    # 20 an hour is one more each three minutes: none comes back while this runs.
    assert statuses == [200] * 20 + [429] * 5
    refused = answers[-1]
    assert '"hour"' in refused.headers["ratelimit"]
    assert int(refused.headers["retry-after"]) > 60
