"""How long prefill will take, and whether the running sequences can afford the next chunk now.

Chunk times are learned per 512 positions, for attention grows with the position. Each decode step earns prefill what
the target leaves, or at least half of the target, and more when more prompts wait than streams run: few streams must
not hold up many prompts, which costs everybody throughput. So a stream keeps its target on average. What is earned and
not used is saved, up to BURST targets: a short prompt may then run at once, in one pause, where a long one gets a chunk
after each step, so that the streams beside it never wait for more than one. While half as many prompts wait as streams
run, short ones run until the burst is used up, saved or not, for a step costs nearly the same for few rows as for many:
then a stream may wait for a burst at each step, and the target is not kept. With decode alone over the target, one chunk
still follows each step. Pure arithmetic over seconds: no clock, no llama.cpp.
"""

from __future__ import annotations

BURST = 10  # targets: half a second at the default target of 50 ms
_LONGEST_CALL = 2  # bursts: a second at the default target
_BUCKET = 512
_NEW = 0.25  # weight of a new measurement


class CostModel:
    """`quantum` is the number of tokens of a chunk, `first_guess_seconds` what one is said to take until it is known."""

    def __init__(self, target_seconds: float, first_guess_seconds: float = 0.05, quantum: int = 64) -> None:
        self.target_seconds = target_seconds
        self.burst_seconds = BURST * target_seconds
        self._first_guess = first_guess_seconds
        self._quantum = quantum
        self._chunks: dict[int, float] = {}
        self._saved = 0.0
        self._share = 0.0  # what the last decode step earned
        self._spent = 0.0  # by chunks since then
        self._is_crowded = False
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

    def decoded(self, seconds: float, streams: int = 1, prompts: int = 1) -> None:
        """Note a decode step of `streams` rows, beside which `prompts` wait for their prefill."""
        self._decode_over = seconds >= self.target_seconds
        self._is_crowded = 2 * prompts >= streams
        self._share = max(self.target_seconds - seconds, self.target_seconds / 2) * max(prompts / streams, 1.0)
        dearest = max(self._chunks.values(), default=self._first_guess)
        self._saved = min(self._saved + self._share, max(self.burst_seconds, dearest))  # or no chunk could ever run
        self._spent = 0.0

    def chunks_at_once(self, position: int) -> int:
        """Return how many chunks from `position` on may share a call while nothing decodes: whoever comes waits for it.

        One before any was measured: on a slow machine four may take longer than an engine may be silent.
        """
        if not self._chunks:
            return 1
        return max(int(self.burst_seconds * _LONGEST_CALL / self.chunk_seconds(position)), 1)

    def may_prefill(self, position: int, num_remaining: int, chunks_since_decode: int) -> bool:
        """Whether a chunk may run before the next decode step, of a prompt that has `num_remaining` tokens to go from
        `position`."""
        if chunks_since_decode == 0 and self._decode_over:
            return True
        whole = self.chunk_seconds(position)
        chunk = whole * min(num_remaining / self._quantum, 1.0)
        rest = whole * num_remaining / self._quantum
        if rest <= self.burst_seconds:
            if self._is_crowded and self._spent + rest <= self.burst_seconds:
                return True
            return chunk <= self._saved
        return chunk <= self._saved and (chunks_since_decode == 0 or self._spent + chunk <= self._share)

    def spent(self, seconds: float) -> None:
        """Note a chunk that ran."""
        self._spent += seconds
        self._saved = max(self._saved - seconds, 0.0)

    def idle(self) -> None:
        """Nothing is decoding: prefill needs no permission and earns none."""
        self._saved = self._share = self._spent = 0.0
        self._decode_over = False
