"""Entry of an engine process: `python -I -m inferno.engine.main FD`, where FD is its end of the control socket.

Reads the settings message, loads the model (or reports ModelRefused and exits 1; with `only_verify` the check is all), then runs the step loop in the main
thread and answers the supervisor from another. A ping is answered while the loop makes progress; a loop that is stuck
gets no answer, and the supervisor replaces the process. Exit 0 after a drain, or when the supervisor is gone.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

import msgspec
from inferno_native import llama
from inferno_native.batching import next_boundary

from ..errors import ProtocolError
from ..ipc import BlockingChannel
from ..messages import (
    MAX_CONTROL_FRAME,
    PROTOCOL_VERSION,
    AttachWorker,
    ClearPrefixes,
    Drain,
    EngineHello,
    EngineReady,
    EngineSettings,
    LogLine,
    ModelRefused,
    Ping,
    Pong,
    SupervisorToEngine,
    TemplateChild,
)
from .connections import ConnectionLoop
from .loading import Loaded, Refused, load, open_and_verify
from .prefixes import PrefixStore
from .public import public_prefix
from .runner import Runner
from .template_spawn import SuppliedChildren

STUCK_SECONDS = 60.0  # one llama_decode of a large model on a slow machine may take long
DRAIN_SECONDS = 30.0  # after SIGTERM without a Drain message
_SWITCH_SECONDS = 0.0005  # the step loop should not wait 5 ms for the interpreter
_log = logging.getLogger("inferno.engine")


class _ControlHandler(logging.Handler):
    """Sends log records to the supervisor; never raises, never waits for long."""

    def __init__(self, channel: BlockingChannel) -> None:
        super().__init__()
        self._channel = channel
        self._is_sending = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        level: Any = {10: "debug", 20: "info", 30: "warning"}.get(record.levelno, "error")
        try:
            self._channel.send(LogLine(level=level, text=self.format(record)[:4096]))
        except OSError:
            pass


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not arguments[0].isdigit():
        print("usage: python -I -m inferno.engine.main FD", file=sys.stderr)
        return 2
    sock = socket.socket(fileno=int(arguments[0]))
    channel = BlockingChannel(sock, SupervisorToEngine, max_frame_bytes=MAX_CONTROL_FRAME)
    try:
        first = channel.receive()
    except ProtocolError:
        return 1
    if first is None:
        return 0
    settings = first[0]
    if not isinstance(settings, EngineSettings):
        return 1
    if settings.version != PROTOCOL_VERSION:
        channel.send(
            ModelRefused(reason="load-failed", detail=f"protocol {settings.version}, not {PROTOCOL_VERSION}")
        )
        return 1
    sys.setswitchinterval(_SWITCH_SECONDS)
    logging.basicConfig(
        handlers=[_ControlHandler(channel)], level=settings.log_level.upper(), format="%(message)s"
    )
    children = SuppliedChildren(channel)
    try:
        if settings.only_verify:
            open_and_verify(settings, channel.send)[0].close()
            return 0
        loaded = load(settings, channel.send, spawn=children.spawn, keep=[channel.fileno()])
    except Refused as refusal:
        _tell_library_log()
        channel.send(refusal.message)
        return 1
    Engine(settings, loaded, channel, children).serve()
    return 0


class Engine:
    """A loaded model and the threads that serve it."""

    def __init__(
        self, settings: EngineSettings, loaded: Loaded, channel: BlockingChannel, children: SuppliedChildren
    ) -> None:
        self._channel = channel
        self._children = children
        self._loaded = loaded
        self._info = loaded.info
        self._settings = settings
        self._store = PrefixStore(
            settings.prefix_cache_mb << 20,
            loaded.batcher.quantum,
            only_whole=loaded.batcher.exact_restore_only,
        )
        self._runner = Runner(
            loaded.batcher,
            loaded.prompts,
            store=self._store,
            costs=loaded.costs,
            max_queue=settings.max_queue,
            max_queue_per_user=settings.max_queue_per_user,
            request_timeout_seconds=settings.request_timeout_seconds,
        )
        self._connections = ConnectionLoop(
            self._runner.intake.on_message,
            self._runner.intake.on_close,
            self._tick,
            max_frame_bytes=settings.max_frame_bytes,
        )
        self._next_chores = 0.0

    def serve(self) -> None:
        """Serve until drained, or until the supervisor is gone; ends the process.

        The thread that calibrated runs the step loop: OpenMP keeps a team of threads for each thread that ever computed,
        and with more of them than cores its barriers hardly spin, which made a decode step take twice as long.
        """
        self._keep_public()
        self._connections.start()
        signal.signal(signal.SIGTERM, lambda *_: self._runner.drain(DRAIN_SECONDS))
        self._channel.send(EngineReady(model=self._info, calibration=self._loaded.calibration))
        threading.Thread(target=self._listen, name="inferno-control", daemon=True).start()
        self._run_steps()

    def _listen(self) -> None:
        """The control thread: what the supervisor says. When the supervisor is gone, so is the process."""
        status = 0
        try:
            for message, descriptors in self._children.serve_begins():
                self._on_control(message, descriptors)
            while (received := self._channel.receive()) is not None:
                self._on_control(received[0], received[1])
        except ProtocolError as error:
            _log.error("the supervisor sent something malformed: %s", error)
            status = 1
        except OSError:
            pass
        except Exception:
            _log.exception("the control thread failed")
            status = 70
        if self._loaded.template is not None:
            self._loaded.template.close()
        os._exit(status)

    def _on_control(self, message: Any, descriptors: list[int]) -> None:
        match message:
            case AttachWorker() if len(descriptors) == 1:
                hello = EngineHello(version=PROTOCOL_VERSION, model=self._info)
                self._connections.add(socket.socket(fileno=descriptors[0]), message.worker, hello)
                return
            case TemplateChild():
                self._children.supply(message, descriptors)
                return
            case Ping():
                if self._runner.stuck_seconds() < STUCK_SECONDS:
                    self._channel.send(Pong(serial=message.serial, stats=self._runner.stats()))
            case Drain():
                self._runner.drain(message.grace_seconds)
            case ClearPrefixes():
                self._runner.clear_prefixes(message.principal)
        for number in descriptors:
            os.close(number)

    def _run_steps(self) -> None:
        """The step loop. When it ends, the process does: nothing is left to serve with."""
        status = 0
        try:
            self._runner.run()
        except Exception:
            _log.exception("the step loop failed")
            status = 70
        _tell_library_log()
        deadline = time.monotonic() + 1.0
        while any(c.wants_write for c in list(self._connections.connections)) and time.monotonic() < deadline:
            time.sleep(0.01)
        if self._loaded.template is not None:
            self._loaded.template.close()
        # Other threads may be inside of native code: no orderly end of the interpreter is possible, nor needed.
        os._exit(status)

    def _tick(self) -> None:
        self._runner.on_tick()
        now = time.monotonic()
        if now >= self._next_chores:
            self._next_chores = now + 1.0
            self._runner.intake.expire_prepared(list(self._connections.connections))
            _tell_library_log()

    def _keep_public(self) -> None:
        """Compute the operator's public prefixes before the first request, and tell how many are stored."""
        texts = self._settings.public_prefixes
        if not texts:
            return
        has_template = self._loaded.template is not None
        found = [public_prefix(self._loaded.prompts.build, text, has_template=has_template) for text in texts]
        kept = self._runner.prefill.keep_public([tokens for tokens in found if tokens])
        if kept < len(texts):
            _log.warning("only %d of %d public prefixes are stored: a prefix must have at least %d tokens, fit the context "
                         "and, all together, prefix_cache_mb", kept, len(texts), next_boundary(0, self._loaded.batcher.quantum))  # fmt: skip
        told = {**self._info.settings, "public_prefixes": f"{kept} of {len(texts)}"}
        self._info = msgspec.structs.replace(self._info, settings=told)


def _tell_library_log() -> None:
    for level, text in llama.take_log_lines():
        if level in ("warning", "error"):
            _log.log(logging.WARNING if level == "warning" else logging.ERROR, "llama.cpp: %s", text)


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
    except (OSError, msgspec.MsgspecError) as error:
        print(f"engine: {error}", file=sys.stderr)
        code = 1
    sys.stdout.flush()
    os._exit(code)
