"""The template child: `python -I -m inferno.engine.template_child FD`.

A small process beside each engine that compiles and renders chat templates, which come out of a model file and are not
trusted. It loads no model library, reads no environment and holds one socket. The process itself only forks, waits and
forwards; a worker that it forked does the work under CPU and memory limits. At a limit the worker is killed and the next
request gets a new one, without a new program being started, so that this also works where starting programs is denied.

Order of the start: read the limits, import everything, `lock()`, serve.
"""

from __future__ import annotations

import math
import os
import resource
import signal
import socket
import sys
import time

import jinja2.constants
import jinja2.debug  # noqa: F401 - loaded before the lock

from .sandbox import SandboxError, confine
from .template_sandbox import Templates
from .template_wire import (
    Check,
    Done,
    Failed,
    Limits,
    Ready,
    Render,
    Reply,
    WireError,
    WireTimeout,
    decode_request,
    encode,
    receive_frame,
    send_frame,
)

_KEEP, _REPLACE = b"\x01", b"\x00"


def lock(parent: socket.socket, limits: Limits) -> dict[str, str]:
    """Give up what a template never needs; return what is in force. Everything is imported by now."""
    time.strftime("%Z")  # the time zone file is read now, not after the file system is gone
    return confine(
        "template",
        mode=limits.sandbox,
        keep_descriptors=[parent.fileno()],
        limits={"CORE": 0, "FSIZE": 0, "NOFILE": 16},
    )


def mapped_bytes() -> int:
    """Address space of this process now; a plain guess where /proc is absent."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 256 << 20


class Worker:
    """A forked process that answers requests until it is told to go or meets a limit."""

    def __init__(self, parent: socket.socket, limits: Limits, address_space: int) -> None:
        self._socket, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            # No way back into the parent's code from here, whatever happens.
            try:
                parent.close()
                self._socket.close()
                _work(theirs, limits, address_space)
            finally:
                os._exit(0)
        theirs.close()

    def ask(self, request: bytes, seconds: float) -> tuple[bytes, bool]:
        """The reply to one request, and whether the worker may stay. Raises WireError if it died or hangs."""
        send_frame(self._socket, request)
        answer = receive_frame(self._socket, time.monotonic() + seconds)
        return answer[1:], answer[:1] == _KEEP

    def end(self) -> int:
        """Kill and reap; return the wait status."""
        self._socket.close()
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        _, status = os.waitpid(self.pid, 0)
        return status

    def reap(self, seconds: float) -> int:
        """The wait status of a worker that closed its socket by itself."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._socket.close()
                return status
            time.sleep(0.001)
        return self.end()


def _work(sock: socket.socket, limits: Limits, address_space: int) -> None:
    """The worker's loop: each request gets its own CPU allowance, all share the memory limit."""
    templates = Templates()
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    while True:
        try:
            request = decode_request(receive_frame(sock))
        except WireError:
            return
        spent = math.ceil(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
        resource.setrlimit(resource.RLIMIT_CPU, (spent + limits.cpu_seconds, resource.RLIM_INFINITY))
        try:
            reply = _answer(templates, request, limits)
            payload = encode(reply)
        except MemoryError:
            reply = Failed("memory", "the template takes too much memory")
            payload = encode(reply)
        except Exception as error:
            # the door of this process: a fault of ours or of Jinja's is this request's failure
            reply = Failed("error", type(error).__name__)
            payload = encode(reply)
        # After a limit the interpreter may be short of memory or deep in a mess: start afresh.
        stay = not (isinstance(reply, Failed) and reply.kind in ("memory", "loop", "output", "complex"))
        send_frame(sock, (_KEEP if stay else _REPLACE) + payload)
        if not stay:
            return


def _answer(templates: Templates, request: object, limits: Limits) -> Reply:
    if isinstance(request, Check):
        return templates.check(request.template) or Done("")
    if isinstance(request, Render):
        result = templates.render(request.template, request.variables, limits.max_output_bytes)
        return result if isinstance(result, Failed) else Done(result)
    return Failed("error", "unexpected request")


def _died(status: int) -> Failed:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGXCPU:
            return Failed("loop", "the template used up its CPU time")
        if number == signal.SIGKILL:
            return Failed("memory", "the system ended the template's process")
        return Failed("crashed", f"the template's process died of signal {number}")
    return Failed("crashed", "the template's process ended without an answer")


def warm_up() -> None:
    """Load what Jinja and Python would only load when first used: after the lock no file can be opened."""
    templates = Templates()
    for source in (
        "{% for m in ['\u00e9\n'] %}{{ m | tojson }}{{ m | pprint }}{{ lipsum(1) }}{{ '%d' | format(1) }}{% endfor %}",
        "{{ broken",
        "{{ nothing.at.all }}",
        "{{ raise_exception('x') }}",
        "{{ ''.__x__ }}",
        "{{ [1, 2] | random }}",
        "{{ 'a <b> http://example.test/' | urlize | striptags | wordwrap(5) | xmlattr }}",
        "{{ strftime_now('%c') }}",
        "{{ '{:>5}'.format(1) }}{{ {'b': 1} | dictsort | groupby(0) | list }}{{ [1] | sum }}{{ 1 | filesizeformat }}",
    ):
        templates.check(source)
        templates.render(source, {}, 1 << 16)


def serve(parent: socket.socket, limits: Limits, address_space: int) -> None:
    """Forward each request to a worker until the parent closes the socket."""
    kept: Worker | None = None
    try:
        while True:
            request = receive_frame(parent)
            worker = kept or Worker(parent, limits, address_space)
            kept = None
            try:
                answer, stay = worker.ask(request, limits.wall_seconds)
                if stay:
                    kept = worker
                else:
                    worker.end()
            except WireTimeout:
                worker.end()
                answer = encode(Failed("loop", "the template took too long"))
            except WireError:
                answer = encode(_died(worker.reap(2.0)))
            send_frame(parent, answer)
    except WireError:
        return
    finally:
        if kept is not None:
            kept.end()


def main(argv: list[str]) -> int:
    parent = socket.socket(fileno=int(argv[1]))
    request = decode_request(receive_frame(parent))
    if not isinstance(request, Limits):
        return 2
    warm_up()
    address_space = mapped_bytes() + request.memory_bytes
    try:
        state = lock(parent, request)
    except SandboxError as error:
        send_frame(parent, encode(Failed("error", str(error))))
        return 1
    send_frame(parent, encode(Ready(state)))
    serve(parent, request, address_space)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
