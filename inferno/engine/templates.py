"""The engine's side of the template child: start it, ask it, replace it.

Owns the child's life and the translation of its answers into errors. Nothing here touches Jinja: a template is a string
that is sent away. Also holds the check that the verifier makes of a model's templates (GGUF.md's rules: a static walk,
then a trial run with a sample conversation). Runs in the engine and in commands.
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
from typing import Any

import msgspec
from inferno_native.gguf_report import REASONS, GgufError

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
    Sandbox,
    WireError,
    decode_reply,
    encode,
    receive_frame,
    send_frame,
)

START_SECONDS = 30.0
GRACE_SECONDS = 5.0
RENDER_LIMITS = Limits()
TRIAL_LIMITS = Limits(cpu_seconds=2, wall_seconds=10.0, memory_bytes=384 << 20, max_output_bytes=1 << 20)
MAX_TEMPLATE_BYTES = 256 * 1024


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
    ) -> None:
        """`special_texts`: name → text of special tokens ("bos", "eos", …); the template sees them as `bos_token` …"""
        self.template = template
        self._tokens = {f"{name}_token": text for name, text in (special_texts or {}).items()}
        self._limits = limits
        self._executable = executable
        self.sandbox: dict[str, str] = {}  # what the child says is in force, once it runs
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

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
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the child and wait until it is ready; nothing happens if it runs."""
        with self._lock:
            if self._socket is None:
                self._start()

    def close(self) -> None:
        """End the child. Idempotent."""
        with self._lock:
            self._stop()

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
        if self._socket is None:
            self._start()
        if self._socket is None:
            raise TemplateUnavailable("crashed", "the template process is not running")
        try:
            send_frame(self._socket, payload)
            deadline = time.monotonic() + self._limits.wall_seconds + GRACE_SECONDS
            return decode_reply(receive_frame(self._socket, deadline))
        except WireError:
            self._stop()
            return Failed("crashed", "the template process did not answer")

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
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
        self._socket = ours
        try:
            send_frame(ours, encode(self._limits))
            reply = decode_reply(receive_frame(ours, time.monotonic() + START_SECONDS))
        except WireError as error:
            self._stop()
            raise TemplateUnavailable("crashed", f"the template process did not start: {error}") from None
        if not isinstance(reply, Ready):
            self._stop()
            detail = reply.detail if isinstance(reply, Failed) else "an unexpected answer"
            raise TemplateUnavailable("crashed", f"the template process did not start: {detail}")
        self.sandbox = reply.sandbox

    def _stop(self) -> None:
        process, self._process = self._process, None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# --------------------------------------------------------------------------- the verifier's check

_FAULTS = {
    "syntax": ("template-syntax", False),
    "complex": ("template-too-complex", True),
    "statement": ("template-forbidden-statement", True),
    "attribute": ("template-forbidden-attribute", True),
    "loop": ("template-unbounded-loop", True),
    "memory": ("template-memory-bomb", True),
}
_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
_TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": "Good morning. What is a chat template?"},
    {"role": "assistant", "content": "It turns a conversation into one text."},
    {"role": "user", "content": "Thank you. And the weather?"},
]
_CALL: list[dict[str, Any]] = [
    {"role": "user", "content": "What is the weather in Oslo?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "call00001",
                "type": "function",
                "function": {"name": "weather", "arguments": {"place": "Oslo"}},
            },
        ],
    },
    {"role": "tool", "tool_call_id": "call00001", "name": "weather", "content": "Rain, 7 degrees."},
]
_SAMPLES: tuple[tuple[list[dict[str, Any]], list[dict[str, Any]] | None], ...] = (
    (_TALK, None),
    (_TALK, [_TOOL]),
    (_CALL, [_TOOL]),
    (_TALK[1:2], None),
)


def check_template(
    process: TemplateProcess,
    template: str,
    special_texts: Mapping[str, str] | None = None,
    allow: frozenset[str] = frozenset(),
) -> list[str]:
    """Walk, compile and try one template in `process` (started with TRIAL_LIMITS).

    Raises GgufError for a fault that is not waived; a waived one does not end the check. Returns the waived reasons.
    """
    waived: list[str] = []

    def meet(fault: GgufError) -> None:
        if not (fault.policy and fault.reason in allow):
            raise fault
        waived.append(fault.reason)

    if len(template.encode("utf-8", "surrogatepass")) > MAX_TEMPLATE_BYTES:
        meet(GgufError("template-too-long", None, policy=True))
    try:
        process.run(Check(template))
    except TemplateUnavailable:
        raise
    except TemplateError as error:
        # A compiler that dies or does not come to an end was given too much.
        kind = error.kind if error.kind in ("syntax", "statement", "attribute", "memory") else "complex"
        meet(_fault(kind, error.message))
    tokens = {f"{name}_token": text for name, text in (special_texts or {}).items()}
    for messages, tools in _SAMPLES:
        variables = {
            "bos_token": "<s>",
            "eos_token": "</s>",
            **tokens,
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": True,
        }
        try:
            process.run(Render(template, variables))
        except TemplateUnavailable:
            raise
        except TemplateError as error:
            kind = error.kind
            if kind == "output":
                # many small pieces come from a loop, a few from one expression
                kind = "loop" if int(error.message.split()[-2]) > 1000 else "memory"
            elif kind == "crashed":
                kind = "memory"
            if kind in _FAULTS:
                meet(_fault(kind, error.message))
                break
            # raise_exception and undefined values are no faults: the sample need not suit the template
    return waived


def _fault(kind: str, detail: str) -> GgufError:
    reason, policy = _FAULTS[kind]
    return GgufError(reason, None, f"{REASONS[reason]}: {detail}", policy=policy)


def check_templates(
    templates: Mapping[str, str],
    special_texts: Mapping[str, str] | None = None,
    allow: frozenset[str] = frozenset(),
    *,
    sandbox: Sandbox = "auto",
    executable: str = sys.executable,
) -> list[str]:
    """Check every template of a model in one child; return the waived reasons that were met. Raises GgufError."""
    if not templates:
        return []
    waived: list[str] = []
    limits = msgspec.structs.replace(TRIAL_LIMITS, sandbox=sandbox)
    try:
        with TemplateProcess(limits=limits, executable=executable) as process:
            for name, template in templates.items():
                try:
                    waived += check_template(process, template, special_texts, allow)
                except GgufError as error:
                    error.detail = f"{error.detail} (template {name!r})"
                    raise
    except TemplateUnavailable as error:
        raise GgufError("template-unchecked", None, f"{REASONS['template-unchecked']}: {error.message}") from None
    return sorted(set(waived))
