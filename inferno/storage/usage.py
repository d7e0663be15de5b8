"""Usage: requests and model tokens by day, account, key and model, exact across crashes.

The rule: before the last byte of an answer leaves, its line stands in this process's journal (one write to a file, no
sync), so a killed process loses nothing that was answered; a power cut can lose what the disk had not taken yet. In
the background a journal is closed, becomes a batch, and is counted in one transaction together with its id; a batch
that a crash left behind is counted once, by whoever finds it. A journal whose process is gone is told by its lock.

Runs in front workers (write and count) and in the supervisor (count what is left over).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import and_, delete, func, insert, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from . import schema
from .store import Store

_KEEP_BATCH_IDS_SECONDS = 7 * 86400
_log = logging.getLogger("inferno.usage")


class UsageLine(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One finished request, or the sum of several."""

    day: str
    account_id: str
    key_id: str
    model: str
    requests: int
    prompt_tokens: int
    completion_tokens: int


_DECODER = msgspec.json.Decoder(UsageLine)
_KEY = (schema.usage.c.day, schema.usage.c.account_id, schema.usage.c.key_id, schema.usage.c.model)


class UsageJournal:
    """This process's journal in `folder`, and the counting of all closed ones."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._counting = asyncio.Lock()
        self._kept: list[bytes] = []  # lines that the disk refused; tried again with the next
        self._fd: int = -1
        self._path = folder
        self._num_bytes = 0
        self._open()

    def add(self, account_id: str, key_id: str | None, model: str, prompt: int, completion: int, now: float) -> None:
        """Note one finished request. Never raises."""
        day = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d")
        line = msgspec.json.encode(UsageLine(day, account_id, key_id or "", model, 1, prompt, completion)) + b"\n"
        self._kept.append(line)
        self._write()

    async def count(self, store: Store, now: float) -> int:
        """Count this journal and all that are left over; returns how many batches. Raises ApiError."""
        async with self._counting:
            self._rotate()
            self._adopt_orphans()
            num_counted = 0
            for path in sorted(self._folder.glob("batch-*.jsonl")):
                num_counted += await _count_batch(store, path, now)
            return num_counted

    def close(self) -> None:
        """Leave the journal for the next count."""
        self._write()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        # Under another name until it is locked: a journal without a lock is taken for one whose process is gone.
        name = f"{uuid.uuid4().hex}.jsonl"
        new, self._path = self._folder / f"new-{name}", self._folder / f"open-{name}"
        self._fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        os.rename(new, self._path)
        self._num_bytes = 0

    def _write(self) -> None:
        data = b"".join(self._kept)
        if not data or self._fd < 0:
            return
        try:
            written = os.write(self._fd, data)
            if written != len(data):
                os.ftruncate(self._fd, self._num_bytes)
                return
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._num_bytes)
            _log.error("usage cannot be written: %s; kept in memory", type(error).__name__)
            return
        self._num_bytes += written
        self._kept.clear()

    def _rotate(self) -> None:
        self._write()
        if self._num_bytes == 0:
            return
        closed, closed_path = self._fd, self._path
        self._open()
        os.rename(closed_path, _batch_name(closed_path))
        os.close(closed)

    def _adopt_orphans(self) -> None:
        for path in self._folder.glob("open-*.jsonl"):
            if path == self._path:
                continue
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with contextlib.suppress(FileNotFoundError):
                    os.rename(path, _batch_name(path))
            except BlockingIOError:
                pass  # its process lives
            finally:
                os.close(fd)


def _batch_name(path: Path) -> Path:
    return path.with_name(path.name.replace("open-", "batch-", 1))


async def _count_batch(store: Store, path: Path, now: float) -> int:
    """Count a batch exactly once and remove it; 1, or 0 when another process did."""
    try:
        data = await asyncio.to_thread(path.read_bytes)
    except FileNotFoundError:
        return 0
    sums: dict[tuple[str, str, str, str], list[int]] = {}
    for raw in data.split(b"\n"):
        if not raw:
            continue
        try:
            line = _DECODER.decode(raw)
        except msgspec.DecodeError:
            _log.error("a damaged line in a usage journal is left out")
            continue
        total = sums.setdefault((line.day, line.account_id, line.key_id, line.model), [0, 0, 0])
        for i, value in enumerate((line.requests, line.prompt_tokens, line.completion_tokens)):
            total[i] += value
    batch_id = path.stem.removeprefix("batch-")
    async with store.write() as connection:
        known = select(schema.usage_batches.c.id).where(schema.usage_batches.c.id == batch_id)
        is_new = (await connection.execute(known)).first() is None
        if is_new:
            await connection.execute(insert(schema.usage_batches).values(id=batch_id, counted_at=int(now)))
            for place, total in sums.items():
                await _add(connection, place, total)
            old = schema.usage_batches.c.counted_at < int(now) - _KEEP_BATCH_IDS_SECONDS
            await connection.execute(delete(schema.usage_batches).where(old))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    return int(is_new)


async def _add(connection: AsyncConnection, place: tuple[str, str, str, str], total: list[int]) -> None:
    table = schema.usage
    row = dict(zip(("day", "account_id", "key_id", "model"), place, strict=True))
    same = and_(*(table.c[name] == value for name, value in row.items()))
    names = ("requests", "prompt_tokens", "completion_tokens")
    added = {name: table.c[name] + value for name, value in zip(names, total, strict=True)}
    done = await connection.execute(update(table).where(same).values(**added))
    if done.rowcount == 0:
        await connection.execute(insert(table).values(**row, **dict(zip(names, total, strict=True))))


async def report(
    store: Store,
    *,
    account_id: str | None,
    key_id: str | None = None,
    model: str | None = None,
    since: str = "",
    until: str = "9999-99-99",
    after: tuple[str, str, str, str] | None = None,
    num_rows: int = 100,
) -> list[dict[str, Any]]:
    """Return counted usage by day, account, key and model, oldest first; `account_id` None: of all."""
    table = schema.usage
    query = select(table).where(and_(table.c.day >= since, table.c.day <= until))
    for column, wanted in ((table.c.account_id, account_id), (table.c.key_id, key_id), (table.c.model, model)):
        if wanted is not None:
            query = query.where(column == wanted)
    if after is not None:
        query = query.where(tuple_(*_KEY) > tuple_(*after))
    async with store.read() as connection:
        rows = await connection.execute(query.order_by(*_KEY).limit(num_rows))
        return [dict(row) for row in rows.mappings()]


async def totals(store: Store) -> tuple[int, int, int]:
    """Return all requests, prompt and completion tokens ever counted."""
    table = schema.usage
    query = select(*(func.coalesce(func.sum(table.c[name]), 0) for name in ("requests", "prompt_tokens", "completion_tokens")))
    async with store.read() as connection:
        row = (await connection.execute(query)).one()
    return int(row[0]), int(row[1]), int(row[2])
