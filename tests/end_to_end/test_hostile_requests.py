"""Random hostile requests against the real server: never a 5xx of ours, never an inner text, and it serves on afterwards.

`INFERNO_TEST_HOSTILE_SECONDS` makes the run longer (10 s by default; `make hostile`), and the answers are counted at the end.
"""

from __future__ import annotations

import collections
import json
import os
import re
import socket
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.end_to_end.harness import GENEROUS, children, eventually, running

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
SECONDS = float(os.environ.get("INFERNO_TEST_HOSTILE_SECONDS", "10"))
INNER = re.compile(rb"Traceback|\.py\b|site-packages|uvicorn|starlette|sqlite|SELECT |0x[0-9a-f]{6}|/(?:root|home|tmp|usr)/")
MAY_BE_5XX = {"engine_restarting", "overloaded", "shutting_down"}
ROUTES = [
    ("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("GET", "/v1/models"), ("GET", "/v1/models/{}"),
    ("POST", "/v1/tokenize"), ("POST", "/v1/detokenize"), ("POST", "/api/v1/auth/login"), ("GET", "/api/v1/auth/me"),
    ("POST", "/api/v1/auth/api-keys"), ("DELETE", "/api/v1/auth/api-keys/{}"), ("POST", "/api/v1/users"),
    ("PATCH", "/api/v1/users/{}"), ("GET", "/api/v1/audit?limit={}"), ("GET", "/api/v1/usage?{}"), ("PATCH", "/api/v1/config"),
    ("GET", "/metrics"), ("GET", "/api/v1/users?cursor={}"), ("POST", "/api/v1/auth/password"),
]  # fmt: skip
NAMES = ["model", "messages", "role", "content", "max_tokens", "temperature", "stream", "stop", "n", "tools", "seed", "prompt",
         "tokens", "username", "password", "name", "permissions", "limits", "logit_bias", "response_format", "grammar", "top_p",
         "logprobs", "top_logprobs", "stream_options", "tool_choice", "role", "disabled", "echo", "priority"]  # fmt: skip
TEXT = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["demo", "user", "system", "admin", "<|im_end|>", "' OR 1=1 --", "../../etc/passwd", "{{7*7}}", "\0", "\ud800"]),
)
VALUE = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), TEXT),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(st.sampled_from(NAMES), TEXT), inner, max_size=4)
    ),
    max_leaves=12,
)
PLAUSIBLE = st.fixed_dictionaries(
    {"model": st.just("demo"), "messages": st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": TEXT}), max_size=2)},
    optional={name: VALUE for name in NAMES if name not in {"model", "messages", "stream"}} | {"max_tokens": st.integers(-1, 3)},
)  # fmt: skip
BODY = st.one_of(
    st.builds(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"), st.one_of(PLAUSIBLE, VALUE)),
    st.binary(max_size=60),
    st.sampled_from([b"", b"{", b"[" * 500, b'{"a":1,"a":2}', b"\xef\xbb\xbf{}", b"NaN", b'"' + b"x" * 100_000]),
)
SEGMENT = st.one_of(st.sampled_from([b"demo", b"x", b"%2e%2e", b"%00", b"..", b"a" * 500, b"%ff"]), st.binary(max_size=20))
HEADER = st.tuples(
    st.sampled_from([b"X-A", b"Content-Type", b"Host", b"Origin", b"Authorization", b"X-API-Key", b"Cookie", b"Expect",
                     b"X-Forwarded-For", b"Forwarded", b"Range", b"Accept-Encoding", b"Transfer-Encoding", b"Content-Length"]),
    st.one_of(st.binary(max_size=30), st.sampled_from([b"chunked", b"5", b"-1", b"100-continue", b"application/json", b"*"])),
)  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    config = GENEROUS.replace("[security]", "[server]\nheader_timeout_seconds = 1\n[security]")
    with running(tmp_path_factory.mktemp("hostile"), workers=2, config=config) as started:
        yield started


@pytest.fixture(scope="module")
def credentials(server):
    """None, a user's key that may be spent, and the administrator's token."""
    return [None, server.create_key()["key"].encode(), server.admin_token().encode()]


def send(server, data):
    with socket.create_connection(("127.0.0.1", server.port), timeout=120) as sock:
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            answer = b""
            while part := sock.recv(65536):
                answer += part
        except (ConnectionResetError, BrokenPipeError):
            return b""
    return answer


DEADLINE = []
COUNTS = collections.Counter()


@settings(max_examples=500 if SECONDS > 10 else 4000, derandomize=SECONDS <= 10, deadline=None, database=None,
          suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large])  # fmt: skip
@given(st.sampled_from(ROUTES), SEGMENT, BODY, st.lists(HEADER, max_size=3), st.integers(0, 2), st.booleans(), st.binary(max_size=3))
def requests(server, credentials, route, segment, body, headers, who, is_honest, noise):
    if time.monotonic() > DEADLINE[0]:
        return
    method, path = route
    lines = [method.encode() + b" " + path.encode().replace(b"{}", segment) + b" HTTP/1.1", b"Host: localhost"]
    if credentials[who] is not None:
        lines.append(b"Authorization: Bearer " + credentials[who])
    if is_honest:
        lines += [b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    lines += [name + b": " + value for name, value in headers]
    lines.append(b"Connection: close")
    answer = send(server, b"\r\n".join([*lines, b"", body]) + (b"" if is_honest else noise))
    if not answer:
        COUNTS["closed"] += 1
        return  # closed without a word: fine
    while answer.startswith(b"HTTP/1.1 100 "):  # asked for with Expect; the answer comes after it
        answer = answer.partition(b"\r\n\r\n")[2]
    if not answer:
        COUNTS["closed"] += 1
        return
    assert answer.startswith(b"HTTP/1.1 "), answer[:100]
    status = int(answer[9:12])
    COUNTS[str(status)] += 1
    head, _, content = answer.partition(b"\r\n\r\n")
    if status >= 500:
        code = json.loads(content)["error"]["code"]
        assert code in MAY_BE_5XX, (answer[:400], lines, body[:300])
    if status >= 400 and method != "HEAD":
        assert set(json.loads(content)["error"]) == {"message", "type", "param", "code"}
        assert not INNER.search(content), content
    assert b"x-request-id:" in head.lower()


@pytest.mark.timeout(SECONDS + 900)
def test_hostile_requests_never_get_a_5xx_or_an_inner_text(server, credentials, capsys):
    ask(server)  # the template child is started by the first conversation
    DEADLINE[:] = [time.monotonic() + SECONDS]
    before = sorted(children(server.process.pid))
    while time.monotonic() < DEADLINE[0]:
        requests(server, credentials)
    assert "Traceback" not in server.output()
    assert '"level": "error"' not in server.output()
    assert not server.events("engine.crash")
    assert eventually(lambda: sorted(children(server.process.pid)) == before)  # nothing died, nothing was left running
    ask(server)
    with capsys.disabled():
        print(f"\n{sum(COUNTS.values())} hostile requests: {dict(sorted(COUNTS.items()))}")


def ask(server):
    with server.client(server.create_key()["key"]) as client:
        answer = client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "hi"}], max_tokens=3
        )
    assert answer.choices[0].finish_reason
