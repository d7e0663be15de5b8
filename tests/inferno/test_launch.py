"""What a child process gives up before its own code runs."""

from __future__ import annotations

import os
import pty
import sys

CHILD = """
import os, subprocess, sys
if len(sys.argv) == 1:  # the supervisor's part: it leads a session with a terminal
    raise SystemExit(subprocess.run([sys.executable, "-c", sys.orig_argv[2], "child"], process_group=0).returncode)
from inferno.launch import leave_terminal
os.close(os.open("/dev/tty", os.O_RDWR))
leave_terminal()
try:
    os.open("/dev/tty", os.O_RDWR)
except OSError:
    leave_terminal()  # nothing when there is none
    raise SystemExit(42)
"""


def test_a_child_has_no_terminal_though_the_supervisor_has_one() -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", CHILD])
    try:
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 42
