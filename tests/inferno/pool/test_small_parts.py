"""Restart delays, environments, the listening socket, and children that outlive nobody."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferno.errors import StartError
from inferno.pool.backoff import Backoff
from inferno.pool.listener import listen, shown_address
from inferno.pool.process import child_environment


def test_first_restart_is_immediate_then_delays_double_up_to_the_longest() -> None:
    backoff = Backoff(0.5, 30.0, 60.0)
    assert [backoff.next_delay(1.0) for _ in range(10)] == [
        0.0,
        0.5,
        1.0,
        2.0,
        4.0,
        8.0,
        16.0,
        30.0,
        30.0,
        30.0,
    ]
    assert backoff.next_delay(61.0) == 0.0
    assert backoff.next_delay(1.0) == 0.5


@given(lives=st.lists(st.floats(0, 1000), max_size=100))
def test_delays_stay_in_bounds_whatever_happens(lives: list[float]) -> None:
    backoff = Backoff(0.5, 30.0, 60.0)
    for lived in lives:
        assert 0.0 <= backoff.next_delay(lived) <= 30.0


def test_a_childs_environment_is_an_allow_list() -> None:
    source = {
        "LANG": "C.UTF-8", "PATH": "/bin", "HOME": "/root", "CUDA_VISIBLE_DEVICES": "1", "GGML_CUDA_X": "1", "HIP_Y": "2",
        "LD_LIBRARY_PATH": "/opt", "LD_PRELOAD": "/evil.so", "PYTHONPATH": "/evil", "INFERNO_JWT_SECRET": "s",
        "OMP_NUM_THREADS": "2", "AWS_SECRET_ACCESS_KEY": "s", "DATABASE_URL": "s",
    }  # fmt: skip
    assert set(child_environment(source, {"EXTRA": "1"})) == {
        "LANG", "CUDA_VISIBLE_DEVICES", "GGML_CUDA_X", "HIP_Y", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "EXTRA",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("localhost", None)]
)
def test_listening(host: str, shown: str | None) -> None:
    with listen(host, 0) as listener:
        address = shown_address(listener)
        if shown is not None:
            assert address.startswith(f"{shown}:")
        assert not listener.get_inheritable()
        with socket.create_connection(listener.getsockname()[:2], timeout=60):
            pass


@pytest.mark.parametrize(
    ("host", "words"),
    [("192.0.2.1", "is not an address of this machine"), ("no.such.host.invalid", "not an address")],
)
def test_an_address_that_cannot_be_bound_is_said(host: str, words: str) -> None:
    with pytest.raises(StartError, match=words):
        listen(host, 0)


_PARENT = """
import asyncio, os, sys, time
from inferno.pool.process import child_environment, spawn
async def main():
    child = await spawn("x", sys.argv[1], kind=dict, environment=child_environment(os.environ), on_message=print)
    print(child.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
_SLEEPER = "import time\nopen({marker!r}, 'w').close()\nwhile True:\n    time.sleep(1)\n"


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_a_child_dies_with_its_supervisor(tmp_path: Path) -> None:
    marker = tmp_path / "begun"
    (tmp_path / "sleeper.py").write_text(_SLEEPER.format(marker=str(marker)))
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(tmp_path / "sleeper.py")], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    deadline = time.monotonic() + 60
    while not marker.exists():  # it asked for the signal before
        assert time.monotonic() < deadline
        time.sleep(0.02)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    while _is_running(child):
        assert time.monotonic() < deadline, "the child outlived its supervisor"
        time.sleep(0.02)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter: it was waited for between the open and the read
        return False


def test_a_child_whose_supervisor_is_gone_does_not_begin(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "late.py").write_text(f"open({str(marker)!r}, 'w').close()")
    done = subprocess.run([sys.executable, "-I", "-m", "inferno.launch", "1", str(tmp_path / "late.py")])
    assert done.returncode == 0
    assert not marker.exists()
    done = subprocess.run(
        [sys.executable, "-I", "-m", "inferno.launch", str(os.getpid()), str(tmp_path / "late.py")]
    )
    assert done.returncode == 0
    assert marker.exists()
