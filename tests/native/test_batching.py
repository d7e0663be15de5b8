"""Batcher in this process: chunk boundaries, restored state, exactness to the bit of what is sampled, refusals."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inferno_native import llama
from inferno_native.batching import (
    Batcher,
    Sequence,
    SequenceState,
    call_end,
    chunk_end,
    last_boundary,
    next_boundary,
)
from inferno_native.chain import Sampler

from tests.models import demo_model


@pytest.fixture(scope="module")
def model() -> Iterator[llama.Model]:
    descriptor = os.open(demo_model(), os.O_RDONLY | os.O_CLOEXEC)
    yield llama.load_model([descriptor])
    os.close(descriptor)


@pytest.fixture(scope="module")
def batcher(model: llama.Model) -> Batcher:
    return Batcher(model, num_slots=3, context_size=256, quantum=32, threads=1)


def prompt(seed: int, length: int) -> list[int]:
    return [(seed * 7919 + 31 * i) % 40000 + 1000 for i in range(length)]


def sequence(
    batcher: Batcher, tokens: list[int], *, temperature: float = 0.8, seed: int = 1, max_tokens: int = 8
) -> Sequence:
    return Sequence(
        tokens,
        Sampler(batcher.vocab, temperature=temperature, seed=seed),
        max_tokens=max_tokens,
        ignore_eos=True,
    )


def finish(batcher: Batcher, *running: Sequence) -> None:
    while any(s.state in (SequenceState.PREFILLING, SequenceState.DECODING) for s in running):
        for s in running:
            if s.state == SequenceState.PREFILLING:
                batcher.prefill(s)
        batcher.decode()
    for s in running:
        batcher.release(s)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 300))
def test_chunks_cover_the_prompt_by_its_length_alone(length: int, quantum: int) -> None:
    starts, at, boundary = [], 0, 0
    while at < length:
        starts.append(at)
        assert at == boundary  # every chunk begins where one of any longer prompt does
        end, boundary = chunk_end(length, at, quantum), next_boundary(at, quantum)
        assert end == boundary or (end == length and end - boundary <= 1)
        assert end - at <= quantum + 1
        at = end
    assert at == length
    assert starts[-1] == last_boundary(length, quantum)
    assert length == 1 or length - starts[-1] >= 2


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 3000), st.sampled_from([16, 64, 100, 128, 256]), st.lists(st.integers(1, 5), min_size=60, max_size=60))
def test_calls_of_several_chunks_end_where_chunks_do_and_keep_to_one_kind_of_rows(
    length: int, quantum: int, wanted: list[int]
) -> None:
    """Whatever was asked for and wherever a call begins: small calls before 64 tokens, large ones behind, the last apart."""
    chunks, at = [0], 0
    while at < length:
        at = chunk_end(length, at, quantum)
        chunks.append(at)
    last = last_boundary(length, quantum)
    for start in chunks[:-1]:  # a restored prefix may end at any of them
        at, calls = start, iter(wanted)
        while at < length:
            most = next(calls, 1)
            end = call_end(length, at, quantum, most)
            assert end in chunks
            if end == length:
                assert at == last
            elif quantum % 64:
                assert end == chunk_end(length, at, quantum)
            elif at < 64:
                assert end - at < 64
                assert end <= max(64, chunk_end(length, at, quantum))
            else:
                assert 64 <= end - at <= most * quantum
            at = end
    assert call_end(length, chunks[-2], quantum, 5) == length


def test_restored_state_gives_the_same_tokens(batcher: Batcher) -> None:
    tokens = prompt(3, 100)
    cold = sequence(batcher, tokens)
    batcher.admit(cold)
    states = {}
    while cold.state == SequenceState.PREFILLING:
        batcher.prefill(cold)
        if cold.num_evaluated < 100:
            states[cold.num_evaluated] = batcher.snapshot(cold)
    finish(batcher, cold)
    assert sorted(states) == [8, 16, 24, 32, 64, 96]
    for have, keep in ((8, 8), (32, 32), (96, 96), (96, 64), (96, 32), (96, 8)):
        warm = sequence(batcher, tokens)
        batcher.admit(warm)
        assert batcher.restore(warm, states[have], keep)
        assert warm.num_cached == keep
        finish(batcher, warm)
        assert warm.generated() == cold.generated()


def test_a_broken_state_is_refused_and_the_sequence_starts_cold(batcher: Batcher) -> None:
    tokens = prompt(4, 70)
    cold = sequence(batcher, tokens)
    batcher.admit(cold)
    finish(batcher, cold)
    for state in (b"", b"\0" * 64, os.urandom(300)):
        again = sequence(batcher, tokens)
        batcher.admit(again)
        assert not batcher.restore(again, state, 32)
        assert again.num_evaluated == 0
        finish(batcher, again)
        assert again.generated() == cold.generated()


def test_company_does_not_change_what_is_sampled(batcher: Batcher) -> None:
    tokens = prompt(5, 60)
    alone = sequence(batcher, tokens, max_tokens=20)
    batcher.admit(alone)
    finish(batcher, alone)
    among = [sequence(batcher, tokens, max_tokens=20), sequence(batcher, prompt(6, 130), seed=2, max_tokens=25),
             sequence(batcher, prompt(7, 5), seed=3, max_tokens=12)]  # fmt: skip
    for s in among:
        batcher.admit(s)
    finish(batcher, *among)
    assert among[0].generated() == alone.generated()


def test_slots_are_given_and_taken_back(batcher: Batcher) -> None:
    running = [sequence(batcher, prompt(i, 4)) for i in range(3)]
    for s in running:
        batcher.admit(s)
    with pytest.raises(ValueError, match="not in list"):
        batcher.admit(sequence(batcher, prompt(9, 4)))
    with pytest.raises(ValueError, match="admitted before"):
        batcher.admit(running[0])
    for s in running:
        batcher.release(s)
        batcher.release(s)
    assert (batcher.num_free, batcher.kv_used_tokens) == (3, 0)


@pytest.mark.parametrize("tokens", [[-1], [49152], [5, 1 << 30]])
def test_ids_outside_of_the_vocabulary_never_reach_llama(batcher: Batcher, tokens: list[int]) -> None:
    with pytest.raises(ValueError, match="outside of the vocabulary"):
        batcher.admit(sequence(batcher, tokens))
    assert batcher.num_free == 3


def test_other_bad_arguments(model: llama.Model, batcher: Batcher) -> None:
    with pytest.raises(ValueError, match="a slot holds"):
        batcher.admit(sequence(batcher, prompt(1, 256)))
    for options in (
        {"num_slots": 0},
        {"num_slots": 256},
        {"context_size": 1},
        {"context_size": 1 << 30},
        {"quantum": 0},
    ):
        with pytest.raises(ValueError):
            Batcher(model, **{"num_slots": 1, "context_size": 256, "quantum": 32, "threads": 1, **options})
    with pytest.raises(ValueError, match="KV cache type"):
        Batcher(model, num_slots=1, context_size=256, quantum=32, threads=1, kv_type="q99")
    with pytest.raises(ValueError, match="a prompt of 0"):
        Sequence([], Sampler(batcher.vocab), max_tokens=1)
    fresh = sequence(batcher, prompt(1, 40))
    for call in (
        lambda: batcher.prefill(fresh),
        lambda: batcher.snapshot(fresh),
        lambda: batcher.restore(fresh, b"", 1),
    ):
        with pytest.raises(ValueError):
            call()
    assert batcher.decode() == []
