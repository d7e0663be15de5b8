"""A server whose whole file system is read-only but its data directory, as in the container: it needs no other place.

Landlock stands in for the read-only mount, so that no root is needed: from before its first line on, the server and all of
its children can create, change and remove nothing outside of the data directory.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from inferno.engine.sandbox import landlock_abi
from tests.end_to_end.harness import GENEROUS, RunningServer
from tests.models import demo_model

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(sys.platform != "linux", reason="Landlock is Linux's")]

LAUNCH = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
abi = libc.syscall(ctypes.c_long(444), None, ctypes.c_size_t(0), ctypes.c_uint32(1))
write = 1 << 1 | sum(1 << bit for bit in range(4, 13)) | (1 << 13 if abi >= 2 else 0) | (1 << 14 if abi >= 3 else 0)
attributes = struct.pack("=Q", write)
ruleset = libc.syscall(ctypes.c_long(444), attributes, ctypes.c_size_t(8), ctypes.c_uint32(0))
assert ruleset >= 0
for path, rights in ((sys.argv[1], write), ("/dev/null", 1 << 1 | (1 << 14 if abi >= 3 else 0))):
    number = os.open(path, os.O_PATH)
    rule = struct.pack("=Qi", rights & write, number)
    assert libc.syscall(ctypes.c_long(445), ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint32(0)) == 0
    os.close(number)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.syscall(ctypes.c_long(446), ctypes.c_int(ruleset), ctypes.c_uint32(0)) == 0
os.close(ruleset)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


@pytest.fixture
def confined():
    """What a command starts with to be able to write below one folder only."""
    if landlock_abi() < 1:
        pytest.skip("the kernel has no Landlock")
    return lambda folder: [sys.executable, "-c", LAUNCH, str(folder)]


def test_the_stand_in_is_as_strict_as_a_read_only_mount(confined, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "there").write_text("x")
    code = """
import os, pathlib
for action in (lambda: open("there", "w"), lambda: open("there", "a"), lambda: os.unlink("there"), lambda: os.mkdir("d"),
               lambda: open("/tmp/inferno-read-only", "w"), lambda: os.truncate("there", 0), lambda: os.symlink("a", "b")):
    try:
        action()
    except OSError:
        continue
    raise SystemExit(1)
pathlib.Path("data/new").write_text("x")
"""
    done = subprocess.run([*confined(tmp_path / "data"), "-c", code], cwd=tmp_path, check=False)
    assert done.returncode == 0


def test_sec_171_a_server_writes_nowhere_but_in_its_data_directory(confined, tmp_path):
    server = RunningServer(tmp_path, config=GENEROUS, workers=2, model=demo_model())
    server.command = [*confined(server.data), *server.command[1:]]
    server.environment["HOME"] = "/nonexistent"
    try:
        server.start()
        client = server.client(server.create_key()["key"])
        messages = [{"role": "user", "content": "hi"}]
        text = "".join(
            chunk.choices[0].delta.content or ""
            for chunk in client.chat.completions.create(model="demo", messages=messages, max_tokens=8, stream=True)
        )
        assert text
        with server.http(headers={"Authorization": f"Bearer {server.admin_token()}"}) as admin:
            made = admin.post("/api/v1/users", json={"username": "anna", "password": "plum-orbit-Yonder7", "role": "user"})
            assert made.status_code < 300
            assert "inferno_requests_total" in admin.get("/metrics").text
        assert server.events("user.create")
        assert "Permission denied" not in server.output()
    finally:
        assert server.stop() == 0
