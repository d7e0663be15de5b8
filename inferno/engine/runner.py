"""The step loop: queue → slots → decode rows and prefill chunks → one message to each worker.

The intake's threads post what came to an inbox; the step loop alone touches the queue, the slots and the prefix store.
Each step decodes one row of every running sequence, then prefills as many chunks as the cost model allows, then sends
each worker one message. Knows nothing of how a model is loaded or verified. Engine process.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, cast

from inferno_native.batching import Batcher, DecodeError, Output, SequenceState

from ..messages import EngineStats, Event, Start, Step, TokenLogprob, Usage
from .connections import Connection
from .costs import CostModel
from .fairqueue import FairQueue, QueueFull
from .intake import Intake
from .memory import queue_place_bytes, waiting_bytes
from .prefill import Prefill
from .prefixes import PrefixStore
from .requests import Choice, Request, Stage

MAX_DECODE_FAILURES = 3
_IDLE_SECONDS = 0.5  # between looks at deadlines when nothing comes
_log = logging.getLogger("inferno.engine")


class Runner:
    """Runs requests on one Batcher. `run` is the step loop; everything else is called from other threads."""

    def __init__(
        self,
        batcher: Batcher,
        prompts: Any,
        *,
        store: PrefixStore,
        costs: CostModel,
        max_queue: int,
        max_queue_per_user: int,
        request_timeout_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.batcher = batcher
        self.store = store
        self.prefill = Prefill(batcher, store)
        self.intake = Intake(
            batcher, prompts, self, request_timeout_seconds=request_timeout_seconds, clock=clock
        )
        self._costs = costs
        self._queue: FairQueue[Request] = FairQueue(
            max_queue, max_queue_per_user, place_bytes=queue_place_bytes(batcher.context_size)
        )
        self._clock = clock
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._waiting_choices: deque[Choice] = deque()  # of admitted requests, for the next free slots
        self._running: dict[int, Choice] = {}  # by id of the sequence
        self._events: dict[Connection, list[Event]] = {}
        self._draining = False
        self._stopped = False
        self._drain_deadline = float("inf")
        self._decode_failures = 0
        self._last_progress = clock()
        self._last_tick = 0.0
        self._busy = False

    # ------------------------------------------------------------ other threads

    def post(self, action: Callable[[], Any]) -> None:
        """Have the step loop do something before its next step."""
        self._inbox.append(action)
        self._wake.set()

    def on_tick(self) -> None:
        """Have the step loop look at deadlines; connection thread, often."""
        now = self._clock()
        if now - self._last_tick < 1.0:
            return
        self._last_tick = now
        self.post(lambda: None)

    def drain(self, grace_seconds: float) -> None:
        """Take no new work; `run` returns when running work ended or the grace is over. Any thread, signal-safe."""
        self._draining = self.intake.is_closed = True
        self._drain_deadline = min(self._drain_deadline, self._clock() + grace_seconds)
        self._wake.set()

    def stop(self) -> None:
        self._stopped = True
        self._wake.set()

    def clear_prefixes(self, principal: bytes | None) -> None:
        self.store.clear(principal)

    def stuck_seconds(self) -> float:
        """Return for how long the step loop, having work, has made no progress; 0 when idle."""
        return self._clock() - self._last_progress if self._busy else 0.0

    def stats(self) -> EngineStats:
        batcher = self.batcher
        return EngineStats(
            running=batcher.num_slots - batcher.num_free,
            waiting=len(self._queue) + len(self._waiting_choices),
            slots=batcher.num_slots,
            kv_used_tokens=batcher.kv_used_tokens,
            kv_total_tokens=batcher.num_slots * batcher.context_size,
            prefix_bytes=max(self.store.size_bytes, 0),
            prefix_entries=self.store.num_entries,
            prefix_hit_tokens=self.store.hit_tokens,
            prefix_miss_tokens=self.store.miss_tokens,
            prefill_tokens=batcher.num_prefilled,
            decode_tokens=batcher.num_decoded,
            steps=batcher.num_steps,
        )

    # ------------------------------------------------------------ step loop

    def run(self) -> None:
        """Work until drained or stopped."""
        while not self._stopped:
            has_work = self.turn()
            if has_work is None:
                return
            if not has_work:
                self._wake.wait(_IDLE_SECONDS)
                self._wake.clear()

    def turn(self) -> bool | None:
        """Take what came, fill slots, do one step. Says whether there was a step to do; None: drained."""
        self._last_progress = self._clock()
        while self._inbox:
            self._inbox.popleft()()
        self._expire()
        self._admit()
        if self._draining and self._drained():
            return None
        self._busy = bool(self._running)
        if not self._busy:
            self._send_events()
            return False
        self.step()
        return True

    def step(self) -> None:
        """One decode row for each running sequence, then prefill chunks, then one message to each worker."""
        begin = time.perf_counter()
        try:
            outputs = self.batcher.decode()
        except DecodeError as error:
            self._decode_failed(error)
            outputs = []
        if outputs:
            for sequence, output in outputs:
                if output is not None:
                    self._emit(self._running[id(sequence)], output)
            self._send_events()
            streams = sum(choice.sequence.state == SequenceState.DECODING for choice in self._running.values())
            self._costs.decoded(time.perf_counter() - begin, max(streams, 1), len(self._running) - streams)
            self._last_progress = self._clock()
        else:
            self._costs.idle()
        chunks = 0
        while (choice := self._next_prefill(chunks, beside_decode=bool(outputs))) is not None:
            self._prefill(choice, is_alone=not outputs)
            chunks += 1
            self._last_progress = self._clock()
            if not outputs and (self._inbox or choice.sequence.state == SequenceState.DECODING):
                break  # something may decode or have come
        self._send_events()

    def _next_prefill(self, chunks: int, *, beside_decode: bool) -> Choice | None:
        """The prompt whose next chunk may run now, its stored prefix restored."""
        for choice in self.prefill.candidates(self._running.values()):
            self.prefill.begin(choice)
            sequence = choice.sequence
            if not beside_decode or self._costs.may_prefill(
                sequence.num_evaluated, sequence.num_remaining, chunks
            ):
                return choice
        return None

    def _prefill(self, choice: Choice, *, is_alone: bool) -> None:
        self.prefill.count_turn()
        sequence = choice.sequence
        start = sequence.num_evaluated
        begin = time.perf_counter()
        try:
            output = self.batcher.prefill(sequence, self._costs.chunks_at_once(start) if is_alone else 1)
        except DecodeError as error:
            _log.error("%s", error)
            self._fail_running(choice.request, "engine_failed", "The model could not evaluate the prompt.")
            return
        seconds = time.perf_counter() - begin
        done, quantum = sequence.num_evaluated - start, self.batcher.quantum
        if done >= quantum:
            self._costs.learn_chunk(start, seconds / (done // quantum))
        self._costs.spent(seconds)
        if sequence.state == SequenceState.PREFILLING:
            self.prefill.keep(choice)
        else:
            choice.prefilled_at = self._clock()
            if output is not None:
                self._emit(choice, output)

    # ------------------------------------------------------------ step loop: coming and going

    def enqueue(self, request: Request, start: Start) -> None:
        if request.cancelled or request.is_over:
            return
        if self._draining:
            self.intake.fail(request, "shutting_down", "The engine takes no new work.", retry_after=1.0)
            return
        sampling = start.sampling
        size = waiting_bytes(
            len(request.tokens), min(start.max_tokens, self.batcher.context_size), num_choices=start.num_choices,
            history=request.choices[0].sequence.sampler.history, grammar=len(sampling.grammar or ""),
        )  # fmt: skip
        cost = (len(request.tokens) + min(start.max_tokens, self.batcher.context_size)) * start.num_choices
        self._admit()
        try:
            self._queue.push(
                request, request.principal, cost=cost, size_bytes=size, weight=start.weight, priority=start.priority
            )
        except QueueFull as full:
            if full.scope == "principal":
                self.intake.fail(request, "rate_limit_exceeded", f"Too many of your requests are waiting; at most {full.limit}.",
                           retry_after=1.0)  # fmt: skip
            else:
                self.intake.fail(
                    request, "overloaded", f"Too many requests are waiting; at most {full.limit}.", retry_after=2.0
                )
            return
        request.stage = Stage.QUEUED
        self._admit()

    def _admit(self) -> None:
        """Fill free slots: with the choices of requests whose turn came, then with the next in the queue."""
        while self.batcher.num_free:
            if not self._waiting_choices:
                request = self._queue.pop()
                if request is None:
                    return
                request.stage = Stage.RUNNING
                self._waiting_choices.extend(request.choices)
                continue
            choice = self._waiting_choices.popleft()
            if choice.request.is_over or choice.is_over:
                continue
            try:
                self.batcher.admit(choice.sequence)
            except ValueError as error:
                self._fail_running(choice.request, "invalid_value", str(error))
                continue
            choice.admitted_at = self._clock()
            self.prefill.follow(choice, self._running.values())
            self._running[id(choice.sequence)] = choice

    def _expire(self) -> None:
        now = self._clock()
        late = [choice.request for choice in self._running.values() if now > choice.request.deadline]
        late += [request for request in self._queue.items() if now > request.deadline]
        for request in dict.fromkeys(late):
            self._fail_running(request, "deadline_exceeded", "The request's time is over.")

    def _drained(self) -> bool:
        if self._clock() < self._drain_deadline and (
            self._running or self._waiting_choices or len(self._queue) or self.intake.num_waiting
        ):
            return False
        for request in self._queue.items():
            self._fail_running(request, "shutting_down", "The engine is stopping.")
        for choice in [*self._running.values(), *self._waiting_choices]:
            self._fail_running(choice.request, "shutting_down", "The engine is stopping.")
        self._send_events()
        return True

    def _fail_running(self, request: Request, code: str, message: str) -> None:
        """End a request wherever it is, with an error. Text that it already has goes out first."""
        if request.is_over:
            return
        self._send_events()
        self.end(request)
        self.intake.fail(request, code, message)

    def end(self, request: Request) -> None:
        """Free what a request holds; idempotent."""
        request.stage = Stage.OVER
        self._queue.remove(request)
        for choice in request.choices:
            choice.is_over = True
            if self._running.pop(id(choice.sequence), None) is not None:
                self.batcher.release(choice.sequence)
        request.shared_state = None

    def _decode_failed(self, error: DecodeError) -> None:
        self._decode_failures += 1
        _log.error("%s", error)
        for choice in list(self._running.values()):
            if choice.sequence.state == SequenceState.DECODING:
                self._fail_running(choice.request, "engine_failed", "The model could not evaluate a step.")
        if self._decode_failures >= MAX_DECODE_FAILURES:
            raise error

    # ------------------------------------------------------------ step loop: answers

    def _emit(self, choice: Choice, output: Output) -> None:
        request, sequence = choice.request, choice.sequence
        if output.failed:
            self._fail_running(
                request, "engine_failed", "Sampling failed: the grammar or the model contradicts itself."
            )
            return
        usage = None
        if output.finish is not None:
            now = self._clock()
            usage = Usage(
                prompt_tokens=sequence.num_prompt,
                completion_tokens=sequence.num_generated,
                cached_tokens=sequence.num_cached,
                queue_seconds=max(choice.admitted_at - request.queued_at, 0.0),
                prefill_seconds=max(choice.prefilled_at - choice.admitted_at, 0.0),
                decode_seconds=max(now - choice.prefilled_at, 0.0),
            )
        logprobs = None
        if output.logprobs is not None:
            logprobs = [TokenLogprob(token=piece, logprob=logprob, top=top, token_id=token)
                        for token, piece, logprob, top in output.logprobs]  # fmt: skip
        event = Event(
            request=request.id,
            choice=choice.index,
            num_tokens=output.num_tokens,
            text=output.text,
            logprobs=logprobs,
            finish=cast(Literal["stop", "length"] | None, output.finish),
            usage=usage,
        )
        self._events.setdefault(request.connection, []).append(event)
        if output.finish is not None:
            choice.is_over = True
            self._running.pop(id(sequence), None)
            self.batcher.release(sequence)
            if all(other.is_over for other in request.choices):
                self.intake.forget(request)

    def _send_events(self) -> None:
        if self._events:
            waiting, self._events = self._events, {}
            for connection, events in waiting.items():
                connection.send(Step(events=events))
