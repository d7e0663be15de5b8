"""The application without a network: hosts, CORS, path variants, methods, policies, the last resort."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from typing import Any

import pytest

from inferno import telemetry
from inferno.errors import CODES, StartError
from inferno.pool.engines import Engines
from inferno.security.permissions import Policy
from inferno.server.app import create_app
from inferno.server.http import ClientGone, Reply, Request
from inferno.server.observing import NoObserver
from inferno.server.routing import ApiRoute, Operation
from inferno.server.services import OpenAuthenticator, Services

from .harness import settings_for_tests


class Answer:
    def __init__(self, messages: list[dict[str, Any]]) -> None:
        self.status: int = messages[0]["status"]
        self.headers: dict[bytes, bytes] = dict(messages[0]["headers"])
        self.body = b"".join(message.get("body", b"") for message in messages[1:])

    @property
    def code(self) -> str:
        return str(json.loads(self.body)["error"]["code"])


def call(
    app: Any,
    path: str,
    method: str = "GET",
    *,
    headers: dict[str, str] | None = None,
    body: bytes = b"",
    scheme: str = "http",
) -> Answer:
    raw, _, query = path.partition("?")
    given = {"host": "localhost", **(headers or {})}
    scope = {
        "type": "http",
        "method": method,
        "path": raw,
        "raw_path": raw.encode(),
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in given.items() if value != "-"],
        "client": ("127.0.0.1", 5),
        "scheme": scheme,
        "state": {},
    }
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return Answer(sent)


def services(**server: Any) -> Services:
    return Services(settings_for_tests(server=server), Engines())


def app_of(**server: Any) -> Any:
    return create_app(services(**server))


def test_health_and_readiness() -> None:
    made = services()
    app = create_app(made)
    assert call(app, "/healthz").status == 200
    assert call(app, "/readyz").status == 503
    assert call(app, "/readyz", "HEAD").status == 503
    made.is_draining = True
    assert call(app, "/readyz").status == 503
    assert call(app, "/healthz").status == 200
    assert call(app, "/v1/models").body == b'{"object":"list","data":[]}'
    assert call(app, "/").headers[b"content-type"].startswith(b"text/html")


@pytest.mark.parametrize(
    "host",
    [
        "evil.invalid",
        "-",
        "localhost/x",
        "localhost:x",
        "a b",
        "",
        "127.0.0.1.evil.invalid",
        "localhost.evil.invalid",
        "[::1",
    ],
)
def test_sec_162_foreign_hosts(host: str) -> None:
    app = app_of()
    answer = call(app, "/v1/models", headers={"host": host})
    assert (answer.status, answer.code) == (400, "invalid_host")
    assert call(app, "/healthz", headers={"host": host}).status == 200


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:8080", "192.0.2.5", "localhost."]
)
def test_sec_162_own_hosts(host: str) -> None:
    assert call(app_of(), "/v1/models", headers={"host": host}).status == 200


def test_sec_162_configured_hosts_are_exact() -> None:
    app = app_of(allowed_hosts=["llm.example.com"])
    assert call(app, "/v1/models", headers={"host": "llm.example.com:443"}).status == 200
    for host in ("localhost", "127.0.0.1", "x.llm.example.com", "llm.example.com.evil.invalid"):
        assert call(app, "/v1/models", headers={"host": host}).status == 400


def test_sec_162_the_operators_listener_takes_addresses_too() -> None:
    app = create_app(services(allowed_hosts=["llm.example.com"]), is_admin=True)
    for host in ("llm.example.com", "192.0.2.5:9090", "[2001:db8::5]:9090"):
        assert call(app, "/openapi.json", headers={"host": host}).status == 200, host
    for host in ("localhost", "evil.invalid"):
        assert call(app, "/openapi.json", headers={"host": host}).code == "invalid_host", host


def test_sec_162_wildcard_hosts_cover_names_below_only() -> None:
    app = app_of(allowed_hosts=["*.example.com"])
    assert call(app, "/v1/models", headers={"host": "a.b.example.com"}).status == 200
    for host in ("example.com", "badexample.com", ".example.com"):
        assert call(app, "/v1/models", headers={"host": host}).status == 400


ORIGIN = "https://app.example.com"


@pytest.mark.parametrize(
    "origin",
    ["https://evil.invalid", "null", f"{ORIGIN}.evil.invalid", "http://app.example.com", ORIGIN + "/"],
)
def test_sec_163_foreign_origins_get_nothing(origin: str) -> None:
    for app in (app_of(), app_of(cors_origins=[ORIGIN])):
        answer = call(app, "/v1/models", headers={"origin": origin})
        assert not [name for name in answer.headers if name.startswith(b"access-control")]
        preflight = call(
            app, "/v1/models", "OPTIONS", headers={"origin": origin, "access-control-request-method": "GET"}
        )
        assert not [name for name in preflight.headers if name.startswith(b"access-control")]


def test_sec_163_an_exact_origin_may_call() -> None:
    app = app_of(cors_origins=[ORIGIN])
    answer = call(app, "/v1/models", headers={"origin": ORIGIN})
    assert answer.headers[b"access-control-allow-origin"] == ORIGIN.encode()
    assert b"access-control-allow-credentials" not in answer.headers
    assert answer.headers[b"vary"] == b"Origin"
    preflight = call(
        app,
        "/v1/models",
        "OPTIONS",
        headers={
            "origin": ORIGIN,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization",
        },
    )
    assert preflight.status == 204
    assert preflight.headers[b"access-control-allow-headers"] == b"authorization"


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "multipart/form-data", "application/json; charset=utf-16", "-", "application/jsonx", ""],
)
def test_sec_114_only_json_is_read(kind: str) -> None:
    answer = call(app_of(), "/v1/chat/completions", "POST", headers={"content-type": kind}, body=b"{}")
    assert (answer.status, answer.code) == (415, "unsupported_media_type")


def test_inp_2_sec_113_compressed_bodies_are_not_read() -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    assert call(app_of(), "/v1/chat/completions", "POST", headers=headers, body=b"\x1f\x8b").status == 415


def test_the_body_limit_also_holds_above_the_protocol() -> None:
    headers = {"content-type": "application/json"}
    answer = call(
        app_of(max_body_bytes=1024), "/v1/chat/completions", "POST", headers=headers, body=b" " * 1025
    )
    assert (answer.status, answer.code) == (413, "request_too_large")


VARIANTS = ["//v1/models", "/v1//models", "/./v1/models", "/v1/./models", "/v1/x/../models", "/V1/models", "/v1/MODELS", "/v1/models/",
            "/v1%2fmodels", "/v1/%6dodels", "/v1/models;x=1", "/v1;/models", "/v1/models%00", "/v1/models%2f", "/v1/models/a/b", "/v1/models/..",
            "/v1/models/.", "/v1/models/%", "/v1/models/%zz", "/v1/models/%ff"]  # fmt: skip


@pytest.mark.parametrize("path", VARIANTS)
def test_aut_4_path_variants_reach_no_handler(path: str) -> None:
    answer = call(app_of(), path)
    assert (answer.status, answer.code) == (404, "not_found")


def test_methods() -> None:
    app = app_of()
    for method in ("PUT", "DELETE", "PATCH", "TRACE", "PROPFIND"):
        answer = call(app, "/v1/models", method)
        assert (answer.status, answer.code) == (405, "method_not_allowed")
        assert answer.headers[b"allow"] == b"GET, HEAD, OPTIONS"
    assert call(app, "/v1/models", "OPTIONS").headers[b"allow"] == b"GET, HEAD, OPTIONS"
    override = call(app, "/v1/models", headers={"x-http-method-override": "DELETE"})
    assert override.status == 200


def test_sec_166_headers() -> None:
    answer = call(app_of(), "/v1/models")
    assert answer.headers[b"x-content-type-options"] == b"nosniff"
    assert answer.headers[b"cache-control"] == b"no-store"
    assert b"strict-transport-security" not in answer.headers
    assert b"strict-transport-security" in call(app_of(), "/v1/models", scheme="https").headers
    assert re.fullmatch(rb"req_[0-9a-f]{24}", answer.headers[b"x-request-id"])


async def _broken(request: Request) -> Reply:
    raise RuntimeError("secret detail at 0x7f00 in /srv/app")


def test_sec_165_our_own_bugs_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    route = ApiRoute("/v1/broken", {"GET": Operation(_broken, Policy(permissions=("read_models",)))})
    answer = call(create_app(services(), more_routes=[route]), "/v1/broken")
    assert (answer.status, answer.code) == (500, "internal_error")
    assert b"secret" not in answer.body
    assert answer.headers[b"x-request-id"].decode() in caplog.text


async def _gone(request: Request) -> Reply:
    raise ClientGone


@pytest.mark.parametrize(("handler", "status"), [(_broken, 500), (_gone, 499)])
def test_what_has_no_answer_is_counted_by_whose_fault_it_is(handler: Any, status: int) -> None:
    counted = []

    class Counting(NoObserver):
        def answered(self, route: str, method: str, status: int, began: float) -> None:
            counted.append((route, method, status))

    made = services()
    made.observer = Counting()
    route = ApiRoute("/v1/odd", {"GET": Operation(handler, Policy(permissions=("read_models",)))})
    app = create_app(made, more_routes=[route])
    if status == 500:
        assert call(app, "/v1/odd").status == 500
    else:
        with pytest.raises(IndexError):  # nothing was sent
            call(app, "/v1/odd")
    assert counted == [("/v1/odd", "GET", status)]


class _NoPolicy:
    pass


def test_log_lines_of_a_request_carry_its_id_and_nothing_of_its_text() -> None:
    lines = io.StringIO()
    root, ours = logging.getLogger(), logging.getLogger("inferno")
    before = (list(root.handlers), root.level, ours.level, logging.raiseExceptions)
    telemetry.setup(settings_for_tests(telemetry={"log_level": "debug", "log_format": "json"}), stream=lines)
    try:
        answers = [
            call(app_of(), path, headers={"authorization": "Bearer canary", "x-api-key": "canary", "cookie": "canary"})
            for path in ("/v1/models?text=canary", "/v1/models/canary")
        ]
    finally:
        root.handlers[:], root.level, logging.raiseExceptions = before[0], before[1], before[3]
        ours.setLevel(before[2])
        logging.captureWarnings(False)
    records = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [record["request_id"].encode() for record in records] == [a.headers[b"x-request-id"] for a in answers]
    assert [(record["method"], record["route"], record["status"]) for record in records] == [
        ("GET", "/v1/models", 200),
        ("GET", "/v1/models/{id}", 404),
    ]
    assert "canary" not in lines.getvalue()


def test_a_route_without_a_policy_stops_the_start() -> None:
    async def handler(request: Request) -> Reply:
        return Reply(200, b"", [])

    for policy in (None, _NoPolicy(), ()):
        route = ApiRoute("/v1/x", {"GET": Operation(handler, policy)})  # type: ignore[arg-type]
        with pytest.raises(StartError, match="policy"):
            create_app(services(), more_routes=[route])
    with pytest.raises(StartError, match="no operation"):
        create_app(services(), more_routes=[ApiRoute("/v1/x", {})])
    with pytest.raises(StartError, match="twice"):
        create_app(services(), more_routes=[ApiRoute("/v1/models", {"GET": Operation(handler, Policy())})])


def test_a_foreign_kind_of_route_stops_the_start() -> None:
    from starlette.routing import Route

    with pytest.raises(StartError, match="policy"):
        create_app(services(), more_routes=[Route("/x", lambda request: None)])


class _NobodyIsKnown(OpenAuthenticator):
    async def authenticate(self, *args: Any, **kwargs: Any) -> Any:
        from inferno.errors import ApiError

        raise ApiError("invalid_api_key", "No valid credential was sent.")


def test_sec_075_without_a_credential_everything_but_public_routes_is_401() -> None:
    made = Services(settings_for_tests(), Engines(), authenticator=_NobodyIsKnown())
    app = create_app(made)
    for path in (
        "/v1/models",
        "/v1/models/x",
        "/v1/chat/completions",
        "/v1/unknown",
        "/api/v1/unknown",
        "/v1",
        "/api/v1",
    ):
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE"):
            answer = call(app, path, method)
            assert answer.status == 401, (path, method)
            assert answer.headers[b"www-authenticate"].startswith(b"Bearer")
    for path in ("/unknown", "//v1/models", "/V1/models"):
        assert call(app, path).status == 404


def test_every_error_code_has_a_status_that_the_envelope_allows() -> None:
    assert all(400 <= entry.status < 600 for entry in CODES.values())
