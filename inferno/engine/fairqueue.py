"""Which waiting request gets the next free slot: deficit round robin between principals, priority then age inside one.

Each principal in turn may spend tokens; what a turn did not spend stays as its deficit for the next. A principal with
64 waiting requests and one with a single request therefore alternate by cost, not by count. Bounded per principal and
in total, in requests and in the bytes that they hold; an empty queue takes a request whatever its size, for it may go
to a free slot at once. Knows nothing of slots or time. Step loop thread only.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
TURN_TOKENS = 512  # what one turn adds to a principal of weight 1
_MIN_WEIGHT = 0.01


class QueueFull(Exception):
    """`scope` says whose share is full: "principal" or "total"."""

    def __init__(self, scope: str, limit: int) -> None:
        super().__init__(scope)
        self.scope = scope
        self.limit = limit


@dataclass(order=True, slots=True)
class _Entry(Generic[Item]):
    order: tuple[int, int]  # (-priority, arrival)
    cost: int = field(compare=False)
    size_bytes: int = field(compare=False)
    item: Item | None = field(compare=False)


@dataclass(slots=True)
class _Share(Generic[Item]):
    weight: float = 1.0
    deficit: float = 0.0
    heap: list[_Entry[Item]] = field(default_factory=list)
    num_waiting: int = 0
    size_bytes: int = 0


class FairQueue(Generic[Item]):
    def __init__(self, max_total: int, max_per_principal: int, *, place_bytes: int = 0) -> None:
        """`place_bytes`: what each of the places may hold on average; 0: sizes do not count."""
        self._max_total = max_total
        self._max_per_principal = max_per_principal
        self._place_bytes = place_bytes
        self.size_bytes = 0
        self._shares: dict[bytes, _Share[Item]] = {}
        self._ring: deque[bytes] = deque()
        self._entries: dict[int, tuple[bytes, _Entry[Item]]] = {}
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._entries)

    def push(
        self,
        item: Item,
        principal: bytes,
        *,
        cost: int,
        size_bytes: int = 0,
        weight: float = 1.0,
        priority: int = 0,
    ) -> None:
        """Add an item that costs `cost` tokens. Raises QueueFull."""
        share = self._shares.get(principal)
        if share is not None and (
            share.num_waiting >= self._max_per_principal
            or self._is_too_much(share.size_bytes + size_bytes, self._max_per_principal)
        ):
            raise QueueFull("principal", self._max_per_principal)
        if len(self._entries) >= self._max_total or (
            self._entries and self._is_too_much(self.size_bytes + size_bytes, self._max_total)
        ):
            raise QueueFull("total", self._max_total)
        if share is None:
            share = self._shares[principal] = _Share()
            self._ring.append(principal)
        share.weight = max(weight, _MIN_WEIGHT)
        self._arrivals += 1
        entry = _Entry((-priority, self._arrivals), max(cost, 1), size_bytes, item)
        heapq.heappush(share.heap, entry)
        share.num_waiting += 1
        share.size_bytes += size_bytes
        self.size_bytes += size_bytes
        self._entries[id(item)] = (principal, entry)

    def pop(self) -> Item | None:
        """Take the item whose turn it is, or None."""
        if not self._ring:
            return None
        heads = [(principal, self._shares[principal], self._head(principal)) for principal in self._ring]
        if not any(share.deficit >= head.cost for _, share, head in heads):
            # Nobody can pay: as many whole rounds pass as the cheapest needs.
            rounds = min(
                math.ceil((head.cost - share.deficit) / (TURN_TOKENS * share.weight))
                for _, share, head in heads
            )
            for _, share, _ in heads:
                share.deficit += rounds * TURN_TOKENS * share.weight
        for turns, (principal, share, head) in enumerate(heads):
            if share.deficit >= head.cost:
                self._ring.rotate(-turns)
                heapq.heappop(share.heap)
                share.deficit -= head.cost
                item = head.item
                if item is None:
                    raise SystemError("a removed item won a turn")
                self._forget(principal, share, item)
                if principal in self._shares and share.deficit < self._head(principal).cost:
                    self._ring.rotate(-1)  # its turn is spent
                return item
        raise SystemError("a turn without a winner")

    def remove(self, item: Item) -> bool:
        """Take an item out, wherever it waits. Says whether it was there."""
        found = self._entries.get(id(item))
        if found is None:
            return False
        principal, entry = found
        entry.item = None  # its heap drops it when it comes up
        self._forget(principal, self._shares[principal], item)
        return True

    def items(self) -> list[Item]:
        return [entry.item for _, entry in self._entries.values() if entry.item is not None]

    def _head(self, principal: bytes) -> _Entry[Item]:
        heap = self._shares[principal].heap
        while heap[0].item is None:
            heapq.heappop(heap)
        return heap[0]

    def _is_too_much(self, size_bytes: int, places: int) -> bool:
        return self._place_bytes > 0 and size_bytes > places * self._place_bytes

    def _forget(self, principal: bytes, share: _Share[Item], item: Item) -> None:
        _, entry = self._entries.pop(id(item))
        self.size_bytes -= entry.size_bytes
        share.size_bytes -= entry.size_bytes
        share.num_waiting -= 1
        if share.num_waiting == 0:
            del self._shares[principal]
            self._ring.remove(principal)
