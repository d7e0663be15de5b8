"""The engine's side of the template child: start it, ask it, replace it.

Owns the child's life and the translation of its answers into errors. Nothing here touches Jinja: a template is a string
that is sent away. Runs in the engine and in commands.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import msgspec

from ..errors import EngineError
from .template_wire import (
    Check,
    Done,
    Failed,
    Limits,
    Ready,
    Render,
    Reply,
    Request,
    WireError,
    decode_reply,
    encode,
    receive_frame,
    send_frame,
)

START_SECONDS = 30.0
GRACE_SECONDS = 5.0
END_SECONDS = 5.0
RENDER_LIMITS = Limits()


class TemplateError(EngineError):
    """A template gave no text. `kind` is that of template_wire.Failed."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__("template_failed", message, param="messages")
        self.kind = kind


class TemplateRefused(TemplateError):
    """The template itself refused the conversation (raise_exception), in its own words."""


class TemplateLimit(TemplateError):
    """The render met a limit of time, memory or output; its process was replaced."""


class TemplateUnavailable(TemplateError):
    """The template child is gone and could not be started again: the engine's failure, not the request's."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)
        self.code = "engine_failed"


_ERRORS: dict[str, type[TemplateError]] = {
    "raised": TemplateRefused,
    "loop": TemplateLimit,
    "memory": TemplateLimit,
    "output": TemplateLimit,
    "crashed": TemplateLimit,
}


class _Child(NamedTuple):
    """A template child that runs, and our end of its socket."""

    process: subprocess.Popen[bytes]
    socket: socket.socket

    def end(self) -> None:
        """Kill and reap it. A confined engine may do neither: then the closed socket ends the child."""
        self.socket.close()
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)


class TemplateProcess:
    """A template child with, usually, one template. Safe for several threads; requests are answered one at a time."""

    def __init__(
        self,
        template: str = "",
        *,
        special_texts: Mapping[str, str] | None = None,
        limits: Limits = RENDER_LIMITS,
        spares: int = 0,
        executable: str = sys.executable,
    ) -> None:
        """`special_texts`: name → text of special tokens ("bos", "eos", …); the template sees them as `bos_token` …

        `spares`: children started beforehand, for a process that will not be allowed to start programs later; they are
        used when the child itself dies (at a limit only its worker does, and is replaced from inside).
        """
        self.template = template
        self._tokens = {f"{name}_token": text for name, text in (special_texts or {}).items()}
        self._limits = limits
        self._executable = executable
        self.sandbox: dict[str, str] = {}  # what the child says is in force, once it runs
        self._lock = threading.Lock()
        self._num_spares = spares
        self._spares: list[_Child] = []
        self._child: _Child | None = None

    def __enter__(self) -> TemplateProcess:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the child, None while there is none."""
        return None if self._child is None else self._child.process.pid

    def start(self) -> None:
        """Start the child and the spares and wait until they are ready; nothing happens if they run."""
        with self._lock:
            if self._child is None:
                self._child = self._launch()
                while len(self._spares) < self._num_spares:
                    self._spares.append(self._launch())

    def close(self) -> None:
        """End the child and the spares. Idempotent."""
        with self._lock:
            for child in (self._child, *self._spares):
                if child is not None:
                    child.end()
            self._child = None
            self._spares.clear()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **flags: bool,
    ) -> str:
        """The prompt of a conversation; strings go through unchanged. Raises TemplateError."""
        variables: dict[str, Any] = {
            "bos_token": "",
            "eos_token": "",
            **self._tokens,
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **flags,
        }
        return self.run(Render(self.template, variables))

    def run(self, request: Check | Render) -> str:
        """Ask the child. One answer for one request: a child that died is replaced for the next one."""
        with self._lock:
            reply = self._ask(request)
        if isinstance(reply, Done):
            return reply.text
        if isinstance(reply, Failed):
            raise _ERRORS.get(reply.kind, TemplateError)(reply.kind, reply.detail)
        raise TemplateError("error", "the template process gave an unexpected answer")

    def _ask(self, request: Request) -> Reply:
        try:
            payload = encode(request)
        except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
            raise TemplateError("error", f"the conversation cannot be sent: {type(error).__name__}") from None
        child = self._child or self._replace()
        try:
            send_frame(child.socket, payload)
            deadline = time.monotonic() + self._limits.wall_seconds + GRACE_SECONDS
            return decode_reply(receive_frame(child.socket, deadline))
        except WireError:
            child.end()
            self._child = None
            return Failed("crashed", "the template process did not answer")

    def _replace(self) -> _Child:
        try:
            self._child = self._launch()
        except TemplateUnavailable:
            if not self._spares:
                raise
            self._child = self._spares.pop()
        return self._child

    def _launch(self) -> _Child:
        """Start a child and wait until it is ready. Raises TemplateUnavailable."""
        ours, theirs = socket.socketpair()
        try:
            process = subprocess.Popen(
                [self._executable, "-I", "-m", "inferno.engine.template_child", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                close_fds=True,
                env={"LANG": "C.UTF-8"},
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise TemplateUnavailable(
                "crashed", f"the template process cannot be started: {error.strerror}"
            ) from None
        finally:
            theirs.close()
        child = _Child(process, ours)
        try:
            send_frame(ours, encode(self._limits))
            reply = decode_reply(receive_frame(ours, time.monotonic() + START_SECONDS))
        except WireError as error:
            child.end()
            raise TemplateUnavailable("crashed", f"the template process did not start: {error}") from None
        if not isinstance(reply, Ready):
            child.end()
            detail = reply.detail if isinstance(reply, Failed) else "an unexpected answer"
            raise TemplateUnavailable("crashed", f"the template process did not start: {detail}")
        self.sandbox = reply.sandbox
        return child
