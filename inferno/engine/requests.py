"""The engine's record of a request from Prepare to its end, and of each of its choices. Data, no behaviour of note."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inferno_native.batching import Sequence

    from .connections import Connection


class Stage(IntEnum):
    PREPARING = 0  # a prepare thread has it
    PREPARED = 1  # ids are kept until Start or Drop
    STARTING = 2  # a prepare thread makes its samplers
    QUEUED = 3
    RUNNING = 4
    OVER = 5


@dataclass(slots=True, eq=False)
class Request:
    connection: Connection
    id: int
    principal: bytes
    stage: Stage = Stage.PREPARING
    tokens: array[int] = field(default_factory=lambda: array("i"))
    changed: float = 0.0  # monotonic time of the last stage change
    cache_prompt: bool = True
    cache_salt: bytes = b""
    deadline: float = 0.0
    cancelled: bool = False
    choices: list[Choice] = field(default_factory=list)
    queued_at: float = 0.0
    shared_state: tuple[int, bytes] | None = None  # (tokens, state) of the first choice, for the others

    @property
    def is_over(self) -> bool:
        return self.stage is Stage.OVER


@dataclass(slots=True, eq=False)
class Choice:
    request: Request
    index: int
    sequence: Sequence
    admitted_at: float = 0.0
    prefilled_at: float = 0.0
    is_over: bool = False
    looked_up: bool = False  # the prefix store was asked
    follows: tuple[Choice, int] | None = None  # a prompt on its way, and how many of its first tokens are this one's too
    keep_at: set[int] = field(default_factory=set)  # boundaries that prompts behind this one wait for
    kept: int = 0  # tokens of the last state that went to the prefix store
