"""One child process of the supervisor: started with a clean environment and one socket, watched, ended.

Owns the spawn (own process group, descriptors closed but the one, environment from an allow-list), the framed channel, the
ping and the kill of the whole process group. Does not know what the child does nor whether it is to be replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Struct

from ..errors import ProtocolError
from ..ipc import AsyncChannel
from ..messages import MAX_CONTROL_FRAME, Ping

_log = logging.getLogger("inferno.pool")

_ALLOWED = frozenset({"LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"})
_ALLOWED_PREFIXES = ("CUDA_", "HIP_", "GGML_", "ROCR_", "HSA_", "NVIDIA_", "VK_", "OMP_", "GOMP_", "KMP_")
# libgomp's threads spin for 300,000 rounds at a barrier before they sleep, milliseconds that other processes (our own
# workers too) may need. With 1,000 rounds they sleep between most operations of a graph: a decode step of one row took
# 34 ms instead of 9. 10,000 cost nothing on an idle machine. An operator's own value wins.
# numpy's BLAS starts threads when it is imported, which an engine never uses and which Landlock would not hold.
ENGINE_DEFAULTS = {"GOMP_SPINCOUNT": "10000", "OPENBLAS_NUM_THREADS": "1"}
MAX_OUTPUT_LINE = 2000  # bytes of one line that a child prints


class Timing(Struct, frozen=True):
    """How long the supervisor waits for what, in seconds."""

    ping_interval: float = 1.0
    max_unanswered: int = 10  # pings; then the child counts as silent
    max_unanswered_loading: int = 300  # a load may block an engine's control thread
    worker_start: float = 60.0
    backoff_first: float = 0.5  # the first restart is immediate, the second waits this long
    backoff_max: float = 30.0
    stable_after: float = 60.0  # a child that lived so long has its restarts forgotten
    max_failed_loads: int = 5  # an engine that dies so often before it is ready is given up
    stop_grace: float = 5.0  # for engines once the workers are gone


def child_environment(source: Mapping[str, str], extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the few variables that a child may see."""
    allowed = {
        name: value
        for name, value in source.items()
        if name in _ALLOWED or name.startswith(_ALLOWED_PREFIXES)
    }
    return {**allowed, **(extra or {})}


class Child:
    """A running process and its channel. Make it with `spawn`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, channel: AsyncChannel) -> None:
        self.name = name
        self.pid = process.pid
        self.channel = channel
        self._process = process
        self._unanswered = 0
        self._serial = 0
        self._reader: asyncio.Task[None] | None = None
        self._is_over = False

    def send(self, message: Any, descriptors: Sequence[int] = ()) -> bool:
        """Send, or say that the child is gone or does not read (it is then killed)."""
        try:
            self.channel.send(message, descriptors)
        except ProtocolError as error:
            if not self.channel.is_closed:
                _log.warning("%s: %s; it is replaced", self.name, error)
                self.kill()
            return False
        return not self.channel.is_closed

    def heard(self) -> None:
        """Note a sign of life."""
        self._unanswered = 0

    async def ping_until_silent(self, timing: Timing, is_loading: Callable[[], bool]) -> None:
        """Ping at the interval; kill the child when it stays silent. Counts pings, not time, so that a supervisor
        which was itself held up blames nobody."""
        while True:
            await asyncio.sleep(timing.ping_interval)
            allowed = timing.max_unanswered_loading if is_loading() else timing.max_unanswered
            if self._unanswered >= allowed:
                _log.error("%s: silent for %d pings; it is replaced", self.name, self._unanswered)
                self.kill()
                return
            self._serial += 1
            self._unanswered += 1
            if not self.send(Ping(serial=self._serial)):
                return

    def kill(self) -> None:
        """End the whole process group now; nothing once `wait` saw the end (the number may be another's by then)."""
        if self._is_over:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def wait(self) -> int:
        """Return the exit status (negative: the signal) once the process is gone; its group is gone then too."""
        status = await self._process.wait()
        self.kill()
        self._is_over = True
        if self._reader is not None:
            with contextlib.suppress(asyncio.CancelledError, TimeoutError):
                await asyncio.wait_for(self._reader, 1.0)
        self.channel.close()
        return status

    async def wait_at_most(self, seconds: float) -> bool:
        """Say whether the process ended within `seconds`. Its status stays for `wait`."""
        try:
            await asyncio.wait_for(self._process.wait(), max(seconds, 0.001))
        except TimeoutError:
            return False
        return True

    def _relay(self, stream: asyncio.StreamReader, on_line: Callable[[str], None]) -> None:
        self._reader = asyncio.get_running_loop().create_task(_relay_lines(stream, on_line))


async def _relay_lines(stream: asyncio.StreamReader, on_line: Callable[[str], None]) -> None:
    """Hand on what a child prints, line by line, long lines cut."""
    rest = b""
    while True:
        data = await stream.read(65536)
        if not data:
            break
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.strip():
                on_line(line[:MAX_OUTPUT_LINE].decode("utf-8", "replace"))
        if len(rest) > MAX_OUTPUT_LINE:
            rest = rest[:MAX_OUTPUT_LINE]
    if rest.strip():
        on_line(rest.decode("utf-8", "replace"))


async def spawn(
    name: str,
    target: str,
    *,
    kind: Any,
    environment: Mapping[str, str],
    on_message: Callable[[Any, list[int]], None],
    on_line: Callable[[str], None] | None = None,
    timing: Timing | None = None,
) -> Child:
    """Start `target` (a module, or a .py file) with one end of a new socketpair as its argument.

    `kind` is the union of messages that it may send. With `on_line` its output is relayed, else it goes where ours
    goes. Raises OSError.
    """
    loop, timing = asyncio.get_running_loop(), timing or Timing()
    ours, theirs = socket.socketpair()
    output = None if on_line is None else asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-m", "inferno.launch", str(os.getpid()), target, str(theirs.fileno()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=None if on_line is None else asyncio.subprocess.STDOUT,
            env=dict(environment),
            pass_fds=(theirs.fileno(),),
            process_group=0,  # not a session: Linux gives each its own share of the CPU, and the priorities of threads
            # (password hashing runs after all else) would count among the threads of one process only
        )  # fmt: skip
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    channel = AsyncChannel(ours, kind, max_frame_bytes=MAX_CONTROL_FRAME, max_pending_bytes=64 << 20)
    child = Child(name, process, channel)
    if on_line is not None and process.stdout is not None:
        child._relay(process.stdout, on_line)

    def closed(error: BaseException | None) -> None:
        if error is not None:
            _log.warning("%s: its connection failed: %s", name, error)
        loop.call_later(timing.stop_grace, child.kill)  # it closed its end: it is about to exit

    channel.start(on_message, closed)
    return child
