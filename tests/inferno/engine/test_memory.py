"""The memory plan: what is chosen, what is refused, with the numbers."""

from __future__ import annotations

import pytest

from inferno.engine.memory import NoMemory, Shape, available_bytes, make_plan

SHAPE = Shape(
    weight_bytes=96 << 20, n_layer=30, n_embd=576, n_head=9, n_head_kv=3, n_vocab=49152, n_ctx_train=8192
)
COMMON = {"kv_type": None, "ubatch": 65, "extra_sequences": 0, "prefix_bytes": 256 << 20}


def test_kv_arithmetic_of_smollm2() -> None:
    assert SHAPE.kv_bytes_per_token(None) == 30 * 3 * 64 * 2 * 2
    assert SHAPE.kv_bytes_per_token("q8_0") == pytest.approx(30 * 3 * 64 * 2 * 34 / 32)
    plan = make_plan(SHAPE, slots=16, context_size=512, available=8 << 30, **COMMON)
    assert plan.kv == 16 * 512 * 23040
    assert plan.needed == plan.weights + plan.kv + plan.compute + plan.prefix + (128 << 20)


def test_defaults_shrink_the_context_until_it_fits() -> None:
    assert make_plan(SHAPE, slots=None, context_size=None, available=32 << 30, **COMMON).context_size == 8192
    small = make_plan(SHAPE, slots=None, context_size=None, available=1200 << 20, **COMMON)
    assert 512 <= small.context_size < 8192
    assert small.needed <= 1200 << 20


def test_what_was_asked_for_is_refused_with_the_numbers() -> None:
    with pytest.raises(NoMemory) as refused:
        make_plan(SHAPE, slots=64, context_size=8192, available=4 << 30, **COMMON)
    text = str(refused.value)
    assert "KV 11520 MiB" in text
    assert "4096 MiB are available" in text
    assert "prefix_cache_mb" in text


def test_this_machine_has_memory() -> None:
    assert 0 < available_bytes() < 1 << 62
