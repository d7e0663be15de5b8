"""Opening model files without being led astray, and telling whether one changed.

Owns the rules for descriptors: never through a link at the end of a path, never blocking on a pipe, regular files only;
files of the models folder are opened below that folder. Knows nothing of what is inside. Used by commands, by the
catalog and by engines.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from inferno_native.gguf_report import REASONS, GgufError

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_SEARCH = getattr(os, "O_PATH", os.O_RDONLY)  # a folder that may be passed through need not be readable
_FOLDER_FLAGS = _SEARCH | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECTORY
MAX_FOUND = 1000
MAX_DEPTH = 3


class Stamp(NamedTuple):
    """What changes when a file is replaced, written or truncated: the key of cached verdicts, never the path."""

    dev: int
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, fd: int) -> Stamp:
        info = os.fstat(fd)
        return cls(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)

    @classmethod
    def at(cls, path: str) -> Stamp | None:
        """The stamp of what lies there now, links not followed; None where nothing can be seen."""
        try:
            info = os.lstat(path)
        except OSError:
            return None
        return cls(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)

    def text(self) -> str:
        return "-".join(str(number) for number in self)


def _regular(fd: int) -> int:
    """Keep fd if it is a regular file, else close it and refuse."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise GgufError("not-a-regular-file")
    return fd


def _translate(error: OSError) -> GgufError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
        return GgufError("file-not-found")
    if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV, errno.EMLINK):
        return GgufError("not-a-regular-file")
    return GgufError("file-not-found", None, f"the file cannot be opened: {error.strerror}")


def open_model(path: str | os.PathLike[str]) -> int:
    """A descriptor of the regular file at `path`, links resolved first (a cache of links is fine). Raises GgufError."""
    try:
        real = os.path.realpath(path, strict=True)
        return _regular(os.open(real, _FLAGS))
    except OSError as error:
        raise _translate(error) from None
    except ValueError:
        raise GgufError(
            "file-not-found", None, f"{REASONS['file-not-found']}: a path with a zero byte"
        ) from None


def open_real(path: str | os.PathLike[str]) -> int:
    """A descriptor of the regular file at an absolute path in which nothing is a link. Raises GgufError.

    Engines open this way what the catalog resolved: whoever puts a link there meanwhile gets a refusal.
    """
    text = os.fspath(path)
    if not os.path.isabs(text):
        raise GgufError("file-not-found", None, "not an absolute path")
    return open_below("/", text.lstrip("/"))


def open_below(folder: str | os.PathLike[str], relative: str) -> int:
    """A descriptor of a regular file below `folder`, no link followed on the way. Raises GgufError."""
    parts = relative.split("/")
    if not parts or any(part in ("", ".", "..") for part in parts):
        raise GgufError("file-not-found")
    try:
        at = os.open(folder, _SEARCH | os.O_CLOEXEC | os.O_DIRECTORY)
        try:
            for part in parts[:-1]:
                below = os.open(part, _FOLDER_FLAGS, dir_fd=at)
                os.close(at)
                at = below
            return _regular(os.open(parts[-1], _FLAGS, dir_fd=at))
        finally:
            os.close(at)
    except OSError as error:
        raise _translate(error) from None
    except ValueError:
        raise GgufError("file-not-found") from None


def find_models(folder: str | os.PathLike[str]) -> Iterator[str]:
    """Relative paths of the .gguf files below `folder`, sorted; links that lead out of it are left out."""
    root = os.path.realpath(folder)
    found: list[str] = []
    for at, folders, files in os.walk(root):
        depth = Path(at).relative_to(root).parts
        folders[:] = (
            sorted(name for name in folders if not name.startswith(".")) if len(depth) < MAX_DEPTH else []
        )
        for name in files:
            if not name.endswith(".gguf") or name.startswith("."):
                continue
            path = os.path.join(at, name)
            real = os.path.realpath(path)
            if real != path and os.path.commonpath([real, root]) != root:
                continue
            found.append(os.path.relpath(path, root))
            if len(found) >= MAX_FOUND:
                break
    yield from sorted(found)


def concerns(fd: int) -> list[str]:
    """Why others than this user could change the file while it is in use; empty if nobody but root can."""
    info = os.fstat(fd)
    found = []
    if info.st_uid not in (os.geteuid(), 0):
        found.append("the file belongs to another user")
    if info.st_mode & stat.S_IWOTH:
        found.append("anyone may write to the file")
    if info.st_mode & stat.S_IWGRP:
        found.append("the file's group may write to it")
    if info.st_nlink > 1:
        found.append("the file has another name (hard link)")
    return found
