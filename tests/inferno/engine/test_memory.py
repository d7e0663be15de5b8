"""The memory plan: what is chosen, what is refused, with the numbers."""

from __future__ import annotations

import pytest

from inferno.engine.loading import CALL_CHUNKS, plan_memory
from inferno.engine.memory import (
    NoMemory,
    Shape,
    available_bytes,
    make_plan,
    queue_place_bytes,
    waiting_bytes,
)
from inferno.messages import PROTOCOL_VERSION, EngineSettings

SHAPE = Shape(
    weight_bytes=96 << 20, n_layer=30, n_embd=576, n_head=9, n_head_kv=3, n_vocab=49152, n_ctx_train=8192
)
COMMON = {"kv_type": None, "ubatch": 65, "extra_sequences": 0, "prefix_bytes": 256 << 20, "max_queue": 256}


def test_kv_arithmetic_of_smollm2() -> None:
    assert SHAPE.kv_bytes_per_token(None) == 30 * 3 * 64 * 2 * 2
    assert SHAPE.kv_bytes_per_token("q8_0") == pytest.approx(30 * 3 * 64 * 2 * 34 / 32)
    plan = make_plan(SHAPE, slots=16, context_size=512, available=8 << 30, **COMMON)
    assert plan.kv == 16 * 512 * 23040
    assert plan.needed == plan.weights + plan.kv + plan.compute + plan.prefix + plan.queue + (128 << 20)
    assert plan.queue == 256 * (2 * 4 * 512 + (16 << 10))
    assert plan.as_dict()["queue"] == plan.queue


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


def test_a_queue_that_does_not_fit_is_refused_with_its_numbers() -> None:
    options = {**COMMON, "slots": 1, "context_size": 8192, "available": 2 << 30}
    assert make_plan(SHAPE, **options).queue == 20 << 20
    with pytest.raises(NoMemory) as refused:
        make_plan(SHAPE, **(options | {"max_queue": 100_000}))
    assert "queue 7812 MiB (100000 requests)" in str(refused.value)
    assert "max_queue" in str(refused.value)


def test_a_place_holds_a_request_that_fills_the_context() -> None:
    for context in (128, 8192, 1 << 20):
        assert waiting_bytes(context - 1, 1) <= queue_place_bytes(context)
        assert waiting_bytes(1, context) <= queue_place_bytes(context)
        assert waiting_bytes(1, context, num_choices=16) > queue_place_bytes(context)


def test_this_machine_has_memory() -> None:
    assert 0 < available_bytes() < 1 << 62


def test_large_calls_are_given_up_before_the_context_or_the_start() -> None:
    wide = Shape(
        weight_bytes=4 << 30, n_layer=32, n_embd=4096, n_head=32, n_head_kv=8, n_vocab=152064, n_ctx_train=32768
    )
    settings = EngineSettings(
        version=PROTOCOL_VERSION, name="wide", paths=["x"], slots=1, context_size=32768, flash_attention="off"
    )
    roomy, chunks = plan_memory(wide, settings, 64, 64 << 30, CALL_CHUNKS)
    assert chunks == CALL_CHUNKS
    tight, chunks = plan_memory(wide, settings, 64, roomy.needed - 1, CALL_CHUNKS)
    assert (chunks, tight.context_size) == (0, 32768)
    assert tight.compute < roomy.compute
    with pytest.raises(NoMemory):
        plan_memory(wide, settings, 64, tight.needed - 1, CALL_CHUNKS)
