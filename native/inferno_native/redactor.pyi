from collections.abc import Iterable, Sequence
from typing import Final

KIND_NAMES: Final[tuple[str, ...]]
PROFILES: Final[tuple[str, ...]]
SHORTEST_OWN_SECRET: Final[int]

class RedactorError(Exception): ...

class OwnSecrets:
    def __init__(self, values: Iterable[str] = ()) -> None: ...

class Redactor:
    counts: dict[str, int]
    spans: list[tuple[int, int, str]]
    steps: int
    def __init__(
        self,
        profile: str = "default",
        allow_values: Iterable[str] = ...,
        own_secrets: OwnSecrets | Iterable[str] | None = None,
        *,
        json_mode: bool = False,
    ) -> None: ...
    @property
    def decided(self) -> int: ...
    @property
    def held(self) -> int: ...
    def feed(self, text: str) -> str: ...
    def finish(self) -> str: ...
    def redact(self, text: str) -> str: ...

def redact(
    text: str,
    profile: str = "default",
    allow_values: Iterable[str] = ...,
    own_secrets: OwnSecrets | Iterable[str] | None = None,
    *,
    json_mode: bool = False,
) -> str: ...
def personal_values(texts: Iterable[str]) -> frozenset[str]: ...
def touched_tokens(tokens: Iterable[str], spans: Sequence[tuple[int, int, str]]) -> list[bool]: ...
