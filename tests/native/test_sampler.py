"""inferno_native.sampler against its plain twin and against llama.cpp's own chain."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inferno_native.candidates import SIMD_VARIANTS, simd, use_simd
from inferno_native.sampler import MAX_HISTORY, MAX_VOCAB, Sampler
from llama_cpp import llama_cpp as binding

from inferno.engine.breakers import BreakerTable
from tests.inferno.engine.vocabularies import open_vocab
from tests.models import demo_model
from tests.native import reference_sampler as reference
from tests.native.llama_chain import Chain

HISTORY = [1, 2, 3, 2, 2, 9, 8]
CASES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7},
    {"temperature": 2.0, "top_k": 300},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 40, "top_p": 0.9, "min_p": 0.02},
    {"top_p": 0.95},
    {"top_p": 0.95, "temperature": 0.7},
    {"top_p": 0.0},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"min_p": 0.2, "top_p": 0.9},
    {"typical_p": 0.9},
    {"typical_p": 0.5, "top_k": 30, "top_p": 0.8, "min_p": 0.1, "temperature": 1.3},
    {"xtc_probability": 1.0, "xtc_threshold": 0.05},
    {"xtc_probability": 1.0, "xtc_threshold": 0.1, "top_k": 10},
    {"repeat_penalty": 1.3, "frequency_penalty": 0.2, "presence_penalty": 0.1},
    {"frequency_penalty": -1.5, "repeat_last_n": 3},
    {"logit_bias": {3: 5.0, 4: -100.0, 7: -2.0}, "top_p": 0.9},
    {"temperature": 0.0, "repeat_penalty": 1.5},
    {"mirostat": 1},
    {"mirostat": 1, "mirostat_tau": 2.0, "temperature": 1.3},
    {"mirostat": 2},
    {"mirostat": 2, "mirostat_tau": 2.0, "temperature": 0.8},
]


@pytest.fixture(autouse=True, params=SIMD_VARIANTS)
def variant(request: pytest.FixtureRequest) -> Any:
    use_simd(request.param)
    assert simd() == request.param
    yield request.param
    use_simd(None)


def _row(seed: int, size: int, spread: float = 2.0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    row = generator.normal(0, spread, size)
    best = generator.integers(0, size, max(size // 100, 1))
    row[best] += generator.gamma(2, 2.5, len(best))
    return row.astype(np.float32)


def _close(found: dict[int, float], expected: dict[int, float], tolerance: float = 2e-6) -> None:
    """Compare two distributions; a token at the edge of the kept set may differ only by the rounding of a sum."""
    assert max(abs(found.get(t, 0.0) - expected.get(t, 0.0)) for t in set(found) | set(expected)) < tolerance


# ---------------------------------------------------------------- beside llama.cpp


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_keeps_and_weighs_what_llama_cpps_chain_does(case: dict[str, Any], variant: str) -> None:
    sizes = [(10, 1, 1.0), (300, 2, 3.0), (5_000, 3, 0.5)]
    if variant == SIMD_VARIANTS[-1]:
        sizes.append((131_072, 5, 2.0))
    for size, seed, spread in sizes:
        row = _row(seed, size, spread)
        ours, peer = Sampler(size, **case), Chain(size, draw=False, **case)
        ours.accept(HISTORY)
        peer.accept(HISTORY)
        if case.get("temperature") == 0.0:
            assert ours.distribution(row) == {peer.sample(row): 1.0}
            continue
        found, expected = ours.distribution(row), peer.distribution(row)
        assert set(found) == set(expected)
        _close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        {}, {"temperature": 1.4, "top_p": 0.9}, {"top_k": 12}, {"min_p": 0.1, "temperature": 0.6},
        {"typical_p": 0.7}, {"xtc_probability": 0.5, "xtc_threshold": 0.05}, {"repeat_penalty": 1.3}, {"top_p": 0.8},
        {"frequency_penalty": 0.7, "presence_penalty": -0.8}, {"logit_bias": {3: 6.0, 4: -100.0, 7: 5.0}},
        {"top_k": 50, "typical_p": 0.9, "top_p": 0.9, "min_p": 0.02, "xtc_probability": 0.3, "temperature": 0.8},
    ],
    ids=repr,
)  # fmt: skip
def test_draws_are_distributed_as_llama_cpps(case: dict[str, Any]) -> None:
    """Two-sample chi-square over 20,000 draws each; the limit is its 99.99 % quantile."""
    size, draws = 200, 20_000
    row = _row(7, size, 1.5)
    ours, peer = Sampler(size, seed=11, **case), Chain(size, seed=11, **case)
    ours.accept(HISTORY)
    peer.accept(HISTORY)
    _same_source([ours.sample(row) for _ in range(draws)], [peer.sample(row) for _ in range(draws)])


@pytest.mark.slow
@pytest.mark.parametrize("case", [{"mirostat": 1, "mirostat_tau": 4.0}, {"mirostat": 2, "temperature": 0.8}], ids=repr)
def test_mirostats_third_draws_are_distributed_as_llama_cpps(case: dict[str, Any]) -> None:
    """Each draw moves the target of the next: many short answers, for draws of one answer are not independent."""
    row = _row(8, 200, 1.5)

    def third(sampler: Any) -> int:
        return [sampler.sample(row) for _ in range(3)][-1]

    case = {"mirostat_eta": 0.5, **case}
    _same_source(
        [third(Sampler(200, seed=seed, **case)) for seed in range(5_000)],
        [third(Chain(200, seed=seed, **case)) for seed in range(5_000)],
    )


@pytest.mark.slow
def test_draws_under_dry_are_distributed_as_llama_cpps(variant: str) -> None:
    vocabulary = open_vocab(demo_model())
    texts = ["\n", ":"]
    history = list(vocabulary.tokenize(TEXT.encode(), False, False))
    row = np.full(vocabulary.n_tokens, -50.0, dtype=np.float32)
    row[: 100] = _row(9, 100, 1.0)
    row[sorted(set(history))] = 3.0  # what may come again stands out, and some of it is a repeat
    dry = {"dry_multiplier": 0.8, "dry_allowed_length": 1}
    ours = Sampler(len(row), seed=3, dry_breakers=BreakerTable(vocabulary).sequences(texts), **dry)
    peer = Chain(len(row), seed=3, vocab=_vocab_pointer(), dry_texts=texts, **dry)
    ours.accept(history)
    peer.accept(history)
    plain = Sampler(len(row), seed=4)
    drawn = [ours.sample(row) for _ in range(1_500)]
    _same_source(drawn, [peer.sample(row) for _ in range(1_500)])
    with pytest.raises(AssertionError):  # or there was nothing to see
        _same_source(drawn, [plain.sample(row) for _ in range(1_500)])


def _same_source(ours: list[int], peers: list[int]) -> None:
    """Two-sample chi-square of equally many draws; the limit is its 99.99 % quantile."""
    a, b = Counter(ours), Counter(peers)
    cells = [(a[t], b[t]) for t in set(a) | set(b)]
    common = [cell for cell in cells if sum(cell) >= 20]
    rest = (len(ours) - sum(x for x, _ in common), len(peers) - sum(y for _, y in common))
    common += [rest] if sum(rest) else []
    statistic = sum((x - y) ** 2 / (x + y) for x, y in common)
    freedom = max(len(common) - 1, 1)
    # Wilson and Hilferty's approximation of the quantile
    limit = freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < limit


@pytest.mark.parametrize(
    "case",
    [
        {"temperature": 0.0}, {"temperature": 0.0, "logit_bias": {3: 4.0, 4: -100.0, 9: -3.0}},
        {"temperature": 0.0, "repeat_penalty": 1.4}, {"temperature": 0.0, "frequency_penalty": 0.9, "presence_penalty": 0.5},
        {"temperature": 0.0, "repeat_penalty": 1.2, "repeat_last_n": 4, "logit_bias": {5: 2.0}},
        {"temperature": 0.0, "mirostat": 2}, {"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}, {"top_k": 20, "typical_p": 0.0},
        {"top_k": 1, "xtc_probability": 1.0, "xtc_threshold": 0.01}, {"mirostat": 2, "mirostat_tau": 0.0},
    ],
    ids=repr,
)  # fmt: skip
def test_where_nothing_is_left_to_chance_the_tokens_are_llama_cpps(case: dict[str, Any]) -> None:
    """An answer of 100 tokens, each seen by the penalties of the next; whatever the seeds."""
    size = 300
    ours, peer = Sampler(size, seed=1, **case), Chain(size, seed=2, **case)
    for step in range(100):
        row = _row(step, size, 1.0)
        token = ours.sample(row)
        assert token == peer.sample(row)
        ours.accept([token])
        peer.accept([token])


@pytest.mark.parametrize("texts", [[], ["\n", ":"]], ids=repr)
def test_greedy_answers_under_dry_are_llama_cpps(texts: list[str]) -> None:
    vocabulary = open_vocab(demo_model())
    history = list(vocabulary.tokenize(TEXT.encode(), False, False))
    known = sorted(set(history))
    dry = {"temperature": 0.0, "dry_multiplier": 0.8, "dry_allowed_length": 1}
    ours = Sampler(vocabulary.n_tokens, dry_breakers=BreakerTable(vocabulary).sequences(texts), **dry)
    peer = Chain(vocabulary.n_tokens, vocab=_vocab_pointer(), dry_texts=texts, **dry)
    ours.accept(history)
    peer.accept(history)
    answer = []
    for step in range(60):
        row = _row(step, vocabulary.n_tokens, 0.1) * np.float32(0.1)
        row[known] += 3.0
        answer.append(ours.sample(row))
        assert answer[-1] == peer.sample(row)
        ours.accept(answer[-1:])
        peer.accept(answer[-1:])
    assert len(set(answer)) > 5


@pytest.mark.parametrize("case", [{}, {"top_p": 0.9}, {"top_k": 7}, {"temperature": 0.5}], ids=repr)
def test_draws_follow_the_distribution(case: dict[str, Any]) -> None:
    row = _row(3, 3_000, 1.0)
    sampler = Sampler(3_000, seed=5, **case)
    expected = sampler.distribution(row)
    counts = Counter(sampler.sample(row) for _ in range(4_000))
    assert set(counts) <= set(expected)
    common = [t for t, p in expected.items() if p * 4_000 >= 5]
    rest = 1 - sum(expected[t] for t in common)
    statistic = sum((counts[t] - 4_000 * expected[t]) ** 2 / (4_000 * expected[t]) for t in common)
    statistic += (4_000 - sum(counts[t] for t in common) - 4_000 * rest) ** 2 / max(4_000 * rest, 1.0)
    freedom = len(common)
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3


TEXT = "one two three. one two three four: one two three\nthe cat and the dog and the cat and the"


@pytest.mark.parametrize("texts", [[], ["\n", ":", '"', "*"], [" and", "three"], ["\n\n", ": one", "and the"]], ids=repr)
@pytest.mark.parametrize("dry", [{}, {"dry_allowed_length": 1, "dry_base": 1.2}, {"dry_penalty_last_n": 9}], ids=repr)
def test_dry_is_llama_cpps(texts: list[str], dry: dict[str, Any]) -> None:
    vocabulary = open_vocab(demo_model())
    pointer = _vocab_pointer()
    row = _row(1, vocabulary.n_tokens)
    breakers = BreakerTable(vocabulary).sequences(texts)
    for text in (TEXT, TEXT[:40], "a a a a a a a a", "x"):
        history = list(vocabulary.tokenize(text.encode(), False, False))
        ours = Sampler(vocabulary.n_tokens, dry_multiplier=0.8, dry_breakers=breakers, **dry)
        peer = Chain(vocabulary.n_tokens, draw=False, vocab=pointer, dry_multiplier=0.8, dry_texts=texts, **dry)
        ours.accept(history)
        peer.accept(history)
        found = ours.distribution(row)
        _close(found, peer.distribution(row))
        twin = reference.distribution(row, history, dry_multiplier=0.8, dry_breakers=breakers, **dry)
        _close(found, twin)


@pytest.fixture(scope="module", autouse=True)
def _models() -> Any:
    yield
    for model in _MODELS:
        binding.llama_model_free(model)
    _MODELS.clear()


_MODELS: list[Any] = []


def _vocab_pointer() -> Any:
    if not _MODELS:
        parameters = binding.llama_model_default_params()
        parameters.vocab_only = True
        _MODELS.append(binding.llama_model_load_from_file(str(demo_model()).encode(), parameters))
    return binding.llama_model_get_vocab(_MODELS[0])


# ---------------------------------------------------------------- laws beside the twin

LOGITS = st.floats(-30, 30, width=32) | st.sampled_from([0.0, 1.0, -math.inf])
ROWS = st.lists(LOGITS, min_size=1, max_size=60).filter(lambda row: max(row) > -math.inf)
PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 1.9]),
        "top_k": st.integers(0, 70),
        "top_p": st.sampled_from([0.1, 0.5, 0.93, 1.0]),
        "min_p": st.sampled_from([0.0, 0.03, 0.4]),
        "xtc_probability": st.just(1.0),
        "xtc_threshold": st.sampled_from([0.02, 0.2, 0.6]),
        "repeat_penalty": st.sampled_from([0.5, 1.0, 1.7]),
        "presence_penalty": st.sampled_from([-1.0, 0.0, 2.0]),
        "frequency_penalty": st.sampled_from([-0.5, 0.0, 0.3]),
        "repeat_last_n": st.integers(0, 12),
        "dry_multiplier": st.sampled_from([0.0, 0.8]),
        "dry_allowed_length": st.integers(0, 3),
        "dry_penalty_last_n": st.integers(1, 20),
    },
)


@settings(max_examples=200, deadline=None)
@given(row=ROWS, parameters=PARAMETERS, history=st.lists(st.integers(0, 4), max_size=40), breaker=st.integers(0, 4))
def test_every_stage_is_the_twins(row: list[float], parameters: dict[str, Any], history: list[int], breaker: int) -> None:
    size = max(len(row), 5)
    row = row + [-1.0] * (size - len(row))
    breakers = [(breaker,), (1, 2), (3, 3, 1)] if parameters.get("dry_multiplier") else []
    sampler = Sampler(size, dry_breakers=breakers, **parameters)
    sampler.accept(history)
    logits = np.array(row, dtype=np.float32)
    before = logits.tobytes()
    expected = _seen(reference.distribution(logits.tolist(), history, dry_breakers=breakers, **parameters))
    found = _seen(sampler.distribution(logits))
    assert logits.tobytes() == before
    if set(found) != set(expected):
        # Only a probability or a sum that meets its limit to the last bits may fall to either side.
        near = [{"dry_breakers": breakers, **nearby} for nearby in _nearby(parameters)]
        assert set(found) in [set(_seen(reference.distribution(logits.tolist(), history, **p))) for p in near]
        return
    _close(found, expected, 1e-5)
    assert sampler.sample(logits) in {t for t, p in expected.items() if p > 0}
    assert logits.tobytes() == before


def _seen(shares: dict[int, float]) -> dict[int, float]:
    """Leave out what no draw would ever show: single precision ends near 1e-38."""
    return {token: share for token, share in shares.items() if share > 1e-30}


def _nearby(parameters: dict[str, Any]) -> Any:
    """The same parameters with each threshold a millionth lower or higher."""
    for name in ("top_p", "min_p", "xtc_threshold"):
        if name in parameters:
            for factor in (1 - 1e-6, 1 + 1e-6):
                yield {**parameters, name: parameters[name] * factor}


@settings(max_examples=100, deadline=None)
@given(history=st.lists(st.integers(0, 30), max_size=200), window=st.integers(1, 40))
def test_the_window_forgets_in_order(history: list[int], window: int) -> None:
    row = np.zeros(31, dtype=np.float32)
    sampler = Sampler(31, frequency_penalty=1.0, repeat_last_n=window)
    for token in history:
        sampler.accept([token])
    _close(sampler.distribution(row), reference.distribution(row, history, frequency_penalty=1.0, repeat_last_n=window))


@pytest.mark.parametrize("mode", [1, 2])
def test_mirostat_learns_from_what_it_drew(mode: int) -> None:
    row = _row(2, 2_000, 2.0)
    sampler = Sampler(2_000, mirostat=mode, mirostat_tau=3.0, mirostat_eta=0.2, temperature=0.9, seed=4)
    mu = 6.0
    assert sampler.mu == mu
    for _ in range(30):
        expected = reference.distribution(row, mu=mu, mirostat=mode, mirostat_tau=3.0, temperature=0.9)
        found = sampler.distribution(row)
        assert set(found) == set(expected)
        _close(found, expected, 1e-5)
        token = sampler.sample(row)
        mu -= 0.2 * (-math.log2(expected[token]) - 3.0)
        assert sampler.mu == pytest.approx(mu, abs=1e-3)


# ---------------------------------------------------------------- random numbers


def test_a_seed_gives_the_same_draws_in_any_company() -> None:
    row = _row(1, 4_000)
    others = [Sampler(4_000, seed=seed, top_p=0.9) for seed in range(5)]
    alone = Sampler(4_000, seed=42, top_p=0.9)
    beside = Sampler(4_000, seed=42, top_p=0.9)
    expected = [alone.sample(row) for _ in range(50)]
    found = []
    for _ in range(50):
        for other in others:
            other.sample(row)
        found.append(beside.sample(row))
    assert found == expected
    assert beside.draws == 50
    assert len({tuple(Sampler(4_000, seed=s).sample(row) for _ in range(1)) for s in range(40)}) > 1


def test_neighbouring_seeds_draw_independently() -> None:
    row = np.zeros(1_000, dtype=np.float32)
    first = [Sampler(1_000, seed=seed).sample(row) for seed in range(2_000)]
    assert len(set(first)) > 700
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.1
    assert abs(float(np.mean(first)) - 499.5) < 30


# ---------------------------------------------------------------- edges


def test_forbidden_tokens_and_bans_are_never_drawn() -> None:
    row = np.zeros(6, dtype=np.float32)
    sampler = Sampler(6, logit_bias={5: -100.0}, seed=1)
    forbidden = np.array([0, 2, 2, 77, -3], dtype=np.int32)
    drawn = {sampler.sample(row, forbidden) for _ in range(200)}
    assert drawn == {1, 3, 4}
    assert not row.any()
    assert {sampler.sample(row) for _ in range(300)} == {0, 1, 2, 3, 4}
    with pytest.raises(ValueError, match="forbidden"):
        sampler.sample(row, np.arange(5, dtype=np.int32))
    assert not row.any()


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_rows_with_holes(case: dict[str, Any]) -> None:
    row = np.full(2_000, -np.inf, dtype=np.float32)
    row[[17, 900, 1_999]] = [1.0, 2.0, 0.5]
    row[[3, 1_024]] = np.nan
    sampler = Sampler(2_000, **{**case, "logit_bias": {}})
    assert {sampler.sample(row) for _ in range(60)} <= {17, 900, 1_999}


def test_rows_that_are_no_rows() -> None:
    for values, message in (([np.nan] * 4, "no number"), ([0.0, np.inf, 0, 0], "infinity"), ([-np.inf] * 4, "forbidden")):
        for case in ({}, {"temperature": 0.0}, {"top_p": 0.5}, {"mirostat": 2}):
            with pytest.raises(ValueError, match=message):
                Sampler(4, **case).sample(np.array(values, dtype=np.float32))
    with pytest.raises(ValueError, match="5 logits"):
        Sampler(4).sample(np.zeros(5, dtype=np.float32))


def test_one_token_and_extreme_logits() -> None:
    for case in CASES:
        assert Sampler(1, **{**case, "logit_bias": {}}).sample(np.zeros(1, dtype=np.float32)) == 0
        wide = np.array([-3.4e38, 3.4e38, 0.0, 1e-45] + [-1e30] * 100, dtype=np.float32)
        assert Sampler(104, **{**case, "logit_bias": {}, "xtc_probability": 0.0}).sample(wide) == 1


def test_equal_logits() -> None:
    row = np.zeros(5_000, dtype=np.float32)
    assert set(Sampler(5_000, top_k=7).distribution(row)) == set(range(7))
    assert len(Sampler(5_000, top_p=0.5).distribution(row)) == 2_500
    assert Sampler(5_000, temperature=0.0).sample(row) == 0
    assert len(Sampler(5_000, min_p=1.0).distribution(row)) == 5_000


def test_arguments_are_checked() -> None:
    for size in (0, -1, MAX_VOCAB + 1):
        with pytest.raises(ValueError):
            Sampler(size)
    wrong: list[dict[str, Any]] = [
        {"temperature": math.nan}, {"top_p": math.inf}, {"repeat_penalty": 0.0}, {"mirostat": 3},
        {"logit_bias": {4: 1.0}}, {"logit_bias": {0: math.nan}}, {"dry_breakers": [()]}, {"dry_breakers": [(1, 9)]},
        {"max_history": MAX_HISTORY + 1},
    ]  # fmt: skip
    for case in wrong:
        with pytest.raises(ValueError):
            Sampler(4, **case)
    with pytest.raises(ValueError):
        Sampler(4).accept([4])
    with pytest.raises(TypeError):
        Sampler(4).sample(None)  # type: ignore[arg-type]
    assert Sampler(4, repeat_penalty=2.0, repeat_last_n=50, max_history=10).history == 10
    assert Sampler(4).history == 0


# ---------------------------------------------------------------- log probabilities


@settings(max_examples=100, deadline=None)
@given(row=ROWS, top=st.integers(0, 20))
def test_logprobs_are_of_the_raw_row(row: list[float], top: int) -> None:
    logits = np.array(row, dtype=np.float32)
    finite = [i for i, x in enumerate(row) if x > -math.inf]
    best = max(row)
    total = best + math.log(sum(math.exp(row[i] - best) for i in finite))
    sampler = Sampler(len(row), temperature=0.3, logit_bias={finite[0]: 50.0})
    logprob, found = sampler.logprobs(logits, finite[0], top)
    assert logprob == pytest.approx(float(logits[finite[0]]) - total, abs=1e-4)
    expected = sorted(finite, key=lambda t: (-float(logits[t]), t))[:top]
    assert [token for token, _ in found] == expected
    for token, value in found:
        assert value == pytest.approx(float(logits[token]) - total, abs=1e-4)


def test_logprobs_of_a_large_row() -> None:
    row = _row(9, 131_072)
    exact = row.astype(np.float64) - float(row.max())
    exact -= math.log(np.exp(exact).sum())
    _, found = Sampler(131_072).logprobs(row, 5, 20)
    order = np.lexsort((np.arange(len(row)), -row))[:20]
    assert [token for token, _ in found] == order.tolist()
    assert np.abs(np.array([value for _, value in found]) - exact[order]).max() < 1e-4
    with pytest.raises(ValueError):
        Sampler(4).logprobs(np.full(4, np.nan, dtype=np.float32), 0)
    with pytest.raises(ValueError):
        Sampler(4).logprobs(np.zeros(4, dtype=np.float32), 0, 21)


def test_variants_agree(variant: str) -> None:
    for size in (1, 7, 16, 33, 1_023, 1_025, 4_097):
        row = _row(size, size)
        for case in ({}, {"top_p": 0.9}, {"top_k": 3}):
            found = Sampler(size, **case).distribution(row)
            use_simd("portable")
            _close(found, Sampler(size, **case).distribution(row), 1e-6)
            use_simd(variant)
    with pytest.raises(ValueError, match="no variant"):
        use_simd("mmx")


