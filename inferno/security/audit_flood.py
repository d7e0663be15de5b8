"""Keeps floods out of the audit log without losing count. Runs in the audit writer's process.

Failures above 60 a minute from one source block and event (refusals of a known caller: from that caller there) become
one record with the exact count when their minute ends. First uses of a key, which every worker reports on its own, become one record per key, source block and hour,
with the number of uses reported for the hour before. Memory is bounded: past MAX_SOURCES blocks the rest share one.
"""

from __future__ import annotations

import re
from typing import Any

from .audit_format import record

MAX_PER_MINUTE = 60
MAX_SOURCES = 8192
_WINDOW_SECONDS = 60.0
_FLOODING = frozenset(
    ("auth.login", "auth.failure", "limit.exceeded", "input.flagged", "input.blocked", "output.redacted")
)
_COUNT = re.compile(r"count=(\d{1,15})")


class _Window:
    __slots__ = ("actor_type", "num_seen", "started_at")

    def __init__(self, started_at: float, actor_type: str) -> None:
        self.started_at = started_at
        self.actor_type = actor_type
        self.num_seen = 0


class FloodFilter:
    """Decides for each record whether it is written; `due` gives the sums of what was not."""

    def __init__(self) -> None:
        self._windows: dict[tuple[str, str, str], _Window] = {}
        self._uses: dict[tuple[str, str], tuple[int, int]] = {}  # (key, block) → (hour, uses not yet told)

    def passes(self, fields: dict[str, Any], now: float) -> bool:
        event = fields["event"]
        if event == "auth.key":
            return self._first_use(fields, now)
        if event not in _FLOODING or (event == "auth.login" and fields["result"] == "success"):
            return True
        # A known caller's refusals do not drown in a stranger's flood from the same block.
        place = (event, fields["ip"], fields["actor"] if event == "auth.failure" else "")
        window = self._windows.get(place)
        if window is None:
            if len(self._windows) >= MAX_SOURCES:
                place = (event, "*", "")
            window = self._windows.setdefault(place, _Window(now, fields["actor_type"]))
        window.num_seen += 1
        return window.num_seen <= MAX_PER_MINUTE

    def due(self, now: float, *, is_final: bool = False) -> list[dict[str, Any]]:
        """Return one record for each window that ended with failures left out."""
        found = []
        for place, window in list(self._windows.items()):
            if is_final or now >= window.started_at + _WINDOW_SECONDS or now < window.started_at:
                del self._windows[place]
                left_out = window.num_seen - MAX_PER_MINUTE
                if left_out > 0:
                    event, block, actor = place
                    reason = f"aggregated count={left_out} seconds={int(_WINDOW_SECONDS)}"
                    found.append(
                        record(
                            event,
                            result="failure",
                            reason=reason,
                            ip=block,
                            actor=actor,
                            actor_type=window.actor_type,
                        )
                    )
        return found

    def _first_use(self, fields: dict[str, Any], now: float) -> bool:
        place = (fields["target"], fields["ip"])
        hour = int(now // 3600)
        said = _COUNT.search(fields["reason"])
        told = int(said[1]) if said else 0
        last_hour, pending = self._uses.get(place, (-1, 0))
        if last_hour == hour:
            self._uses[place] = (hour, pending + told)
            return False
        if len(self._uses) >= MAX_SOURCES and place not in self._uses:
            self._uses.pop(next(iter(self._uses)))
        fields["reason"] = f"first_use count={pending + told}"
        self._uses[place] = (hour, 0)
        return True
