"""doctor: every line of the guide's checklist has a check, verdicts follow the facts, fixes are named. CFG-4, BOX-2."""

import json
import os
import subprocess

import pytest
from click.testing import CliRunner

from inferno import doctor, tls
from inferno.cli.doctor import doctor as command
from inferno.doctor import checklist, machine, protection
from inferno.doctor.check import Situation

SECRET = "Zk3" + "q8Xw1vT6mB9yR4nL7cJ2hF5dG0sPaUeKi"
CHECKLIST = [  # the user's guide, line by line
    "checklist.jwt_secret", "checklist.admin_password", "checklist.tls", "checklist.rate_limits",
    "checklist.audit_log", "checklist.network_access", "checklist.dedicated_user", "checklist.updates",
    "checklist.audit_monitoring",
]  # fmt: skip


@pytest.fixture
def config(tmp_path):
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    file = data / "config.toml"
    file.write_text("")
    return file


def examine(config, **environ):
    environ.setdefault("INFERNO_JWT_SECRET", SECRET)
    environ.setdefault("INFERNO_ADMIN_PASSWORD", "wombat-cathedral-47-yew")
    return {check.id: check for check in doctor.examine(str(config), environ)}


def test_cfg_4_every_line_of_the_checklist_is_answered_in_order(config):
    assert [id for id in examine(config) if id.startswith("checklist.")] == CHECKLIST


def test_a_fresh_installation_has_no_failure_and_every_warning_names_its_fix(config):
    checks = examine(config)
    assert [check for check in checks.values() if check.verdict == "fail"] == []
    assert all(check.fix for check in checks.values() if check.verdict != "pass")


@pytest.mark.parametrize(
    ("text", "id"),
    [
        ("[security]\naudit_logging_enabled = false", "checklist.audit_log"),
        ("[security]\nrate_limiting_enabled = false", "checklist.rate_limits"),
        ("[security]\nauth_enabled = false", "config.auth_enabled"),
        ('[security]\nsandbox = "off"', "sandbox"),
        ("[server]\nport = 99999", "config"),
        ("[engine]\ngpu_layers = 4", "machine.gpu"),
    ],
)
def test_each_control_switched_off_fails_with_its_fix(config, text, id):
    config.write_text(text)
    check = examine(config)[id]
    assert check.verdict == "fail"
    assert check.fix


def test_cfg_1_a_weak_secret_is_named_never_shown(config):
    checks = examine(config, INFERNO_JWT_SECRET="a" * 40)
    assert checks["checklist.jwt_secret"].verdict == "fail"
    assert "openssl" in checks["checklist.jwt_secret"].fix
    assert "a" * 40 not in str(checks)


def test_plain_http_on_the_network_warns_and_tls_passes(config, tmp_path):
    config.write_text('[server]\nhost = "0.0.0.0"\n[security]\ntls_required = false\n')
    checks = examine(config)
    assert checks["checklist.tls"].verdict == "warn"
    assert checks["checklist.network_access"].verdict == "warn"
    cert, key = tls.make_self_signed(tmp_path / "tls")
    config.write_text(f'[server]\ntls_enabled = true\ntls_cert_path = "{cert}"\ntls_key_path = "{key}"\n')
    assert examine(config)["checklist.tls"].verdict == "pass"
    key.chmod(0o644)
    assert examine(config)["checklist.tls"].verdict == "fail"


def test_files_that_others_can_read_fail_with_the_chmod(config):
    secrets = config.parent / "secrets.env"
    secrets.write_text(f"INFERNO_JWT_SECRET={SECRET}\n")
    secrets.chmod(0o644)
    check = examine(config)["config.mode.secrets_file"]
    assert check.verdict == "fail"
    assert check.fix == f"chmod 600 {secrets}"


def test_a_broken_audit_log_fails(config):
    folder = config.parent / "audit"
    folder.mkdir(mode=0o700)
    (folder / "audit.jsonl").write_text('{"seq":1}\n')
    (config.parent / "keys").mkdir(mode=0o700)
    key = config.parent / "keys" / "audit.key"
    key.write_text(os.urandom(32).hex() + "\n")
    key.chmod(0o600)
    assert examine(config)["checklist.audit_monitoring"].verdict == "fail"


def test_a_cpu_that_lacks_something_is_named(config, monkeypatch):
    monkeypatch.setattr(machine, "_cpu_flags", lambda: frozenset({"sse2", "avx", "fma", "bmi1", "bmi2", "f16c", "movbe"}))
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    check = next(iter(machine.machine_checks(None)))
    assert check.verdict == "warn", "a build of this very machine may do without"
    assert "avx2" in check.value
    monkeypatch.setattr(machine, "CONTAINER_START", config)
    assert next(iter(machine.machine_checks(None))).verdict == "fail", "the image's build cannot"


def test_box_2_a_missing_landlock_is_a_warning(config, monkeypatch):
    monkeypatch.setattr(protection, "_landlock_abi", lambda: 0)
    assert examine(config)["sandbox.landlock"].verdict == "warn"


def test_engines_that_run_unconfined_are_named(config):
    loaded = doctor.configuration.load(config=str(config), environ={}, is_open_allowed=True)
    model = {"name": "m", "state": "ready", "sandbox": {"seccomp": "unavailable: x", "landlock": "ABI 7"}}
    situation = Situation(loaded, {}, doctor.DataDir(config.parent), {"models": [model], "pid": os.getpid()})
    checks = {check.id: check for check in protection.sandbox_checks(situation)}
    assert checks["sandbox.engine.m"].verdict == "warn"
    assert "seccomp" in checks["sandbox.engine.m"].value
    users = {check.id: check for check in checklist.checks(situation)}
    assert "the server" in users["checklist.dedicated_user"].value


def test_json_has_the_contract_s_shape_and_exit_codes(config, monkeypatch):
    for name in list(os.environ):
        if name.startswith("INFERNO_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("INFERNO_JWT_SECRET", SECRET)
    monkeypatch.setenv("INFERNO_ADMIN_PASSWORD", "wombat-cathedral-47-yew")
    result = CliRunner().invoke(command, ["--config", str(config), "--json"])
    report = json.loads(result.output)
    assert set(report) == {"ok", "checks"}
    assert all(set(check) == {"id", "title", "value", "verdict", "fix"} for check in report["checks"])
    assert report["ok"] is (result.exit_code == 0)
    assert SECRET not in result.output
    config.write_text("[security]\nauth_enabled = false")
    assert CliRunner().invoke(command, ["--config", str(config)]).exit_code == 1
    assert CliRunner().invoke(command, ["--config", str(config), "--live"]).exit_code == 1


REQUIREMENTS = {  # every requirement of configuration, network and confinement, and the checks that answer it
    "CFG-1": ["checklist.jwt_secret", "checklist.admin_password", "config.auth_enabled"],
    "CFG-2": ["config.auth_enabled", "checklist.network_access"],
    "CFG-3": ["config", "config.environment"],
    "NET-1": ["checklist.tls", "network.tls_required", "network.min_tls_version"],
    "NET-2": ["checklist.tls"],
    "NET-3": ["network.deadlines"],
    "NET-4": ["network.sizes", "limits.connections"],
    "NET-5": ["network.framing"],
    "NET-6": ["network.allowed_hosts", "network.cors"],
    "NET-7": ["network.operators"],
    "BOX-1": ["sandbox.landlock", "sandbox.seccomp", "sandbox.engine.m"],
    "BOX-2": ["sandbox"],
    "BOX-3": ["server.model.m"],
    "BOX-4": ["checklist.dedicated_user", "sandbox.capabilities", "sandbox.root"],
    "BOX-5": ["models.verification", "models.source"],
    "BOX-6": ["sandbox.caches"],
}


def test_cfg_4_every_requirement_has_a_line_with_its_value_beside_a_running_server(config, monkeypatch):
    model = {"name": "m", "state": "ready", "sandbox": {"seccomp": "on"}, "slots": 1, "context": 9, "pid": os.getpid()}
    status = {"models": [model], "pid": os.getpid(), "workers": [{"pid": os.getpid(), "ready": True}], "version": "1"}
    monkeypatch.setattr(doctor, "_status", lambda data: status)
    (config.parent / "models").mkdir()
    (config.parent / "models" / "m.gguf").write_bytes(b"GGUF")
    checks = examine(config)
    wanted = {id for ids in REQUIREMENTS.values() for id in ids}
    assert wanted <= set(checks), wanted - set(checks)
    assert all(checks[id].value for id in wanted)


def test_cfg_3_a_secret_in_a_process_s_environment_is_found(config, monkeypatch):
    child = subprocess.Popen(["sleep", "60"], env={"INFERNO_JWT_SECRET": SECRET})
    try:
        monkeypatch.setattr(doctor, "_status", lambda data: {"pid": child.pid, "models": [], "workers": []})
        check = examine(config)["config.environment"]
    finally:
        child.kill()
        child.wait()
    assert check.verdict == "fail"
    assert "INFERNO_JWT_SECRET" in check.value
    assert SECRET not in str(check)


def test_a_model_that_was_given_to_the_server_is_enough(config, monkeypatch):
    assert examine(config)["models"].verdict == "warn"
    status = {"pid": os.getpid(), "workers": [], "models": [{"name": "mine", "state": "ready", "sandbox": {"seccomp": "on"}}]}
    monkeypatch.setattr(doctor, "_status", lambda data: status)
    check = examine(config)["models"]
    assert (check.verdict, "mine" in check.value) == ("pass", True)


def test_net_7_an_operators_listener_off_loopback_is_a_warning(config):
    config.write_text('[server]\nadmin_host = "0.0.0.0"\nadmin_port = 9090\n[security]\ntls_required = false\n')
    assert examine(config)["network.operators"].verdict == "warn"
    config.write_text('[server]\nadmin_host = "127.0.0.1"\nadmin_port = 9090\n')
    assert examine(config)["network.operators"].verdict == "pass"


def test_every_check_fits_one_line_and_every_id_is_used_once(config):
    config.write_text('[security]\nrate_limiting_enabled = false\naudit_logging_enabled = false\n')  # two warnings
    checks = doctor.examine(str(config), {})
    assert "config.warning.2" in {check.id for check in checks}
    assert len({check.id for check in checks}) == len(checks)
    assert all("\n" not in check.value + check.fix + check.title for check in checks)
