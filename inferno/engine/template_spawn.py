"""Who starts a template child: this process itself (commands, and checks before the lock), or the supervisor (engines).

A locked engine can start no program. It asks for a child over its control socket and gets the socket to one; the
supervisor watches it, ends the one before, and ends it with the engine. Knows nothing of templates.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..ipc import BlockingChannel
from ..messages import TemplateChild, TemplateWanted

SUPPLY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Spawned:
    """A running child: its socket, its process id, and how to be rid of it."""

    socket: socket.socket
    pid: int
    end: Callable[[], None]


Spawn = Callable[[], Spawned]  # raises OSError


def program(executable: str) -> Spawn:
    """Return what starts the child as a program of our own, in its own session and with an empty environment."""

    def start() -> Spawned:
        ours, theirs = socket.socketpair()
        try:
            process = subprocess.Popen(
                [executable, "-I", "-m", "inferno.engine.template_child", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                close_fds=True,
                env={"LANG": "C.UTF-8"},
                cwd="/",
                start_new_session=True,
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()

        def end() -> None:
            ours.close()
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

        return Spawned(ours, process.pid, end)

    return start


class SuppliedChildren:
    """Children from the supervisor, over the engine's control channel.

    Until `serve_begins` nobody else reads the channel: `spawn` reads it itself and keeps what comes meanwhile in
    `early`. From then on the control thread hands each answer to `supply`.
    """

    def __init__(self, channel: BlockingChannel) -> None:
        self._channel = channel
        self._answers: queue.SimpleQueue[tuple[int, list[int]]] = queue.SimpleQueue()
        self._is_read_elsewhere = False
        self.early: list[tuple[Any, list[int]]] = []

    def serve_begins(self) -> list[tuple[Any, list[int]]]:
        """Return what came early; the channel belongs to the control thread now."""
        self._is_read_elsewhere = True
        early, self.early = self.early, []
        return early

    def supply(self, message: TemplateChild, descriptors: list[int]) -> None:
        """Take an answer; the descriptors are ours now."""
        self._answers.put((message.pid, descriptors))

    def spawn(self) -> Spawned:
        """Ask for a child and wait for it. Raises OSError."""
        while not self._answers.empty():  # of a request that was given up
            _close_all(self._answers.get()[1])
        self._channel.send(TemplateWanted())
        if self._is_read_elsewhere:
            try:
                pid, descriptors = self._answers.get(timeout=SUPPLY_SECONDS)
            except queue.Empty:
                raise OSError("the supervisor gave none in time") from None
        else:
            pid, descriptors = self._read_answer()
        if len(descriptors) != 1:
            _close_all(descriptors)
            raise OSError("the supervisor could not start it")
        sock = socket.socket(fileno=descriptors[0])
        return Spawned(sock, pid, sock.close)  # it ends when its socket closes; the supervisor sees to that

    def _read_answer(self) -> tuple[int, list[int]]:
        while (received := self._channel.receive()) is not None:
            if isinstance(received[0], TemplateChild):
                return received[0].pid, received[1]
            self.early.append(received)
        raise OSError("the supervisor is gone")


def _close_all(descriptors: list[int]) -> None:
    for number in descriptors:
        os.close(number)
