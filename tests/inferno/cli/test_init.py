"""`inferno init`: what it makes, with which modes, and that it overwrites nothing."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from inferno import config, features, secrets, tls
from inferno.cli.init import init


def run(*arguments: str) -> Result:
    return CliRunner().invoke(init, list(arguments), catch_exceptions=False)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_directory_has_everything_with_tight_modes(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    result = run(str(folder))
    assert result.exit_code == 0
    assert mode(folder) == mode(folder / "keys") == mode(folder / "models") == 0o700
    assert mode(folder / "secrets.env") == 0o600
    assert {path.name: mode(path) for path in (folder / "keys").iterdir()} == {
        "audit.key": 0o600,
        "pepper.key": 0o600,
        "cache.key": 0o600,
    }
    loaded = config.load(config=str(folder / "config.toml"), environ={})
    assert loaded.places == {}
    assert loaded.settings.storage.data_dir == str(folder)


def test_what_it_makes_starts_a_server_with_authentication(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "NOT_BUILT", frozenset())
    run(str(tmp_path))
    settings = config.load(config=str(tmp_path / "config.toml"), environ={}).settings
    found = secrets.load(settings, {})
    assert found.jwt is not None
    assert found.admin_password is not None


def test_secrets_are_new_each_time_and_never_printed(tmp_path: Path) -> None:
    values = set()
    for name in ("a", "b"):
        result = run(str(tmp_path / name))
        lines = (tmp_path / name / "secrets.env").read_text().splitlines()
        for line in lines:
            if "=" in line and not line.startswith("#"):
                value = line.partition("=")[2]
                values.add(value)
                assert value not in result.output
    assert len(values) == 4


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    run(str(tmp_path))
    (tmp_path / "config.toml").write_text("# mine\n")
    (tmp_path / "keys" / "pepper.key").unlink()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = run(str(tmp_path))
    assert result.exit_code == 0
    assert f"kept  {tmp_path / 'config.toml'}" in result.output
    assert {path: path.read_bytes() for path in before} == before
    assert (tmp_path / "keys" / "pepper.key").exists()


def test_demo_limits_are_wider_and_the_file_is_still_whole(tmp_path: Path) -> None:
    run(str(tmp_path), "--demo")
    loaded = config.load(config=str(tmp_path / "config.toml"), environ={})
    assert loaded.settings.security.max_requests_per_minute == 600
    assert loaded.settings.security.max_requests_per_hour == 10000
    assert set(loaded.places) == {"security.max_requests_per_minute", "security.max_requests_per_hour"}


def test_self_signed_makes_a_pair_that_tls_accepts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "NOT_BUILT", frozenset())
    run(str(tmp_path), "--self-signed")
    server = config.load(config=str(tmp_path / "config.toml"), environ={}).settings.server
    assert server.tls_enabled
    assert server.tls_cert_path == str(tmp_path / "tls" / "cert.pem")
    tls.check_pair(Path(server.tls_cert_path), Path(server.tls_key_path or ""))
    assert mode(tmp_path / "tls" / "key.pem") == 0o600
    assert "kept" in run(str(tmp_path), "--self-signed").output
