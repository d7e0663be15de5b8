"""Identity through the real server (no model needed): the matrix, revocation over workers, commands, canaries, kills."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import os
import random
import secrets
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from inferno.security.permissions import PERMISSIONS, ROLES
from inferno.security.sessions import SessionTokens
from tests.end_to_end.harness import ADMIN_PASSWORD, JWT_SECRET, RunningServer, children, eventually, pause
from tests.route_table import operations

pytestmark = pytest.mark.e2e
CONFIG = """
[security]
max_requests_per_minute = 1000000
max_requests_per_hour = 10000000
max_requests_per_minute_per_ip = 1000000
max_requests_per_hour_per_ip = 10000000
max_logins_per_minute_per_ip = 10000
max_key_creations_per_hour = 10000
max_keys_per_user = 1000
[server]
trusted_proxies = ["127.0.0.1/32"]
[telemetry]
log_format = "json"
log_level = "debug"
"""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
PASSWORD = "plum-orbit-Yonder7"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    started = RunningServer(tmp_path_factory.mktemp("identity"), workers=4, config=CONFIG)
    try:
        yield started.start(ready=False)
    finally:
        if started.process is not None and started.process.poll() is None:
            started.stop()


class Api:
    """Calls with one credential, each over a connection of its own: any worker may answer."""

    def __init__(self, server, credential=None, header="authorization"):
        value = f"Bearer {credential}" if header == "authorization" else credential
        self.headers = {} if credential is None else {header: value}
        self.url = server.url

    def __call__(self, method, path, body=None, **options):
        if body is not None:
            options["json"] = body
        with httpx.Client(base_url=self.url, headers=self.headers, timeout=60, verify=False) as client:
            return client.request(method, path, **options)


def login(server, username="admin", password=ADMIN_PASSWORD):
    found = Api(server)("POST", "/api/v1/auth/login", {"username": username, "password": password})
    assert found.status_code == 200, found.text
    return found.json()["token"]


@pytest.fixture(scope="module")
def admin(server):
    return Api(server, login(server))


def make_user(admin, role="user"):
    name = f"u{secrets.token_hex(5)}"
    made = admin("POST", "/api/v1/users", {"username": name, "password": PASSWORD, "role": role})
    assert made.status_code == 201, made.text
    return made.json()


def make_key(api, **fields):
    made = api("POST", "/api/v1/auth/api-keys", {"name": f"k{secrets.token_hex(4)}", **fields})
    assert made.status_code == 201, made.text
    return made.json()


def command(server, *arguments, stdin=None):
    return subprocess.run(
        [sys.executable, "-m", "inferno.cli", *arguments, "--config", str(server.config)],
        input=stdin, capture_output=True, text=True, env=server.environment, timeout=180,
    )  # fmt: skip


def raw(server, method, target, headers=None):
    """One request whose target goes out as it stands."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.putrequest(method, target, skip_host="host" in (headers or {}))
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        connection.endheaders()
        found = connection.getresponse()
        return found.status, found.read()
    finally:
        connection.close()


# ---------------------------------------------------------------- authorization


def expired_token(server):
    account = Api(server, login(server))("GET", "/api/v1/auth/me").json()["id"]
    tokens = SessionTokens(JWT_SECRET.encode(), lifetime_hours=1)
    return tokens.issue(account, 0, int(time.time()) - 7200)[0]


def test_aut_2_sec_075_sec_081_the_full_matrix(server, admin):
    """Every route × method × credential, against what the declared policy says."""
    credentials = {"none": None, "expired": expired_token(server)}
    rights = {}
    for role in ("guest", "user", "service", "admin"):
        user = make_user(admin, role)
        credentials[role] = login(server, user["username"], PASSWORD)
        rights[role] = ROLES[role]
    for permission in PERMISSIONS:
        name = f"key-without-{permission}"
        rights[name] = set(PERMISSIONS) - {permission}
        credentials[name] = make_key(admin, permissions=sorted(rights[name]))["key"]
    apis = {name: Api(server, credential) for name, credential in credentials.items()}
    declared = {(method, path): policy for method, path, policy in operations()}
    num_checked = 0
    for path in sorted({path for _, path, _ in operations()}):
        concrete = path.replace("{id}", "zzzzzzzzzzzz").replace("{name}", "no-such-model")
        for method in METHODS:
            policy = declared.get((method, path))
            is_public = policy.public if policy else all(
                entry.public for (_, other), entry in declared.items() if other == path
            )
            for name, api in apis.items():
                if path.endswith(("logout", "logout-all")) and method == "POST" and name in ROLES:
                    continue  # ends the session: test_jwt_6 has it
                status = api(method, concrete).status_code
                num_checked += 1
                where = (method, path, name, status)
                if is_public:
                    assert status not in (401, 403), where
                elif name in ("none", "expired"):
                    assert status == 401, where
                elif policy is None:
                    assert status == (204 if method == "OPTIONS" else 405), where
                elif not set(policy.permissions) <= rights[name]:
                    assert status == 403, where
                elif path.endswith(("logout", "logout-all")) and name.startswith("key"):
                    assert status == 403, where  # a session ends sessions
                else:
                    assert status not in (401, 403, 405, 500), where
    assert num_checked > 2500


def test_aut_4_sec_077_path_variants_never_reach_a_handler(server, admin):
    for variant in (
        "//api/v1/users", "/api//v1/users", "/api/v1//users", "/./api/v1/users", "/api/v1/./users", "/API/v1/users",
        "/api/v1/Users", "/api/v1/users/", "/api/v1%2fusers", "/api%2Fv1%2Fusers", "/api/v1/users;x=1",
        "/api/v1/users%00", "/api/v1/users%20", "/x/../api/v1/users", "/api/v1/auth/../users", "/%61pi/v1/users",
        "/api/v1/users%3f", "/api/v1/users/..", "/api/v1/users/%2e%2e", "/metrics/", "/METRICS", "//metrics", "/metrics%2f",
    ):  # fmt: skip
        status, _ = raw(server, "GET", variant)
        assert status in (400, 401, 404), variant
        status, _ = raw(server, "GET", variant, dict(admin.headers))
        assert status in (400, 404), variant


def test_aut_4_sec_076_the_host_header_decides_nothing(server, admin):
    for host in ("x/health?", "x/healthz", "127.0.0.1/healthz?", "localhost:8080/../healthz", "a@localhost", ""):
        status, _ = raw(server, "GET", "/api/v1/users", {"host": host})
        assert status in (400, 401), host


def test_aut_4_sec_078_methods_are_what_they_are(server, admin):
    user = make_user(admin)
    for name in ("X-HTTP-Method-Override", "X-Method-Override", "X-HTTP-Method"):
        admin("GET", f"/api/v1/users/{user['id']}", headers={name: "DELETE"})
        assert admin("GET", f"/api/v1/users/{user['id']}").status_code == 200
    assert raw(server, "HEAD", "/api/v1/users")[0] == 401
    assert raw(server, "OPTIONS", "/api/v1/users")[0] == 401
    assert raw(server, "TRACE", "/api/v1/users", dict(admin.headers))[0] == 405
    head = admin("HEAD", "/api/v1/users")
    assert (head.status_code, head.content) == (200, b"")


def test_unknown_paths_are_401_to_strangers_and_404_to_callers(server, admin):
    for path in ("/v1/none", "/api/v1/none", "/v1", "/api/v1/"):
        assert raw(server, "GET", path)[0] == 401
        assert raw(server, "GET", path, dict(admin.headers))[0] == 404


def test_aut_3_sec_066_sec_067_objects_and_fields_of_others(server, admin):
    ann, bob = make_user(admin), make_user(admin)
    as_ann, as_bob = (Api(server, login(server, user["username"], PASSWORD)) for user in (ann, bob))
    key = make_key(as_ann)
    missing = as_bob("DELETE", "/api/v1/auth/api-keys/zzzzzzzzzzzz")
    foreign = as_bob("DELETE", f"/api/v1/auth/api-keys/{key['id']}")
    assert (foreign.status_code, foreign.json()) == (missing.status_code, missing.json()) == (404, missing.json())
    assert as_bob("GET", f"/api/v1/auth/api-keys?owner={ann['id']}").status_code == 403
    assert as_bob("GET", "/api/v1/auth/api-keys").json() == {"data": [], "next": None}
    for body in ({"role": "admin"}, {"is_admin": True}, {"id": 1}):
        assert as_bob("PATCH", f"/api/v1/users/{bob['id']}", body).status_code == 403
    for body in ({"is_admin": True}, {"id": "x"}, {"epoch": 5}, {"password_hash": "x"}, {"username": "root"}):
        answer = admin("PATCH", f"/api/v1/users/{bob['id']}", body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_parameter"), body
    for body in ({"redact_profile": "secrets"}, {"owner": ann["id"]}, {"key": "inf_x"}, {"scopes": []}):
        answer = as_bob("POST", "/api/v1/auth/api-keys", {"name": "n", **body})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_parameter"), body
    assert as_bob("GET", "/api/v1/usage?user=" + ann["id"]).status_code == 403
    assert as_bob("POST", "/api/v1/auth/api-keys", {"name": "n", "permissions": ["manage_users"]}).status_code == 403


def test_sec_063_a_missing_permission_is_audited(server, admin):
    key = make_key(admin, permissions=["run_inference"])
    api = Api(server, key["key"])
    for method, path in (("GET", "/api/v1/users"), ("POST", "/api/v1/models/m/load"), ("GET", "/v1/models")):
        assert api(method, path).status_code == 403
    wanted = {"missing:manage_users", "missing:write_models", "missing:read_models"}

    def reasons():
        found = admin("GET", f"/api/v1/audit?event=auth.failure&target={key['id']}").json()["data"]
        return {row["reason"] for row in found}

    assert eventually(lambda: reasons() == wanted)


def test_sec_080_the_last_admin_is_409(server, admin):
    me = admin("GET", "/api/v1/auth/me").json()["id"]
    others = [
        user for user in admin("GET", "/api/v1/users?limit=1000").json()["data"]
        if user["role"] == "admin" and user["id"] != me and not user["disabled"]
    ]  # fmt: skip
    for user in others:
        assert admin("PATCH", f"/api/v1/users/{user['id']}", {"disabled": True}).status_code == 200
    for answer in (
        admin("PATCH", f"/api/v1/users/{me}", {"role": "user"}),
        admin("PATCH", f"/api/v1/users/{me}", {"disabled": True}),
        admin("DELETE", f"/api/v1/users/{me}"),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")


# ---------------------------------------------------------------- sessions, login


def test_jwt_11_sec_051_login_answers_are_not_stored_and_set_no_cookie(server):
    answer = Api(server)("POST", "/api/v1/auth/login", {"username": "admin", "password": ADMIN_PASSWORD})
    assert answer.headers["cache-control"] == "no-store"
    assert "set-cookie" not in answer.headers
    assert answer.json()["token"] not in str(answer.headers)
    assert set(answer.json()) == {"token", "token_type", "expires_at"}


@pytest.mark.parametrize("username", [["admin"], {"a": 1}, 7, None, True, "x" * 10_000, ""])
def test_sec_052_types_of_login_fields(server, username):
    answer = Api(server)("POST", "/api/v1/auth/login", {"username": username, "password": PASSWORD})
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_pwd_2_sec_040_failures_have_one_answer_and_one_shape(server, admin):
    user = make_user(admin)
    answers = [
        Api(server)("POST", "/api/v1/auth/login", {"username": name, "password": "wrong-Password-1"})
        for name in (user["username"], "nobody-" + secrets.token_hex(4))
    ]
    assert answers[0].status_code == answers[1].status_code == 401
    assert answers[0].json() == answers[1].json()
    varying = {"x-request-id", "date", "ratelimit", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"}
    shapes = [{k: v for k, v in answer.headers.items() if k not in varying} for answer in answers]
    assert shapes[0] == shapes[1]
    assert answers[0].headers["www-authenticate"].startswith("Bearer")


def test_jwt_6_sec_029_sec_030_logout_and_logout_all_on_every_worker(server, admin):
    user = make_user(admin)
    first, second = (login(server, user["username"], PASSWORD) for _ in range(2))
    assert Api(server, first)("POST", "/api/v1/auth/logout").status_code == 200
    for _ in range(24):  # fresh connections: over all four workers
        assert Api(server, first)("GET", "/api/v1/auth/me").status_code == 401
        assert Api(server, second)("GET", "/api/v1/auth/me").status_code == 200
    assert Api(server, second)("POST", "/api/v1/auth/logout-all").status_code == 200
    for _ in range(24):
        assert Api(server, second)("GET", "/api/v1/auth/me").status_code == 401


def test_sec_032_a_lowered_role_is_403_without_a_new_login(server, admin):
    user = make_user(admin, "admin")
    api = Api(server, login(server, user["username"], PASSWORD))
    assert api("GET", "/api/v1/users").status_code == 200
    assert admin("PATCH", f"/api/v1/users/{user['id']}", {"role": "user"}).status_code == 200
    for _ in range(12):
        assert api("GET", "/api/v1/users").status_code == 403


def test_the_official_clients_headers_reach_a_route(server, admin):
    """openai sends Authorization: Bearer, anthropic X-API-Key; each client's own code builds the request."""
    import anthropic
    import openai

    key = make_key(admin)["key"]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
        assert client.models.list().data == []
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="inf_wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
    with anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0) as client:
        assert client.get("/api/v1/auth/me", cast_to=dict[str, object])["key"]["id"] == key.split("_")[1]
    with anthropic.Anthropic(base_url=server.url, api_key="inf_wrong", max_retries=0) as client:
        with pytest.raises(anthropic.AuthenticationError):
            client.get("/api/v1/auth/me", cast_to=dict[str, object])


def test_me_tells_permissions_limits_and_what_is_left(server, admin):
    key = make_key(admin, limits={"max_requests_per_minute": 50}, models=["tiny"])
    found = Api(server, key["key"], "x-api-key")("GET", "/api/v1/auth/me").json()
    assert found["permissions"] == ["read_models", "run_inference", "use_streaming"]
    assert found["key"]["limits"]["max_requests_per_minute"] == 50
    assert found["models"] == ["tiny"]
    left = {(row["policy"], row["scope"]): row for row in found["remaining"]}
    assert left["minute", "key"]["limit"] == 50
    assert left["minute", "key"]["remaining"] == 49
    assert left["hour", "principal"]["remaining"] <= 10_000_000


def test_gauges_and_verdicts_of_all_workers_stand_in_one_scrape(server, admin):
    """Connections and judged credentials, whichever worker has them."""
    key = make_key(admin)["key"]

    def value(sample):
        lines = admin("GET", "/metrics").text.splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(sample)), 0.0)

    accepted = 'inferno_auth_verdicts_total{kind="key",verdict="accepted"}'
    refused = 'inferno_auth_verdicts_total{kind="none",verdict="invalid_api_key"}'
    def counts():
        return value(accepted), value(refused), value("inferno_connections ")

    before = counts()
    for _ in range(20):  # what earlier requests counted is written in batches: until it stands still
        for _ in range(30):
            pause()
        last, before = before, counts()
        if last == before:
            break
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(40)]
    try:
        for number in range(12):
            Api(server, key if number % 2 else "inf_no")("GET", "/v1/models")
        assert eventually(lambda: (value(accepted), value(refused)) == (before[0] + 6, before[1] + 6))
        assert eventually(lambda: value("inferno_connections ") >= 40)
    finally:
        for connection in idle:
            connection.close()
    assert eventually(lambda: value("inferno_connections ") < 40)


# ---------------------------------------------------------------- revocation


@pytest.mark.parametrize("way", ["api", "command", "disable", "delete"])
def test_key_5_sec_061_sec_072_400_parallel_calls_while_a_key_goes(server, admin, way):
    """None that starts after the revoking answer passes; a key made by command works at once everywhere."""
    user = make_user(admin)
    made = command(server, "keys", "create", "k", "--user", user["username"], "--json")
    assert made.returncode == 0, made.stderr
    key = json.loads(made.stdout)
    for _ in range(12):
        assert Api(server, key["key"])("GET", "/v1/models").status_code == 200
    outcomes = []

    def one(_):
        time.sleep(random.random() * 2.0)
        started = time.monotonic()
        outcomes.append((started, Api(server, key["key"])("GET", "/v1/models").status_code))

    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        calls = [pool.submit(one, i) for i in range(400)]
        time.sleep(0.3)
        if way == "api":
            assert admin("DELETE", f"/api/v1/auth/api-keys/{key['id']}").status_code == 200
        elif way == "command":
            done = command(server, "keys", "revoke", key["id"])
            assert done.returncode == 0, done.stderr
        elif way == "disable":
            assert admin("PATCH", f"/api/v1/users/{user['id']}", {"disabled": True}).status_code == 200
        else:
            assert admin("DELETE", f"/api/v1/users/{user['id']}").status_code == 200
        answered_at = time.monotonic()
        calls += [pool.submit(one, i) for i in range(40)]  # these start after it, however long the revoking took
        for call in calls:
            call.result()
    late = [status for started, status in outcomes if started > answered_at]
    assert len(outcomes) == 440
    assert len(late) >= 40
    assert set(late) == {401}
    assert {status for _, status in outcomes} <= {200, 401}


# ---------------------------------------------------------------- commands


def test_key_8_sec_178_commands_write_the_same_store_and_take_no_secret_as_argument(server, admin):
    name = f"c{secrets.token_hex(4)}"
    assert command(server, "users", "add", name, "--password-stdin", stdin=PASSWORD + "\n").returncode == 0
    token = login(server, name, PASSWORD)
    weak = command(server, "users", "add", name + "x", "--password-stdin", stdin="password1234\n")
    assert weak.returncode == 1
    assert "too common" in weak.stderr
    assert command(server, "users", "add", name, "--password-stdin", stdin=PASSWORD).returncode == 1  # taken
    assert "--password " not in command(server, "users", "add", "--help").stdout
    leaked = command(server, "keys", "revoke", "inf_whatever")
    assert leaked.returncode == 2
    assert command(server, "users", "disable", name).returncode == 0
    assert Api(server, token)("GET", "/api/v1/auth/me").status_code == 401
    listed = json.loads(command(server, "users", "list", "--json").stdout)
    assert [user["disabled"] for user in listed if user["username"] == name] == [True]
    found = admin("GET", f"/api/v1/audit?actor=uid:{os.getuid()}&event=user.create&limit=5").json()["data"]
    assert found[0]["actor_type"] == "command"
    assert command(server, "users", "delete", name, "--yes").returncode == 0
    assert admin("GET", "/api/v1/audit/verify").json()["verdict"] == "intact"
    verified = command(server, "audit", "verify", "--json")  # beside the live writer
    assert (verified.returncode, json.loads(verified.stdout)["verdict"]) == (0, "intact")


def test_aud_5_a_known_secret_is_found_by_its_fingerprint(server, admin):
    key = make_key(admin)["key"]
    broken = key[:-1] + ("A" if key[-1] != "A" else "B")
    elsewhere = {"x-forwarded-for": "198.51.100.77"}  # failures of one source are summed up above 60 a minute
    assert Api(server, broken)("GET", "/v1/models", headers=elsewhere).status_code == 401

    def rows():
        found = command(server, "audit", "fingerprint", "--search", "--json", stdin=broken)
        assert broken not in found.stdout
        return [json.loads(line)["reason"] for line in found.stdout.splitlines()]

    assert eventually(lambda: rows() == ["malformed_key"])


# ---------------------------------------------------------------- secrets in sinks


def test_sec_055_sec_148_cfg_3_canaries_reach_no_sink(server, admin):
    """Secrets and prompts of our own go through every endpoint; then every file, log and process is searched."""
    canary = "CaNaRy" + secrets.token_hex(8)
    user = f"u{secrets.token_hex(5)}"
    password = canary + "-password"
    admin("POST", "/api/v1/users", {"username": user, "password": password})
    token = login(server, user, password)
    key = make_key(Api(server, token))["key"]
    values = [canary, token, key, key.split("_")[2], ADMIN_PASSWORD, JWT_SECRET]
    prompt = {"model": "none", "messages": [{"role": "user", "content": canary + " prompt"}]}
    for number, (method, path, _) in enumerate(operations()):
        segment = (key, token)[number % 2]  # pasted where an id belongs
        concrete = path.replace("{id}", segment).replace("{name}", segment)
        for api in (Api(server, key), Api(server, token), Api(server, key, "x-api-key"), Api(server), admin):
            if path.endswith(("logout", "logout-all")):
                continue  # the session is needed further on
            api(method, concrete, prompt if method in ("POST", "PATCH") else None)
            api(method, concrete, {"username": user, "password": canary + "wrong", "new_password": canary,
                                   "current_password": canary, "name": "n", "unknown": canary})  # fmt: skip
        raw(server, method, f"{concrete}?api_key={key}")
        raw(server, method, concrete, {"authorization": f"Basic {canary}"})
    Api(server, canary)("GET", "/v1/models")
    login(server, user, password)  # a durable record after the others of its worker
    pause()
    family = [server.process.pid, *children(server.process.pid)]
    sinks = {f"/proc/{pid}/{name}": Path(f"/proc/{pid}/{name}").read_bytes() for pid in family for name in ("environ", "cmdline")}
    for path in server.folder.rglob("*"):
        if path.is_file() and path.name != "secrets.env" and path.parent.name != "keys":
            sinks[str(path)] = path.read_bytes()
    shown = command(server, "serve", "--show-config")
    sinks["--show-config"] = (shown.stdout + shown.stderr).encode()
    with sqlite3.connect(server.data / "inferno.db") as database:
        sinks["database"] = "\n".join(database.iterdump()).encode()
    database.close()
    assert len(sinks) > 10
    for where, data in sinks.items():
        for value in values:
            assert value.encode() not in data, (where, value[:8])


# ---------------------------------------------------------------- kills


def test_sec_143_sec_036_a_revocation_that_was_answered_survives_kill_9_of_everything(tmp_path):
    server = RunningServer(tmp_path, workers=2, config=CONFIG).start(ready=False)
    admin = Api(server, login(server))
    keys = [make_key(admin) for _ in range(3)]
    session = login(server)
    Api(server, session)("POST", "/api/v1/auth/logout")
    admin("DELETE", f"/api/v1/auth/api-keys/{keys[0]['id']}")
    server.kill_all()
    verified = command(server, "audit", "verify", "--json")
    assert (verified.returncode, json.loads(verified.stdout)["verdict"]) == (0, "intact")
    records = [json.loads(line) for line in command(server, "audit", "search", "--json").stdout.splitlines()]
    assert ("key.revoke", keys[0]["id"]) in {(row["event"], row["target"]) for row in records}
    server.start(ready=False)
    try:
        assert [Api(server, key["key"])("GET", "/v1/models").status_code for key in keys] == [401, 200, 200]
        assert Api(server, session)("GET", "/api/v1/auth/me").status_code == 401
        assert admin("GET", "/api/v1/users").status_code == 200
    finally:
        assert server.stop() == 0


def test_pwd_6_a_command_on_an_empty_store_makes_the_administrator_as_a_start_does(tmp_path):
    server = RunningServer(tmp_path, config=CONFIG)  # never started
    password = server.environment.pop("INFERNO_ADMIN_PASSWORD")
    refused = command(server, "keys", "create", "first")
    assert refused.returncode != 0
    assert "no accounts yet" in refused.stderr
    assert "INFERNO_ADMIN_PASSWORD" in refused.stderr
    server.environment["INFERNO_ADMIN_PASSWORD"] = "short"
    weak = command(server, "keys", "create", "first")
    assert weak.returncode == 78
    assert "INFERNO_ADMIN_PASSWORD" in weak.stderr
    server.environment["INFERNO_ADMIN_PASSWORD"] = password
    made = json.loads(command(server, "keys", "create", "first", "--json").stdout)
    server.environment["INFERNO_ADMIN_PASSWORD"] = "another-Password-1"  # means nothing any more
    assert [key["id"] for key in json.loads(command(server, "keys", "list", "--json").stdout)] == [made["id"]]
    try:
        server.start(ready=False)
        assert Api(server, made["key"])("GET", "/v1/models").status_code == 200
        assert login(server, "admin", password)
    finally:
        server.stop()


def test_commands_work_without_a_server_under_the_writers_lock(tmp_path):
    server = RunningServer(tmp_path, config=CONFIG)  # never started
    assert command(server, "users", "add", "ann", "--password-stdin", stdin=PASSWORD).returncode == 0
    assert {row["username"] for row in json.loads(command(server, "users", "list", "--json").stdout)} == {"admin", "ann"}
    made = json.loads(command(server, "keys", "create", "k", "--user", "ann", "--json").stdout)
    assert [key["id"] for key in json.loads(command(server, "keys", "list", "--json").stdout)] == [made["id"]]
    assert command(server, "keys", "revoke", made["id"]).returncode == 0
    assert command(server, "audit", "verify").returncode == 0
    log = server.data / "audit" / "audit.jsonl"
    data = log.read_bytes()
    log.write_bytes(data.replace(b'"key.create"', b'"key.revoke"'))
    broken = command(server, "audit", "verify", "--json")
    assert (broken.returncode, json.loads(broken.stdout)["first_bad"]) == (1, 3)
    log.write_bytes(data[: data.rindex(b'{"seq":4')])
    assert command(server, "audit", "verify").returncode == 1
    log.unlink()
    log.mkdir()
    assert command(server, "audit", "verify").returncode == 2
