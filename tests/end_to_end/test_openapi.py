"""The API description against the running server: schemathesis asks, with every check on, with credentials and without.

Bounded and repeatable: fixed seeds, a fixed number of examples an operation, no database of earlier findings. A context
of 256 tokens and one generated token a request keep the model's share small (tests/end_to_end/openapi_hooks.py).
"""

import json
import os
import re
import subprocess
import sys

import httpx
import pytest

from inferno.security.permissions import PERMISSIONS
from tests.conftest import ROOT
from tests.end_to_end.harness import GENEROUS, running

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]
CONFIG = ROOT / "tests" / "end_to_end" / "schemathesis.toml"
GENERATION = "^/v1/(chat/completions|completions)$"
EXAMPLES = os.environ.get("INFERNO_TEST_OPENAPI_EXAMPLES", "3")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("openapi"), config=GENEROUS.replace("= 1024", "= 256")) as started:
        yield started


@pytest.fixture(scope="module")
def made(server):
    """The administrator's key, made before random requests use up what an account may have."""
    return server.create_key(permissions=list(PERMISSIONS))


def schemathesis(url, folder, *arguments, protected=()):
    """Return the report's text; fails with it when a check failed."""
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run", str(folder / "openapi.json"),
         "--url", url, "--checks", "all", "--seed", "20260131", "-n", EXAMPLES, "--continue-on-failure",
         "--generation-database", "none", "--no-color", "--request-timeout", "120", "--max-response-time", "120", "--no-shrink", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=540, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "PROTECTED_IDS": " ".join(protected)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-12000:] + done.stderr[-2000:]
    return done.stdout


def described(server, key, folder):
    answer = httpx.get(f"{server.url}/openapi.json", headers={"X-API-Key": key}, timeout=30)
    assert answer.status_code == 200
    (folder / "openapi.json").write_text(answer.text)
    return answer.json()


def num_tested(report):
    return int(re.search(r"Tested: (\d+)", report)[1])


def test_the_description_is_for_any_authenticated_caller_and_complete(server):
    key = server.create_key(permissions=["read_models"])["key"]
    with server.http() as client:
        for path in ("/openapi.json", "/docs"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"Authorization": f"Bearer {key}"}).status_code == 200
        page = client.get("/docs", headers={"X-API-Key": key})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert "/v1/chat/completions" in page.text


@pytest.mark.parametrize("part", ["all but generation", "generation"])
def test_schemathesis_with_credentials(server, made, tmp_path, part):
    """As the administrator with an API key: examples, edges, random bodies, sequences. The edges of the generation routes'
    fifty fields are 1800 requests for a model: left to INFERNO_TEST_OPENAPI_EDGES=1, as are more examples.
    """
    key = made["key"]
    document = described(server, key, tmp_path)
    selection = ["--exclude-path-regex", GENERATION]
    if part == "generation":
        phases = "examples,coverage,fuzzing" if os.environ.get("INFERNO_TEST_OPENAPI_EDGES") == "1" else "examples,fuzzing"
        selection = ["--include-path-regex", GENERATION, "--phases", phases, "-n", "20"]
    report = schemathesis(
        server.url, tmp_path, "-H", f"Authorization: Bearer {key}", *selection, protected=(made["id"], made["owner"])
    )
    paths = [path for path in document["paths"] if (re.search(GENERATION, path) is not None) == (part == "generation")]
    assert num_tested(report) == sum(len(document["paths"][path].keys() - {"parameters"}) for path in paths)
    print(report[-700:])
    assert httpx.get(f"{server.url}/readyz", timeout=30).status_code == 200


def test_schemathesis_without_credentials(server, made, tmp_path):
    """The same questions of a stranger: nothing but public routes answers."""
    document = described(server, made["key"], tmp_path)
    report = schemathesis(server.url, tmp_path, "--phases", "examples,fuzzing")
    assert num_tested(report) == sum(len(item.keys() - {"parameters"}) for item in document["paths"].values())
    print(report[-700:])
    assert json.loads(httpx.get(f"{server.url}/healthz", timeout=30).text) == {"status": "ok"}
