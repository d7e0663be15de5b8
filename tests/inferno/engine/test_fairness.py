"""Turns, leaving and deadlines in the step loop, counted in steps: a tiny model, and a recorder instead of sockets."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from inferno_native import llama
from inferno_native.batching import Batcher

from inferno.engine.costs import CostModel
from inferno.engine.fairqueue import TURN_TOKENS
from inferno.engine.prefixes import PrefixStore
from inferno.engine.prompts import PromptBuilder
from inferno.engine.runner import Runner
from inferno.messages import Cancel, Failed, Prepare, Prepared, Sampling, Start, TokenPrompt
from tests.inferno.engine.test_step_loop import ALICE, BOB, Recorder, until
from tests.tiny_models import write_tiny_model

CAROL = b"c" * 16
PROMPT, ANSWER = 40, 88  # one request costs 128 tokens: four are a turn
PER_TURN = TURN_TOKENS // (PROMPT + ANSWER)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[llama.Model]:
    path = write_tiny_model(tmp_path_factory.mktemp("fair") / "tiny.gguf", "llama-dense", "Q8_0")
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    llama.load_library()
    yield llama.load_model([descriptor])
    os.close(descriptor)


class Bench:
    """A runner whose clock stands still unless it is moved, and the order in which requests get their slots."""

    def __init__(self, model: llama.Model, *, slots: int = 1, max_queue: int = 200, max_per_user: int = 100) -> None:
        self.now = 0.0
        batcher = Batcher(model, num_slots=slots, context_size=256, quantum=64, threads=1)
        self.runner = Runner(
            batcher, PromptBuilder(model.vocab), store=PrefixStore(0, 64), costs=CostModel(0.05), max_queue=max_queue,
            max_queue_per_user=max_per_user, request_timeout_seconds=1000, clock=lambda: self.now,
        )  # fmt: skip
        self.recorder = Recorder()
        self._next = 0

    def submit(self, principal: bytes, count: int = 1, *, weight: float = 1.0, priority: int = 0, timeout: float = 900.0,
               max_tokens: int = ANSWER) -> list[int]:  # fmt: skip
        numbers = []
        for _ in range(count):
            self._next += 1
            number = self._next
            numbers.append(number)
            tokens = [(number + 7 * i) % 256 for i in range(PROMPT)]
            prepare = Prepare(request=number, principal=principal, prompt=TokenPrompt(tokens=tokens))
            self.runner.intake.on_message(self.recorder, prepare)  # type: ignore[arg-type]
            until(lambda number=number: self.recorder.of(Prepared, number))
            before = len(self.runner._inbox)
            start = Start(request=number, sampling=Sampling(temperature=0.0), max_tokens=max_tokens, ignore_eos=True,
                          weight=weight, priority=priority, timeout_seconds=timeout)  # fmt: skip
            self.runner.intake.on_message(self.recorder, start)  # type: ignore[arg-type]
            until(lambda before=before: len(self.runner._inbox) > before)
        return numbers

    def order(self) -> list[int]:
        """Run all; return the requests by their first tokens."""
        while self.runner._inbox or self.runner.stats().running or self.runner.stats().waiting:
            self.runner.turn()
        seen: dict[int, None] = {}
        for message in self.recorder.sent:
            for event in getattr(message, "events", ()):
                seen.setdefault(event.request)
        return list(seen)


def test_one_request_beside_64_of_another_waits_no_longer_than_a_turn(model: llama.Model) -> None:
    bench = Bench(model)
    many = bench.submit(ALICE, 64)
    for _ in range(3):
        bench.runner.turn()  # the first is running, the others wait
    (one,) = bench.submit(BOB)
    order = bench.order()
    assert sorted(order) == sorted([*many, one])
    assert order.index(one) <= 1 + PER_TURN
    assert [number for number in order if number != one] == many  # and nobody is overtaken by their own


def test_shares_by_weight(model: llama.Model) -> None:
    bench = Bench(model)
    heavy = set(bench.submit(ALICE, 40, weight=2.0))
    light = set(bench.submit(BOB, 40, weight=0.5))
    order = bench.order()[1:26]
    assert len(light.intersection(order)) == pytest.approx(5, abs=2)
    assert len(heavy.intersection(order)) == pytest.approx(20, abs=2)


def test_priority_orders_ones_own_requests_and_nobody_elses(model: llama.Model) -> None:
    bench = Bench(model)
    bench.submit(CAROL)
    bench.runner.turn()
    (low,) = bench.submit(ALICE, priority=-10)
    old, young = bench.submit(ALICE, 2)
    (high,) = bench.submit(ALICE, priority=100)
    (other,) = bench.submit(BOB, priority=-100)
    order = bench.order()
    assert [number for number in order[1:] if number != other] == [high, old, young, low]
    assert order.index(other) <= 1 + PER_TURN


def test_queue_bounds_for_one_and_for_all(model: llama.Model) -> None:
    bench = Bench(model, max_queue=4, max_per_user=3)
    running = bench.submit(ALICE)
    bench.runner.turn()
    waiting = bench.submit(ALICE, 3)
    over = bench.submit(ALICE)
    others = bench.submit(BOB)
    too_many = bench.submit(CAROL)
    bench.runner.turn()
    codes = {number: [failed.code for failed in bench.recorder.of(Failed, number)] for number in (*over, *too_many)}
    assert codes == {over[0]: ["rate_limit_exceeded"], too_many[0]: ["overloaded"]}
    assert bench.recorder.of(Failed, too_many[0])[0].retry_after
    assert sorted(bench.order()) == sorted([*running, *waiting, *others])


def steps_until_started(bench: Bench, number: int) -> int:
    """Steps until a request that waits has its slot."""
    before = bench.runner.batcher.num_steps
    while bench.runner.stats().waiting:
        bench.runner.turn()
        if bench.runner.batcher.num_steps - before > 20:
            raise AssertionError("its slot is not free")
    return bench.runner.batcher.num_steps - before


def test_who_leaves_and_who_is_late_free_their_slot_within_two_steps(model: llama.Model) -> None:
    bench = Bench(model, slots=2)
    leaving, late = bench.submit(ALICE, timeout=5.0, max_tokens=200) + bench.submit(BOB, timeout=5.0, max_tokens=200)
    for _ in range(5):
        bench.runner.turn()
    (waiting,) = bench.submit(CAROL)
    bench.runner.turn()
    assert bench.runner.stats().waiting == 1
    bench.runner.intake.on_message(bench.recorder, Cancel(request=leaving))  # type: ignore[arg-type]
    assert steps_until_started(bench, waiting) <= 2
    (next_one,) = bench.submit(CAROL)
    bench.runner.turn()
    bench.now = 5.1
    assert steps_until_started(bench, next_one) <= 2
    assert [failed.code for failed in bench.recorder.of(Failed, late)] == ["deadline_exceeded"]
    assert not bench.recorder.of(Failed, leaving)


def test_a_deadline_ends_a_request_that_waits(model: llama.Model) -> None:
    bench = Bench(model)
    bench.submit(ALICE, max_tokens=200)
    bench.runner.turn()
    (waiting,) = bench.submit(BOB, timeout=5.0)
    bench.runner.turn()
    bench.now = 5.1
    before = bench.runner.batcher.num_steps
    bench.runner.turn()
    assert bench.runner.batcher.num_steps - before <= 1
    assert [failed.code for failed in bench.recorder.of(Failed, waiting)] == ["deadline_exceeded"]
    assert bench.runner.stats().waiting == 0


def test_who_leaves_while_a_prompt_is_evaluated_frees_the_slot(model: llama.Model) -> None:
    bench = Bench(model)
    (leaving,) = bench.submit(ALICE)
    bench.runner.turn()
    (waiting,) = bench.submit(BOB)
    bench.runner.intake.on_message(bench.recorder, Cancel(request=leaving))  # type: ignore[arg-type]
    assert steps_until_started(bench, waiting) <= 2
    bench.order()
    assert bench.runner.batcher.num_free == 1
    assert bench.runner.batcher.kv_used_tokens == 0
