"""The operator's routes of models, on a real server: state, load, unload, verify, delete, and what the audit log says."""

import hashlib

import httpx
import pytest

from tests.end_to_end.harness import ADMIN_PASSWORD, RunningServer
from tests.end_to_end.test_identity import CONFIG, Api, command, eventually, make_key, make_user
from tests.end_to_end.test_identity import login as login_of
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.e2e
ENGINE = "[engine]\nslots = 1\ncontext_size = 256\nprefix_cache_mb = 0\n"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


@pytest.fixture
def server(tmp_path):
    started = RunningServer(tmp_path, workers=2, config=CONFIG + ENGINE)
    (started.data / "models").mkdir()
    model = write_tiny_model(started.data / "models" / "tiny.gguf")
    assert command(started, "models", "add", str(model), "--name", "tiny").returncode == 0
    try:
        yield started.start()
    finally:
        if started.process is not None and started.process.poll() is None:
            started.stop()


def code(answer):
    return answer.status_code, answer.json()["error"]["code"]


def chat(server, key):
    return httpx.post(f"{server.url}/v1/chat/completions", json=CHAT, headers={"X-API-Key": key}, timeout=60)


def test_a_model_is_verified_unloaded_loaded_and_deleted(server):
    admin = Api(server, login_of(server, "admin", ADMIN_PASSWORD))
    key = make_key(admin)["key"]
    path = server.data / "models" / "tiny.gguf"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    found = admin("GET", "/api/v1/models").json()["data"]
    assert [(model["name"], model["state"], model["sha256"]) for model in found] == [("tiny", "ready", digest)]
    assert found[0]["settings"]["kv_layout"] == "streams"
    verdict = admin("POST", "/api/v1/models/tiny/verify")
    assert verdict.status_code == 200, verdict.text
    assert {**verdict.json(), "seconds": 0} == {
        "name": "tiny", "verdict": "valid", "reason": None, "offset": None, "detail": None, "policy": [],
        "sha256": [digest], "seconds": 0,
    }  # fmt: skip
    assert chat(server, key).status_code == 200
    assert code(admin("DELETE", "/api/v1/models/tiny")) == (409, "conflict")  # loaded

    assert admin("POST", "/api/v1/models/tiny/unload").json()["state"] == "unloaded"
    assert eventually(lambda: chat(server, key).status_code == 404)
    assert admin("POST", "/api/v1/models/tiny/load").json()["state"] == "ready"
    assert eventually(lambda: chat(server, key).status_code == 200)
    assert admin("POST", "/api/v1/models/tiny/unload").status_code == 200

    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    verdict = admin("POST", "/api/v1/models/tiny/verify").json()
    assert (verdict["verdict"], verdict["reason"]) == ("invalid", "checksum-mismatch")
    assert code(admin("POST", "/api/v1/models/tiny/load")) == (409, "conflict")

    assert code(admin("DELETE", "/api/v1/models/tiny?files=burn")) == (400, "invalid_value")
    gone = admin("DELETE", "/api/v1/models/tiny?files=delete")
    assert (gone.status_code, gone.json()) == (200, {"name": "tiny", "removed": True, "files_deleted": 1})
    assert not path.exists()
    for method, route in (("DELETE", "tiny"), ("POST", "tiny/verify"), ("POST", "tiny/load")):
        assert code(admin(method, f"/api/v1/models/{route}")) == (404, "model_not_found")
    assert admin("GET", "/api/v1/models").json()["data"] == []

    me = admin("GET", "/api/v1/auth/me").json()["id"]
    told = [
        (row["event"], row["target"], row["result"], row["reason"])
        for row in reversed(admin("GET", f"/api/v1/audit?actor={me}&limit=1000").json()["data"])
        if row["event"].startswith(("model.", "config."))
    ]
    assert ("model.verified", "tiny", "success", digest) in told
    assert ("model.refused", "tiny", "failure", "checksum-mismatch") in told
    assert ("config.change", "models.tiny", "success", "remove, files: delete") in told
    assert admin("GET", "/api/v1/audit/verify").json()["verdict"] == "intact"


def test_who_may_not_and_what_was_not_added(server):
    admin = Api(server, login_of(server, "admin", ADMIN_PASSWORD))
    elsewhere = Api(server, make_key(admin, permissions=["write_models", "delete_models"], models=["other"])["key"])
    user = Api(server, login_of(server, make_user(admin)["username"], "plum-orbit-Yonder7"))
    for method, route in (("POST", "tiny/verify"), ("DELETE", "tiny")):
        assert code(elsewhere(method, f"/api/v1/models/{route}")) == (404, "model_not_found")
        assert code(user(method, f"/api/v1/models/{route}")) == (403, "insufficient_permissions")
    write_tiny_model(server.data / "models" / "found.gguf")
    assert code(admin("DELETE", "/api/v1/models/found?files=delete")) == (409, "conflict")
    assert (server.data / "models" / "found.gguf").exists()
    assert admin("POST", "/api/v1/models/found/verify").json()["verdict"] == "valid"
