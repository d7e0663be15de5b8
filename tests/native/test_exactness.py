"""Bits of the log probabilities, alone and among 32 others, cold and restored, on tiny models of every promised kind.

Tokens alone would hide small differences; log probabilities of the most likely ones show any. Two threads, for flash
attention splits a lone row between them. Sequences are admitted at different steps, so that slots fall idle between
running ones and prompts are evaluated while others decode.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from pathlib import Path

import pytest
from inferno_native import gguf, llama
from inferno_native.batching import Batcher, Sequence, SequenceState, last_boundary
from inferno_native.chain import Sampler

from inferno.engine.loading import EXACT_TYPES
from tests.models import demo_as, requantized
from tests.tiny_models import write_tiny_model

QUANTUM = 32
NUM_OTHERS = 32
PROMPT_LENGTHS = (2, 33, 70, 150, 260, 300)
Bits = list[tuple[int, bytes, float, list[tuple[bytes, float]]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


def opened(path: Path) -> llama.Model:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        llama.load_library()
        return llama.load_model([descriptor])
    finally:
        os.close(descriptor)


def tiny(folder: Path, architecture: str, quantization: str) -> llama.Model:
    path = folder / f"{architecture}-{quantization}.gguf"
    return opened(path if path.exists() else write_tiny_model(path, architecture, quantization))


def batcher(
    model: llama.Model, *, flash: bool = False, slots: int = NUM_OTHERS + 1, kv: str | None = None, threads: int = 2
) -> Batcher:
    return Batcher(
        model, num_slots=slots, context_size=512, quantum=QUANTUM, threads=threads, flash_attention=flash, kv_type=kv
    )


def prompt(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(256) for _ in range(length)]


class Run:
    """One sequence and what came of it."""

    def __init__(self, batcher: Batcher, tokens: list[int], *, seed: int, temperature: float, max_tokens: int = 12) -> None:
        sampler = Sampler(batcher.vocab, temperature=temperature, seed=seed, top_logprobs=5)
        self.sequence = Sequence(tokens, sampler, max_tokens=max_tokens, ignore_eos=True, owner=self)
        self.bits: Bits = []
        self.state = b""  # at the last chunk boundary


def drive(batcher: Batcher, runs: Iterable[Run], *, every: int = 1) -> None:
    """Run all: the next one is admitted every few steps, one prefill chunk follows each decode step."""
    waiting, step = list(runs), 0
    while waiting or batcher.sequences:
        if waiting and step % every == 0:
            batcher.admit(waiting.pop(0).sequence)
        step += 1
        outputs = [output for _, output in batcher.decode()]
        for sequence in batcher.sequences:
            if sequence.state == SequenceState.PREFILLING:
                outputs.append(batcher.prefill(sequence))
                if sequence.num_evaluated == last_boundary(sequence.num_prompt, QUANTUM):
                    sequence.owner.state = batcher.snapshot(sequence)
                break
        for output in outputs:
            if output is not None:
                output.sequence.owner.bits += output.logprobs
        for sequence in batcher.sequences:
            if sequence.state == SequenceState.FINISHED:
                batcher.release(sequence)


def cases(batcher: Batcher) -> list[Run]:
    return [Run(batcher, prompt(seed, length), seed=seed, temperature=temperature)
            for seed, length in enumerate(PROMPT_LENGTHS) for temperature in (0.0, 0.8)]  # fmt: skip


def assert_exact(batcher: Batcher) -> None:
    """Each case alone, then all among others, then each from its restored prefix among others."""
    alone = cases(batcher)
    for run in alone:
        drive(batcher, [run])
    others = [Run(batcher, prompt(100 + i, 3 + 7 * i), seed=i, temperature=1.0, max_tokens=5 + i)
              for i in range(NUM_OTHERS - len(alone) + 1)]  # fmt: skip
    for every in (1, 3):
        among = cases(batcher)
        mixed = [run for pair in zip(among, others, strict=False) for run in pair] + others[len(among) :]
        drive(batcher, mixed, every=every)
        for one, other in zip(alone, among, strict=True):
            assert one.bits == other.bits, (one.sequence.num_prompt, every)
        others = [Run(batcher, prompt(200 + i, 3 + 7 * i), seed=i, temperature=1.0) for i in range(len(others))]
    for run, again in zip(alone, cases(batcher), strict=True):
        if not run.state:
            continue
        batcher.admit(again.sequence)
        assert batcher.restore(again.sequence, run.state, last_boundary(again.sequence.num_prompt, QUANTUM))
        company = Run(batcher, prompt(7, 90), seed=1, temperature=1.0)
        batcher.admit(company.sequence)
        drive(batcher, [])
        assert again.sequence.num_cached > 0
        assert run.bits == again.bits, again.sequence.num_prompt


@pytest.mark.parametrize("flash", [False, True], ids=["plain", "flash"])
@pytest.mark.parametrize("quantization", ["Q4_0", "Q4_1", "Q8_0"])
def test_attention(folder: Path, quantization: str, flash: bool) -> None:
    opened_batcher = batcher(tiny(folder, "llama-dense", quantization), flash=flash)
    assert opened_batcher.is_exact_in_company
    assert_exact(opened_batcher)


@pytest.mark.parametrize(
    "architecture",
    ["gemma2-dense", "gemma3-dense", "gpt-oss-moe", "mamba-dense", "mamba2-dense", "jamba-dense", "falcon-h1-dense", "lfm2-dense"],
)
def test_sliding_windows_and_recurrent_states(folder: Path, architecture: str) -> None:
    """What calibration takes for these: no flash attention where a lone row would need company."""
    opened_batcher = batcher(tiny(folder, architecture, "Q8_0"), threads=1)
    assert opened_batcher.is_exact_in_company
    assert opened_batcher.exact_restore_only
    assert_exact(opened_batcher)


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_a_lone_row_with_flash_attention_whatever_the_slots(folder: Path, slots: int) -> None:
    model = tiny(folder, "llama-dense", "Q8_0")
    many = batcher(model, flash=True)
    expected = Run(many, prompt(1, 300), seed=1, temperature=0.8, max_tokens=40)
    drive(many, [expected, *(Run(many, prompt(i, 40), seed=i, temperature=1.0, max_tokens=60) for i in range(2, 6))])
    few = batcher(model, flash=True, slots=slots)
    alone = Run(few, prompt(1, 300), seed=1, temperature=0.8, max_tokens=40)
    drive(few, [alone])
    assert alone.bits == expected.bits


def test_quantized_caches(folder: Path) -> None:
    assert_exact(batcher(tiny(folder, "llama-dense", "Q8_0"), flash=True, kv="q8_0"))


def test_every_type_that_is_called_exact_is(folder: Path) -> None:
    """Those that this library can make without an importance matrix; the three promised ones have their own test."""
    source = write_tiny_model(folder / "source.gguf", "llama-dense", "F32")
    tested = set()
    for name in sorted(EXACT_TYPES - {"Q4_0", "Q4_1", "Q8_0"}):
        path = requantized(source, "MXFP4_MOE" if name == "MXFP4" else name, folder / f"{name}.gguf", pure=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        types = set(gguf.verify_fds([descriptor]).facts.matrix_types)
        os.close(descriptor)
        assert name in types
        assert types <= EXACT_TYPES
        assert_exact(batcher(opened(path)))
        tested |= types
    assert tested >= EXACT_TYPES - {"Q4_1", "Q8_0"}


def test_a_float_model_is_not_exact_in_company(folder: Path) -> None:
    """Why those are called approximate; should this fail, a newer llama.cpp allows to promise more."""
    with pytest.raises(AssertionError):
        assert_exact(batcher(tiny(folder, "llama-dense", "F16")))


def test_unified_memory_and_flash_attention_over_windows_promise_nothing(folder: Path) -> None:
    model = tiny(folder, "gemma3-dense", "Q8_0")
    assert not batcher(model, flash=True).is_exact_in_company
    assert not Batcher(model, num_slots=2, context_size=256, quantum=32, threads=1, unified=True).is_exact_in_company


@pytest.mark.slow
@pytest.mark.parametrize("flash", [False, True], ids=["plain", "flash"])
@pytest.mark.parametrize("quantization", ["Q4_0", "Q4_1", "Q8_0"])
def test_calls_of_several_chunks_change_no_bit(quantization: str, flash: bool) -> None:
    """The demo model's own shape: nine heads, which tiles of 64 rows do not divide between two threads."""
    opened_model = opened(demo_as(quantization))

    def made(call_chunks: int) -> Batcher:
        return Batcher(
            opened_model, num_slots=3, context_size=512, quantum=64, threads=2, flash_attention=flash, call_chunks=call_chunks
        )

    single, several = made(0), made(4)

    def complete(batcher: Batcher, run: Run, at_once: int) -> dict[int, bytes]:
        """Evaluate the prompt and a few tokens; return the state after each call of the prompt."""
        states = {}
        while run.sequence.state == SequenceState.PREFILLING:
            output = batcher.prefill(run.sequence, at_once)
            run.bits += output.logprobs if output is not None and output.logprobs is not None else []
            states[run.sequence.num_evaluated] = batcher.snapshot(run.sequence)
        drive(batcher, [])
        return states

    for seed, length in enumerate((66, 330)):
        tokens, last = prompt(seed, length), last_boundary(length, 64)
        plain = Run(single, tokens, seed=seed, temperature=0.0, max_tokens=4)
        single.admit(plain.sequence)
        states = complete(single, plain, 1)
        assert len(plain.bits) == 4
        for at_once, starts in ((1, (0, 24)), (4, (0, 8, 24, 128))):
            for start in (at for at in starts if at < last):
                again = Run(several, tokens, seed=seed, temperature=0.0, max_tokens=4)
                several.admit(again.sequence)
                if start:
                    assert several.restore(again.sequence, states[start], start)
                made_states = complete(several, again, at_once)
                assert made_states[last] == states[last], (length, at_once, start)
                assert again.bits == plain.bits, (length, at_once, start)
                if length > 66 and (start == 0 or at_once > 1):
                    assert len(made_states) < len(states)
