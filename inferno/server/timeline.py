"""When what happened to one generation: times noted by the pipeline, cut into phases for a trace.

Times are of time.perf_counter. What the engine measured (queue, prefill, decode) comes as durations with the end of each
choice, and is laid out from the moment at which the request was started. Knows no tracing library. Front workers, only
where traces are on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

from ..messages import Usage

MAX_CHOICES = 16  # choices with phases of their own; a trace is no place for hundreds


class Phase(NamedTuple):
    """One stretch of a request."""

    name: str
    began: float
    ended: float
    choice: int | None = None


class Timeline:
    """The notes of one generation."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.result = "refused"  # until it was started
        self._prepare_began = 0.0
        self._prepared_at = 0.0
        self._started_at = 0.0
        self._first_token_at = 0.0
        self._ended_at = 0.0
        self._choices: list[tuple[int, Usage]] = []

    def preparing(self) -> None:
        self._prepare_began = time.perf_counter()

    def prepared(self) -> None:
        self._prepared_at = time.perf_counter()

    def started(self) -> None:
        self._started_at = time.perf_counter()

    def first_token(self, now: float) -> None:
        self._first_token_at = now

    def finished(self, choice: int, usage: Usage) -> None:
        """Take over the engine's times of a choice that ended by itself."""
        if len(self._choices) < MAX_CHOICES:
            self._choices.append((choice, usage))

    def ended(self, result: str, prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> None:
        self._ended_at = time.perf_counter()
        self.result = result if self._started_at else "refused"
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens
        self.cached_tokens = cached_tokens

    def phases(self) -> Iterator[Phase]:
        """Return prepare, then queue, prefill and decode of each choice.

        A choice that was cut before its end has no times of the engine's: then `waiting` is what the caller saw until
        its first token, `decode` the rest.
        """
        if self._prepare_began:
            yield Phase("prepare", self._prepare_began, self._prepared_at or self._ended_at)
        if not self._started_at:
            return
        for choice, usage in self._choices:
            at = self._started_at
            for name, seconds in (
                ("queue", usage.queue_seconds),
                ("prefill", usage.prefill_seconds),
                ("decode", usage.decode_seconds),
            ):
                yield Phase(name, at, at + max(seconds, 0.0), choice)
                at += max(seconds, 0.0)
        if not self._choices:
            yield Phase("waiting", self._started_at, self._first_token_at or self._ended_at)
            if self._first_token_at:
                yield Phase("decode", self._first_token_at, self._ended_at)
