"""Digests of model files, taken through the descriptor that is loaded.

SHA-256 decides whether a file is the one that was added. xxh3 only tells whether a disk changed bits: whoever wants to
fool it can. Knows nothing of models. Used by commands, the catalog and engines.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import xxhash

CHUNK_BYTES = 128 << 10  # stays in the second-level cache between read and hash
PROGRESS_BYTES = 64 << 20
MAX_SUM_FILE_BYTES = 1 << 20
_LINE = re.compile(r"^\\?([0-9a-fA-F]{64}) [ *](.+)$")

Progress = Callable[[int, int], None]


class _Hash(Protocol):
    def update(self, data: memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


class FileShrank(OSError):
    """The file became shorter while it was read."""


class FileDigests(NamedTuple):
    """Both digests of one file, in hex. Only the first is proof against anyone."""

    sha256: str
    xxh3_128: str


def _run(states: Sequence[_Hash], fd: int, progress: Progress | None) -> None:
    size = os.fstat(fd).st_size
    buffer = bytearray(CHUNK_BYTES)
    view = memoryview(buffer)
    done = 0
    told = 0
    while done < size:
        count = os.preadv(fd, [view[: min(CHUNK_BYTES, size - done)]], done)
        if count == 0:
            raise FileShrank(f"the file became shorter while it was read: {done} of {size} bytes")
        for state in states:
            state.update(view[:count])
        done += count
        if progress is not None and done - told >= PROGRESS_BYTES:
            told = done
            progress(done, size)
    if progress is not None:
        progress(size, size)


def digests_fd(fd: int, progress: Progress | None = None) -> FileDigests:
    """Both digests of the whole file, read once; `progress(done, size)` is called every 64 MiB and at the end."""
    sha256, xxh3 = hashlib.sha256(), xxhash.xxh3_128()
    _run((sha256, xxh3), fd, progress)
    return FileDigests(sha256.hexdigest(), xxh3.hexdigest())


def sha256_fd(fd: int, progress: Progress | None = None) -> str:
    """SHA-256 of the whole file, in hex; `progress` as in `digests_fd`."""
    state = hashlib.sha256()
    _run((state,), fd, progress)
    return state.hexdigest()


def corruption_check_fd(fd: int, progress: Progress | None = None) -> str:
    """xxh3_128 of the whole file, in hex: corruption check only, no proof against anyone."""
    state = xxhash.xxh3_128()
    _run((state,), fd, progress)
    return state.hexdigest()


def sum_file_digest(path: Path) -> str | None:
    """The digest that a `sha256sum` file beside the model gives for it, None without such a file.

    Looked at: `<name>.sha256`, `<name>.sha256sum`, `SHA256SUMS`, `sha256sums.txt`. A file of one bare digest counts for
    the first two.
    """
    for name in (f"{path.name}.sha256", f"{path.name}.sha256sum", "SHA256SUMS", "sha256sums.txt"):
        digest = _read_sums(path.parent / name, path.name, alone=name.startswith(path.name))
        if digest is not None:
            return digest
    return None


def _read_sums(sums: Path, wanted: str, *, alone: bool) -> str | None:
    try:
        fd = os.open(sums, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as file:
        try:
            text = file.read(MAX_SUM_FILE_BYTES).decode("utf-8", "replace")
        except OSError:
            return None
    if alone and re.fullmatch(r"[0-9a-fA-F]{64}", text.strip()):
        return text.strip().lower()
    for line in text.splitlines():
        match = _LINE.match(line)
        if match and os.path.basename(match[2].strip()) == wanted:
            return match[1].lower()
    return None
