"""Settings: sources and their order, refusals that name the place, rules between keys, documents that stay complete."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferno import config, features
from inferno.config import KEYS, document, sources
from inferno.config.keys import MODEL_KEYS
from inferno.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def everything_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules of the finished product, whatever this build lacks."""
    monkeypatch.setattr(features, "NOT_BUILT", frozenset())


def load(
    folder: Path, text: str | None = None, environ: dict[str, str] | None = None, **given: Any
) -> config.Loaded:
    if text is not None:
        (folder / "config.toml").write_text(text)
    return config.load(environ={"HOME": str(folder), **(environ or {})}, folder=folder, **given)


def refusal(
    folder: Path, text: str | None = None, environ: dict[str, str] | None = None, **given: Any
) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, environ, **given)
    assert caught.value.exit_code == 78
    return str(caught.value)


# ---------------------------------------------------------------- the contract's names and defaults


def test_schema_has_the_guides_names_and_defaults(everything_built: None, tmp_path: Path) -> None:
    security = load(tmp_path).settings.security
    guide = """
    auth_enabled = true
    token_expiry_hours = 24
    api_key_enabled = true
    rate_limiting_enabled = true
    max_requests_per_minute = 60
    max_requests_per_hour = 1000
    input_validation_enabled = true
    max_input_length = 10000
    output_sanitization_enabled = true
    min_tls_version = "1.2"
    audit_logging_enabled = true
    """
    for name, value in tomllib.loads(guide).items():
        assert getattr(security, name) == value


def test_the_guides_file_is_accepted_word_for_word(everything_built: None, tmp_path: Path) -> None:
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("")
    text = f"""
[security]
auth_enabled = true
token_expiry_hours = 24
api_key_enabled = true
rate_limiting_enabled = true
max_requests_per_minute = 60
max_requests_per_hour = 1000
input_validation_enabled = true
max_input_length = 10000
output_sanitization_enabled = true
tls_required = true
min_tls_version = "1.2"
audit_logging_enabled = true

[server]
tls_enabled = true
tls_cert_path = "{tmp_path}/cert.pem"
tls_key_path = "{tmp_path}/key.pem"
"""
    loaded = load(tmp_path, text)
    assert loaded.settings.security.tls_required is True
    assert loaded.settings.server.tls_cert_path == f"{tmp_path}/cert.pem"


def test_contract_defaults(everything_built: None, tmp_path: Path) -> None:
    effective = load(tmp_path).settings
    assert (effective.server.host, effective.server.port, effective.server.workers) == ("127.0.0.1", 8080, 1)
    assert effective.server.max_body_bytes == 4194304
    assert effective.server.header_timeout_seconds == 10
    assert effective.server.idle_timeout_seconds == 75
    assert effective.server.shutdown_grace_seconds == 30
    assert effective.server.unknown_fields == "refuse"
    assert effective.security.max_requests_per_minute_per_ip == 300
    assert effective.security.max_requests_per_hour_per_ip == 10000
    assert effective.security.max_concurrent_requests_per_user == 16
    assert effective.security.max_keys_per_user == 50
    assert effective.security.api_key_default_days == 90
    assert effective.security.scan_content == "report"
    assert effective.security.scan_identifiers == "block"
    assert effective.security.max_logins_per_minute_per_ip == 10
    assert effective.security.max_key_creations_per_hour == 20
    assert effective.security.audit_on_failure == "continue"
    assert effective.security.sandbox == "auto"
    assert effective.models.verify == "changed"
    assert effective.models.source == "auto"
    assert effective.engine.gpu_layers == -1
    assert effective.engine.target_itl_ms == 50
    assert effective.engine.kv_layout == "streams"
    assert effective.limits.url == "shm:"
    assert effective.limits.on_failure == "closed"
    assert effective.telemetry.log_format == "auto"


def test_reloadable_keys_are_the_contracts() -> None:
    assert {name for name, key in KEYS.items() if key.is_reloadable} == {
        "server.tls_cert_path",
        "server.tls_key_path",
        "server.tls_client_ca_path",
        "security.max_requests_per_minute",
        "security.max_requests_per_hour",
        "security.max_input_length",
    }


# ---------------------------------------------------------------- order of sources


def test_order_is_flag_environment_file_default(tmp_path: Path) -> None:
    text = "[server]\nport = 1001\nworkers = 2\nidle_timeout_seconds = 5\n"
    environ = {"INFERNO_SERVER_PORT": "1002", "INFERNO_SERVER_WORKERS": "3"}
    loaded = load(tmp_path, text, environ, flags={"server.port": 1003, "server.workers": None})
    assert loaded.settings.server.port == 1003
    assert loaded.settings.server.workers == 3
    assert loaded.settings.server.idle_timeout_seconds == 5.0
    assert loaded.settings.server.max_body_bytes == 4194304
    assert loaded.places == {
        "server.port": "--port",
        "server.workers": "INFERNO_SERVER_WORKERS",
        "server.idle_timeout_seconds": f"{tmp_path}/config.toml, line 4",
    }


def test_file_is_looked_for_in_the_contracts_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(name: str, port: int) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"[server]\nport = {port}\n")
        return str(path)

    system, other, flag = write("etc/config.toml", 1), write("other.toml", 3), write("flag.toml", 4)
    monkeypatch.setattr(sources, "SYSTEM_FILE", Path(system))
    assert load(tmp_path).settings.server.port == 1
    write("config.toml", 2)
    assert load(tmp_path).settings.server.port == 2
    assert load(tmp_path, environ={"INFERNO_CONFIG": other}).settings.server.port == 3
    assert load(tmp_path, environ={"INFERNO_CONFIG": other}, config=flag).settings.server.port == 4


@pytest.mark.parametrize(
    "given", [{"config": "nowhere.toml"}, {"environ": {"INFERNO_CONFIG": "nowhere.toml"}}]
)
def test_a_named_file_that_is_missing_is_refused(tmp_path: Path, given: dict[str, Any]) -> None:
    assert "nowhere.toml does not exist" in refusal(tmp_path, **given)


def test_lists_in_the_environment_are_comma_separated(tmp_path: Path) -> None:
    environ = {"INFERNO_SERVER_TRUSTED_PROXIES": "10.0.0.0/8, ::1", "INFERNO_SERVER_ALLOWED_HOSTS": ""}
    server = load(tmp_path, environ=environ).settings.server
    assert server.trusted_proxies == ["10.0.0.0/8", "::1"]
    assert server.allowed_hosts == []


def test_relative_paths_and_the_data_directory(tmp_path: Path) -> None:
    text = '[models.tiny]\npath = "weights/tiny.gguf"\n[security]\naudit_path = "<data>/log/a.jsonl"\n'
    effective = load(tmp_path, text).settings
    assert effective.storage.data_dir == str(tmp_path)
    assert effective.storage.url == f"sqlite:///{tmp_path}/inferno.db"
    assert effective.models.dir == f"{tmp_path}/models"
    assert effective.models.entries["tiny"].path == f"{tmp_path}/weights/tiny.gguf"
    assert effective.security.audit_path == f"{tmp_path}/log/a.jsonl"
    moved = load(tmp_path, text, {"INFERNO_STORAGE_DATA_DIR": "state"}).settings
    assert moved.models.dir == f"{tmp_path}/state/models"


def test_without_a_file_the_data_directory_is_the_users(tmp_path: Path) -> None:
    assert load(tmp_path).settings.storage.data_dir == f"{tmp_path}/.local/share/inferno"
    environ = {"XDG_DATA_HOME": "/srv/x"}
    assert load(tmp_path, environ=environ).settings.storage.data_dir == "/srv/x/inferno"


@pytest.mark.parametrize(
    ("text", "name", "path"),
    [
        ("/m/SmolLM2 135M.gguf", "SmolLM2-135M", "/m/SmolLM2 135M.gguf"),
        ("/m/big-00001-of-00003.gguf", "big", "/m/big-00001-of-00003.gguf"),
        ("tiny=/m/a=b.gguf", "tiny", "/m/a=b.gguf"),
        ("/m/a=b.gguf", "a-b", "/m/a=b.gguf"),
    ],
)
def test_model_flags(tmp_path: Path, text: str, name: str, path: str) -> None:
    entries = load(tmp_path, models=[text]).settings.models.entries
    assert {name: entry.path for name, entry in entries.items()} == {name: path}


# ---------------------------------------------------------------- refusals


def test_sec_013_unknown_key_is_refused_by_name(tmp_path: Path) -> None:
    message = refusal(tmp_path, "[security]\n# fine\nauth_enabled = false\nrate_limit_per_minuet = 5\n")
    assert f"{tmp_path}/config.toml, line 4" in message
    assert "security.rate_limit_per_minuet is not a known key" in message
    message = refusal(tmp_path, "[security]\nmax_request_per_minute = 5\n")
    assert "did you mean max_requests_per_minute?" in message


@pytest.mark.parametrize(
    "value", ["0", "-1", "-9223372036854775808", "99999999999999999999", "1e400", "nan", "true", "'60'"]
)
def test_sec_014_a_limit_is_never_unlimited(tmp_path: Path, value: str) -> None:
    message = refusal(tmp_path, f"[security]\nmax_requests_per_minute = {value}\n")
    assert "security.max_requests_per_minute must be a whole number from 1 to 10000000" in message


LIMITS = [
    name
    for name, key in KEYS.items()
    if key.kind in ("int", "float")
    and name
    not in ("server.port", "server.shutdown_grace_seconds", "engine.gpu_layers", "engine.prefix_cache_mb")
]


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize("value", ["0", "-1"])
def test_cfg_3_zero_and_minus_one_are_refused_by_every_number(tmp_path: Path, name: str, value: str) -> None:
    section, key = name.split(".")
    assert f"{name} must be" in refusal(tmp_path, f"[{section}]\n{key} = {value}\n")
    assert KEYS[name].variable in refusal(tmp_path, "", {KEYS[name].variable: value})


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[server]\nport = \n", 2, "not TOML"),
        ("[server]\nport = 1\nport = 2\n", 3, "not TOML"),
        ('[server]\n\nport = "x"\n', 3, 'server.port must be a whole number from 0 to 65535, not "x"'),
        ("[servre]\n", 1, "servre is not a known section; did you mean server?"),
        ("port = 1\n", 1, "port is not a known key outside of a section"),
        ("server = 1\n", 1, "server must be a section"),
        ("server.port = 70000\n", 1, "server.port must be"),
        ("server = { host = '127.0.0.1', port = 70000 }\n", 1, "server.port must be"),
        (
            "[server]\nhost = '''\n[security]\n'''\n[security]\nscan_content = 'loud'\n",
            2,
            "server.host must be",
        ),
        ("[security]\nscan_content = 'loud'\n", 2, 'must be one of "block", "off", "report", not "loud"'),
        ("[server]\ntrusted_proxies = ['10.0.0.0/99']\n", 2, "must be a list of IP addresses"),
        ("[server]\ncors_origins = ['*']\n", 2, "must be a list of origins"),
        ("[models.a]\nsha256 = 'zz'\npath = 'x'\n", 2, "must be 64 hexadecimal digits"),
        ("[models.a]\npaht = 'x'\n", 2, "models.a.paht is not a known key; did you mean path?"),
        ("[models.a]\nslots = 2\n", 1, "models.a needs path"),
        ("[models.a]\npath = 'x'\npublic_prefixes = ['']\n", 3, "a list of at most 16 texts of 1 to 32768 characters"),
        ("[models.a]\npath = 'x'\npublic_prefixes = [" + "'a'," * 17 + "]\n", 3, "a list of at most 16 texts"),
        ("[engine]\nprefix_cache_mb = 0\n[models.a]\npath = 'x'\npublic_prefixes = ['b']\n", 2, "models.a.public_prefixes needs"),
        ("\n[models.'../etc']\npath = 'x'\n", 2, "a model's name must be"),
        ("[models.default]\npath = 'x'\n", 1, "models.default must be the name of a model"),
        ("[models]\ndir = 5\n", 2, "models.dir must be a file path"),
        ("[models]\ndri = 'x'\n", 2, "models.dri is not a known key; did you mean dir?"),
        ("[telemetry]\nlog_level = 1979-05-27\n", 2, "must be one of"),
    ],
)
def test_a_refusal_names_file_and_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    message = refusal(tmp_path, text)
    assert message.startswith(f"{tmp_path}/config.toml, line {line}:"), message
    assert words in message


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "INFERNO_SERVER_PORT",
            "eighty",
            'INFERNO_SERVER_PORT: server.port must be a whole number from 0 to 65535, not "eighty"',
        ),
        (
            "INFERNO_SERVR_PORT",
            "1",
            "INFERNO_SERVR_PORT: not a known variable; did you mean INFERNO_SERVER_PORT?",
        ),
        ("INFERNO_JWT_SECRT", "hunter2", "did you mean INFERNO_JWT_SECRET?"),
        ("INFERNO_MODELS_TINY_PATH", "x", "not a known variable"),
        ("INFERNO_SECURITY_AUTH_ENABLED", "maybe", "must be true or false"),
        ("INFERNO_SERVER_PORT", "٨٠", "must be a whole number"),
        ("INFERNO_SERVER_IDLE_TIMEOUT_SECONDS", "nan", "must be a number"),
        ("INFERNO_SERVER_IDLE_TIMEOUT_SECONDS", "inf", "must be a number"),
    ],
)
def test_a_refusal_names_the_variable(tmp_path: Path, name: str, value: str, words: str) -> None:
    message = refusal(tmp_path, environ={name: value})
    assert words in message
    assert "hunter2" not in message


@pytest.mark.parametrize("name", ["INFERNO_LIMITS_URL", "INFERNO_STORAGE_URL"])
def test_a_url_is_never_shown_since_it_may_hold_a_password(tmp_path: Path, name: str) -> None:
    assert "hunter2" not in refusal(tmp_path, environ={name: "mysql://root:hunter2@db/x"})


def test_kubernetes_service_variables_are_ignored_with_a_warning(tmp_path: Path) -> None:
    environ = {
        "INFERNO_PORT": "tcp://10.96.0.7:8080",
        "INFERNO_PORT_8080_TCP": "tcp://10.96.0.7:8080",
        "INFERNO_PORT_8080_TCP_ADDR": "10.96.0.7",
        "INFERNO_PORT_8080_TCP_PORT": "8080",
        "INFERNO_PORT_8080_TCP_PROTO": "tcp",
        "INFERNO_SERVICE_HOST": "10.96.0.7",
        "INFERNO_SERVICE_PORT": "8080",
        "INFERNO_SERVICE_PORT_HTTP": "8080",
        "INFERNO_SERVER_SERVICE_HOST": "10.96.0.7",
        "INFERNO_SERVER_PORT": "tcp://10.96.0.7:8080",
    }
    loaded = load(tmp_path, environ=environ)
    assert loaded.settings.server.port == 8080
    assert len(loaded.warnings) == 1
    for name in environ:
        assert name in loaded.warnings[0]
    assert "not a known variable" in refusal(tmp_path, environ={"INFERNO_PORT": "8080"})


def test_a_file_that_is_no_file_is_refused_without_a_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "latin.toml").write_bytes(b"# fine\n# caf\xe9\n")
    (tmp_path / "huge.toml").write_bytes(b"#" * (sources.MAX_FILE_BYTES + 1))
    assert "regular file" in refusal(tmp_path, config="pipe.toml")
    assert "regular file" in refusal(tmp_path, config="folder.toml")
    assert "line 2: not UTF-8" in refusal(tmp_path, config="latin.toml")
    assert "larger than" in refusal(tmp_path, config="huge.toml")


# ---------------------------------------------------------------- rules between keys


def test_cfg_2_sec_011_auth_off_elsewhere_than_loopback_needs_the_switch(
    everything_built: None, tmp_path: Path
) -> None:
    text = "[server]\nhost = '0.0.0.0'\n[security]\nauth_enabled = false\ntls_required = false\n"
    message = refusal(tmp_path, text)
    assert "line 4: security.auth_enabled" in message
    assert "--i-know-this-is-open" in message
    loaded = load(tmp_path, text, is_open_allowed=True)
    assert any(warning.startswith("OPEN: no authentication on 0.0.0.0") for warning in loaded.warnings)
    load(tmp_path, "[security]\nauth_enabled = false\n")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost", "::ffff:127.0.0.1"])
def test_tls_is_not_required_on_loopback(everything_built: None, tmp_path: Path, host: str) -> None:
    loaded = load(tmp_path, flags={"server.host": host})
    assert loaded.settings.security.tls_required is False
    assert loaded.warnings == []


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.2", "example.com", "::ffff:1.2.3.4", "127.0.0.1.example.com"]
)
def test_tls_is_required_elsewhere_unless_it_is_said_not_to_be(
    everything_built: None, tmp_path: Path, host: str
) -> None:
    flags = {"server.host": host}
    assert "security.tls_required: TLS is required" in refusal(tmp_path, flags=flags)
    loaded = load(tmp_path, environ={"INFERNO_SECURITY_TLS_REQUIRED": "false"}, flags=flags)
    assert any("plain HTTP" in warning for warning in loaded.warnings)


def test_an_operators_listener_on_another_address_needs_tls_too(everything_built: None, tmp_path: Path) -> None:
    operators = {"INFERNO_SERVER_ADMIN_HOST": "0.0.0.0", "INFERNO_SERVER_ADMIN_PORT": "9090"}
    message = refusal(tmp_path, environ=operators)
    assert "security.tls_required: TLS is required" in message
    assert "server.admin_host is 0.0.0.0" in message
    loaded = load(tmp_path, environ={**operators, "INFERNO_SECURITY_TLS_REQUIRED": "false"})
    assert any("plain HTTP" in warning for warning in loaded.warnings)
    local = {**operators, "INFERNO_SERVER_ADMIN_HOST": "127.0.0.1"}
    assert load(tmp_path, environ=local).settings.security.tls_required is False


def test_rules_between_keys(everything_built: None, tmp_path: Path) -> None:
    assert "needs server.tls_cert_path" in refusal(tmp_path, "[server]\ntls_enabled = true\n")
    assert "go together" in refusal(tmp_path, "[server]\nadmin_port = 9000\n")
    assert "must differ" in refusal(tmp_path, "[server]\nadmin_host='127.0.0.1'\nadmin_port = 8080\n")
    assert "at most max_queue" in refusal(tmp_path, "[engine]\nmax_queue = 5\nmax_queue_per_user = 6\n")
    assert "at most max_connections" in refusal(
        tmp_path, "[server]\nmax_connections=5\nmax_connections_per_ip = 6\n"
    )


@pytest.mark.parametrize("name", sorted(features.FEATURES))
def test_what_is_not_built_is_refused_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(features, "NOT_BUILT", frozenset({name}))
    asked = {
        "security.sandbox": "required",
        "storage.url": "postgresql://h/n",
        "limits.url": "redis://h/0",
        "telemetry.otlp_endpoint": "http://h",
        "server.admin_host": "127.0.0.1",
        "server.tls_client_ca_path": "/ca.pem",
    }.get(name, "true")
    message = refusal(tmp_path, environ={KEYS[name].variable: asked})
    assert KEYS[name].variable in message
    assert f"{features.FEATURES[name].title} is not built" in message


@pytest.mark.parametrize(
    ("name", "value"),
    [("storage.url", "postgresql://h/n"), ("limits.url", "redis://h/0"), ("telemetry.otlp_endpoint", "http://h")],
)
def test_what_needs_an_extra_that_is_not_installed_is_refused_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    environ = {KEYS[name].variable: value}
    assert config.value_of(load(tmp_path, environ=environ).settings, name) == value
    extra = features.EXTRAS[name][0]
    for module in ("no_such_package.inner", "no_such_module"):
        monkeypatch.setattr(features, "EXTRAS", {**features.EXTRAS, name: (extra, module)})
        message = refusal(tmp_path, environ=environ)
        assert f"{name}: needs the extra `{extra}`: pip install 'inferno-server[{extra}]'" in message
        load(tmp_path)  # not asked for: not missed


def test_extras_are_those_of_the_package() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {extra for extra, _ in features.EXTRAS.values()} == set(declared) - {"dev"}
    assert set(features.EXTRAS) <= set(features.FEATURES)


def test_missing_default_control_is_off_listed_and_keeps_to_loopback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        features, "NOT_BUILT", frozenset({"security.rate_limiting_enabled", "security.sandbox"})
    )
    loaded = load(tmp_path)
    assert loaded.not_built == ["rate limits", "sandbox of engines"]
    assert loaded.settings.security.rate_limiting_enabled is False
    assert loaded.settings.security.sandbox == "off"
    environ = {"INFERNO_SERVER_HOST": "0.0.0.0", "INFERNO_SECURITY_TLS_REQUIRED": "false"}
    message = refusal(tmp_path, environ=environ, is_open_allowed=True)
    assert "only a loopback address is allowed" in message
    assert "rate limits, sandbox of engines" in message


def test_features_name_real_keys() -> None:
    assert set(features.FEATURES) <= set(KEYS)
    assert set(features.FEATURES) >= features.NOT_BUILT


# ---------------------------------------------------------------- encoding and reload


def test_encoded_settings_come_back_equal(tmp_path: Path) -> None:
    effective = load(
        tmp_path, "[models.a]\npath = 'a.gguf'\nallow = ['x']\n[server]\nallowed_hosts = ['a.b']\n"
    ).settings
    assert config.decode(config.encode(effective)) == effective


def test_settings_are_frozen(tmp_path: Path) -> None:
    effective = load(tmp_path).settings
    with pytest.raises(AttributeError):
        effective.server.port = 1  # type: ignore[misc]


def test_reload_takes_over_only_what_may_change(tmp_path: Path) -> None:
    old = load(tmp_path, "[security]\nmax_requests_per_minute = 5\n[server]\nworkers = 1\n").settings
    new = load(
        tmp_path, "[security]\nmax_requests_per_minute = 7\n[server]\nworkers = 2\n[models.a]\npath='x'\n"
    ).settings
    merged, taken, left = config.merge_reload(old, new)
    assert taken == ["security.max_requests_per_minute"]
    assert left == ["server.workers", "models.entries"]
    assert merged.security.max_requests_per_minute == 7
    assert merged.server.workers == 1


def test_changes_of_a_running_server_are_checked(tmp_path: Path) -> None:
    effective = load(tmp_path).settings
    assert config.with_changes(effective, {"security.max_input_length": 5}).security.max_input_length == 5
    for name, value in [("security.max_input_length", 0), ("server.port", 1), ("security.nothing", 1)]:
        with pytest.raises(ConfigError, match=re.escape(name)):
            config.with_changes(effective, {name: value})


# ---------------------------------------------------------------- documents


def _uncommented(text: str) -> str:
    return "\n".join(line[1:] if re.match(r"#[\w\[]", line) else line for line in text.splitlines())


def test_commented_file_names_every_key_and_only_real_keys(everything_built: None, tmp_path: Path) -> None:
    text = document.config_file()
    assert load(tmp_path, text).places == {}
    tables = tomllib.loads(_uncommented(text))
    model = tables["models"].pop("name")
    assert set(model) == set(MODEL_KEYS)
    assert {f"{section}.{name}" for section, table in tables.items() for name in table} == set(KEYS)
    for section, table in tables.items():
        for name, value in table.items():
            key = KEYS[f"{section}.{name}"]
            key.check(value)
            if key.default is not None:
                assert value == key.default
    for name, value in model.items():
        MODEL_KEYS[name].check(value)


def test_documentation_is_current() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text()
    assert written == document.documentation(), (
        "run python -m inferno.config.document > docs/configuration.md"
    )


def test_documentation_names_every_key_and_only_real_keys() -> None:
    named = set()
    section = ""
    for line in (ROOT / "docs" / "configuration.md").read_text().splitlines():
        if heading := re.match(r"#+ \[(.+)\]$", line):
            section = heading.group(1)
        elif section and (row := re.match(r"\| `(\w+)` \|", line)):
            named.add(f"{section}.{row.group(1)}")
    assert named == set(KEYS) | {f"models.NAME.{name}" for name in MODEL_KEYS}


def test_documents_can_name_no_key_twice() -> None:
    assert len({key.variable for key in KEYS.values()}) == len(KEYS)


# ---------------------------------------------------------------- laws

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.text(max_size=5), max_size=3),
    st.dates(),
)


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(sorted(KEYS)), value=_SCALARS)
def test_a_checked_value_has_the_declared_type_and_range(name: str, value: Any) -> None:
    key = KEYS[name]
    try:
        checked = key.check(value)
    except ValueError:
        return
    section, attribute = name.split(".")
    kind = type(getattr(config.Settings(), section))
    built = kind(**{attribute: checked})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(built), type=kind) == built
    if key.lowest is not None and key.highest is not None:
        assert key.lowest <= checked <= key.highest


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(sorted(KEYS)), text=st.text(max_size=30))
def test_any_variable_is_taken_or_refused_with_its_name(name: str, text: str) -> None:
    variable = KEYS[name].variable
    try:
        config.load(environ={variable: text, "HOME": "/nowhere"}, folder=Path("/nowhere"))
    except ConfigError as error:
        message = str(error)
    else:
        return
    assert variable in message or name in message


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(data)
    try:
        config.load(config=str(path), environ={}, folder=path.parent)
    except ConfigError as error:
        message = str(error)
    else:
        return
    assert str(path) in message
