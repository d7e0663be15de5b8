"""What leaves the engine on its way to a wire format: pieces of choices, in order.

The one place that every generated text passes, streamed or not: the output guard sits here. Front workers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from msgspec import Struct

from ..errors import ApiError
from ..messages import Event, TokenLogprob
from .guarding import OutputGuard
from .http import DirectWriter
from .pipeline import Run


class Piece(Struct):
    """Text of one choice, and its end when `finish` is set."""

    choice: int
    text: str
    logprobs: list[TokenLogprob] | None
    finish: str | None


Frame = Callable[[Piece], bytes]


class Output:
    """The pieces of a run."""

    def __init__(self, run: Run, guard: OutputGuard | None = None) -> None:
        self.run = run
        self._guard = guard
        self._writer: DirectWriter | None = None
        self._fault: Exception | None = None  # of a direct piece

    def attach(self, writer: DirectWriter) -> None:
        """Take the connection on which pieces may be written past the caller of `pieces`."""
        self._writer = writer

    async def pieces(
        self, timeout_seconds: float | None = None, frame: Frame | None = None
    ) -> list[Piece] | None:
        """Return what can be shown now, maybe nothing yet; None when the timeout passed without any event.

        With `frame` and a writer, a piece that comes while this waits, and ends nothing, is made into bytes and written
        in the moment of its arrival: no task is woken for it.
        """
        listener = None
        if frame is not None and self._writer is not None:
            listener = functools.partial(self._write_now, self._writer, frame)
        try:
            events = await self.run.events(timeout_seconds, listener)
        except ApiError:
            if self._fault is not None:
                raise self._fault from None
            raise
        if self._fault is not None:  # what came behind the piece that could not be shown is not shown either
            raise self._fault
        if not events:
            return None
        return [self._piece(choice, event) for choice, event in events]

    def _piece(self, choice: int, event: Event) -> Piece:
        guard = self._guard
        if guard is None:
            return Piece(choice, event.text, event.logprobs, event.finish)
        text, logprobs = guard.pass_on(choice, event.text, event.logprobs, is_last=event.finish is not None)
        return Piece(choice, text, logprobs, event.finish)

    def _write_now(self, writer: DirectWriter, frame: Frame, event: Event) -> bool:
        """Show one event at once; False: it has to go the long way."""
        if event.finish is not None or self._fault is not None or not writer.is_ready:
            return False
        try:
            data = frame(self._piece(self.run.take(event), event))
            if data:
                writer.write_now(data)
        except Exception as error:
            # A door: what reads all messages of the engine calls this. The one who waits for pieces gets the fault.
            self._fault = error
            self.run.fail(error)
        return True

    def close(self) -> None:
        """Settle the run and tell what the guard covered; idempotent."""
        self.run.close()
        if self._guard is not None:
            self._guard.close()

    async def collect(self, num_choices: int) -> list[Piece]:
        """Wait for the end and return one whole piece for each choice."""
        texts: list[list[str]] = [[] for _ in range(num_choices)]
        whole = [Piece(index, "", None, None) for index in range(num_choices)]
        num_open = num_choices
        while num_open:
            for piece in await self.pieces() or ():
                total = whole[piece.choice]
                texts[piece.choice].append(piece.text)
                if piece.logprobs is not None:
                    total.logprobs = (
                        [*(total.logprobs or ()), *piece.logprobs] if total.logprobs else piece.logprobs
                    )
                if piece.finish is not None:
                    total.finish = piece.finish
                    num_open -= 1
        for total, parts in zip(whole, texts, strict=True):
            total.text = "".join(parts)
        return whole
