"""The control socket: how commands act beside a live server.

`<data>/control.sock` is 0600 and the kernel tells each peer's uid, which must be the server's own (or root). A command
sends framed requests {serial, verb, arguments}; each gets one answer {serial, result} or {serial, error, message}. The
server side runs in the supervisor under asyncio; `ask` is the commands' blocking side. What verbs do is not known here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from ..errors import CODES, ApiError, InfernoError, ProtocolError, StartError
from ..ipc import AsyncChannel, BlockingChannel
from ..messages import MAX_CONTROL_FRAME, U64
from .verbs import Caller, Verbs

MAX_CONNECTIONS = 32
_PATH_LIMIT = 100  # bytes; sun_path holds 108 on Linux, 104 on macOS
_log = logging.getLogger("inferno.control")


class ControlRequest(Struct, frozen=True, forbid_unknown_fields=True, tag="request"):
    serial: U64
    verb: Annotated[str, Meta(max_length=64)]
    arguments: dict[str, Any] = {}


class ControlAnswer(Struct, frozen=True, forbid_unknown_fields=True, tag="answer"):
    """`error` is a code of inferno.errors or None."""

    serial: int
    error: str | None = None
    message: str = ""
    param: str | None = None
    result: Any = None


class NoServerError(InfernoError):
    """No server runs on this data directory."""


@contextlib.contextmanager
def _short_path(path: Path) -> Iterator[str]:
    """Give a path that fits into a socket address: through the folder's descriptor where it is too long (Linux)."""
    if len(os.fsencode(path)) <= _PATH_LIMIT or sys.platform != "linux":
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """Return (pid, uid) of the process at the other end, by the kernel's word."""
    if sys.platform == "linux":
        data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", data)
        return pid, uid
    data = sock.getsockopt(0, 1, 76)  # LOCAL_PEERCRED, struct xucred: version, uid, …
    return 0, struct.unpack_from("=II", data)[1]


class ControlServer:
    """The supervisor's side. `open` while the data directory's lock is held: a socket left behind is then stale."""

    def __init__(self, path: Path, verbs: Verbs) -> None:
        self._path = path
        self._verbs = verbs
        self._listener: socket.socket | None = None
        self._channels: set[AsyncChannel] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Bind and listen. Raises StartError."""
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(self._path).st_mode):
                raise StartError(f"{self._path}: expected a socket or nothing; remove it")
            os.unlink(self._path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            with _short_path(self._path) as address:
                listener.bind(address)
            listener.listen(16)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            raise StartError(f"{self._path}: cannot be made: {error.strerror}") from None
        finally:
            os.umask(before)
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept)

    def close(self) -> None:
        """Stop listening, end all connections, remove the file; idempotent."""
        if self._listener is None:
            return
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        self._listener.close()
        self._listener = None
        for channel in list(self._channels):
            channel.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)

    def _accept(self) -> None:
        if self._listener is None:
            return
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        pid, uid = peer_of(sock)
        if uid not in (os.geteuid(), 0) or len(self._channels) >= MAX_CONNECTIONS:
            _log.warning("a connection of uid %d (pid %d) is refused", uid, pid)
            sock.close()
            return
        channel = AsyncChannel(sock, ControlRequest, max_frame_bytes=MAX_CONTROL_FRAME)
        caller = Caller(kind="command", pid=pid, uid=uid)
        self._channels.add(channel)

        def received(message: Any, descriptors: list[int]) -> None:
            for number in descriptors:
                os.close(number)
            task = asyncio.get_running_loop().create_task(self._answer(channel, message, caller))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        channel.start(received, lambda _error: self._channels.discard(channel))

    async def _answer(self, channel: AsyncChannel, request: ControlRequest, caller: Caller) -> None:
        try:
            result = await self._verbs.call(request.verb, request.arguments, caller)
            answer = ControlAnswer(serial=request.serial, result=result)
        except ApiError as error:
            answer = ControlAnswer(
                serial=request.serial, error=error.code, message=error.message, param=error.param
            )
        with contextlib.suppress(ProtocolError):
            channel.send(answer)


def ask(
    path: Path, verb: str, arguments: dict[str, Any] | None = None, *, timeout_seconds: float = 60.0
) -> Any:
    """Ask the running server and return its result, blocking.

    Raises NoServerError when none runs there, ApiError when it refuses, ProtocolError when it answers no sense.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short_path(path) as address:
            sock.connect(address)
    except OSError:
        sock.close()
        raise NoServerError(f"no server runs on {path.parent}") from None
    channel = BlockingChannel(sock, ControlAnswer, max_frame_bytes=MAX_CONTROL_FRAME)
    sock.settimeout(timeout_seconds)
    try:
        channel.send(ControlRequest(serial=1, verb=verb, arguments=arguments or {}))
        received = channel.receive()
    except TimeoutError:
        raise ProtocolError(f"the server did not answer {verb} within {timeout_seconds:.0f} s") from None
    except OSError as error:
        raise NoServerError(f"the server on {path.parent} ended: {error.strerror}") from None
    finally:
        channel.close()
    if received is None:
        raise NoServerError(f"the server on {path.parent} closed the connection (another user's command?)")
    answer: ControlAnswer = received[0]
    if answer.error is not None:
        raise ApiError(
            answer.error if answer.error in CODES else "internal_error", answer.message, param=answer.param
        )
    return answer.result
