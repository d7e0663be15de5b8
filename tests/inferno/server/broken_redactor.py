"""A front worker whose redactors fail in the middle: `python tests/inferno/server/broken_redactor.py FD`."""

from __future__ import annotations

import runpy
import sys

from inferno_native.redactor import Redactor, RedactorError

from inferno.server.redactors import NativeRedactors

GOOD_FEEDS = 1


class Failing:
    """Works for a few pieces, then fails as the native one does: with RedactorError."""

    def __init__(self) -> None:
        self._real = Redactor()
        self._num_feeds = 0
        self.counts: dict[str, int] = {}
        self.spans: list[tuple[int, int, str]] = []

    @property
    def decided(self) -> int:
        return self._real.decided

    def feed(self, text: str) -> str:
        self._num_feeds += 1
        if self._num_feeds > GOOD_FEEDS:
            raise RedactorError("broken on purpose")
        return self._real.feed(text)

    def finish(self) -> str:
        raise RedactorError("broken on purpose")


if __name__ == "__main__":
    NativeRedactors.make = lambda self, profile, allowed: Failing()  # type: ignore[method-assign]
    sys.argv = ["worker", sys.argv[1]]
    runpy.run_module("inferno.server.worker", run_name="__main__")
