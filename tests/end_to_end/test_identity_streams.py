"""Identity with a real model: streams of revoked callers end, usage is exact, audit failure is what was chosen."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time

import httpx
import pytest

from tests.end_to_end.harness import GENEROUS, RunningServer, children, pause, running
from tests.end_to_end.test_identity import Api, eventually, login, make_key, make_user

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("streams"), workers=2, config=GENEROUS) as started:
        yield started


@pytest.fixture(scope="module")
def admin(server):
    return Api(server, login(server))


class Stream(threading.Thread):
    """A long answer in the background; `ended_at` when its last byte came."""

    def __init__(self, server, key):
        super().__init__(daemon=True)
        self.url = server.url
        self.key = key
        self.events = []
        self.ended_at = None

    def run(self):
        body = {
            "model": "demo", "stream": True, "max_tokens": 900, "ignore_eos": True, "min_tokens": 900,
            "messages": [{"role": "user", "content": "Tell a very long story."}],
        }  # fmt: skip
        with httpx.Client(base_url=self.url, headers={"x-api-key": self.key}, timeout=120, verify=False) as client:
            with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                assert answer.status_code == 200, answer.read()
                with contextlib.suppress(httpx.HTTPError):
                    for line in answer.iter_lines():
                        if line.startswith("data: "):
                            self.events.append(line[6:])
        self.ended_at = time.monotonic()


@pytest.mark.parametrize("way", ["revoke", "disable", "delete"])
def test_jwt_7_sec_031_a_running_stream_ends_within_a_second(server, admin, way):
    user = make_user(admin)
    as_user = Api(server, login(server, user["username"], "plum-orbit-Yonder7"))
    key = make_key(as_user)
    other = make_key(admin)
    mine, unharmed = Stream(server, key["key"]), Stream(server, other["key"])
    for stream in (mine, unharmed):
        stream.start()
    assert eventually(lambda: len(mine.events) > 20 and len(unharmed.events) > 20)
    if way == "revoke":
        answer = as_user("DELETE", f"/api/v1/auth/api-keys/{key['id']}")
    elif way == "disable":
        answer = admin("PATCH", f"/api/v1/users/{user['id']}", {"disabled": True})
    else:
        answer = admin("DELETE", f"/api/v1/users/{user['id']}")
    answered_at = time.monotonic()
    assert answer.status_code == 200
    mine.join(30)
    assert mine.ended_at is not None
    assert mine.ended_at - answered_at < 1.2  # a second, and this machine's noise
    assert "[DONE]" not in mine.events
    assert json.loads(mine.events[-1])["error"]["code"] == "invalid_api_key"
    assert unharmed.is_alive() or unharmed.events[-1] == "[DONE]"
    unharmed.join(120)
    assert unharmed.events[-1] == "[DONE]"


def chat(server, key, max_tokens=4):
    with httpx.Client(base_url=server.url, headers={"x-api-key": key}, timeout=120, verify=False) as client:
        body = {"model": "demo", "max_tokens": max_tokens, "messages": [{"role": "user", "content": "Hi"}]}
        return client.post("/v1/chat/completions", json=body)


def test_usage_is_exact_by_key_user_and_model_and_after_kill_9(tmp_path):
    server = RunningServer(tmp_path, workers=2, config=GENEROUS, model=_model()).start()
    try:
        admin = Api(server, login(server))
        user = make_user(admin)
        as_user = Api(server, login(server, user["username"], "plum-orbit-Yonder7"))
        keys = [make_key(as_user) for _ in range(2)]
        wanted = {key["id"]: [0, 0, 0] for key in keys}
        for i in range(10):
            answer = chat(server, keys[i % 2]["key"], 2 + i)
            assert answer.status_code == 200, answer.text
            used = answer.json()["usage"]
            for place, value in enumerate((1, used["prompt_tokens"], used["completion_tokens"])):
                wanted[keys[i % 2]["id"]][place] += value

        def counted():
            rows = as_user("GET", "/api/v1/usage").json()["data"]
            assert {row["user"] for row in rows} <= {user["id"]}
            assert {row["model"] for row in rows} <= {"demo"}
            found = {key["id"]: [0, 0, 0] for key in keys}
            for row in rows:
                for place, name in enumerate(("requests", "prompt_tokens", "completion_tokens")):
                    found[row["key"]][place] += row[name]
            return found

        assert eventually(lambda: counted() == wanted)
        last = chat(server, keys[0]["key"])  # and this one is killed before it is counted, as like as not
        for pid in [server.process.pid, *children(server.process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        server.process.wait()
        used = last.json()["usage"]
        for place, value in enumerate((1, used["prompt_tokens"], used["completion_tokens"])):
            wanted[keys[0]["id"]][place] += value
        server.start()
        assert eventually(lambda: counted() == wanted)
        assert admin("GET", f"/api/v1/usage?user={user['id']}&key_id={keys[1]['id']}").json()["data"][0]["requests"] == 5
    finally:
        server.stop()


def _model():
    from tests.models import demo_model

    return demo_model()


@pytest.mark.parametrize("choice", ["continue", "refuse"])
def test_sec_141_sec_142_a_log_that_cannot_be_written(tmp_path, choice):
    """The log's file is taken away: security actions are 503 and change nothing, inference follows the choice."""
    config = GENEROUS.replace("[security]", f'[security]\naudit_on_failure = "{choice}"')
    server = RunningServer(tmp_path, workers=1, config=config, model=_model()).start()
    try:
        admin = Api(server, login(server))
        key = make_key(admin)
        assert chat(server, key["key"]).status_code == 200
        log = server.data / "audit" / "audit.jsonl"
        log.rename(tmp_path / "kept")
        kept = (tmp_path / "kept").read_bytes()
        (tmp_path / "kept").unlink()
        refused = admin("POST", "/api/v1/auth/api-keys", {"name": "n"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "audit_unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        assert admin("DELETE", f"/api/v1/auth/api-keys/{key['id']}").status_code == 503
        assert len(admin("GET", "/api/v1/auth/api-keys").json()["data"]) == 1
        wanted = 200 if choice == "continue" else 503
        assert eventually(lambda: chat(server, key["key"]).status_code == wanted)
        for _ in range(5):
            assert chat(server, key["key"]).status_code == wanted
        log.write_bytes(kept)
        pause()
    finally:
        server.stop()
