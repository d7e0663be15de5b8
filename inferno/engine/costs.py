"""How long the next prefill chunk will take, and whether the running sequences can afford it now.

Chunk times are learned per 512 positions, for attention grows with the position. Between two decode steps prefill may
spend what the target leaves, or at least half of the target, and more when more prompts wait than streams run: few
streams must not hold up many prompts, which costs everybody throughput. What is not enough for a chunk is saved for the
next step, so a chunk that costs more than one step's share runs after a few steps. With decode alone over the target, one
chunk still follows each step. Pure arithmetic over seconds: no clock, no llama.cpp.
"""

from __future__ import annotations

_BUCKET = 512
_NEW = 0.25  # weight of a new measurement


class CostModel:
    def __init__(self, target_seconds: float, first_guess_seconds: float = 0.05) -> None:
        self.target_seconds = target_seconds
        self._first_guess = first_guess_seconds
        self._chunks: dict[int, float] = {}
        self._saved = 0.0
        self._decode_over = False

    def chunk_seconds(self, position: int) -> float:
        """Return the expected time of a chunk that starts at `position`."""
        bucket = position // _BUCKET
        known = self._chunks.get(bucket)
        if known is not None:
            return known
        lower = [key for key in self._chunks if key < bucket]
        if lower:
            return self._chunks[max(lower)]
        return min(self._chunks.values(), default=self._first_guess)

    def learn_chunk(self, position: int, seconds: float) -> None:
        bucket = position // _BUCKET
        known = self._chunks.get(bucket)
        self._chunks[bucket] = seconds if known is None else known + _NEW * (seconds - known)

    def decoded(self, seconds: float, prompts_per_stream: float = 1.0) -> None:
        """Note a decode step: it earns prefill its share, for each prompt that waits beyond the number of streams."""
        self._decode_over = seconds >= self.target_seconds
        left = self.target_seconds - seconds
        self._saved += max(left, self.target_seconds / 2) * max(prompts_per_stream, 1.0)

    def may_prefill(self, position: int, chunks_since_decode: int) -> bool:
        """Whether a chunk at `position` may run before the next decode step."""
        if chunks_since_decode == 0 and self._decode_over:
            return True
        return self._saved >= self.chunk_seconds(position)

    def spent(self, seconds: float) -> None:
        """Note a chunk that ran; unused savings beyond one target are lost."""
        self._saved = min(max(self._saved - seconds, 0.0), self.target_seconds)

    def idle(self) -> None:
        """Nothing is decoding: prefill needs no permission and earns none."""
        self._saved = 0.0
        self._decode_over = False
