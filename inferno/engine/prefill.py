"""Prompts on their way into slots: which one is evaluated next, what of it is copied from a store instead, what is kept.

State is kept at a prompt's last chunk boundary: for the request's other choices, and in the prefix store for requests
that come later. Prompts of one principal that come together and begin alike wait for the first of them to get so far,
instead of computing the same again; it keeps a state there too. Decides nothing of when a chunk may run and calls no
llama_decode but for the operator's public prefixes, before the first request. Step loop thread.
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

    def candidates(self, running: Iterable[Choice]) -> list[Choice]:
        """Whose chunk may be next, best first: the shortest remaining prompt, and every few chunks the oldest before it,
        so that neither kind starves."""
        best = oldest = None
        for choice in running:
            sequence = choice.sequence
            if (
                sequence.state != SequenceState.PREFILLING
                or self._waits_for_sibling(choice)
                or self._waits_for_leader(choice)
            ):
                continue
            if oldest is None or choice.admitted_at < oldest.admitted_at:
                oldest = choice
            if best is None or sequence.num_remaining < best.sequence.num_remaining:
                best = choice
        if best is None or oldest is None:
            return []
        if oldest is not best and self._turn % _SHORT_FIRST_TURNS == 0:
            return [oldest, best]
        return [best]

    def count_turn(self) -> None:
        """Note that a chunk runs."""
        self._turn += 1

    def follow(self, choice: Choice, running: Iterable[Choice]) -> None:
        """On admission: have a choice wait for the prompt on its way, of the same partition, that it shares most with."""
        request, quantum = choice.request, self._batcher.quantum
        limit = last_boundary(choice.sequence.num_prompt, quantum)
        if choice.index or not (request.cache_prompt and self.store.is_on and limit):
            return
        for other in running:
            if other.index or not other.request.cache_prompt or other.sequence.state != SequenceState.PREFILLING:
                continue
            if (other.request.principal, other.request.cache_salt) != (request.principal, request.cache_salt):
                continue
            most = min(limit, last_boundary(other.sequence.num_prompt, quantum))
            shared = _shared_prefix(request.tokens, other.request.tokens, self.store.boundaries(most))
            if self.store.only_whole and other.sequence.num_evaluated >= shared:
                continue  # it is past the place, and its memory can't be cut there any more
            if shared and (choice.follows is None or shared > choice.follows[1]):
                choice.follows = (other, shared)
        if choice.follows is not None:
            choice.follows[0].keep_at.add(choice.follows[1])

    def begin(self, choice: Choice) -> None:
        """Before the first chunk of a choice, take what is stored of its prompt. Nothing when called again."""
        if not choice.looked_up:
            choice.looked_up = True
            self._restore(choice)

    def keep(self, choice: Choice) -> None:
        """After a chunk: at the prompt's last boundary, and where others wait for it, keep the state for siblings, for
        those others and for later."""
        request, sequence = choice.request, choice.sequence
        reached = {boundary for boundary in choice.keep_at if boundary <= sequence.num_evaluated}
        choice.keep_at -= reached
        is_last = sequence.num_evaluated == last_boundary(sequence.num_prompt, self._batcher.quantum)
        for_siblings = is_last and choice.index == 0 and len(request.choices) > 1
        for_store = (
            (is_last or bool(reached))
            and request.cache_prompt
            and self.store.is_on
            and sequence.num_evaluated > sequence.num_cached
        )
        if not (for_siblings or for_store):
            return
        state = self._batcher.snapshot(sequence)
        if for_siblings:
            request.shared_state = (sequence.num_evaluated, state)
        if for_store:
            choice.kept = sequence.num_evaluated
            partition = (request.principal, request.cache_salt)
            self.store.add(partition, request.tokens[: sequence.num_evaluated], state)

    def keep_public(self, texts: list[array[int]]) -> int:
        """Compute the operator's public prefixes and store them. Before `run`. Returns how many are stored."""
        kept = 0
        for tokens in texts:
            boundary = max(self.store.boundaries(len(tokens)), default=0)
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

    def _waits_for_leader(self, choice: Choice) -> bool:
        if choice.follows is None:
            return False
        leader, shared = choice.follows
        if leader.is_over or leader.kept >= shared or leader.sequence.state != SequenceState.PREFILLING:
            choice.follows = None
        return choice.follows is not None

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


def _shared_prefix(one: array[int], other: array[int], boundaries: list[int]) -> int:
    """Return the last of the boundaries up to which two prompts are the same, or 0."""
    shared = 0
    for boundary in boundaries:
        if one[shared:boundary] != other[shared:boundary]:
            break
        shared = boundary
    return shared
