"""Starts the processes of buckets_worker.py and talks to them, and builds the debug extension for those that are killed."""

import ast
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import inferno_native

from tests.conftest import ROOT

NATIVE = Path(inferno_native.__file__).parent.parent


class Worker:
    """One process that shares `table`; `library` is where its inferno_native lies."""

    def __init__(self, table, slot, *, library=NATIVE, more_fds=()):
        self.generation = table.open_owner(slot)
        self.slot = slot
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("buckets_worker.py")), str(table.fd), str(slot),
             str(self.generation)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=(table.fd, *more_fds),
            env={**os.environ, "PYTHONPATH": str(library)},
        )  # fmt: skip
        assert self.process.stdout.readline() == "ready\n"

    def tell(self, command, *arguments):
        self.process.stdin.write(repr((command, *arguments)) + "\n")
        self.process.stdin.flush()

    def answer(self):
        return ast.literal_eval(self.process.stdout.readline())

    def ask(self, command, *arguments):
        self.tell(command, *arguments)
        return self.answer()

    def wait_until_stopped(self):
        """Wait until the process has stopped itself inside the critical section."""
        pid, status = os.waitpid(self.process.pid, os.WUNTRACED)
        assert (pid, os.WIFSTOPPED(status)) == (self.process.pid, True)

    def wait_until_blocked(self):
        """Wait until the process sleeps in the kernel for the lock."""
        wchan = Path(f"/proc/{self.process.pid}/wchan")
        deadline = time.monotonic() + 1.0  # where the kernel does not say; who waits gives up after 2 s
        while "futex" not in wchan.read_text() and time.monotonic() < deadline:
            os.sched_yield()

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.close()

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def build_debug(directory):
    """Build buckets with INFERNO_BUILD=debug below `directory`; return what to put first on PYTHONPATH."""
    library = directory / "lib"
    (ROOT / "build").mkdir(exist_ok=True)
    with open(ROOT / "build" / "debug.lock", "w") as lock:  # the generated C is shared by all test processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(library), "--build-temp", str(directory / "obj")],
            cwd=ROOT, check=True, capture_output=True,
            env={**os.environ, "INFERNO_BUILD": "debug", "INFERNO_EXTENSIONS": "buckets"},
        )  # fmt: skip
    shutil.copy(ROOT / "native" / "inferno_native" / "__init__.py", library / "inferno_native")
    return library
