"""The template child of one engine: started for it on demand, watched, ended with it.

A locked engine can start no program, so it asks. Owns the process and the rate at which an engine that is taken over
could have new ones; what is said on the socket between the two is theirs. Runs in the supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable

PROGRAM = "inferno.engine.template_child"
MIN_SECONDS_BETWEEN_STARTS = 1.0
_ENVIRONMENT = {"LANG": "C.UTF-8"}
_log = logging.getLogger("inferno.pool")


class TemplateSupply:
    """At most one template child of one engine."""

    def __init__(
        self, name: str, *, program: str = PROGRAM, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self.num_started = 0
        self._program = program
        self._clock = clock
        self._started = -MIN_SECONDS_BETWEEN_STARTS
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def replace(self) -> tuple[int, socket.socket]:
        """End the child that there is, start another; return its process id and the engine's end. Raises OSError."""
        await self.end()
        wait = self._started + MIN_SECONDS_BETWEEN_STARTS - self._clock()
        if wait > 0:
            await asyncio.sleep(wait)
        self._started = self._clock()
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-m", "inferno.launch", str(os.getpid()), self._program, str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                env=_ENVIRONMENT,
                cwd="/",
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._process = process
        self.num_started += 1
        self._watch = asyncio.get_running_loop().create_task(self._until_gone(process))
        return process.pid, ours

    async def end(self) -> None:
        """End the child and wait until it is gone. Idempotent."""
        self.kill()
        if self._watch is not None:
            await asyncio.wait({self._watch})

    def kill(self) -> None:
        """End the child's whole process group now."""
        process, self._process = self._process, None
        if process is not None:
            _kill_group(process.pid)

    async def _until_gone(self, process: asyncio.subprocess.Process) -> None:
        status = await process.wait()
        _kill_group(process.pid)  # the worker that it forked
        if self._process is process:
            self._process = None
            _log.warning("engine %s: its template child ended (status %d)", self.name, status)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
