"""Prompt prefixes that need not be computed again: one store in host memory for all slots.

An entry is the state of a sequence at a chunk boundary, made by prefill alone, with the exact tokens behind it. Keys are
(partition, hash of the tokens up to a boundary); a hit also compares the tokens themselves. A partition is a principal's
tag and its cache salt, or the operator's public one; nothing else crosses principals. Bounded in bytes, least recently
used first; the public ones were computed at load and stay. Where the memory can be cut (plain attention) any boundary inside of an entry serves; otherwise only its end.

Of entries that begin alike, the smallest serves what they share: less to copy. Knows nothing of llama.cpp: states are opaque bytes. Step loop thread; `clear` and the gauges from any.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import xxhash
from inferno_native.batching import next_boundary

Partition = tuple[bytes, bytes]  # principal tag, cache salt
_MUCH_SMALLER = 4  # times: such an entry stays beside the one that contains it
PUBLIC: Partition = (b"", b"public")


class Hit(NamedTuple):
    num_tokens: int
    state: bytes


@dataclass(slots=True, eq=False)
class _Entry:
    partition: Partition
    tokens: array[int]
    state: bytes
    keys: list[bytes]  # one for each boundary
    size_bytes: int


class PrefixStore:
    def __init__(self, max_bytes: int, quantum: int, *, only_whole: bool = False) -> None:
        self._max_bytes = max_bytes
        self._quantum = quantum
        self._boundaries = [next_boundary(0, quantum)]
        self.only_whole = only_whole
        self._entries: OrderedDict[int, _Entry] = OrderedDict()  # by id, least recently used first
        self._by_key: dict[tuple[Partition, bytes], _Entry] = {}
        self._lock = threading.Lock()
        self.size_bytes = 0
        self.hit_tokens = 0
        self.miss_tokens = 0

    @property
    def num_entries(self) -> int:
        return len(self._entries)

    @property
    def is_on(self) -> bool:
        return self._max_bytes > 0

    def boundaries(self, limit: int) -> list[int]:
        """Return the chunk boundaries up to `limit`, ascending, without 0."""
        known = self._boundaries
        while known[-1] <= limit:
            known.append(next_boundary(known[-1], self._quantum))
        return known[: bisect_right(known, limit)]

    def find(self, partition: Partition, tokens: array[int], limit: int) -> Hit | None:
        """Return the longest stored prefix of `tokens` with at most `limit` of them, or None."""
        if not self.is_on or limit < self._boundaries[0]:
            return None
        keys = self._keys(tokens, limit)
        with self._lock:
            for count in range(len(keys), 0, -1):
                length = self._boundaries[count - 1]
                for place in (partition, PUBLIC):
                    entry = self._by_key.get((place, keys[count - 1]))
                    if (
                        entry is not None
                        and (not self.only_whole or len(entry.tokens) == length)
                        and entry.tokens[:length] == tokens[:length]
                    ):
                        self._entries.move_to_end(id(entry))
                        return Hit(length, entry.state)
        return None

    def add(self, partition: Partition, tokens: array[int], state: bytes) -> bool:
        """Store a state that holds exactly `tokens`, whose number is a chunk boundary."""
        if len(tokens) not in self.boundaries(len(tokens)):
            raise ValueError(f"{len(tokens)} tokens do not end at a chunk boundary")
        size = len(state) + len(tokens) * tokens.itemsize + 512
        if size > self._max_bytes:
            return False
        keys = self._keys(tokens, len(tokens))
        entry = _Entry(partition, tokens, state, keys, size)
        with self._lock:
            if not self.only_whole:
                for key in keys:  # an entry that this one contains is not needed any more
                    old = self._by_key.get((partition, key))
                    if old is not None and old.keys[-1] == key and old.size_bytes * _MUCH_SMALLER > size:
                        self._drop(old)
            else:
                old = self._by_key.get((partition, keys[-1]))
                if old is not None and len(old.tokens) == len(tokens):
                    self._drop(old)
            if not self._make_room(size):
                return False
            self._entries[id(entry)] = entry
            self.size_bytes += size
            for key in keys if not self.only_whole else keys[-1:]:
                known = self._by_key.get((partition, key))
                if known is None or known.size_bytes > size:
                    self._by_key[(partition, key)] = entry
        return True

    def clear(self, principal: bytes | None = None) -> int:
        """Forget one principal's prefixes, or all but the public ones. Returns how many entries went."""
        with self._lock:
            gone = [
                entry
                for entry in self._entries.values()
                if entry.partition != PUBLIC and (principal is None or entry.partition[0] == principal)
            ]
            for entry in gone:
                self._drop(entry)
        return len(gone)

    def _make_room(self, size: int) -> bool:
        """Drop what was used least recently, never the operator's; says whether `size` more bytes fit now."""
        excess = self.size_bytes + size - self._max_bytes
        leaving = []
        for entry in self._entries.values():
            if excess <= 0:
                break
            if entry.partition != PUBLIC:
                leaving.append(entry)
                excess -= entry.size_bytes
        if excess > 0:
            return False
        for entry in leaving:
            self._drop(entry)
        return True

    def _drop(self, entry: _Entry) -> None:
        del self._entries[id(entry)]
        self.size_bytes -= entry.size_bytes
        for key in entry.keys:
            if self._by_key.get((entry.partition, key)) is entry:
                del self._by_key[(entry.partition, key)]

    def _keys(self, tokens: array[int], limit: int) -> list[bytes]:
        """Return the running hash at each boundary up to `limit`."""
        running = xxhash.xxh3_128()
        found = []
        with memoryview(tokens) as view:
            start = 0
            for end in self.boundaries(min(limit, len(tokens))):
                running.update(view[start:end])
                found.append(running.digest())
                start = end
        return found
