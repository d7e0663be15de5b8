"""Prompts on their way into slots: which one is evaluated next, what of it is copied from a store instead, what is kept.

State is kept at a prompt's last chunk boundary: for the request's other choices, and in the prefix store for requests
that come later. Decides nothing of when a chunk may run and calls no llama_decode but for the operator's public
prefixes, before the first request. Step loop thread.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from inferno_native.batching import Batcher, Sequence, SequenceState, last_boundary
from inferno_native.chain import Sampler

from .prefixes import PUBLIC, PrefixStore
from .requests import Choice

_SHORT_FIRST_TURNS = 4  # of so many chunks, one goes to the oldest prompt instead of the shortest


class Prefill:
    def __init__(self, batcher: Batcher, store: PrefixStore) -> None:
        self._batcher = batcher
        self.store = store
        self._turn = 0

    def next(self, running: Iterable[Choice]) -> Choice | None:
        """The shortest remaining prompt, and every few chunks the oldest, so that neither kind starves."""
        best = oldest = None
        for choice in running:
            sequence = choice.sequence
            if sequence.state != SequenceState.PREFILLING or self._waits_for_sibling(choice):
                continue
            if oldest is None or choice.admitted_at < oldest.admitted_at:
                oldest = choice
            if best is None or sequence.num_remaining < best.sequence.num_remaining:
                best = choice
        return oldest if self._turn % _SHORT_FIRST_TURNS == 0 else best

    def begin(self, choice: Choice) -> None:
        """Before each chunk of a choice; before its first one, take what is stored of its prompt."""
        self._turn += 1
        if not choice.looked_up:
            choice.looked_up = True
            self._restore(choice)

    def keep(self, choice: Choice) -> None:
        """At the prompt's last boundary its state is complete: keep it for siblings and for later."""
        request, sequence = choice.request, choice.sequence
        if sequence.num_evaluated != last_boundary(sequence.num_prompt, self._batcher.quantum):
            return
        for_siblings = choice.index == 0 and len(request.choices) > 1
        for_store = request.cache_prompt and self.store.is_on and sequence.num_evaluated > sequence.num_cached
        if not (for_siblings or for_store):
            return
        state = self._batcher.snapshot(sequence)
        if for_siblings:
            request.shared_state = (sequence.num_evaluated, state)
        if for_store:
            partition = (request.principal, request.cache_salt)
            self.store.add(partition, request.tokens[: sequence.num_evaluated], state)

    def keep_public(self, texts: list[array[int]]) -> int:
        """Compute the operator's public prefixes and store them. Before `run`. Returns how many are stored."""
        kept = 0
        for tokens in texts:
            boundary = len(tokens) // self._batcher.quantum * self._batcher.quantum
            if not boundary or boundary + 2 > self._batcher.context_size:
                continue
            padded = array("i", [*tokens[:boundary], tokens[0], tokens[0]])
            sequence = Sequence(padded, Sampler(self._batcher.vocab, temperature=0.0), max_tokens=1)
            self._batcher.admit(sequence)
            while sequence.num_evaluated < boundary:
                self._batcher.prefill(sequence)
            kept += self.store.add(PUBLIC, padded[:boundary], self._batcher.snapshot(sequence))
            self._batcher.release(sequence)
        return kept

    def _waits_for_sibling(self, choice: Choice) -> bool:
        """Later choices of a request wait until the first one has made the prompt's shared part."""
        request = choice.request
        if choice.index == 0 or choice.sequence.num_evaluated or request.shared_state is not None:
            return False
        first = request.choices[0]
        if first.is_over:
            return False
        return first.sequence.num_evaluated < last_boundary(first.sequence.num_prompt, self._batcher.quantum)

    def _restore(self, choice: Choice) -> None:
        request, sequence = choice.request, choice.sequence
        limit = last_boundary(sequence.num_prompt, self._batcher.quantum)
        restored = False
        if request.shared_state is not None and choice.index:
            restored = self._batcher.restore(sequence, request.shared_state[1], request.shared_state[0])
        elif request.cache_prompt and limit:
            hit = self.store.find((request.principal, request.cache_salt), request.tokens, limit)
            restored = hit is not None and self._batcher.restore(sequence, hit.state, hit.num_tokens)
        if request.cache_prompt and self.store.is_on:
            self.store.hit_tokens += sequence.num_cached if restored else 0
            self.store.miss_tokens += sequence.num_prompt - (sequence.num_cached if restored else 0)
