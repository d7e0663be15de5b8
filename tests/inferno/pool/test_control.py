"""The control socket: who may speak, what they get, what hostile peers achieve (nothing)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from inferno.errors import ApiError, StartError
from inferno.pool.control import ControlServer, NoServerError, ask, peer_of
from inferno.pool.verbs import Caller, Verbs

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextlib.asynccontextmanager
async def serving(path: Path) -> AsyncIterator[ControlServer]:
    verbs = Verbs()

    async def echo(arguments: dict[str, Any], caller: Caller) -> Any:
        return {"arguments": arguments, "kind": caller.kind, "uid": caller.uid, "pid": caller.pid}

    async def refuse(arguments: dict[str, Any], caller: Caller) -> Any:
        raise ApiError("conflict", "Not now.", param="name")

    async def fail(arguments: dict[str, Any], caller: Caller) -> Any:
        raise RuntimeError("a secret detail")

    verbs.register("echo", echo)
    verbs.register("refuse", refuse)
    verbs.register("fail", fail)
    verbs.register("workers-only", echo, ("worker",))
    server = ControlServer(path, verbs)
    server.open()
    try:
        yield server
    finally:
        server.close()


async def test_a_command_is_answered_and_known_by_the_kernels_word(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    async with serving(path):
        assert path.stat().st_mode & 0o777 == 0o600
        answer = await asyncio.to_thread(ask, path, "echo", {"a": [1, "b"]})
        assert answer == {
            "arguments": {"a": [1, "b"]},
            "kind": "command",
            "uid": os.geteuid(),
            "pid": os.getpid(),
        }
    assert not path.exists()


async def test_refusals_and_faults_come_as_codes(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    async with serving(path):
        for verb, code, message in [
            ("refuse", "conflict", "Not now."),
            ("fail", "internal_error", "The supervisor failed at this; its log says why."),
            ("workers-only", "not_found", "Unknown verb."),
            ("nothing", "not_found", "Unknown verb."),
        ]:
            with pytest.raises(ApiError) as caught:
                await asyncio.to_thread(ask, path, verb)
            assert (caught.value.code, caught.value.message) == (code, message)


async def test_without_a_server_a_command_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(NoServerError, match="no server runs"):
        ask(tmp_path / "control.sock", "echo")


async def test_a_stale_socket_is_replaced_and_another_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    async with serving(path):
        assert (await asyncio.to_thread(ask, path, "echo"))["kind"] == "command"
    path.write_text("mine")
    with pytest.raises(StartError, match="expected a socket or nothing"):
        ControlServer(path, Verbs()).open()
    assert path.read_text() == "mine"


async def test_a_long_path_works(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    async with serving(folder / "control.sock"):
        assert (await asyncio.to_thread(ask, folder / "control.sock", "echo"))["kind"] == "command"


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xff\xff\xff\x00",
        b"\x05\x00\x00\x00\x00\x93\x01\x02\x03\x04",
        b"\x02\x00\x00\x00\xff\x90\x90",
    ],
)
async def test_garbage_ends_its_own_connection_only(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "control.sock"

    def speak() -> bytes:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(60)
            sock.connect(str(path))
            sock.sendall(garbage)
            try:
                return sock.recv(10)
            except ConnectionResetError:
                return b""

    async with serving(path):
        assert await asyncio.to_thread(speak) == b""
        assert (await asyncio.to_thread(ask, path, "echo"))["kind"] == "command"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
async def test_another_user_is_refused_even_where_the_file_lets_him(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to("/tmp/pytest-of-root"):
            folder.chmod(0o755)
    path = tmp_path / "control.sock"
    async with serving(path):
        path.chmod(0o666)
        child = os.fork()
        if child == 0:
            status = 3
            with contextlib.suppress(BaseException):
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.settimeout(60)
                    sock.connect(str(path))
                    status = 0 if sock.recv(10) == b"" else 1
            os._exit(status)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status) == 0


def test_peer_of_tells_the_kernels_word() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer_of(ours) == (os.getpid(), os.geteuid())
