"""Passwords: the rules for a new one, argon2id, and the short queue before it.

Unicode rule: a password is normalized to NFC when it is set and when it is checked; nothing else changes it, nothing
is cut off, and any control character (C0, C1, DEL) or lone surrogate is refused. Length is 12 to 1024 code points.

Hashing takes tens of milliseconds and 19 MiB on purpose, so it runs in two threads of low priority, and a thread
first takes one of two byte locks in shared memory: over all workers of a host at most two passwords are hashed at a
time. What finds the queue full is refused (503). Runs in front workers, the supervisor and commands.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import sys
import threading
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
NUM_THREADS = 2
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


class HashQueue:
    """Runs a Hasher in two threads for asyncio; `lock_fd` is any shared memory file of the host's processes."""

    def __init__(self, hasher: Hasher, *, lock_fd: int | None = None, max_waiting: int = MAX_WAITING) -> None:
        self.hasher = hasher
        self._max_running = NUM_THREADS + max_waiting
        self._num_running = 0
        self._lock_fd = lock_fd
        self._threads = threading.local()
        self._slots = iter(range(NUM_THREADS))
        self._executor = ThreadPoolExecutor(NUM_THREADS, "inferno-password", initializer=self._start_thread)

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
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._executor, self._work, what, arguments
            )
        finally:
            self._num_running -= 1

    def _start_thread(self) -> None:
        self._threads.slot = next(self._slots)
        self._threads.fd = None
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 12)  # this thread only
            if self._lock_fd is not None:  # a file description of its own: locks belong to descriptions
                self._threads.fd = os.open(f"/proc/self/fd/{self._lock_fd}", os.O_RDWR | os.O_CLOEXEC)

    def _work(self, what: str, arguments: tuple[str, ...]) -> object:
        fd = self._threads.fd
        if fd is None:
            return getattr(self.hasher, what)(*arguments)
        # struct flock: type, whence, start, length, pid. Open-file-description locks go with a dead process.
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _flock(fcntl.F_WRLCK, self._threads.slot))
        try:
            return getattr(self.hasher, what)(*arguments)
        finally:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, self._threads.slot))


def _flock(kind: int, position: int) -> bytes:
    return struct.pack("hhqqi", kind, os.SEEK_SET, position, 1, 0)
