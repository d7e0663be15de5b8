"""The engine's side of the template child: have it started, ask it, have it replaced.

Owns the connection and the translation of its answers into errors; who starts the program is template_spawn's matter.
Nothing here touches Jinja: a template is a string that is sent away. Runs in the engine and in commands.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import msgspec

from ..errors import EngineError
from .template_spawn import Spawn, Spawned, program
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


class TemplateProcess:
    """A template child with, usually, one template. Safe for several threads; requests are answered one at a time."""

    def __init__(
        self,
        template: str = "",
        *,
        special_texts: Mapping[str, str] | None = None,
        limits: Limits = RENDER_LIMITS,
        executable: str = sys.executable,
        spawn: Spawn | None = None,
    ) -> None:
        """`special_texts`: name → text of special tokens ("bos", "eos", …); the template sees them as `bos_token` …

        `spawn` starts a child; without it this process starts `executable`. It is asked again when the child itself
        dies (at a limit only the child's worker does, and is replaced from inside).
        """
        self.template = template
        self._tokens = {f"{name}_token": text for name, text in (special_texts or {}).items()}
        self._limits = limits
        self._spawn = spawn or program(executable)
        self.sandbox: dict[str, str] = {}  # what the child says is in force, once it runs
        self._lock = threading.Lock()
        self._child: Spawned | None = None

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
        return None if self._child is None else self._child.pid

    @property
    def descriptors(self) -> list[int]:
        """What a process that locks itself must leave open."""
        return [] if self._child is None else [self._child.socket.fileno()]

    def start(self) -> None:
        """Start the child and wait until it is ready; nothing happens if it runs."""
        with self._lock:
            if self._child is None:
                self._child = self._launch()

    def close(self) -> None:
        """End the child. Idempotent."""
        with self._lock:
            child, self._child = self._child, None
            if child is not None:
                child.end()

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
        if self._child is None:
            self._child = self._launch()
        child = self._child
        try:
            send_frame(child.socket, payload)
            deadline = time.monotonic() + self._limits.wall_seconds + GRACE_SECONDS
            return decode_reply(receive_frame(child.socket, deadline))
        except WireError:
            child.end()
            self._child = None
            return Failed("crashed", "the template process did not answer")

    def _launch(self) -> Spawned:
        """Start a child and wait until it is ready. Raises TemplateUnavailable."""
        try:
            child = self._spawn()
        except OSError as error:
            raise TemplateUnavailable(
                "crashed", f"the template process cannot be started: {error.strerror or error}"
            ) from None
        try:
            send_frame(child.socket, encode(self._limits))
            reply = decode_reply(receive_frame(child.socket, time.monotonic() + START_SECONDS))
        except WireError as error:
            child.end()
            raise TemplateUnavailable("crashed", f"the template process did not start: {error}") from None
        if not isinstance(reply, Ready):
            child.end()
            detail = reply.detail if isinstance(reply, Failed) else "an unexpected answer"
            raise TemplateUnavailable("crashed", f"the template process did not start: {detail}")
        self.sandbox = reply.sandbox
        return child
