"""Passwords: the rules for a new one, argon2id, and the short queue before it.

Unicode rule: a password is normalized to NFC when it is set and when it is checked; nothing else changes it, nothing
is cut off, and any control character (C0, C1, DEL) or lone surrogate is refused. Length is 12 to 1024 code points.

Hashing takes tens of milliseconds and 19 MiB on purpose, so it runs in at most two threads of low priority (one on a
machine of one or two cores), and a thread first takes a byte lock in shared memory: over all workers of a host so many
passwords are hashed at a time. After each the thread rests, still with its lock, so that a flood of logins leaves the
cores and the memory bus to inference. What finds the queue full is refused (503). Runs in front workers, the
supervisor and commands.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
import sys
import threading
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import resources
from itertools import pairwise

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.low_level import Type

from ..errors import ApiError

MIN_LENGTH = 12
MAX_LENGTH = 1024  # code points
MEMORY_KIB = 19 * 1024  # OWASP's minimum for t=2, p=1
PASSES = 2
LANES = 1
MAX_THREADS = 2
REST_FACTOR = 5.0  # rest after a hash, in times of the hash itself: a sixth of a core per thread at most
MAX_WAITING = 16  # per process, beside those being hashed
_LEET = str.maketrans("@4301!$5782", "aaeoiisstbz")


def normalized(password: str) -> str:
    """Return the one spelling that is hashed. Raises ValueError on characters that no password may hold."""
    for character in password:
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise ValueError("a password holds no control characters")
    return unicodedata.normalize("NFC", password)


@cache
def _common() -> frozenset[str]:
    text = resources.files("inferno.security.data").joinpath("common_passwords.txt").read_text("utf-8")
    return frozenset(text.splitlines())


def is_common(password: str) -> bool:
    """Whether the list of common passwords holds it, or what is left after the usual decorations.

    Case, digits and punctuation at both ends, letter look-alikes and repetition are no help.
    """
    folded = unicodedata.normalize("NFKC", password).casefold()
    if folded in _common():
        return True
    for spelling in {folded, folded.translate(_LEET)}:
        core = spelling.strip("0123456789!@#$%^&*()_-+=.,;:?/\\|~`'\" ")
        if (
            len(core) >= 4
            and (core in _common() or _unit(core) in _common())
            and len(core) * 2 >= len(spelling)
        ):
            return True
    return len(set(_unit(folded))) < 4 or _is_sequence(folded)


def _unit(text: str) -> str:
    """Return the shortest piece that `text` repeats."""
    position = (text + text).find(text, 1)
    return text[:position]


def _is_sequence(text: str) -> bool:
    """Whether code points only ever step by the same one, up or down; digits go round from 9 to 0."""
    pairs = list(pairwise(text))
    if text.isascii() and text.isdigit():
        return len({(int(b) - int(a)) % 10 for a, b in pairs}) == 1
    steps = {ord(b) - ord(a) for a, b in pairs}
    return len(steps) == 1 and abs(steps.pop()) <= 1


def check_new(password: str, *, username: str = "") -> None:
    """Raise ApiError(weak_password) unless `password` may be set. The message never holds it."""

    def refuse(message: str) -> ApiError:
        return ApiError("weak_password", message, param="password")

    if len(password) > MAX_LENGTH:
        raise refuse(f"A password has at most {MAX_LENGTH} characters.")
    try:
        spelling = normalized(password)
    except ValueError:
        raise refuse("A password holds no control characters.") from None
    if len(spelling) < MIN_LENGTH:
        raise refuse(f"A password has at least {MIN_LENGTH} characters.")
    if not spelling.strip():
        raise refuse("A password is not only white space.")
    if is_common(spelling):
        raise refuse("This password is too common.")
    folded = spelling.casefold()
    if len(username) >= 4 and username.casefold() in folded and len(folded) - len(username) < 8:
        raise refuse("A password does not repeat the user name.")


class Hasher:
    """argon2id with one set of parameters; synchronous. Tests pass cheaper ones."""

    def __init__(self, *, memory_kib: int = MEMORY_KIB, passes: int = PASSES, lanes: int = LANES) -> None:
        self._argon = PasswordHasher(
            time_cost=passes,
            memory_cost=memory_kib,
            parallelism=lanes,
            hash_len=32,
            salt_len=16,
            type=Type.ID,
        )
        # Unknown names are checked against this: same parameters, a password nobody knows.
        self.dummy = self._argon.hash(os.urandom(32).hex())

    def hash(self, password: str) -> str:
        return self._argon.hash(normalized(password))

    def verify(self, stored: str, password: str) -> bool:
        """Whether `password` made `stored`. An account without a password has stored ""."""
        try:
            return self._argon.verify(stored or self.dummy, normalized(password)) and bool(stored)
        except (VerificationError, InvalidHashError, ValueError):
            return False

    def needs_rehash(self, stored: str) -> bool:
        return self._argon.check_needs_rehash(stored)


def num_threads() -> int:
    """How many passwords this host hashes at a time."""
    return MAX_THREADS if (os.cpu_count() or 1) > 2 else 1


class HashQueue:
    """Runs a Hasher in threads for asyncio; `lock_fd` is any shared memory file of the host's processes."""

    def __init__(
        self,
        hasher: Hasher,
        *,
        lock_fd: int | None = None,
        max_waiting: int = MAX_WAITING,
        threads: int | None = None,
    ) -> None:
        self.hasher = hasher
        num_slots = threads or num_threads()
        self._max_running = num_slots + max_waiting
        self._num_running = 0
        self._lock_fd = lock_fd
        self._local = threading.local()
        self._slots = iter(range(num_slots))
        self._executor = ThreadPoolExecutor(num_slots, "inferno-password", initializer=self._start_thread)

    async def hash(self, password: str) -> str:
        """Raises ApiError(overloaded) when the queue is full."""
        return str(await self._run("hash", password))

    async def verify(self, stored: str, password: str) -> bool:
        """Raises ApiError(overloaded) when the queue is full."""
        return bool(await self._run("verify", stored, password))

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    async def _run(self, what: str, *arguments: str) -> object:
        if self._num_running >= self._max_running:
            raise ApiError("overloaded", "Too many logins at this moment. Try again.", retry_after=2)
        self._num_running += 1
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[object] = loop.create_future()
        try:
            self._executor.submit(self._work, what, arguments, loop, answer)
            return await answer
        finally:
            self._num_running -= 1

    def _start_thread(self) -> None:
        self._local.slot = next(self._slots)
        self._local.fd = None
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)  # this thread only
            if self._lock_fd is not None:  # a file description of its own: locks belong to descriptions
                self._local.fd = os.open(f"/proc/self/fd/{self._lock_fd}", os.O_RDWR | os.O_CLOEXEC)

    def _work(
        self,
        what: str,
        arguments: tuple[str, ...],
        loop: asyncio.AbstractEventLoop,
        answer: asyncio.Future[object],
    ) -> None:
        fd = self._local.fd
        if fd is not None:  # open-file-description locks go with a dead process
            fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _flock(fcntl.F_WRLCK, self._local.slot))
        began = time.thread_time()
        try:
            result: object = getattr(self.hasher, what)(*arguments)
        except Exception as error:  # the door of this thread: it goes to whoever waits
            result = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(_settle, answer, result)
        time.sleep(REST_FACTOR * (time.thread_time() - began))
        if fd is not None:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, self._local.slot))


def _settle(answer: asyncio.Future[object], result: object) -> None:
    if answer.done():  # nobody waits any more
        return
    if isinstance(result, BaseException):
        answer.set_exception(result)
    else:
        answer.set_result(result)


def _flock(kind: int, position: int) -> bytes:
    """struct flock: type, whence, start, length, pid."""
    return struct.pack("hhqqi", kind, os.SEEK_SET, position, 1, 0)
