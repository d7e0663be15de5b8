"""When a child that ended may be started again. Pure: time is told to it."""

from __future__ import annotations


class Backoff:
    """The first restart is immediate; each further one waits twice as long, until a child lived long enough."""

    def __init__(self, first: float, longest: float, stable_after: float) -> None:
        self._first = first
        self._longest = longest
        self._stable_after = stable_after
        self.num_restarts = 0  # in this row

    def next_delay(self, lived_seconds: float) -> float:
        """Return the seconds to wait after a child that lived `lived_seconds`."""
        if lived_seconds >= self._stable_after:
            self.num_restarts = 0
        self.num_restarts += 1
        if self.num_restarts == 1:
            return 0.0
        return min(self._longest, float(self._first * 2.0 ** min(self.num_restarts - 2, 32)))
