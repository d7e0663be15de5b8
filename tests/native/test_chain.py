"""Sampler: llama.cpp's chain behind our limits; grammars that must not reach its parser; log probabilities."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
from inferno_native import llama
from inferno_native.chain import MAX_GRAMMAR_DEPTH, GrammarError, Sampler, check_grammar

from tests.models import demo_model


@pytest.fixture(scope="module")
def vocab() -> Iterator[llama.Vocab]:
    descriptor = os.open(demo_model(), os.O_RDONLY | os.O_CLOEXEC)
    yield llama.load_model([descriptor], vocab_only=True).vocab
    os.close(descriptor)


def row(vocab: llama.Vocab, seed: int = 1, scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, vocab.n_tokens).astype(np.float32)


def test_greedy_takes_the_first_of_the_largest(vocab: llama.Vocab) -> None:
    logits = row(vocab)
    logits[[700, 400]] = 50.0
    assert Sampler(vocab, temperature=0.0).draw(logits) == 400


def test_a_seed_repeats_and_another_differs(vocab: llama.Vocab) -> None:
    def draws(seed: int) -> list[int]:
        sampler = Sampler(vocab, temperature=1.0, seed=seed)
        return [sampler.draw(row(vocab, i)) for i in range(20)]

    assert draws(7) == draws(7)
    assert draws(7) != draws(8)
    assert draws(0xFFFFFFFF) == draws(0xFFFFFFFF)  # llama.cpp's "random seed" must not be reached
    assert draws((1 << 64) - 1) == draws((1 << 64) - 1)


def test_bias_bans_and_forces(vocab: llama.Vocab) -> None:
    logits = row(vocab)
    best = int(logits.argmax())
    assert Sampler(vocab, temperature=0.0, logit_bias={best: -100.0}).draw(logits.copy()) != best
    assert Sampler(vocab, temperature=1.0, seed=3, logit_bias={123: 100.0}).draw(logits.copy()) == 123


@pytest.mark.parametrize("token", [-1, 49152, 1 << 40])
def test_bias_outside_of_the_vocabulary_is_refused(vocab: llama.Vocab, token: int) -> None:
    with pytest.raises(ValueError, match="logit_bias names token"):
        Sampler(vocab, logit_bias={token: 1.0})


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 40}, {"top_p": 0.5}, {"min_p": 0.1}, {"typical_p": 0.9}, {"temperature": 0.3}, {"mirostat": 1},
        {"mirostat": 2}, {"xtc_probability": 1.0, "xtc_threshold": 0.05}, {"repeat_penalty": 1.5, "repeat_last_n": 8},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"dry_multiplier": 1.0, "dry_sequence_breakers": ["\n", ":"]}, {"top_k": 1 << 20, "top_p": 0.0},
    ],
)  # fmt: skip
def test_each_stage_draws_from_the_vocabulary(vocab: llama.Vocab, options: dict[str, object]) -> None:
    sampler = Sampler(vocab, seed=5, **options)  # type: ignore[arg-type]
    if sampler.history:
        sampler.see([1, 2, 3, 4, 5])
    assert all(0 <= sampler.draw(row(vocab, i)) < vocab.n_tokens for i in range(8))


def test_top_k_one_is_greedy(vocab: llama.Vocab) -> None:
    logits = row(vocab)
    assert Sampler(vocab, temperature=1.0, top_k=1, seed=9).draw(logits.copy()) == int(logits.argmax())


def test_repeat_penalty_sees_the_prompt(vocab: llama.Vocab) -> None:
    logits = np.zeros(vocab.n_tokens, np.float32)
    logits[500], logits[600] = 10.0, 9.0
    plain = Sampler(vocab, temperature=0.0, repeat_penalty=2.0)
    seen = Sampler(vocab, temperature=0.0, repeat_penalty=2.0)
    seen.see([500])
    assert (plain.draw(logits.copy()), seen.draw(logits.copy())) == (500, 600)


def test_no_finite_logit_is_an_error_not_an_abort(vocab: llama.Vocab) -> None:
    for value in (-np.inf, np.nan):
        for options in ({"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 1.0, "top_logprobs": 3}):
            logits = np.full(vocab.n_tokens, value, np.float32)
            with pytest.raises(ValueError, match="nothing could be sampled"):
                Sampler(vocab, seed=1, **options).draw(logits)  # type: ignore[arg-type]


def test_a_grammar_binds_the_answer(vocab: llama.Vocab) -> None:
    sampler = Sampler(vocab, temperature=1.0, seed=2, grammar='root ::= "yes" | "no"')
    text = b""
    for i in range(8):
        token = sampler.draw(row(vocab, i))
        if vocab.is_eog(token):
            break
        text += vocab.piece(token)
    assert text in (b"yes", b"no")


@pytest.mark.parametrize(
    "grammar",
    [
        "", "root", "root ::= (", 'root ::= "a', "root ::= other", "root ::= root", 'x ::= "a"',
        'root ::= "a"{99999}', "root ::= [", "root ::= [^", 'root ::= "\\x"', "root ::= <[1]", "root ::= <[99999999999]>",
        "root ::= \0", "a ::= b\nb ::= a\nroot ::= a", 'root ::= "a"{5,2}{3', "\x00", "root ::= )", "root ::= *",
        'root ::= "a"{99999999999999999999999}', "root ::= ((" * 5000, "root ::= " + "(" * 60000,
        "".join(f'r{i} ::= r{i + 1}\n' for i in range(4000)) + 'r4000 ::= "a"\nroot ::= r0',
        'root ::= "a"{5,2}', 'root ::= "a"{ 5 , 2 }', 'root ::= "a"{5,\n2}', 'root ::= "a"{1001}', 'root ::= "a"{}', 'root ::= "a"{,3}',
        'root ::= "' + "a" * 70000 + '"',
    ],
)  # fmt: skip
def test_bad_grammars_are_refused(vocab: llama.Vocab, grammar: str) -> None:
    with pytest.raises(GrammarError):
        Sampler(vocab, grammar=grammar)


def test_nesting_is_counted_outside_of_literals_only() -> None:
    check_grammar(b'root ::= "' + b"(" * 1000 + b'" [(((((] # ((((((\n')
    deep = MAX_GRAMMAR_DEPTH
    check_grammar(b"root ::= " + b"(" * deep + b'"a"' + b")" * deep)
    with pytest.raises(GrammarError, match="nests"):
        check_grammar(b"root ::= " + b"(" * (deep + 1) + b'"a"' + b")" * (deep + 1))


def test_a_grammar_that_cannot_go_on_ends_in_an_error(vocab: llama.Vocab) -> None:
    sampler = Sampler(vocab, temperature=0.0, grammar='root ::= "zz"')
    banned = Sampler(vocab, temperature=0.0, grammar='root ::= "q"',
                     logit_bias={t: -100.0 for t in range(vocab.n_tokens) if vocab.piece(t).startswith(b"q")})  # fmt: skip
    assert sampler.draw(row(vocab)) >= 0
    with pytest.raises(ValueError, match="nothing could be sampled"):
        banned.draw(row(vocab))


def test_samplers_are_made_once(vocab: llama.Vocab) -> None:
    sampler = Sampler(vocab)
    with pytest.raises(RuntimeError):
        sampler.__init__(vocab)  # type: ignore[misc]
    with pytest.raises(ValueError, match="top_logprobs"):
        Sampler(vocab, top_logprobs=21)
