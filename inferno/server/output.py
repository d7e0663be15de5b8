"""What leaves the engine on its way to a wire format: pieces of choices, in order.

The one place that every generated text passes, streamed or not: the output guard sits here. Front workers.
"""

from __future__ import annotations

from msgspec import Struct

from ..messages import TokenLogprob
from .guarding import OutputGuard
from .pipeline import Run


class Piece(Struct):
    """Text of one choice, and its end when `finish` is set."""

    choice: int
    text: str
    logprobs: list[TokenLogprob] | None
    finish: str | None


class Output:
    """The pieces of a run."""

    def __init__(self, run: Run, guard: OutputGuard | None = None) -> None:
        self.run = run
        self._guard = guard

    async def pieces(self, timeout_seconds: float | None = None) -> list[Piece] | None:
        """Return what can be shown now, maybe nothing yet; None when the timeout passed without any event."""
        events = await self.run.events(timeout_seconds)
        if not events:
            return None
        guard = self._guard
        if guard is None:
            return [Piece(choice, event.text, event.logprobs, event.finish) for choice, event in events]
        pieces = []
        for choice, event in events:
            text, logprobs = guard.pass_on(
                choice, event.text, event.logprobs, is_last=event.finish is not None
            )
            pieces.append(Piece(choice, text, logprobs, event.finish))
        return pieces

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
