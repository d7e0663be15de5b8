"""Reads the audit log: tail, search, and the proof that it is whole. Never writes; works beside a live writer.

Verification reads the exported head first and the files afterwards: a live log is at or beyond its head, a cut one is
behind it. Linear, in chunks, one keyed hash per record. Runs in the supervisor (for the API) and in commands.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

from . import audit_format
from .audit import rotated_files
from .audit_format import HASH_SUFFIX_LENGTH, Chain

INTACT, BROKEN, UNREADABLE = 0, 1, 2  # exit statuses
MAX_LINE_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 22


class Verification(Struct, frozen=True):
    """The verdict. `first_bad` is the sequence number at which the chain breaks."""

    status: int
    records: int
    last_seq: int
    last_hash: str
    first_bad: int | None = None
    file: str | None = None  # name only
    reason: str = ""


class Filter(Struct, frozen=True, forbid_unknown_fields=True):
    """What a search wants; None: anything. Times are RFC 3339 in UTC and compare as text."""

    since: str | None = None
    until: str | None = None
    actor: str | None = None
    event: str | None = None
    result: str | None = None
    ip: str | None = None
    target: str | None = None
    request_id: str | None = None
    text: str | None = None  # stands somewhere in the record, such as a fingerprint

    def accepts(self, values: dict[str, Any], line: bytes) -> bool:
        if self.since is not None and values["time"] < self.since:
            return False
        if self.until is not None and values["time"] >= self.until:
            return False
        for name in ("actor", "event", "result", "ip", "target", "request_id"):
            wanted = getattr(self, name)
            if wanted is not None and values.get(name) != wanted:
                return False
        return self.text is None or self.text.encode("utf-8", "replace") in line


def verify(
    path: Path, key: bytes, head: tuple[int, str] | None, *, anchor: tuple[int, str] | None = None
) -> Verification:
    """Walk the chain over all files. `head`: at least this much must be there; `anchor`: start after this record.

    Status 0 intact, 1 broken, 2 unreadable.
    """
    found = _walk(path, Chain(key), head, anchor)
    for _ in range(3):
        if found.status != BROKEN or not found.reason.startswith("gap"):
            break
        found = _walk(path, Chain(key), head, anchor)  # a rotation came between listing and reading
    return found


def read_head(path: Path, key: bytes) -> tuple[int, str] | None:
    """Return the exported head, or None when it is absent. Raises ValueError when it is not sealed with the key."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    head = audit_format.decode_head(data, Chain(key))
    if head is None:
        raise ValueError("audit.head is not sealed with this audit key")
    return head


def files(path: Path) -> list[Path]:
    """Return all files of the log, oldest first."""
    return [*rotated_files(path), *([path] if path.exists() else [])]


def search(path: Path, wanted: Filter, *, num_rows: int, before: int | None = None) -> list[dict[str, Any]]:
    """Return matching records, newest first, those before sequence number `before`."""
    found: list[dict[str, Any]] = []
    for file in reversed(files(path)):
        hits: list[dict[str, Any]] = []
        for line in _lines(file):
            values = _decode(line)
            if values is None or (before is not None and values["seq"] >= before):
                continue
            if wanted.accepts(values, line):
                hits.append(values)
                if len(hits) > 2 * num_rows:
                    del hits[:num_rows]
        found.extend(reversed(hits))
        if len(found) >= num_rows:
            break
    return found[:num_rows]


def _walk(
    path: Path, chain: Chain, head: tuple[int, str] | None, anchor: tuple[int, str] | None
) -> Verification:
    seq, prev = anchor if anchor is not None else (0, audit_format.FIRST_PREV)
    start = seq
    digest = chain.digest
    head_seq = head[0] if head is not None else -1
    try:
        for file in files(path):
            for line in _lines(file):
                if anchor is not None and seq == start and _seq_of(line) <= start:
                    continue
                reason = ""
                if not line.startswith(b'{"seq":%d,' % (seq + 1)):
                    reason = _why_not_next(line, seq)
                elif line[-149:-140] != b',"prev":"' or line[-76:-66] != b'","hash":"' or line[-2:] != b'"}':
                    reason = "the record's form was changed"
                elif line[-140:-76].decode("ascii", "replace") != prev:
                    reason = "the record does not follow the one before"
                else:
                    value = digest(line[:-HASH_SUFFIX_LENGTH])
                    if value.encode("ascii") != line[-66:-2]:
                        reason = "the record's content does not fit its hash"
                if reason:
                    return Verification(BROKEN, seq - start, seq, prev, seq + 1, file.name, reason)
                seq += 1
                prev = value
                if seq == head_seq and head is not None and head[1] != prev:
                    return Verification(
                        BROKEN, seq - start, seq, prev, seq, file.name, "another log than the head's"
                    )
    except OSError as error:
        return Verification(
            UNREADABLE, seq - start, seq, prev, None, None, f"cannot be read: {type(error).__name__}"
        )
    except ValueError as error:
        return Verification(BROKEN, seq - start, seq, prev, seq + 1, None, str(error))
    if head_seq > seq:
        reason = f"the log ends at {seq}, its head says {head_seq}: the end is missing"
        return Verification(BROKEN, seq - start, seq, prev, seq + 1, None, reason)
    return Verification(INTACT, seq - start, seq, prev)


def _seq_of(line: bytes) -> int:
    number = line.removeprefix(b'{"seq":').split(b",", 1)[0]
    return int(number) if number.isdigit() and len(number) < 19 else 0


def _why_not_next(line: bytes, seq: int) -> str:
    if not line.startswith(b'{"seq":'):
        return "the record's form was changed"
    number = _seq_of(line)
    if number > seq + 1:
        return f"gap: record {number} follows record {seq}"
    return f"record {number} follows record {seq}: repeated, swapped or of an older file"


def _lines(file: Path) -> Iterator[bytes]:
    """Yield whole lines without their newline. What a live writer has not finished is left out."""
    fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb", buffering=0) as stream:
        rest = b""
        while chunk := stream.read(_CHUNK_BYTES):
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            if len(rest) > MAX_LINE_BYTES:
                raise ValueError("a line without end")
            yield from lines


def _decode(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if isinstance(values, dict) and type(values.get("seq")) is int and isinstance(values.get("time"), str):
        return values
    return None
