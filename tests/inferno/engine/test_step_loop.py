"""The step loop by hand: one turn at a time on the real model in this process, with a recorder instead of a socket."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from inferno_native import llama
from inferno_native.batching import Batcher

from inferno.engine.costs import CostModel
from inferno.engine.prefixes import PrefixStore
from inferno.engine.prompts import PromptBuilder
from inferno.engine.runner import Runner
from inferno.messages import Cancel, Failed, Prepare, Prepared, Sampling, Start, Step, TokenPrompt
from tests.models import demo_model

ALICE, BOB = b"a" * 16, b"b" * 16


class Recorder:
    """What the runner needs of a connection."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.requests: dict[int, Any] = {}

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def of(self, kind: type, request: int) -> list[Any]:
        return [message for message in self.sent if isinstance(message, kind) and message.request == request]

    def events(self, request: int) -> list[Any]:
        return [
            e
            for message in self.sent
            if isinstance(message, Step)
            for e in message.events
            if e.request == request
        ]


@pytest.fixture(scope="module")
def model() -> Iterator[llama.Model]:
    descriptor = os.open(demo_model(), os.O_RDONLY | os.O_CLOEXEC)
    yield llama.load_model([descriptor])
    os.close(descriptor)


@pytest.fixture
def runner(model: llama.Model) -> Runner:
    batcher = Batcher(model, num_slots=2, context_size=512, quantum=64, threads=1)
    return Runner(batcher, PromptBuilder(model.vocab), store=PrefixStore(32 << 20, 64), costs=CostModel(0.05),
                  max_queue=8, max_queue_per_user=4, request_timeout_seconds=60)  # fmt: skip


def until(condition: Callable[[], object]) -> None:
    """Wait for a prepare thread."""
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.001)


def begin(runner: Runner, recorder: Recorder, number: int, *, length: int = 20, principal: bytes = ALICE,
          max_tokens: int = 100) -> None:  # fmt: skip
    tokens = [(2000 + number * 131 + 7 * i) % 40000 for i in range(length)]
    begin_with(runner, recorder, number, tokens, principal, max_tokens=max_tokens)


def begin_with(runner: Runner, recorder: Recorder, number: int, tokens: list[int], principal: bytes,
               max_tokens: int = 4) -> None:  # fmt: skip
    runner.intake.on_message(
        recorder, Prepare(request=number, principal=principal, prompt=TokenPrompt(tokens=tokens))
    )  # type: ignore[arg-type]
    until(lambda: recorder.of(Prepared, number))
    before = len(runner._inbox)
    runner.intake.on_message(
        recorder,
        Start(request=number, sampling=Sampling(temperature=0.0), max_tokens=max_tokens, ignore_eos=True),
    )  # type: ignore[arg-type]
    until(lambda: len(runner._inbox) > before)


def test_a_client_that_leaves_frees_its_slot_within_two_steps(runner: Runner) -> None:
    recorder = Recorder()
    for number in (1, 2, 3):
        begin(runner, recorder, number)
    for _ in range(6):
        assert runner.turn()
    assert (runner.batcher.num_free, runner.stats().waiting) == (0, 1)
    steps = runner.batcher.num_steps
    runner.intake.on_message(recorder, Cancel(request=1))  # type: ignore[arg-type]
    while runner.stats().waiting:
        assert runner.turn()
    assert runner.batcher.num_steps - steps <= 2
    seen = len(recorder.events(1))
    for _ in range(3):
        runner.turn()
    assert len(recorder.events(1)) == seen
    assert recorder.events(3)
    assert 1 not in recorder.requests


def test_one_message_a_step_and_whole_answers(runner: Runner) -> None:
    recorder = Recorder()
    for number in (1, 2):
        begin(runner, recorder, number, max_tokens=12)
    turns = 0
    while runner.stats().running or runner._inbox:
        runner.turn()
        turns += 1
    steps = [message for message in recorder.sent if isinstance(message, Step)]
    assert len(steps) <= 2 * turns
    for number in (1, 2):
        events = recorder.events(number)
        assert events[-1].finish == "length"
        assert sum(event.num_tokens for event in events) == 12 == events[-1].usage.completion_tokens
    assert recorder.requests == {}


def test_running_streams_go_on_while_a_long_prompt_is_evaluated(runner: Runner) -> None:
    recorder = Recorder()
    begin(runner, recorder, 1, max_tokens=400)
    for _ in range(4):
        runner.turn()
    begin(runner, recorder, 2, length=450, principal=BOB, max_tokens=1)
    while not recorder.events(2):
        before, prefilled = len(runner.batcher.sequences[0].generated()), runner.batcher.num_prefilled
        runner.turn()
        assert (
            len(runner.batcher.sequences[0].generated()) == before + 1
        )  # each turn brings the stream its token
        assert runner.batcher.num_prefilled - prefilled <= 450


def test_a_deadline_ends_waiting_and_running_requests(model: llama.Model) -> None:
    now = [0.0]
    batcher = Batcher(model, num_slots=1, context_size=512, quantum=64, threads=1)
    runner = Runner(batcher, PromptBuilder(model.vocab), store=PrefixStore(0, 64), costs=CostModel(0.05), max_queue=8,
                    max_queue_per_user=4, request_timeout_seconds=10, clock=lambda: now[0])  # fmt: skip
    recorder = Recorder()
    begin(runner, recorder, 1)
    begin(runner, recorder, 2)
    runner.turn()
    now[0] = 9.9
    runner.turn()
    assert not recorder.of(Failed, 1)
    now[0] = 10.1
    runner.turn()
    assert [recorder.of(Failed, n)[0].code for n in (1, 2)] == ["deadline_exceeded"] * 2
    assert (batcher.num_free, runner.stats().waiting) == (1, 0)


def test_a_stuck_step_loop_is_noticed(model: llama.Model) -> None:
    now = [0.0]
    batcher = Batcher(model, num_slots=1, context_size=512, quantum=64, threads=1)
    runner = Runner(batcher, PromptBuilder(model.vocab), store=PrefixStore(0, 64), costs=CostModel(0.05), max_queue=8,
                    max_queue_per_user=4, request_timeout_seconds=1000, clock=lambda: now[0])  # fmt: skip
    runner.turn()
    now[0] = 500.0
    assert runner.stuck_seconds() == 0  # idle
    begin(runner, Recorder(), 1)
    runner.turn()
    now[0] = 700.0
    assert runner.stuck_seconds() >= 190


@pytest.mark.parametrize("second", [ALICE, BOB], ids=["one principal", "two principals"])
def test_prompts_that_come_together_compute_their_common_beginning_once(runner: Runner, second: bytes) -> None:
    recorder = Recorder()
    common = [(3000 + 11 * i) % 40000 for i in range(200)]  # three whole chunks of it
    begin_with(runner, recorder, 1, common + [5000] * 100, ALICE)
    begin_with(runner, recorder, 2, common + [6000] * 80, second)
    while runner.stats().running or runner._inbox:
        runner.turn()
    usages = {number: recorder.events(number)[-1].usage for number in (1, 2)}
    assert sorted(usage.cached_tokens for usage in usages.values()) == ([0, 192] if second == ALICE else [0, 0])
    assert runner.batcher.num_prefilled == 300 + 280 - (192 if second == ALICE else 0)


def test_a_prompt_does_not_wait_for_one_that_left(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    common = [(3000 + 11 * i) % 40000 for i in range(200)]
    begin_with(runner, recorder, 1, common + [5000] * 100, ALICE)
    begin_with(runner, recorder, 2, common + [6000] * 100, ALICE)

    def leave() -> None:  # while the first chunk runs
        monkeypatch.undo()
        runner.intake.on_message(recorder, Cancel(request=1))  # type: ignore[arg-type]

    monkeypatch.setattr(runner.prefill, "count_turn", leave)
    runner.turn()
    assert runner.batcher.num_prefilled == 8
    while runner.stats().running or runner._inbox:
        runner.turn()
    assert recorder.events(2)[-1].usage.completion_tokens == 4
    assert recorder.events(1) == []


def test_a_common_beginning_changes_no_answer(runner: Runner) -> None:
    common = [(3000 + 11 * i) % 40000 for i in range(200)]
    texts = []
    for numbers in ((1,), (1, 2)):
        recorder = Recorder()
        runner.clear_prefixes(None)
        for number in numbers:
            begin_with(runner, recorder, number, common + [4000 + number] * 60, ALICE)
        while runner.stats().running or runner._inbox:
            runner.turn()
        texts.append([event.text for event in recorder.events(1)])
    assert texts[0] == texts[1]
