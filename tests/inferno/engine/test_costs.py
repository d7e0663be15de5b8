"""The cost model keeps the target and never starves prefill."""

from __future__ import annotations

import pytest

from inferno.engine.costs import CostModel


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
        model.decoded(decode)
        chunks = 0
        while model.may_prefill(0, chunks):
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
    assert not model.may_prefill(0, 0)
