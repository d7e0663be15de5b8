"""Where an engine's weights come from: a sealed private copy in memory, or the file itself under watch.

`copy`: the bytes go into a memfd that is then sealed against every change, so that what is hashed, verified and loaded
is the same for good; costs the model's size in memory. `direct`: the file is loaded as it is; its stamp (device, inode,
size, times) is compared before verification, after it and after the load, which sees every change except writes through
a mapping that was made before. `auto` copies when the model fits into the memory bound. Runs in the engine, and in
commands that verify.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Literal

from inferno_native.gguf_report import GgufError

from ..modelfile import Stamp, concerns

Mode = Literal["auto", "copy", "direct"]
COPY_CHUNK_BYTES = 16 << 20
_SEALS = 0x1 | 0x2 | 0x4 | 0x8  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE


class ModelSource:
    """Owner of the descriptors that are hashed, verified and loaded: one for each shard, in order."""

    def __init__(self, fds: Sequence[int], mode: Literal["copy", "direct"], notes: Sequence[str]) -> None:
        self.fds = list(fds)
        self.mode = mode
        self.notes = list(notes)  # what stays open, for the log and for doctor
        self._stamps = [Stamp.of(fd) for fd in self.fds]

    def __enter__(self) -> ModelSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def paths(self) -> list[str]:
        """Paths under which this process, and only it, can open the same files again."""
        return [f"/proc/self/fd/{fd}" if sys.platform == "linux" else f"/dev/fd/{fd}" for fd in self.fds]

    @property
    def size_bytes(self) -> int:
        return sum(stamp.size for stamp in self._stamps)

    @property
    def stamps(self) -> tuple[Stamp, ...]:
        return tuple(self._stamps)

    def recheck(self) -> None:
        """Refuse if a file changed since the source was made. Call after the digest, the verification and the load."""
        for index, (fd, stamp) in enumerate(zip(self.fds, self._stamps, strict=True)):
            if Stamp.of(fd) != stamp:
                raise GgufError(
                    "file-changed", None, "the file changed while it was verified or loaded", shard=index
                )

    def close(self) -> None:
        """Close every descriptor; idempotent."""
        while self.fds:
            os.close(self.fds.pop())


def can_seal() -> bool:
    return hasattr(os, "memfd_create") and hasattr(os, "MFD_ALLOW_SEALING")


def make_source(fds: Sequence[int], mode: Mode = "auto", memory_bytes: int | None = None) -> ModelSource:
    """Take over `fds` (regular files, opened by the caller) and make a source of them.

    `memory_bytes` is the most that a copy may take; None takes half of the memory that is free now. With "copy" a model
    that does not fit is refused; with "auto" it is used directly. The descriptors belong to the source afterwards, also
    when this raises.
    """
    owned = list(fds)
    try:
        bound = _free_memory() // 2 if memory_bytes is None else memory_bytes
        size = sum(os.fstat(fd).st_size for fd in owned)
        if mode == "copy" or (mode == "auto" and can_seal() and size <= bound):
            if not can_seal():
                raise GgufError(
                    "out-of-memory", None, "source = copy needs memory files, which this system lacks"
                )
            if size > bound:
                raise GgufError(
                    "out-of-memory",
                    None,
                    f"a private copy needs {size} bytes, {bound} are allowed",
                    wanted=bound,
                    had=size,
                )
            for index, fd in enumerate(owned):
                owned[index] = _sealed_copy(fd, index)
                os.close(fd)
            return ModelSource(owned, "copy", [])
        notes = [note for fd in owned for note in concerns(fd)]
        notes.append("whoever may write to the file can change the model while it runs")
        return ModelSource(owned, "direct", notes)
    except BaseException:
        for fd in owned:
            with contextlib.suppress(OSError):
                os.close(fd)
        raise


def _sealed_copy(fd: int, index: int) -> int:
    """A memory file with the bytes of `fd`, sealed. Refuses a file that changes under the copy."""
    before = Stamp.of(fd)
    copy = os.memfd_create(f"model-{index}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        done = 0
        while done < before.size:
            count = os.sendfile(copy, fd, done, min(COPY_CHUNK_BYTES, before.size - done))
            if count == 0:
                raise GgufError("file-changed", done, shard=index, wanted=before.size, had=done)
            done += count
        if Stamp.of(fd) != before:
            raise GgufError("file-changed", None, "the file changed while it was copied", shard=index)
        fcntl.fcntl(copy, getattr(fcntl, "F_ADD_SEALS", 1033), _SEALS)
    except BaseException:
        os.close(copy)
        raise
    return copy


def _free_memory() -> int:
    """Bytes that can be taken without swapping: the machine's, or the control group's where that is less."""
    free = 1 << 30
    with contextlib.suppress(OSError, ValueError):
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    free = int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError):
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            limit = int(file.read())
        with open("/sys/fs/cgroup/memory.current", encoding="ascii") as file:
            free = min(free, max(limit - int(file.read()), 0))
    return free
