"""One check, and what all checks look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from msgspec import Struct

from ..config import Loaded
from ..datadir import DataDir

Verdict = Literal["pass", "warn", "fail"]


class Check(Struct, frozen=True):
    """A line of the report. `fix` is empty when nothing needs fixing."""

    id: str
    title: str
    value: str
    verdict: Verdict
    fix: str = ""


class Situation(NamedTuple):
    """What is judged. Beside a running server the settings of `loaded` are the server's own."""

    loaded: Loaded
    environ: Mapping[str, str]
    data: DataDir
    status: dict[str, Any] | None  # the running server's; None: none runs
    differs: tuple[str, ...] = ()  # keys that the server has other than this command reads them

    @property
    def is_loopback(self) -> bool:
        from ..config import is_loopback

        return is_loopback(self.loaded.settings.server.host)


def passed(id: str, title: str, value: object) -> Check:
    return Check(id, title, str(value), "pass")
