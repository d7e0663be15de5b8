"""The text guards of the real server over a real model: what it repeats is covered, what clients send is screened."""

from __future__ import annotations

import json
import re
import signal

import pytest

from tests.end_to_end.harness import GENEROUS, eventually, running

pytestmark = pytest.mark.e2e
SECRETS = {  # in the vendors' forms, invented
    "github_token": "ghp_R7mK2xWq9TzLb4Vn8cYd3HsFj6GpAe1Xu5Qo",
    "aws_access_key_id": "AKIAQ3EGRV7WLZ2KXN5T",
}
ATTACK = "../../../../etc/passwd"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("guards"), config=GENEROUS, workers=2) as started:
        yield started


@pytest.fixture(scope="module")
def client(server):
    with server.http(headers={"X-API-Key": server.create_key()["key"]}, timeout=120) as made:
        yield made


def scraped(server, metric):
    """Return the values of a metric by its labels, over all workers."""
    with server.http(headers={"Authorization": f"Bearer {server.admin_token()}"}) as admin:
        text = admin.get("/metrics").text
    found = re.findall(rf"^{metric}\{{([^}}]*)\}} ([0-9.e+]+)$", text, re.MULTILINE)
    return {labels: float(value) for labels, value in found}


def repeating(client, secret):
    """Return a request whose answer is the secret, over and over: a page of nothing else, and no other tokens to choose."""
    line = f"key {secret}\n"
    tokens = client.post("/v1/tokenize", json={"model": "demo", "prompt": line * 2}).json()["tokens"]
    return {
        "model": "demo", "prompt": line * 12 + "key", "max_tokens": len(tokens) * 2, "temperature": 0, "ignore_eos": True,
        "logit_bias": {str(token): 30 for token in set(tokens)},
    }  # fmt: skip


@pytest.mark.parametrize("kind", sorted(SECRETS))
def test_sec_133_a_secret_that_a_real_model_repeats_is_covered_and_counted(server, client, kind):
    secret = SECRETS[kind]
    marker = f"[REDACTED:{kind}]"
    body = repeating(client, secret)
    label = f'kind="{kind}"'
    counted = scraped(server, "inferno_redactions_total").get(label, 0)
    answer = client.post("/v1/completions", json=body)
    whole = answer.json()["choices"][0]["text"]
    assert marker in whole  # the model did write it
    with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as stream:
        raw = stream.read().decode()
    frames = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: {")]
    assert "".join(frame["choices"][0]["text"] for frame in frames) == whole
    logged = client.post("/v1/completions", json={**body, "logprobs": 1})
    assert marker in logged.json()["choices"][0]["text"]
    for text in (answer.text, raw, logged.text):
        assert secret not in text
        assert secret[6:14] not in text
    expected = whole.count(marker)
    identity = {answer.headers["x-request-id"], stream.headers["x-request-id"], logged.headers["x-request-id"]}

    def records():
        return [record for record in server.events("output.redacted") if record["request_id"] in identity]

    assert eventually(lambda: len(records()) == 3)
    assert {record["reason"] for record in records()} == {f"{kind}={expected}"}
    assert eventually(lambda: scraped(server, "inferno_redactions_total").get(label, 0) == counted + 3 * expected)
    for path in (server.log, *server.data.rglob("*")):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path


def test_inp_9_attacks_in_headers_and_urls_are_refused_and_audited(server, client):
    refused = [
        client.get("/v1/models", headers={"User-Agent": ATTACK}),
        client.get("/v1/models", headers={"X-Request-Id": "1' OR '1'='1' --"}),
        client.get("/v1/models?after=%3Cscript%3Ealert(1)%3C%2Fscript%3E"),
        client.get("/v1/models/..%2F..%2Fetc%2Fpasswd"),
    ]
    for answer in refused:
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "input_blocked")
    identity = {answer.headers["x-request-id"] for answer in refused}
    assert eventually(lambda: identity <= {record["request_id"] for record in server.events("input.blocked")})
    assert ATTACK not in server.output() + (server.data / "audit" / "audit.jsonl").read_text()
    assert client.get("/v1/models", headers={"User-Agent": "curl/8.5.0", "X-Forwarded-For": "127.0.0.1"}).status_code == 200


def test_own_rules_are_in_force_for_the_next_request_after_a_reload(server, client):
    """The rule of an operator: nobody is refused before, each worker refuses after, and a faulty file changes nothing."""
    headers = {"X-Request-Id": "moonshot.4711"}
    talk = {"model": "demo", "messages": [{"role": "user", "content": "Tell of moonshot"}], "max_tokens": 1}
    assert client.get("/v1/models", headers=headers).status_code == 200
    rules = server.data / "rules.toml"
    rules.write_text(
        '[[rule]]\nid = "own-project"\ncategory = "own"\npattern = "moonshot"\nscore = 0.9\n'
        'content = "report"\nidentifier = "block"\n'
    )

    def reloaded(result):
        before = len(server.events("config.reload"))
        server.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: len(server.events("config.reload")) > before, 30)
        assert server.events("config.reload")[-1]["result"] == result

    def statuses():
        """Ask on connections of their own, which both workers get some of."""
        found = set()
        for _ in range(8):
            with server.http(headers={**client.headers, **headers}) as other:
                found.add(other.get("/v1/models").status_code)
        return found

    try:
        reloaded("success")
        assert eventually(lambda: statuses() == {400}, 30)
        answer = client.post("/v1/chat/completions", json=talk)
        assert answer.status_code == 200  # content is reported
        flagged = answer.headers["x-request-id"]
        assert eventually(lambda: flagged in {r["request_id"] for r in server.events("input.flagged")})
        rules.write_text('[[rule]]\nid = "own-project"\ncategory = "own"\npattern = "(moonshot"\n')
        reloaded("failure")
        assert statuses() == {400}
    finally:
        rules.unlink(missing_ok=True)
    reloaded("success")
    assert eventually(lambda: statuses() == {200}, 30)
