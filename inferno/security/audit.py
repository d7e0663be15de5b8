"""The audit log's one writer, in the supervisor (or in a command that holds the writer's lock).

AuditWriter owns the files: append only, 0600 in a 0700 directory, no links, one write per group, then fsync, then the
exported head (outside of the log's directory). A head is written only after fsync: after a power cut the log may be
ahead of the head, never behind it, so a log that is behind was cut. AuditLog puts group commit, flood aggregation and
the count of what could not be written on top, for asyncio.

Does not know who may read the log, nor what the events mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..errors import ApiError, StartError
from . import audit_format
from .audit_flood import FloodFilter
from .audit_format import Chain, record

MAX_FILE_BYTES = 64 << 20
MIN_FREE_BYTES = 64 << 10  # what a try of the disk, without a record to write, wants to find
_TAIL_BYTES = 1 << 16
_log = logging.getLogger("inferno.audit")


class AuditFailed(OSError):
    """The log cannot be written now."""


def rotated_files(path: Path) -> list[Path]:
    """Return the closed files of the log at `path`, oldest first."""
    prefix = f"{path.stem}-"
    found = [
        entry
        for entry in path.parent.glob(f"{prefix}*{path.suffix}")
        if entry.stem.removeprefix(prefix).isdigit()
    ]
    return sorted(found, key=lambda entry: int(entry.stem.removeprefix(prefix)))


class AuditWriter:
    """The files. Synchronous, for one thread at a time; `open` recovers where the log ended."""

    def __init__(
        self,
        path: Path,
        head_path: Path,
        key: bytes,
        *,
        max_file_bytes: int = MAX_FILE_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._head_path = head_path
        self._chain = Chain(key)
        self._max_file_bytes = max_file_bytes
        self._clock = clock
        self._fd = -1
        self._head_fd = -1
        self._size = 0  # bytes of whole records in the current file
        self._first_seq = 1  # of the current file
        self._is_dirty = False  # bytes beyond _size may stand in the file
        self.seq = 0
        self.last_hash = audit_format.FIRST_PREV

    @property
    def is_open(self) -> bool:
        return self._fd >= 0

    def open(self) -> None:
        """Open or make the log. Raises StartError when it is unsafe, broken, or shorter than its head."""
        _private_directory(self._path.parent)
        head = self._read_head()
        last = self._last_record(self._path) if self._path.exists() or self._path.is_symlink() else None
        removed = 0
        if last is None:
            for closed in reversed(rotated_files(self._path)):
                last = self._last_record(closed)
                break
        if last is not None:
            self.seq, self.last_hash = last
        if head is not None and (head[0] > self.seq or (head[0] == self.seq and head[1] != self.last_hash)):
            raise StartError(
                f"the audit log ends at record {self.seq}, but its head says {head[0]}: it was cut or replaced. "
                "Run `inferno audit verify`; to start anew, move the log's folder and audit.head away together"
            )
        self._fd = _open_private(self._path, os.O_RDWR | os.O_APPEND)
        try:
            removed = self._cut_partial_record()
            self._head_fd = _open_private(self._head_path, os.O_RDWR)
            self._first_seq = self._seq_of_first_record()
            os.fsync(self._fd)
            _sync_directory(self._path.parent)
            if removed:
                reason = f"partial_record bytes={removed}"
                self.commit([record("audit.gap", result="error", actor_type="server", reason=reason)])
            else:
                self._export_head()
        except BaseException:
            self.close()
            raise

    def commit(self, records: Iterable[dict[str, Any]]) -> None:
        """Append records with one write, sync, export the head. All or none stay. Raises AuditFailed."""
        if self._fd < 0:
            raise AuditFailed("the audit log is not open")
        now = self._clock()
        before = (self.seq, self.last_hash, self._size)
        lines = []
        for fields in records:
            line, self.last_hash = audit_format.encode(fields, self.seq + 1, now, self.last_hash, self._chain)
            self.seq += 1
            lines.append(line)
        data = b"".join(lines)
        try:
            if self._is_dirty:
                os.ftruncate(self._fd, self._size)
            if os.fstat(self._fd).st_nlink == 0:
                raise AuditFailed("the audit log was deleted")
            if not data and _free_bytes(self._fd) < MIN_FREE_BYTES:
                raise AuditFailed("the disk of the audit log is full")
            self._is_dirty = True
            written = os.write(self._fd, data) if data else 0
            if written != len(data):
                raise AuditFailed(f"{written} of {len(data)} bytes were written")
            os.fsync(self._fd)
            self._size += len(data)
            self._export_head()
        except OSError as error:
            self.seq, self.last_hash, self._size = before
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
                self._is_dirty = False
            raise AuditFailed(
                f"the audit log cannot be written: {type(error).__name__} {error.errno}"
            ) from None
        self._is_dirty = False
        if self._size >= self._max_file_bytes:
            try:
                self._rotate()
            except (OSError, StartError) as error:  # the records are safe; the next commit tries again
                _log.error("the audit log cannot be rotated: %s", type(error).__name__)

    def close(self) -> None:
        """Sync and close; idempotent."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.fsync(self._fd)
                if self._head_fd >= 0:
                    self._export_head()
            os.close(self._fd)
            self._fd = -1
        if self._head_fd >= 0:
            os.close(self._head_fd)
            self._head_fd = -1

    # ------------------------------------------------------------ inside

    def _rotate(self) -> None:
        target = self._path.with_name(f"{self._path.stem}-{self._first_seq:012d}{self._path.suffix}")
        if target.exists():
            raise AuditFailed("the rotated file's name is taken")
        os.rename(self._path, target)
        fresh = _open_private(self._path, os.O_RDWR | os.O_APPEND)
        os.close(self._fd)
        self._fd, self._size, self._first_seq = fresh, 0, self.seq + 1
        _sync_directory(self._path.parent)
        _log.info("audit log rotated at record %d, head %s", self.seq, self.last_hash)

    def _export_head(self) -> None:
        if self.seq:
            data = audit_format.encode_head(self.seq, self.last_hash, self._clock(), self._chain)
            os.pwrite(self._head_fd, data.ljust(256), 0)

    def _read_head(self) -> tuple[int, str] | None:
        try:
            with open(os.open(self._head_path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
                data = file.read(1024)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StartError(f"audit.head cannot be read: {type(error).__name__}") from None
        head = audit_format.decode_head(data, self._chain) if data.strip() else None
        if head is None and data.strip():
            raise StartError("audit.head is not sealed with this server's audit key")
        return head

    def _last_record(self, path: Path) -> tuple[int, str] | None:
        """Return (seq, hash) of the last whole line, checked with the key."""
        fd = _open_private(path, os.O_RDONLY)
        try:
            size = os.fstat(fd).st_size
            data = os.pread(fd, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        finally:
            os.close(fd)
        lines = data.split(b"\n")[:-1]
        if not lines:
            return None
        line = lines[-1]
        body, digest = line[: -audit_format.HASH_SUFFIX_LENGTH], line[-66:-2].decode("ascii", "replace")
        number = body.removeprefix(b'{"seq":').split(b",", 1)[0]
        if self._chain.digest(body) != digest or not number.isdigit():
            raise StartError(
                "the audit log's last record is not ours or was changed. Run `inferno audit verify`"
            )
        return int(number), digest

    def _cut_partial_record(self) -> int:
        """Remove what a crash left after the last newline; return its length."""
        size = os.fstat(self._fd).st_size
        data = os.pread(self._fd, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        partial = len(data) - (data.rfind(b"\n") + 1)
        if partial:
            os.ftruncate(self._fd, size - partial)
        self._size = size - partial
        return partial

    def _seq_of_first_record(self) -> int:
        if self._size == 0:
            return self.seq + 1
        number = os.pread(self._fd, 40, 0).removeprefix(b'{"seq":').split(b",", 1)[0]
        if not number.isdigit():
            raise StartError("the audit log's first record was changed. Run `inferno audit verify`")
        return int(number)


class AuditLog:
    """Group commit over an AuditWriter: callers of one moment share one write and one fsync, in a thread."""

    def __init__(self, writer: AuditWriter, *, clock: Callable[[], float] = time.time) -> None:
        self._writer = writer
        self._clock = clock
        self._flood = FloodFilter()
        self._waiting: list[tuple[list[dict[str, Any]], asyncio.Future[None] | None]] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._owed: list[dict[str, Any]] = []  # sums of floods that could not be written yet
        self._lost = 0
        self._lost_since = 0.0
        self._is_closing = False
        self.is_failing = False
        self.on_failing: Callable[[bool], None] | None = None  # told when that changes

    def start(self) -> None:
        """Open the files, unless they are, and begin to write. Raises StartError."""
        if not self._writer.is_open:
            self._writer.open()
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def append(self, records: list[dict[str, Any]], *, durable: bool) -> None:
        """Add records in order; with `durable`, return after fsync. An empty durable list tries the disk.

        Raises ValueError for a malformed record and, when durable, ApiError(audit_unavailable).
        """
        for fields in records:
            audit_format.check(fields)
        if self._task is None or self._is_closing:
            raise unavailable()
        done = asyncio.get_running_loop().create_future() if durable else None
        self._waiting.append((records, done))
        self._wake.set()
        if done is not None:
            await done

    def note(self, fields: dict[str, Any]) -> None:
        """Add one record without waiting; what cannot be written is counted and told later by audit.gap."""
        audit_format.check(fields)
        if not self._is_closing:
            self._waiting.append(([fields], None))
            self._wake.set()

    async def close(self) -> None:
        """Write what waits, with the counts of floods, and close the files."""
        self._is_closing = True
        self._wake.set()
        if self._task is not None:
            await self._task
            self._task = None
        self._writer.close()

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), 1.0)
            self._wake.clear()
            group, self._waiting = self._waiting, []
            await self._commit(group)
            if self._is_closing and not self._waiting:
                return

    def _failing(self, is_failing: bool) -> None:
        has_changed = is_failing != self.is_failing
        self.is_failing = is_failing
        if has_changed and self.on_failing is not None:
            self.on_failing(is_failing)

    async def _commit(self, group: list[tuple[list[dict[str, Any]], asyncio.Future[None] | None]]) -> None:
        now = self._clock()
        self._owed += self._flood.due(now)
        lines = list(self._owed)
        num_notes = 0  # records that nobody waits for: lost when the disk refuses them
        for records, done in group:
            passed = [fields for fields in records if self._flood.passes(fields, now)]
            lines += passed
            num_notes += len(passed) if done is None else 0
        if self._is_closing:
            lines += self._flood.due(now, is_final=True)
        futures = [done for _, done in group if done is not None and not done.done()]
        if not lines and not futures and not self._lost:
            return
        if self._lost:
            reason = f"count={self._lost} since={audit_format.timestamp(self._lost_since)}"
            lines.insert(0, record("audit.gap", result="error", actor_type="server", reason=reason))
        try:
            await asyncio.to_thread(self._writer.commit, lines)
        except AuditFailed as error:
            if not self.is_failing:
                _log.error("%s", error)
            self._failing(True)
            if num_notes and not self._lost:
                self._lost_since = now
            self._lost += num_notes
            for done in futures:
                if not done.done():  # who waited may have gone meanwhile
                    done.set_exception(unavailable())
            return
        self._failing(False)
        self._lost = 0
        self._owed.clear()
        for done in futures:
            if not done.done():
                done.set_result(None)


def unavailable() -> ApiError:
    return ApiError(
        "audit_unavailable", "The audit log cannot be written; nothing was changed.", retry_after=5
    )


# ---------------------------------------------------------------- file safety


def _private_directory(path: Path) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise StartError(f"the audit log's folder cannot be made: {type(error).__name__}") from None
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise StartError("the audit log's folder is a link or no folder")
    if found.st_mode & 0o077 or found.st_uid != os.geteuid():
        raise StartError("the audit log's folder must be 0700 and belong to the server's user (chmod 700)")


def _open_private(path: Path, flags: int) -> int:
    """Open a regular file of ours, 0600, without following a link; made when it is absent and written to."""
    if flags & os.O_RDWR:
        flags |= os.O_CREAT
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    except OSError as error:
        raise StartError(
            f"the audit log cannot be opened without following links: {type(error).__name__}"
        ) from None
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_uid != os.geteuid():
        os.close(fd)
        raise StartError("the audit log must be a regular file of the server's user, with one name")
    if found.st_mode & 0o077:
        os.close(fd)
        raise StartError("the audit log can be read by others: make it 0600 (chmod 600)")
    return fd


def _free_bytes(fd: int) -> int:
    found = os.fstatvfs(fd)
    return found.f_bavail * found.f_frsize


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
