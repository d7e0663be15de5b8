"""The engine's life of requests: sockets ↔ prepare threads ↔ queue ↔ inferno_native.batching; the plain step loop.

Three kinds of threads meet here. The connection thread hands in messages; prepare threads tokenize and make samplers;
the step loop alone touches the queue, the slots and the prefix store. They share the records of requests, under one
lock, and an inbox. Each step decodes one row of every running sequence, then prefills as many chunks as the cost model
allows, then sends each worker one message. Knows nothing of how a model is loaded or verified.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, cast

from inferno_native.batching import Batcher, DecodeError, Output, Sequence, SequenceState, last_boundary
from inferno_native.chain import GrammarError, Sampler

from ..errors import EngineError
from ..messages import (
    Cancel,
    Detokenize,
    Detokenized,
    Drop,
    EngineStats,
    Event,
    Failed,
    Prepare,
    Prepared,
    Start,
    Step,
    TokenLogprob,
    Usage,
)
from .breakers import BreakerTable
from .connections import Connection
from .costs import CostModel
from .fairqueue import FairQueue, QueueFull
from .prefixes import PUBLIC, PrefixStore
from .preparing import PreparePool
from .requests import Choice, Request, Stage

MAX_REQUESTS_PER_WORKER = 4096
MAX_PREPARED_PER_WORKER = 256
MAX_PREPARED_TOKENS = 4 << 20  # ids kept for one worker, all its prepared requests together
PREPARED_TIMEOUT_SECONDS = 60.0
MAX_DECODE_FAILURES = 3
_IDLE_SECONDS = 0.5  # between looks at deadlines when nothing comes
_SHORT_FIRST_TURNS = 4  # of so many chunks, one goes to the oldest prompt instead of the shortest
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
        self._prompts = prompts
        self._costs = costs
        self._queue: FairQueue[Request] = FairQueue(max_queue, max_queue_per_user)
        self._request_timeout = request_timeout_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._pool = PreparePool()
        self._breakers = BreakerTable(batcher.vocab)
        self._waiting_choices: deque[Choice] = deque()  # of admitted requests, for the next free slots
        self._running: dict[int, Choice] = {}  # by id of the sequence
        self._events: dict[Connection, list[Event]] = {}
        self._turn = 0
        self._draining = False
        self._stopped = False
        self._drain_deadline = float("inf")
        self._decode_failures = 0
        self._last_progress = clock()
        self._last_tick = 0.0
        self._busy = False

    # ------------------------------------------------------------ other threads: messages

    def on_message(self, connection: Connection, message: Any) -> None:
        """Take a worker's message; connection thread."""
        match message:
            case Prepare():
                self._on_prepare(connection, message)
            case Start():
                self._on_start(connection, message)
            case Drop() | Cancel():
                self._on_leave(connection, message.request)
            case Detokenize():
                self._pool.submit(lambda: self._detokenize(connection, message))

    def on_close(self, connection: Connection) -> None:
        """A worker is gone: all its requests are."""
        with self._lock:
            requests = list(connection.requests.values())
            connection.requests.clear()
            for request in requests:
                request.cancelled = True
        self._post(lambda: self._end_all(requests))

    def on_tick(self) -> None:
        """Forget prepared requests that nobody started; connection thread, often."""
        now = self._clock()
        if now - self._last_tick < 1.0:
            return
        self._last_tick = now
        self._post(lambda: None)  # deadlines are looked at

    def expire_prepared(self, connections: list[Connection]) -> None:
        now = self._clock()
        for connection in connections:
            with self._lock:
                late = [
                    request
                    for request in connection.requests.values()
                    if request.stage is Stage.PREPARED and now - request.changed > PREPARED_TIMEOUT_SECONDS
                ]
                for request in late:
                    del connection.requests[request.id]
                    request.stage = Stage.OVER
            for request in late:
                connection.send(Failed(request=request.id, code="deadline_exceeded",
                                       message="The prepared request was not started in time."))  # fmt: skip

    def drain(self, grace_seconds: float) -> None:
        """Take no new work; `run` returns when running work ended or the grace is over. Any thread, signal-safe."""
        self._draining = True
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

    def _post(self, action: Callable[[], Any]) -> None:
        self._inbox.append(action)
        self._wake.set()

    def _on_prepare(self, connection: Connection, message: Prepare) -> None:
        refusal = None
        with self._lock:
            open_requests = connection.requests
            if message.request in open_requests:
                refusal = ("internal_error", "The request's number is in use.")
            elif self._draining:
                refusal = ("shutting_down", "The engine takes no new work.")
            elif (
                len(open_requests) >= MAX_REQUESTS_PER_WORKER
                or self._pool.num_waiting >= MAX_REQUESTS_PER_WORKER
            ):
                refusal = ("overloaded", f"More than {MAX_REQUESTS_PER_WORKER} requests of one worker.")
            else:
                prepared = [r for r in open_requests.values() if r.stage <= Stage.PREPARED]
                if len(prepared) >= MAX_PREPARED_PER_WORKER:
                    refusal = (
                        "overloaded",
                        f"More than {MAX_PREPARED_PER_WORKER} requests are being prepared.",
                    )
            if refusal is None:
                request = Request(connection, message.request, message.principal, changed=self._clock())
                open_requests[message.request] = request
        if refusal is not None:
            connection.send(
                Failed(request=message.request, code=refusal[0], message=refusal[1], retry_after=1.0)
            )
            return
        self._pool.submit(lambda: self._prepare(request, message))

    def _on_start(self, connection: Connection, message: Start) -> None:
        with self._lock:
            request = connection.requests.get(message.request)
            good = request is not None and request.stage is Stage.PREPARED
            if request is not None and good:
                request.stage = Stage.STARTING
                request.cache_prompt = message.cache_prompt
                request.cache_salt = message.cache_salt
                request.changed = request.queued_at = self._clock()
                request.deadline = request.queued_at + min(message.timeout_seconds, self._request_timeout)
        if request is None or not good:
            connection.send(Failed(request=message.request, code="engine_failed",
                                   message="The request is not prepared, or not any more."))  # fmt: skip
            return
        self._pool.submit(lambda: self._make_choices(request, message), urgent=True)

    def _on_leave(self, connection: Connection, number: int) -> None:
        with self._lock:
            request = connection.requests.pop(number, None)
            if request is None:
                return
            request.cancelled = True
        self._post(lambda: self._end(request))

    # ------------------------------------------------------------ prepare threads

    def _prepare(self, request: Request, message: Prepare) -> None:
        connection = request.connection
        if request.cancelled:
            return
        try:
            tokens = array("i", self._prompts.build(message.prompt))
            left = self.batcher.context_size - len(tokens)
            if message.want_tokens:
                left = max(left, 1)  # /v1/tokenize only counts
            if not tokens and not message.want_tokens:
                raise EngineError("invalid_value", "The prompt has no tokens.", param="prompt")
            if left < 1:
                raise EngineError(
                    "context_length_exceeded",
                    f"The prompt has {len(tokens)} tokens; the context holds {self.batcher.context_size}, "
                    "at least one of them for the answer.",
                    param="messages",
                )
            with self._lock:
                kept = sum(len(r.tokens) for r in connection.requests.values() if r.stage is Stage.PREPARED)
                if kept + len(tokens) > MAX_PREPARED_TOKENS:
                    raise EngineError("overloaded", "Too many prepared tokens wait to be started.")
                request.tokens = tokens
                request.stage = Stage.PREPARED
                request.changed = self._clock()
        except EngineError as error:
            self._fail(request, error.code, error.message, error.param)
            return
        except Exception:
            _log.exception("a prompt could not be prepared")
            self._fail(request, "internal_error", "The prompt could not be prepared.")
            return
        answer = Prepared(request=request.id, num_tokens=len(tokens), context_left=left,
                          tokens=list(tokens) if message.want_tokens else None)  # fmt: skip
        if not request.cancelled:
            connection.send(answer)

    def _make_choices(self, request: Request, start: Start) -> None:
        if request.cancelled:
            return
        try:
            room = self.batcher.context_size - len(request.tokens)
            if room < 1 or not request.tokens:
                raise EngineError("context_length_exceeded", "The prompt leaves no room for an answer.")
            seed = start.seed if start.seed is not None else secrets.randbits(63)
            sampling = start.sampling
            breakers = (
                self._breakers.sequences(sampling.dry_sequence_breakers)
                if sampling.dry_multiplier > 0
                else ()
            )
            stops = [stop.encode("utf-8") for stop in start.stop]
            for index in range(start.num_choices):
                sampler = Sampler(
                    self.batcher.vocab,
                    temperature=sampling.temperature,
                    top_k=sampling.top_k,
                    top_p=sampling.top_p,
                    min_p=sampling.min_p,
                    typical_p=sampling.typical_p,
                    repeat_penalty=sampling.repeat_penalty,
                    repeat_last_n=min(sampling.repeat_last_n, self.batcher.context_size),
                    presence_penalty=sampling.presence_penalty,
                    frequency_penalty=sampling.frequency_penalty,
                    dry_multiplier=sampling.dry_multiplier,
                    dry_base=sampling.dry_base,
                    dry_allowed_length=sampling.dry_allowed_length,
                    dry_penalty_last_n=min(sampling.dry_penalty_last_n, self.batcher.context_size),
                    dry_sequence_breakers=sampling.dry_sequence_breakers,
                    xtc_probability=sampling.xtc_probability,
                    xtc_threshold=sampling.xtc_threshold,
                    mirostat=sampling.mirostat,
                    mirostat_tau=sampling.mirostat_tau,
                    mirostat_eta=sampling.mirostat_eta,
                    logit_bias=sampling.logit_bias,
                    grammar=sampling.grammar,
                    seed=(seed + index) & ((1 << 64) - 1),
                    top_logprobs=start.top_logprobs,
                    dry_breakers=breakers,
                )
                if sampler.history:
                    sampler.see(request.tokens[-sampler.history :])
                sequence = Sequence(
                    request.tokens,
                    sampler,
                    max_tokens=min(start.max_tokens, room),
                    min_tokens=min(start.min_tokens, room),
                    ignore_eos=start.ignore_eos,
                    stops=stops,
                )
                choice = Choice(request, index, sequence)
                sequence.owner = choice
                request.choices.append(choice)
        except GrammarError as error:
            self._fail(request, "invalid_value", str(error), "grammar")
        except ValueError as error:
            self._fail(
                request, "invalid_value", str(error), "logit_bias" if "logit_bias" in str(error) else None
            )
        except EngineError as error:
            self._fail(request, error.code, error.message, error.param)
        except Exception:
            _log.exception("a request could not be started")
            self._fail(request, "internal_error", "The request could not be started.")
        else:
            self._post(lambda: self._enqueue(request, start))

    def _detokenize(self, connection: Connection, message: Detokenize) -> None:
        try:
            data = self.batcher.vocab.detokenize(message.tokens)
        except (ValueError, OverflowError):
            connection.send(Failed(request=message.request, code="invalid_value", param="tokens",
                                   message="A token is outside of the vocabulary."))  # fmt: skip
        else:
            connection.send(Detokenized(request=message.request, data=data))

    def _fail(self, request: Request, code: str, message: str, param: str | None = None,
              retry_after: float | None = None) -> None:  # fmt: skip
        """End a request with an error; any thread, before it holds a slot."""
        with self._lock:
            known = request.connection.requests.get(request.id) is request
            if known:
                del request.connection.requests[request.id]
            request.stage = Stage.OVER
        if known and not request.cancelled:
            request.connection.send(Failed(request=request.id, code=code, message=message[:1000], param=param,
                                           retry_after=retry_after))  # fmt: skip

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
            self._costs.decoded(time.perf_counter() - begin)
            self._last_progress = self._clock()
        else:
            self._costs.idle()
        chunks = 0
        while (choice := self._next_prefill()) is not None:
            if outputs and not self._costs.may_prefill(choice.sequence.num_evaluated, chunks):
                break
            self._prefill(choice)
            chunks += 1
            self._last_progress = self._clock()
            if not outputs and (self._inbox or choice.sequence.state == SequenceState.DECODING):
                break  # something may decode or have come
        self._send_events()

    def _next_prefill(self) -> Choice | None:
        """The shortest remaining prompt, and every few chunks the oldest, so that neither kind starves."""
        best = oldest = None
        for choice in self._running.values():
            sequence = choice.sequence
            if sequence.state != SequenceState.PREFILLING or self._waits_for_sibling(choice):
                continue
            if oldest is None or choice.admitted_at < oldest.admitted_at:
                oldest = choice
            if best is None or sequence.num_remaining < best.sequence.num_remaining:
                best = choice
        return oldest if self._turn % _SHORT_FIRST_TURNS == 0 else best

    def _waits_for_sibling(self, choice: Choice) -> bool:
        """Later choices of a request wait until the first one has made the prompt's shared part."""
        request = choice.request
        if choice.index == 0 or choice.sequence.num_evaluated or request.shared_state is not None:
            return False
        first = request.choices[0]
        if first.is_over:
            return False
        return first.sequence.num_evaluated < last_boundary(first.sequence.num_prompt, self.batcher.quantum)

    def _prefill(self, choice: Choice) -> None:
        self._turn += 1
        if not choice.looked_up:
            choice.looked_up = True
            self._restore(choice)
        sequence = choice.sequence
        start = sequence.num_evaluated
        begin = time.perf_counter()
        try:
            output = self.batcher.prefill(sequence)
        except DecodeError as error:
            _log.error("%s", error)
            self._fail_running(choice.request, "engine_failed", "The model could not evaluate the prompt.")
            return
        seconds = time.perf_counter() - begin
        if sequence.num_evaluated - start >= self.batcher.quantum:
            self._costs.learn_chunk(start, seconds)
        self._costs.spent(seconds)
        if sequence.state == SequenceState.PREFILLING:
            self._keep_prefix(choice)
        else:
            choice.prefilled_at = self._clock()
            if output is not None:
                self._emit(choice, output)

    def _restore(self, choice: Choice) -> None:
        request, sequence = choice.request, choice.sequence
        limit = last_boundary(sequence.num_prompt, self.batcher.quantum)
        restored = False
        if request.shared_state is not None and choice.index:
            restored = self.batcher.restore(sequence, request.shared_state[1], request.shared_state[0])
        elif request.cache_prompt and limit:
            hit = self.store.find((request.principal, request.cache_salt), request.tokens, limit)
            restored = hit is not None and self.batcher.restore(sequence, hit.state, hit.num_tokens)
        if request.cache_prompt and self.store.is_on:
            self.store.hit_tokens += sequence.num_cached if restored else 0
            self.store.miss_tokens += sequence.num_prompt - (sequence.num_cached if restored else 0)

    def _keep_prefix(self, choice: Choice) -> None:
        """At the prompt's last boundary its state is complete: keep it for siblings and for later."""
        request, sequence = choice.request, choice.sequence
        if sequence.num_evaluated != last_boundary(sequence.num_prompt, self.batcher.quantum):
            return
        for_siblings = choice.index == 0 and len(request.choices) > 1
        for_store = request.cache_prompt and self.store.is_on and sequence.num_evaluated > sequence.num_cached
        if not (for_siblings or for_store):
            return
        state = self.batcher.snapshot(sequence)
        if for_siblings:
            request.shared_state = (sequence.num_evaluated, state)
        if for_store:
            partition = (request.principal, request.cache_salt)
            self.store.add(partition, request.tokens[: sequence.num_evaluated], state)

    def keep_public(self, texts: list[array[int]]) -> int:
        """Compute the operator's public prefixes and store them. Before `run`. Returns how many are stored."""
        kept = 0
        for tokens in texts:
            boundary = len(tokens) // self.batcher.quantum * self.batcher.quantum
            if not boundary or boundary + 2 > self.batcher.context_size:
                continue
            padded = array("i", [*tokens[:boundary], tokens[0], tokens[0]])
            sequence = Sequence(padded, Sampler(self.batcher.vocab, temperature=0.0), max_tokens=1)
            self.batcher.admit(sequence)
            while sequence.num_evaluated < boundary:
                self.batcher.prefill(sequence)
            kept += self.store.add(PUBLIC, padded[:boundary], self.batcher.snapshot(sequence))
            self.batcher.release(sequence)
        return kept

    # ------------------------------------------------------------ step loop: coming and going

    def _enqueue(self, request: Request, start: Start) -> None:
        if request.cancelled or request.is_over:
            return
        if self._draining:
            self._fail(request, "shutting_down", "The engine takes no new work.", retry_after=1.0)
            return
        cost = (len(request.tokens) + min(start.max_tokens, self.batcher.context_size)) * start.num_choices
        self._admit()
        try:
            self._queue.push(
                request, request.principal, cost=cost, weight=start.weight, priority=start.priority
            )
        except QueueFull as full:
            if full.scope == "principal":
                self._fail(request, "rate_limit_exceeded", f"More than {full.limit} of your requests are waiting.",
                           retry_after=1.0)  # fmt: skip
            else:
                self._fail(
                    request, "overloaded", f"More than {full.limit} requests are waiting.", retry_after=2.0
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
            self._running[id(choice.sequence)] = choice

    def _expire(self) -> None:
        now = self._clock()
        late = [choice.request for choice in self._running.values() if now > choice.request.deadline]
        late += [request for request in self._queue.items() if now > request.deadline]
        for request in dict.fromkeys(late):
            self._fail_running(request, "deadline_exceeded", "The request's time is over.")

    def _drained(self) -> bool:
        if self._clock() < self._drain_deadline and (
            self._running or self._waiting_choices or len(self._queue) or self._pool.num_waiting
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
        self._end(request)
        self._fail(request, code, message)

    def _end(self, request: Request) -> None:
        """Free what a request holds; idempotent."""
        request.stage = Stage.OVER
        self._queue.remove(request)
        for choice in request.choices:
            choice.is_over = True
            if self._running.pop(id(choice.sequence), None) is not None:
                self.batcher.release(choice.sequence)
        request.shared_state = None

    def _end_all(self, requests: list[Request]) -> None:
        for request in requests:
            self._end(request)

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
                request.stage = Stage.OVER
                request.shared_state = None
                with self._lock:
                    if request.connection.requests.get(request.id) is request:
                        del request.connection.requests[request.id]

    def _send_events(self) -> None:
        if self._events:
            waiting, self._events = self._events, {}
            for connection, events in waiting.items():
                connection.send(Step(events=events))
