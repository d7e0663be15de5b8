"""`inferno doctor` as an operator meets it: on a hardened deployment and on a fresh demo, before the first start and
beside the running server, in text and JSON; docs/doctor.md shows the same lines.

Where the tests run as root and another user can read what they need, the deployments have a user of their own without
capabilities, as the guide wants it.
"""

import contextlib
import ipaddress
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tests.certificates import issue
from tests.conftest import ROOT
from tests.end_to_end.harness import ADMIN_PASSWORD, JWT_SECRET, RunningServer
from tests.inferno.test_doctor import CHECKLIST, REQUIREMENTS
from tests.models import demo_model
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

UID = 65532
OWN_USER = ["setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", f"--reuid={UID}", f"--regid={UID}",
            "--clear-groups"]  # fmt: skip
INFERNO = [sys.executable, "-m", "inferno.cli"]
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith("INFERNO_")}
DOCUMENTED_AT = "/srv/inferno"
# What a machine or its user decides, and not the deployment: verdicts of these may differ from the page's.
OF_THE_MACHINE = ("checklist.dedicated_user", "sandbox.landlock", "sandbox.seccomp", "sandbox.capabilities", "sandbox.root",
                  "machine.", "limits.descriptors")  # fmt: skip


def as_own_user():
    """Return the words before a command, and whether they change its user."""
    if os.geteuid() != 0:
        return [], True
    # In a child of what setpriv starts: setpriv itself keeps root's right to read everything until then.
    probe = [*OWN_USER, "sh", "-c", f"'{sys.executable}' -m inferno.cli --version"]
    if subprocess.run(probe, cwd=ROOT, env=PLAIN, capture_output=True, check=False).returncode == 0:
        return OWN_USER, True
    return [], False


@pytest.fixture
def folder():
    """A place that the deployment's own user reaches, unlike pytest's."""
    place = Path(tempfile.mkdtemp(prefix="inferno-doctor-"))
    place.chmod(0o755)
    try:
        yield place
    finally:
        shutil.rmtree(place)


class Deployment:
    """A data directory, its commands and its server, under a user of its own."""

    def __init__(self, folder, environment):
        self.prefix, self.has_own_user = as_own_user()
        self.server = RunningServer(folder, environment=environment)
        self.server.command = [*self.prefix, *INFERNO]
        for name in ("INFERNO_JWT_SECRET", "INFERNO_ADMIN_PASSWORD"):
            del self.server.environment[name]
        self.folder = folder

    def give(self):
        """Everything in the folder belongs to the server's user."""
        if self.prefix:
            subprocess.run(["chown", "-R", f"{UID}:{UID}", str(self.folder)], check=True)

    def call(self, *arguments):
        return subprocess.run([*self.prefix, *INFERNO, *arguments], cwd=ROOT, env=self.server.environment,
                              capture_output=True, text=True, timeout=120, check=False)  # fmt: skip

    def doctor(self):
        """Return the report as JSON has it, after comparing the text's every line with it."""
        shown = self.call("doctor", "--config", str(self.server.config), "--json")
        report = json.loads(shown.stdout)
        found = {check["id"]: check for check in report["checks"]}
        assert len(found) == len(report["checks"])
        assert shown.returncode == (0 if report["ok"] else 1), shown.stderr
        assert report["ok"] is all(check["verdict"] != "fail" for check in found.values())
        assert all(check["value"] for check in found.values())
        assert all(check["fix"] and "\n" not in check["fix"] for check in found.values() if check["verdict"] != "pass")
        for secret in (JWT_SECRET, ADMIN_PASSWORD):
            assert secret not in shown.stdout + shown.stderr
        text = self.call("doctor", "--config", str(self.server.config))
        assert text.returncode == shown.returncode
        lines = text.stdout.splitlines()
        told = [line for line in lines if re.match(r"(pass|warn|fail)  ", line)]
        assert len(told) == len(found)
        for line, check in zip(told, found.values(), strict=True):
            assert line.startswith(f"{check['verdict']:<4}  {check['title']}  ")
        assert sum(line.startswith("      → ") for line in lines) == sum(c["verdict"] != "pass" for c in found.values())
        print("\n" + self.transcript(found))  # for docs/doctor.md
        return found

    def transcript(self, found):
        """Return the report as the page shows it."""
        def plain(text):
            return text.replace(str(self.server.data), DOCUMENTED_AT).replace(str(self.folder), "/etc/inferno")

        lines = []
        for check in found.values():
            lines.append(f"{check['verdict']}  {plain(check['title']):<60}  {plain(check['value'])}")
            if check["verdict"] != "pass":
                lines.append(f"      → {plain(check['fix'])}")
        return "\n".join(lines)

    @contextlib.contextmanager
    def running(self):
        try:
            yield self.server.start()
        finally:
            if self.server.process is not None and self.server.process.poll() is None:
                self.server.stop()


def documented(heading):
    """Return (verdict, rest of the line) of each check in the transcript under a heading of docs/doctor.md."""
    text = (ROOT / "docs" / "doctor.md").read_text().split(f"\n## {heading}\n", 1)[1]
    block = re.search(r"^```text\n(.*?)^```$", text, re.M | re.S)[1]
    return re.findall(r"^(pass|warn|fail)  (.*)$", block, re.M), block


def assert_documented(heading, found, deployment):
    """The page's transcript has each of these checks, in this order, and no other; its verdicts are these."""
    lines, block = documented(heading)
    titles = [check["title"].replace(str(deployment.server.data), DOCUMENTED_AT) for check in found.values()]
    assert len(lines) == len(titles)
    for (verdict, line), title, check in zip(lines, titles, found.values(), strict=True):
        assert line.startswith(title + "  ")
        if not check["id"].startswith(OF_THE_MACHINE):
            assert verdict == check["verdict"], title
    assert block.count("\n      → ") == sum(verdict != "pass" for verdict, _ in lines)


def every_requirement(found, model):
    """CFG-4: the guide's checklist and each requirement of CFG, NET and BOX has its line."""
    assert [id for id in found if id.startswith("checklist.")] == CHECKLIST
    wanted = {id.removesuffix(".m") + (f".{model}" if id.endswith(".m") else "") for ids in REQUIREMENTS.values() for id in ids}
    assert wanted <= set(found), wanted - set(found)


def write_private(path, data):
    path.write_bytes(data)
    path.chmod(0o600)


@pytest.fixture
def hardened(folder):
    """Own certificate authority, secrets from files, two workers, the strict choice of every setting."""
    place = folder / "secrets"
    place.mkdir(mode=0o700)
    write_private(place / "jwt_secret", JWT_SECRET.encode() + b"\n")
    write_private(place / "admin_password", ADMIN_PASSWORD.encode() + b"\n")
    authority = issue("Example authority")
    names = [x509.DNSName("inferno.example"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    key, certificate = issue("inferno.example", authority, [x509.SubjectAlternativeName(names)])
    (folder / "authority.pem").write_bytes(authority[1].public_bytes(serialization.Encoding.PEM))
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    write_private(folder / "key.pem", key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))  # fmt: skip
    made = Deployment(folder, {"INFERNO_JWT_SECRET_FILE": str(place / "jwt_secret"),
                               "INFERNO_ADMIN_PASSWORD_FILE": str(place / "admin_password")})  # fmt: skip
    made.admin_port = free_port()
    made.server.authority = folder / "authority.pem"
    made.server.url = f"https://127.0.0.1:{made.server.port}"
    made.server.config.write_text(f'''
[server]
port = {made.server.port}
workers = 2
tls_enabled = true
tls_cert_path = "{folder}/cert.pem"
tls_key_path = "{folder}/key.pem"
allowed_hosts = ["inferno.example", "127.0.0.1"]
max_connections = 256
admin_host = "127.0.0.1"
admin_port = {made.admin_port}
[security]
tls_required = true
min_tls_version = "1.3"
sandbox = "required"
audit_on_failure = "refuse"
[models]
require_checksum = true
verify = "always"
source = "copy"
[engine]
slots = 2
context_size = 512
''')
    made.server.arguments = ["serve", "--config", str(made.server.config)]
    made.server.data.chmod(0o700)
    shutil.copyfile(demo_model(), folder / "model.gguf")
    made.give()
    return made


def test_cfg_4_a_hardened_deployment_passes_before_and_beside_its_server(hardened):
    config = str(hardened.server.config)
    before = hardened.doctor()
    assert [check for check in before.values() if check["verdict"] == "fail"] == []
    assert before["models"]["verdict"] == "warn"
    added = hardened.call("models", "add", "--config", config, str(hardened.folder / "model.gguf"), "--name", "assistant")
    assert added.returncode == 0, added.stderr
    with hardened.running() as server:
        with server.http(timeout=60) as client:
            made = server.create_key()
            answer = client.post("/v1/chat/completions", headers={"X-API-Key": made["key"]},
                                 json={"model": "assistant", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4})  # fmt: skip
            assert answer.status_code == 200, answer.text
            assert client.get("/v1/models", headers={"Host": "evil.example"}).status_code >= 400
            # TLS on the operators' listener too, and no credential.
            assert client.get(f"https://127.0.0.1:{hardened.admin_port}/metrics").status_code == 200
        found = hardened.doctor()
        every_requirement(found, "assistant")
        assert [check for check in found.values() if check["verdict"] == "fail"] == []
        warned = {id for id, check in found.items() if check["verdict"] == "warn"}
        assert {id for id in warned if not id.startswith(OF_THE_MACHINE)} == set()
        assert found["checklist.dedicated_user"]["verdict"] == ("pass" if hardened.has_own_user else "warn")
        if hardened.prefix:
            assert "capabilities 0x0, no_new_privs on" in found["sandbox.capabilities"]["value"]
        values = {
            "checklist.jwt_secret": "set and strong",
            "checklist.admin_password": "set and strong",
            "checklist.tls": "TLS >= 1.3, CN=inferno.example",
            "checklist.audit_monitoring": "chain intact",
            "config.environment": "none has one",
            "sandbox": "required",
            "sandbox.engine.assistant": "landlock",
            "network.tls_required": "yes",
            "network.min_tls_version": "1.3",
            "network.allowed_hosts": "inferno.example",
            "network.operators": f"127.0.0.1:{hardened.admin_port}",
            "models.assistant": "SHA-256",
            "models.verification": "always; a recorded SHA-256 is required",
            "models.source": "copy",
            "server": "2 workers ready",
            "server.model.assistant": "2 slots of 512 tokens",
        }
        assert {id: value for id, value in values.items() if value not in found[id]["value"]} == {}
        assert_documented("A hardened deployment, beside its server", found, hardened)


def test_cfg_4_a_fresh_demo_is_told_what_to_do(folder):
    demo = Deployment(folder, {})
    shutil.rmtree(demo.server.data)
    demo.give()
    assert demo.call("init", str(demo.server.data), "--demo").returncode == 0
    before = demo.doctor()
    assert [id for id in before if id.startswith("checklist.")] == CHECKLIST
    assert [check for check in before.values() if check["verdict"] == "fail"] == []
    assert before["models"]["fix"] == "inferno models add FILE"
    assert_documented("A fresh demo, before its first start", before, demo)
    shutil.copyfile(demo_model(), demo.server.data / "models" / "assistant.gguf")
    demo.give()
    with demo.running():
        found = demo.doctor()
        every_requirement(found, "assistant")
        # The port was a flag: what the server has is judged, not what the file says.
        assert "server.port" in found["config"]["value"]
        assert str(demo.server.port) in found["checklist.network_access"]["value"]
        assert [check for check in found.values() if check["verdict"] == "fail"] == []


def test_cfg_4_without_secrets_or_with_controls_switched_off_it_exits_1(folder):
    bare = Deployment(folder, {})
    bare.server.config.write_text('[security]\nrate_limiting_enabled = false\nsandbox = "off"\n[storage]\ndata_dir = "."\n')
    bare.give()
    found = bare.doctor()
    failed = {id: check["fix"] for id, check in found.items() if check["verdict"] == "fail"}
    assert failed["checklist.rate_limits"] == "set [security] rate_limiting_enabled = true"
    assert failed["sandbox"] == '[security] sandbox = "required"'
    assert "openssl rand -base64 48" in failed["checklist.jwt_secret"]
    # Each fix that is a setting or a command is enough: carried out, the same doctor has nothing to fail.
    bare.server.environment |= {"INFERNO_JWT_SECRET": secrets.token_urlsafe(48), "INFERNO_ADMIN_PASSWORD": secrets.token_urlsafe(16)}
    bare.server.config.write_text('[security]\nrate_limiting_enabled = true\nsandbox = "required"\n[storage]\ndata_dir = "."\n')
    assert [check for check in bare.doctor().values() if check["verdict"] == "fail"] == []
