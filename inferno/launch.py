"""First lines of every child process: die with the supervisor, then run the module that was asked for.

`python -I -m inferno.launch PARENT_PID MODULE ARGUMENT…` runs MODULE as __main__ (or a .py file, for tests). Doing it
here, after exec, spares the supervisor a hook between fork and exec. Runs in workers and engines before their code.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import runpy
import signal
import sys
import termios

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends (Linux; elsewhere the closed socket tells)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(0)


def leave_terminal() -> None:
    """Give up the terminal that the supervisor may have: nothing here may read from it or type into it."""
    with contextlib.suppress(OSError):
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(terminal, termios.TIOCNOTTY)
        finally:
            os.close(terminal)


def main() -> None:
    parent, module = int(sys.argv[1]), sys.argv[2]
    die_with(parent)
    leave_terminal()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold prompts
    sys.argv = sys.argv[2:]
    if module.endswith(".py"):
        runpy.run_path(module, run_name="__main__")
    else:
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
