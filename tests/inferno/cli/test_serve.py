"""`inferno serve` as a process: refusals before the port, --show-config without secrets, start, signals, clean ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner

from inferno import config
from inferno.cli import serve as command
from inferno.cli import talkers
from inferno.errors import ConfigError, StartError
from inferno.pool import control

SECRET = "uT3kf9Qw-zL0xVbR7mNc2YpHs8JdGaE5"
PASSWORD = "Vq7!mirtle-4"
WAIT = 180


def environment(**extra: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("INFERNO_")}
    return {**clean, **extra}


def serve(folder: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    (folder / "config.toml").touch()
    return subprocess.run(
        [sys.executable, "-m", "inferno.cli", "serve", *arguments],
        cwd=folder, env=environment(**extra), capture_output=True, text=True, timeout=WAIT,
    )  # fmt: skip


def test_cfg_3_a_bad_key_ends_with_78_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[server]\nprot = 1\n")
    done = serve(tmp_path)
    assert done.returncode == 78
    assert (
        done.stderr
        == f"inferno: {tmp_path}/config.toml, line 2: server.prot is not a known key; did you mean port?\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml"]


def test_sec_001_without_a_secret_the_start_is_refused_before_the_port_is_bound(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        done = serve(tmp_path, "--port", str(port), INFERNO_ADMIN_PASSWORD=PASSWORD)
    assert done.returncode == 78
    assert "INFERNO_JWT_SECRET is not set" in done.stderr
    assert PASSWORD not in done.stderr


def test_sec_012_show_config_prints_values_and_places_but_no_secret(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[server]\nidle_timeout_seconds = 5\n")
    secret_values = {"INFERNO_JWT_SECRET": SECRET, "INFERNO_ADMIN_PASSWORD": PASSWORD}
    done = serve(tmp_path, "--show-config", "--port", "9", INFERNO_SERVER_WORKERS="3", **secret_values)
    assert done.returncode == 0, done.stderr
    assert "port = 9  # --port" in done.stdout
    assert "workers = 3  # INFERNO_SERVER_WORKERS" in done.stdout
    assert f"idle_timeout_seconds = 5.0  # {tmp_path}/config.toml, line 2" in done.stdout
    as_json = serve(tmp_path, "--show-config", "--json", **secret_values)
    assert json.loads(as_json.stdout)["keys"]["server.idle_timeout_seconds"]["value"] == 5.0
    for text in (done.stdout, done.stderr, as_json.stdout, as_json.stderr):
        assert SECRET not in text
        assert PASSWORD not in text


def test_a_taken_port_is_said_clearly(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = serve(
            tmp_path, "--port", str(port), INFERNO_JWT_SECRET=SECRET, INFERNO_ADMIN_PASSWORD=PASSWORD
        )
    assert done.returncode == 1
    assert f"inferno: 127.0.0.1:{port} is in use by another program" in done.stderr


def test_net_2_a_bad_certificate_ends_with_78_before_the_port_is_bound(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "inferno.cli", "init", str(tmp_path), "--self-signed"],
        check=True,
        env=environment(),
    )
    (tmp_path / "tls" / "key.pem").chmod(0o644)
    done = serve(tmp_path, "--port", "0")
    assert done.returncode == 78
    assert "server.tls_key_path" in done.stderr
    assert "chmod 600" in done.stderr
    (tmp_path / "tls" / "key.pem").chmod(0o600)
    (tmp_path / "tls" / "cert.pem").write_text("no certificate")
    done = serve(tmp_path, "--port", "0")
    assert done.returncode == 78
    assert "holds no PEM certificate" in done.stderr


def test_a_bad_rule_file_ends_with_78_and_names_the_rule(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[server]\nport = 0\n')
    (tmp_path / "rules.toml").write_text('[[rule]]\nid = "own"\ncategory = "own"\npattern = "(abcd"\n')
    done = serve(tmp_path, "--config", str(tmp_path / "config.toml"))
    assert done.returncode == 78
    assert "'own'" in done.stderr
    assert "expected )" in done.stderr


def descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):  # a thread may have ended since
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


@pytest.mark.slow
def test_sec_012_a_running_server_shows_no_secret_in_proc_or_logs_and_ends_clean(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[server]\nport = 0\n[telemetry]\nlog_level = 'debug'\n")
    log = tmp_path / "log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "inferno.cli", "serve"], cwd=tmp_path, stdout=sink, stderr=sink,
            env=environment(INFERNO_JWT_SECRET=SECRET, INFERNO_ADMIN_PASSWORD=PASSWORD),
        )  # fmt: skip
    try:
        deadline = time.monotonic() + WAIT
        while '"serving"' not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        status = control.ask(tmp_path / "control.sock", "status")
        with urllib.request.urlopen(f"{status['address']}/healthz", timeout=60) as answer:
            assert answer.status == 200
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(f"{status['address']}/readyz", timeout=60)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{status['address']}/v1/models", timeout=60)
        loaded = config.load(environ={}, folder=tmp_path)
        key = talkers.api_key(loaded.settings)
        assert key is not None
        assert key == talkers.api_key(loaded.settings) == (tmp_path / "cli.key").read_text().strip()
        assert (tmp_path / "cli.key").stat().st_mode & 0o777 == 0o600
        request = urllib.request.Request(
            f"{status['address']}/v1/models", headers={"Authorization": f"Bearer {key}"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.loads(answer.read())["data"] == []
        family = [process.pid, *descendants(process.pid)]
        assert len(family) >= 2
        for pid in family:
            for name in ("environ", "cmdline"):
                content = Path(f"/proc/{pid}/{name}").read_bytes()
                assert SECRET.encode() not in content
                assert PASSWORD.encode() not in content
        workers = [
            pid for pid in family if b"inferno.server.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        assert b"INFERNO_" not in Path(f"/proc/{workers[0]}/environ").read_bytes()
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in family)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    text = log.read_text()
    assert SECRET not in text
    assert PASSWORD not in text
    assert key not in text
    for line in text.splitlines():
        json.loads(line)


def test_in_the_image_a_lesser_cpu_is_told_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "container-start.txt"
    mark.write_text("docker run the whole line\n")
    monkeypatch.setattr(command, "CONTAINER_START", mark)
    monkeypatch.setattr(command, "lacking_cpu_features", lambda: ["avx2", "fma"])
    result = CliRunner().invoke(command.serve, ["--config", str(tmp_path / "none.toml")])
    assert isinstance(result.exception, StartError)
    assert "this CPU lacks avx2, fma" in str(result.exception)


def test_in_the_image_a_refusal_of_the_configuration_ends_with_the_complete_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "container-start.txt"
    mark.write_text("docker run the whole line\n")
    file = tmp_path / "config.toml"
    file.write_text("[server]\nport = -1\n")
    assert "docker run" not in str(CliRunner().invoke(command.serve, ["--config", str(file)]).exception)
    monkeypatch.setattr(command, "CONTAINER_START", mark)
    monkeypatch.setattr(command, "lacking_cpu_features", list)
    refused = CliRunner().invoke(command.serve, ["--config", str(file)]).exception
    assert isinstance(refused, ConfigError)
    assert refused.exit_code == 78
    assert "port" in str(refused)
    assert str(refused).endswith("docker run the whole line")
