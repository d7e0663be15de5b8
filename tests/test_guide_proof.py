"""docs/guide_proof.md: no statement of the user's guide without a test, no test that does not exist. And the small
proofs that belong to no other file."""

import re

import pytest
from click.testing import CliRunner

from inferno import doctor
from inferno.cli.models import models
from tests.conftest import ROOT, shared
from tests.guide_sentences import statements

ROW = re.compile(r"^\| (.+) \| (`test_.+) \|$", re.M)
ROWS = ROW.findall((ROOT / "docs" / "guide_proof.md").read_text())
TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(), re.M)
}


def test_every_statement_of_the_guide_has_its_row():
    assert [statement for statement, _ in ROWS] == statements(shared("guide/USERS_GUIDE.md").read_text())


def test_every_test_that_is_named_exists():
    named = {name for _, tests in ROWS for name in re.findall(r"`(test_\w+)`", tests)}
    assert len(ROWS) > 80
    # Requirements' numbers may be put in front of a name without changing what it says.
    plain = {re.sub(r"^test_(?:[a-z]{3}_\d+_)+", "test_", test) for test in TESTS} | TESTS
    assert not named - plain


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text('[server]\nhost = "0.0.0.0"\nport = 8080\n[security]\ntls_required = false\n')
    return file


def checks_of(config):
    return {check.id: check for check in doctor.examine(str(config), {})}


def test_guide_doctor_prints_the_firewall_rules_for_the_port(config):
    fix = checks_of(config)["checklist.network_access"].fix
    assert "iptables -A INPUT -p tcp --dport 8080 -s TRUSTED -j ACCEPT" in fix
    assert "iptables -A INPUT -p tcp --dport 8080 -j DROP" in fix


def test_guide_doctor_says_which_versions_run(config):
    value = checks_of(config)["checklist.updates"].value
    assert all(re.search(rf"{package} [0-9]", value) for package in ("inferno", "llama-cpp-python", "starlette", "cryptography"))


def test_guide_a_file_without_gguf_s_magic_bytes_is_refused(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGML" + bytes(4096))
    result = CliRunner().invoke(models, ["verify", "--json", str(file)])
    assert result.exit_code == 1
    assert '"reason":"bad-magic"' in result.output.replace(": ", ":")


