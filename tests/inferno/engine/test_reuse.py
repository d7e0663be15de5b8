"""What is reused of earlier prompts, in engine processes on tiny models: how much, by whom, and that the answers are right.

"Right" is what llama.cpp alone says of the same tokens, evaluated in one piece. A wrong state of a recurrent or
sliding-window memory would give other probabilities altogether; rounding gives almost the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from inferno.messages import ChatPrompt, Sampling, TokenLogprob
from tests.inferno.engine.client import ALICE, BOB, Answer, EngineUnderTest, Worker
from tests.tiny_models import write_tiny_model

pytestmark = pytest.mark.e2e
QUANTUM = 64
NUM_OTHERS = 32
SYSTEM = "You are the helper of a small shop for paper lamps. " * 9


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineUnderTest]:
    path = write_tiny_model(tmp_path_factory.mktemp("reuse") / "tiny.gguf", "llama-dense", "Q8_0")
    with EngineUnderTest(path, slots=8, context_size=2048, prefix_cache_mb=128) as running:
        yield running


@pytest.fixture
def worker(engine: EngineUnderTest) -> Worker:
    return engine.attach()


def chat(*contents: str) -> ChatPrompt:
    """A system message, then turns of user and assistant."""
    roles = ["system", *["user", "assistant"] * len(contents)]
    return ChatPrompt(messages=[{"role": role, "content": text} for role, text in zip(roles, contents, strict=False)])


def letters(seed: int, count: int) -> str:
    return "".join(random.Random(seed).choices("abcdefghijklmnop ", k=count))


def cached(answer: Answer, choice: int = 0) -> int:
    return answer.usages[choice].cached_tokens


def test_a_conversation_that_returns_after_32_others_on_8_slots(worker: Worker) -> None:
    options = {"max_tokens": 64, "ignore_eos": True}
    opening = letters(1, 1200)
    first = worker.run(chat(SYSTEM, opening), **options)
    assert first.usages[0].prompt_tokens >= 1000
    others = [worker.submit(chat(SYSTEM[:60], letters(100 + i, 900 + 10 * i)), principal=(ALICE, BOB)[i % 2], **options)
              for i in range(NUM_OTHERS)]  # fmt: skip
    worker.finish(others)
    assert worker.model.slots == 8
    returning = chat(SYSTEM, opening, first.text, "And the green one?")
    again = worker.run(returning, **options)
    assert cached(again) >= 0.9 * first.usages[0].prompt_tokens
    assert again.text == worker.run(returning, cache_prompt=False, **options).text


def test_a_shared_system_prompt_within_one_principal_only(worker: Worker) -> None:
    system = "Glass. " + SYSTEM
    around = len("<system\n") + len(">\n<user\n")  # the markers are one token each
    whole = (len(system) + around) // QUANTUM * QUANTUM
    options = {"max_tokens": 4, "ignore_eos": True}
    assert cached(worker.run(chat(system, letters(2, 200)), **options)) < QUANTUM
    assert cached(worker.run(chat(system, letters(3, 200)), **options)) == whole
    begins_alike = 8  # what the template puts before any system message, from Bob's other conversations
    assert cached(worker.run(chat(system, letters(3, 200)), principal=BOB, **options)) == begins_alike
    assert cached(worker.run(chat(system, letters(4, 200)), cache_salt=b"apart", **options)) == 0
    assert cached(worker.run(chat(system, letters(5, 200)), cache_salt=b"apart", **options)) == whole
    many = worker.run(chat(system, letters(6, 200)), num_choices=3, sampling=Sampling(temperature=1.0), seed=1, **options)
    prompt = many.usages[0].prompt_tokens
    assert [cached(many, choice) for choice in range(3)] == [whole] + [(prompt - 2) // QUANTUM * QUANTUM] * 2


# ------------------------------------------------------------------ memories that cannot be cut at any position

KINDS = ["mamba-dense", "mamba2-dense", "jamba-dense", "falcon-h1-dense", "lfm2-dense", "gemma3-dense", "gpt-oss-moe"]


def oracle(path: Path, tokens: list[int], answer: list[TokenLogprob]) -> np.ndarray:
    """Return llama.cpp's own log probabilities of the answer's tokens after `tokens`."""
    import llama_cpp

    model = llama_cpp.Llama(str(path), n_ctx=1024, n_batch=512, n_threads=1, logits_all=True, verbose=False)
    try:
        model.eval([*tokens, *(entry.token_id for entry in answer)])
        rows = np.array(model.scores[len(tokens) - 1 : len(tokens) + len(answer) - 1], dtype=np.float64)
    finally:
        model.close()
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return rows[np.arange(len(answer)), [entry.token_id for entry in answer]]


def bits(answer: Answer) -> list[tuple[int, float, list[tuple[bytes, float]]]]:
    return [(entry.token_id, entry.logprob, entry.top) for entry in answer.logprobs[0]]


@pytest.mark.parametrize("kind", KINDS)
def test_recurrent_and_sliding_window_models_answer_right_from_a_prefix(tmp_path: Path, kind: str) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", kind, "Q8_0")
    rng = random.Random(kind)
    prompt = [rng.randrange(256) for _ in range(330)]
    options = {"max_tokens": 10, "ignore_eos": True, "top_logprobs": 5}
    with EngineUnderTest(path, slots=4, context_size=1024, flash_attention="auto") as engine:
        worker = engine.attach()
        cold = worker.run(prompt, cache_prompt=False, **options)
        expected = oracle(path, prompt, cold.logprobs[0])
        assert [entry.logprob for entry in cold.logprobs[0]] == pytest.approx(list(expected), abs=0.05)

        first = worker.run(prompt, **options)
        others = [worker.submit([rng.randrange(256) for _ in range(90 + 60 * i)], max_tokens=30, ignore_eos=True, principal=BOB)
                  for i in range(3)]  # fmt: skip
        hit = worker.submit(prompt, **options)
        worker.finish([hit, *others])
        again = worker.answers[hit]
        assert (cached(first), cached(again)) == (0, 320)
        assert bits(cold) == bits(first) == bits(again)

        # Another prompt that shares 200 tokens, not a state's end: no hit, and right.
        branch = [*prompt[:200], *(rng.randrange(256) for _ in range(100))]
        from_branch = worker.run(branch, **options)
        assert cached(from_branch) == 0
        assert bits(from_branch) == bits(worker.run(branch, cache_prompt=False, **options))

        # The conversation goes on: from the state at the first prompt's last boundary.
        longer = [*prompt, *(entry.token_id for entry in cold.logprobs[0]), *(rng.randrange(256) for _ in range(100))]
        going_on = worker.run(longer, **options)
        assert cached(going_on) == 320
        assert bits(going_on) == bits(worker.run(longer, cache_prompt=False, **options))
        expected = oracle(path, longer, going_on.logprobs[0])
        assert [entry.logprob for entry in going_on.logprobs[0]] == pytest.approx(list(expected), abs=0.05)
