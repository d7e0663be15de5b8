"""inferno_native.redactor as the front's guard asks for it: one redactor per choice, sharing the server's own secrets.

Front workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from inferno_native import redactor

from .guarding import StreamRedactor


class NativeRedactors:
    """Implements guarding.RedactorMaker. `secrets` are this worker's; only those that are text can appear in text."""

    faults: tuple[type[Exception], ...] = (redactor.RedactorError,)

    def __init__(self, secrets: Mapping[str, bytes]) -> None:
        self._own = redactor.OwnSecrets(_texts(secrets.values()))

    def make(self, profile: str, allowed: frozenset[str]) -> StreamRedactor:
        return redactor.Redactor(profile, allowed, self._own)

    def personal_values(self, texts: Iterable[str]) -> frozenset[str]:
        return redactor.personal_values(texts)


def _texts(values: Iterable[bytes]) -> list[str]:
    found = []
    for value in values:
        try:
            text = value.decode("ascii")
        except UnicodeDecodeError:
            continue
        if len(text) >= redactor.SHORTEST_OWN_SECRET and text.isprintable():
            found.append(text)
    return found
