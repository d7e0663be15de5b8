"""The cost model keeps the target and never starves prefill."""

from __future__ import annotations

from itertools import pairwise

import pytest

from inferno.engine.costs import CostModel

LONG = 1 << 20  # tokens to go


def simulate(
    decode: float, chunk: float, *, target: float = 0.05, seconds: float = 20.0
) -> tuple[float, float, float]:
    """Return (mean gap, worst gap, share of time spent on prefill) of a loop with endless prefill."""
    model = CostModel(target, chunk)
    now = prefill = 0.0
    gaps = []
    last = 0.0
    while now < seconds:
        now += decode
        gaps.append(now - last)
        last = now
        model.decoded(decode, 4, 1)
        chunks = 0
        while model.may_prefill(0, LONG, chunks):
            now += chunk
            prefill += chunk
            chunks += 1
            model.learn_chunk(0, chunk)
            model.spent(chunk)
    return sum(gaps) / len(gaps), max(gaps), prefill / now


@pytest.mark.parametrize(
    ("decode", "chunk"), [(0.010, 0.005), (0.010, 0.030), (0.010, 0.080), (0.030, 0.040)]
)
def test_mean_gap_stays_near_the_target(decode: float, chunk: float) -> None:
    mean, worst, share = simulate(decode, chunk)
    assert mean <= decode + 0.05
    assert worst <= max(decode + chunk, 0.05 + chunk) + 1e-9
    assert share >= 0.4


def test_decode_over_the_target_still_lets_one_chunk_follow() -> None:
    mean, worst, share = simulate(0.080, 0.040)
    assert mean == pytest.approx(0.12, rel=0.05)
    assert worst == pytest.approx(0.12, rel=0.05)
    assert share == pytest.approx(1 / 3, rel=0.05)


def test_chunk_times_are_learned_by_position() -> None:
    model = CostModel(0.05, 0.02)
    assert model.chunk_seconds(0) == 0.02
    model.learn_chunk(0, 0.01)
    model.learn_chunk(2048, 0.05)
    assert model.chunk_seconds(100) == 0.01
    assert model.chunk_seconds(1500) == 0.01  # the nearest below
    assert model.chunk_seconds(9000) == 0.05
    for _ in range(40):
        model.learn_chunk(0, 0.03)
    assert model.chunk_seconds(0) == pytest.approx(0.03, rel=0.01)


def test_idle_time_saves_nothing() -> None:
    model = CostModel(0.05, 1.0)
    for _ in range(100):
        model.decoded(0.01)
    model.idle()
    assert not model.may_prefill(0, LONG, 0)


def steps_until_prefilled(model: CostModel, decode: float, chunk: float, tokens: int, streams: int, prompts: int) -> list[int]:
    """Return after which decode steps the chunks of one prompt ran, a number for each chunk."""
    left, ran, step = tokens, [], 0
    while left > 0:
        step += 1
        model.decoded(decode, streams, prompts)
        chunks = 0
        while left > 0 and model.may_prefill(tokens - left, left, chunks):
            model.spent(chunk * min(left, 64) / 64)
            left -= min(left, 64)
            chunks += 1
            ran.append(step)
    return ran


def test_a_short_prompt_uses_what_was_saved_at_once() -> None:
    model = CostModel(0.05, 0.1)
    for _ in range(50):
        model.decoded(0.02, 8, 0)
    assert steps_until_prefilled(model, 0.02, 0.1, 256, 8, 1) == [1, 1, 1, 1]


def test_a_long_prompt_gets_one_chunk_a_step_whatever_was_saved() -> None:
    model = CostModel(0.05, 0.1)
    for _ in range(50):
        model.decoded(0.02, 8, 0)
    ran = steps_until_prefilled(model, 0.02, 0.1, 64 * 40, 8, 1)
    assert all(later > earlier for earlier, later in pairwise(ran[:-5]))


def test_cheap_chunks_of_a_long_prompt_fill_the_share_of_a_step() -> None:
    model = CostModel(0.05, 0.0039)
    model.decoded(0.01, 4, 1)
    chunks = 0
    while model.may_prefill(0, LONG, chunks):
        model.spent(0.0039)
        chunks += 1
    assert chunks == 10


def test_many_short_prompts_do_not_wait_for_few_streams_but_a_pause_is_bounded() -> None:
    model = CostModel(0.05, 0.1)
    assert steps_until_prefilled(model, 0.03, 0.1, 128, 4, 2) == [1, 1]
    model = CostModel(0.05, 0.1)
    model.decoded(0.03, 1, 100)
    spent = 0.0
    while model.may_prefill(0, 64, 1):
        model.spent(0.1)
        spent += 0.1
    assert spent == pytest.approx(model.burst_seconds)


def test_a_chunk_that_takes_longer_than_the_burst_runs_too() -> None:
    model = CostModel(0.05, 2.0)
    ran = steps_until_prefilled(model, 0.02, 2.0, 640, 8, 1)
    assert len(ran) == 10
    assert ran[-1] <= 10 * 2.0 / 0.03 + 10


def test_calls_of_several_chunks_take_a_second_at_most_and_wait_for_a_first_measurement() -> None:
    model = CostModel(0.05, 0.05)
    assert model.chunks_at_once(64) == 1  # the first guess may be far off
    model.learn_chunk(64, 0.2)
    assert model.chunks_at_once(64) == 5
    model.learn_chunk(4096, 0.7)
    assert model.chunks_at_once(4096) == 1
    model.learn_chunk(8192, 18.0)
    assert model.chunks_at_once(8192) == 1
