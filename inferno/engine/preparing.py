"""The threads that tokenize prompts and make samplers, beside the step loop and of lower priority.

Urgent jobs (starts of prepared requests) go before prompts that are still to be tokenized. The stacks are large because
llama.cpp's pre-tokenizers may recurse over a long text. Engine process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable

NUM_THREADS = 2
_STACK_BYTES = 256 << 20  # of address space; touched only when needed
_NICE = 10
_log = logging.getLogger("inferno.engine")


class PreparePool:
    def __init__(self, num_threads: int = NUM_THREADS) -> None:
        self._urgent: deque[Callable[[], None]] = deque()
        self._jobs: deque[Callable[[], None]] = deque()
        self._ready = threading.Condition()
        self._num_busy = 0
        previous = threading.stack_size(_STACK_BYTES)
        try:
            for number in range(num_threads):
                # The first thread takes only urgent jobs: a start never queues behind a long prompt.
                threading.Thread(target=self._run, args=(number == 0 and num_threads > 1,),
                                 name=f"inferno-prepare-{number}", daemon=True).start()  # fmt: skip
        finally:
            threading.stack_size(previous)

    @property
    def num_waiting(self) -> int:
        """Jobs that are not finished."""
        return len(self._urgent) + len(self._jobs) + self._num_busy

    def submit(self, job: Callable[[], None], *, urgent: bool = False) -> None:
        with self._ready:
            (self._urgent if urgent else self._jobs).append(job)
            self._ready.notify_all()

    def _take(self, only_urgent: bool) -> Callable[[], None]:
        with self._ready:
            while True:
                if self._urgent:
                    self._num_busy += 1
                    return self._urgent.popleft()
                if self._jobs and not only_urgent:
                    self._num_busy += 1
                    return self._jobs.popleft()
                self._ready.wait()

    def _run(self, only_urgent: bool) -> None:
        if sys.platform == "linux" and not only_urgent:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        while True:
            job = self._take(only_urgent)
            try:
                job()
            except Exception:
                _log.exception("a prepare job failed")
            finally:
                with self._ready:
                    self._num_busy -= 1
