"""Secrets: what is refused and how it is said, the file forms, and that /proc shows nothing after the start."""

from __future__ import annotations

import base64
import copy
import json
import os
import pickle
import re
import secrets as random_source
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from inferno import secrets
from inferno.config import Security, Settings, Storage
from inferno.datadir import DataDir
from inferno.errors import ConfigError, StartError

ROOT = Path(__file__).resolve().parents[2]
GOOD_SECRET = "uT3kf9Qw-zL0xVbR7mNc2YpHs8JdGaE5"  # 32 characters
GOOD_PASSWORD = "Vq7!mirtle-4"  # 12 characters


def configured(folder: Path, *, auth: bool = True) -> Settings:
    return Settings(storage=Storage(data_dir=str(folder)), security=replace(Security(), auth_enabled=auth))


def load(folder: Path, **environ: str) -> secrets.Secrets:
    return secrets.load(configured(folder), environ)


def refusal(folder: Path, **environ: str) -> str:
    environ = {"INFERNO_JWT_SECRET": GOOD_SECRET, "INFERNO_ADMIN_PASSWORD": GOOD_PASSWORD, **environ}
    with pytest.raises(ConfigError) as caught:
        load(folder, **environ)
    message = str(caught.value)
    for value in environ.values():
        if len(value.strip()) > 3 and not value.startswith("/"):
            assert value not in message
    return message


# ---------------------------------------------------------------- what is refused


def test_sec_001_missing_secret_names_the_variable_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    assert caught.value.exit_code == 78
    assert "INFERNO_JWT_SECRET is not set" in str(caught.value)
    assert "openssl rand -base64 48" in str(caught.value)
    with pytest.raises(ConfigError, match="INFERNO_ADMIN_PASSWORD is not set"):
        load(tmp_path, INFERNO_JWT_SECRET=GOOD_SECRET)


def test_sec_002_secret_of_31_characters_states_the_minimum(tmp_path: Path) -> None:
    message = refusal(tmp_path, INFERNO_JWT_SECRET=GOOD_SECRET[:31])
    assert "INFERNO_JWT_SECRET has 31 characters; at least 32" in message


def test_sec_003_secret_of_32_random_characters_starts(tmp_path: Path) -> None:
    found = load(tmp_path, INFERNO_JWT_SECRET=GOOD_SECRET, INFERNO_ADMIN_PASSWORD=GOOD_PASSWORD)
    assert found.jwt is not None
    assert found.jwt.reveal() == GOOD_SECRET


@pytest.mark.parametrize(
    "value",
    [
        "a" * 32,
        "ab" * 16,
        "abcdefghijklmnop" * 2,
        "0123456789" * 4,
        "abcdefghijklmnopqrstuvwxyz012345",
        "zyxwvutsrqponmlkjihgfedcba987654",
        "qwertyuiopasdfghjklzxcvbnm123456",
        "1qaz2wsx3edc4rfv1qaz2wsx3edc4rfv",
        "aaaaaaaaaaaaaaaabbbbbbbbbbbbbbbb",
        " " * 40,
        "\t\n" * 20,
        "1" * 16 + "2" * 16,
    ],
)
def test_sec_004_weak_secrets_are_refused(tmp_path: Path, value: str) -> None:
    assert "INFERNO_JWT_SECRET is " in refusal(tmp_path, INFERNO_JWT_SECRET=value)


@pytest.mark.parametrize(
    "value",
    [
        "your-secure-random-secret-at-least-32-chars",
        "change-me-change-me-please-9f8a7b6c5d",
        "replace_this_with_a_long_random_value",
        "example-Jw93kfLqmz0-Qpx84bvnT-secret",
        "PLACEHOLDER-7sk2mf93hfa8f2lq0v8nxbZQ",
    ],
)
def test_sec_005_texts_of_examples_are_refused(tmp_path: Path, value: str) -> None:
    assert "INFERNO_JWT_SECRET is the text of an example" in refusal(tmp_path, INFERNO_JWT_SECRET=value)


def test_sec_005_no_value_in_our_own_documents_is_accepted() -> None:
    pattern = re.compile(r"INFERNO_(JWT_SECRET|ADMIN_PASSWORD)[ \t]*[=:][ \t]*[\"']?([^\s\"'`$<]+)")
    texts = [
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "deploy").rglob("*"),
        ROOT / "Makefile",
    ]
    for path in texts:
        if not path.is_file():
            continue
        for kind, value in pattern.findall(path.read_text(errors="replace")):
            fault = secrets.secret_fault(value) if kind == "JWT_SECRET" else secrets.password_fault(value)
            assert fault is not None, f"{path} shows a value that a server would accept"


def test_sec_006_length_is_counted_in_characters(tmp_path: Path) -> None:
    value = "".join(chr(0x1F300 + 7 * i) for i in range(16))  # 16 characters, 64 bytes
    assert len(value.encode()) == 64
    assert "has 16 characters" in refusal(tmp_path, INFERNO_JWT_SECRET=value)


def test_sec_007_password_of_11_characters_is_refused(tmp_path: Path) -> None:
    assert "INFERNO_ADMIN_PASSWORD has 11 characters" in refusal(
        tmp_path, INFERNO_ADMIN_PASSWORD=GOOD_PASSWORD[:11]
    )


def test_sec_008_password_of_12_characters_is_taken(tmp_path: Path) -> None:
    found = load(tmp_path, INFERNO_JWT_SECRET=GOOD_SECRET, INFERNO_ADMIN_PASSWORD=GOOD_PASSWORD)
    assert found.admin_password == secrets.Secret(GOOD_PASSWORD)


@pytest.mark.parametrize(
    "value",
    [
        "your-secure-admin-password",
        "qwertyuiop[]",
        "123456789012",
        "aaaaaaaaaaaa",
        "passpasspass",
        "changeme-1234",
        " " * 12,
    ],
)
def test_guessable_passwords_are_refused(tmp_path: Path, value: str) -> None:
    assert "INFERNO_ADMIN_PASSWORD is " in refusal(tmp_path, INFERNO_ADMIN_PASSWORD=value)


def test_sec_009_common_passwords_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = tmp_path / "common.txt"
    words.write_text("Tottenham1882\nmichelle4ever\n")
    monkeypatch.setattr(secrets, "COMMON_PASSWORDS", words)
    for value in ("tottenham1882", "Michelle4Ever"):
        assert "is a common password" in refusal(tmp_path, INFERNO_ADMIN_PASSWORD=value)


def test_sec_009_the_shipped_list_is_used(tmp_path: Path) -> None:
    words = [
        word for word in secrets.COMMON_PASSWORDS.read_text(encoding="utf-8").splitlines() if len(word) >= 12
    ]
    assert len(words) >= 3000
    for value in words[:: len(words) // 100]:
        assert "INFERNO_ADMIN_PASSWORD is " in refusal(tmp_path, INFERNO_ADMIN_PASSWORD=value)


def test_sec_010_one_trailing_newline_of_a_file_is_taken_off_and_nothing_else(tmp_path: Path) -> None:
    for ending, kept in (("\n", ""), ("\r\n", ""), ("", ""), ("\n\n", "\n")):
        path = tmp_path / "password"
        path.write_bytes(f" {GOOD_PASSWORD} {ending}".encode())
        environ = {"INFERNO_JWT_SECRET": GOOD_SECRET, "INFERNO_ADMIN_PASSWORD_FILE": str(path)}
        if kept:
            with pytest.raises(ConfigError, match="control character"):
                load(tmp_path, **environ)
            continue
        found = load(tmp_path, **environ)
        assert found.admin_password is not None
        assert found.admin_password.reveal() == f" {GOOD_PASSWORD} "


def test_secret_equal_to_the_password_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, INFERNO_ADMIN_PASSWORD=GOOD_SECRET)
    assert "equals INFERNO_ADMIN_PASSWORD" in message


def test_previous_secret_is_judged_too(tmp_path: Path) -> None:
    assert "INFERNO_JWT_SECRET_PREVIOUS has 3" in refusal(tmp_path, INFERNO_JWT_SECRET_PREVIOUS="abc")
    assert "equals INFERNO_JWT_SECRET" in refusal(tmp_path, INFERNO_JWT_SECRET_PREVIOUS=GOOD_SECRET)
    found = load(
        tmp_path,
        INFERNO_JWT_SECRET=GOOD_SECRET,
        INFERNO_ADMIN_PASSWORD=GOOD_PASSWORD,
        INFERNO_JWT_SECRET_PREVIOUS=GOOD_SECRET[::-1],
    )
    assert found.jwt_previous == secrets.Secret(GOOD_SECRET[::-1])


def test_authentication_off_needs_no_secret(tmp_path: Path) -> None:
    assert secrets.load(configured(tmp_path, auth=False), {}) == secrets.Secrets()


# ---------------------------------------------------------------- files


def test_both_forms_with_different_values_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "jwt"
    path.write_text(GOOD_SECRET + "\n")
    load(
        tmp_path,
        INFERNO_JWT_SECRET=GOOD_SECRET,
        INFERNO_JWT_SECRET_FILE=str(path),
        INFERNO_ADMIN_PASSWORD=GOOD_PASSWORD,
    )
    path.write_text("x" + GOOD_SECRET)
    assert "are both set and differ" in refusal(tmp_path, INFERNO_JWT_SECRET_FILE=str(path))


def test_secret_files_are_read_safely(tmp_path: Path) -> None:
    def try_file(path: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            load(tmp_path, INFERNO_JWT_SECRET_FILE=str(path), INFERNO_ADMIN_PASSWORD=GOOD_PASSWORD)
        assert "INFERNO_JWT_SECRET_FILE" in str(caught.value)
        return str(caught.value)

    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin").write_bytes(b"\xe9" * 40)
    (tmp_path / "big").write_bytes(b"a" * 100_000)
    open_file = tmp_path / "open"
    open_file.write_text(GOOD_SECRET)
    open_file.chmod(0o666)
    assert "regular file" in try_file(tmp_path / "pipe")
    assert "regular file" in try_file(tmp_path)
    assert "not UTF-8" in try_file(tmp_path / "latin")
    assert "larger than" in try_file(tmp_path / "big")
    assert "No such file" in try_file(tmp_path / "missing")
    assert "writable by everybody" in try_file(open_file)


def test_secrets_file_beside_the_data_is_read(tmp_path: Path) -> None:
    path = tmp_path / "secrets.env"
    path.write_text(secrets.make_secrets_file())
    with pytest.raises(ConfigError, match="chmod 600"):
        path.chmod(0o640)
        load(tmp_path)
    path.chmod(0o600)
    found = load(tmp_path)
    assert found.jwt is not None
    assert found.admin_password is not None
    assert len(found.jwt.reveal()) == 64
    assert load(tmp_path, INFERNO_JWT_SECRET=GOOD_SECRET).jwt == secrets.Secret(GOOD_SECRET)


def test_secrets_file_with_another_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secrets.env"
    path.write_text(f"# mine\nINFERNO_JWT_SECRET='{GOOD_SECRET}'\nINFERNO_ADMIN_PASWORD={GOOD_PASSWORD}\n")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="line 3") as caught:
        load(tmp_path)
    assert GOOD_PASSWORD not in str(caught.value)


def test_secrets_file_is_not_followed_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "real").write_text(secrets.make_secrets_file())
    (tmp_path / "secrets.env").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)


def test_keys_are_made_once_private_and_independent(tmp_path: Path) -> None:
    data = DataDir(tmp_path / "data")
    data.make()
    assert len(data.make_keys()) == 3
    assert data.make_keys() == []
    keys = {data.read_key(name) for name in ("audit", "pepper", "cache")}
    assert len(keys) == 3
    assert {path.stat().st_mode & 0o777 for path in data.keys.iterdir()} == {0o600}
    assert data.keys.stat().st_mode & 0o777 == 0o700
    (data.keys / "audit.key").write_text("00")
    with pytest.raises(ConfigError, match="64 hexadecimal"):
        data.read_key("audit")


def test_a_data_directory_that_everybody_can_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with pytest.raises(StartError, match="everybody can write"):
        DataDir(tmp_path).make()


# ---------------------------------------------------------------- unseen


def test_a_secrets_printed_form_is_a_fingerprint() -> None:
    secret = secrets.Secret(GOOD_SECRET)
    for text in (
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r:>40}",
        repr(secrets.Secrets(jwt=secret)),
        f"{[secret]}",
    ):
        assert GOOD_SECRET not in text
        assert "Secret(" in text
    assert secret == secrets.Secret(GOOD_SECRET)
    assert secret != secrets.Secret(GOOD_PASSWORD)
    for serialize in (pickle.dumps, copy.deepcopy, json.dumps):
        with pytest.raises(TypeError):
            serialize(secret)


_SHOW = """
import json, os, subprocess, sys
from pathlib import Path
from inferno.secrets import hide_environment
environ = hide_environment()
child = subprocess.run(["/bin/cat", "/proc/self/environ"], capture_output=True).stdout
print(json.dumps({
    "seen": environ.get("INFERNO_JWT_SECRET"),
    "url": environ.get("INFERNO_STORAGE_URL"),
    "own": Path("/proc/self/environ").read_bytes().decode(),
    "environ": dict(os.environ),
    "child": child.decode(),
    "files": [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")],
    "argv": sys.argv,
}))
"""


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc here")
def test_sec_012_the_environment_of_the_process_and_its_children_is_clean(tmp_path: Path) -> None:
    script = tmp_path / "show.py"
    script.write_text(_SHOW)
    environ = {
        **os.environ,
        "INFERNO_JWT_SECRET": GOOD_SECRET,
        "INFERNO_ADMIN_PASSWORD": GOOD_PASSWORD,
        "INFERNO_STORAGE_URL": "postgresql://u:hunter2hunter2@h/n",
    }
    done = subprocess.run(
        [sys.executable, str(script), "an argument"], env=environ, capture_output=True, text=True, check=True
    )
    shown = json.loads(done.stdout)
    assert shown["seen"] == GOOD_SECRET
    assert shown["url"].startswith("postgresql://")
    assert shown["argv"] == [str(script), "an argument"]
    for place in ("own", "child", "environ"):
        for value in (GOOD_SECRET, GOOD_PASSWORD, "hunter2"):
            assert value not in str(shown[place])
    assert not any("secrets" in name for name in shown["files"])


def test_handed_secrets_cannot_be_set_by_hand(tmp_path: Path) -> None:
    script = tmp_path / "show.py"
    script.write_text(_SHOW)
    for value in ("0", "x", "77", "-1"):
        environ = {**os.environ, "INFERNO_SECRETS_FD": value}
        done = subprocess.run([sys.executable, str(script)], env=environ, capture_output=True, text=True)
        assert "must not be set by hand" in done.stderr


# ---------------------------------------------------------------- laws


def test_many_random_values_pass() -> None:
    for _ in range(3000):
        assert secrets.secret_fault(random_source.token_hex(16)) is None
        assert secrets.password_fault(base64.b64encode(random_source.token_bytes(16)).decode()) is None
        assert secrets.password_fault(random_source.token_urlsafe(9)) is None


@settings(max_examples=200, deadline=None)
@given(part=st.text(min_size=1, max_size=16), times=st.integers(2, 40))
def test_a_repeated_part_is_always_refused(part: str, times: int) -> None:
    assert secrets.secret_fault(part * times) is not None
