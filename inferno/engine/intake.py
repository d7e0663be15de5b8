"""Requests on their way to the queue: what workers send, and the prepare threads that tokenize and make samplers.

The connection thread hands in messages; jobs of the prepare threads answer Prepared or Failed themselves. What the step
loop must do (queue a request, end one) is posted to it. Owns the lock over the records of requests that connections
hold. Knows nothing of slots, steps or caches. Engine process.
"""

from __future__ import annotations

import functools
import logging
import secrets
import threading
from array import array
from collections.abc import Callable
from typing import Any, Protocol

from inferno_native.batching import Batcher, Sequence
from inferno_native.chain import GrammarError, Sampler

from ..errors import EngineError
from ..messages import Cancel, Detokenize, Detokenized, Drop, Failed, Prepare, Prepared, Start
from .breakers import BreakerTable
from .connections import Connection
from .preparing import PreparePool
from .requests import Choice, Request, Stage

MAX_REQUESTS_PER_WORKER = 4096
MAX_PREPARED_PER_WORKER = 256
MAX_PREPARED_TOKENS = 4 << 20  # ids kept for one worker, all its prepared requests together
PREPARED_TIMEOUT_SECONDS = 60.0
_log = logging.getLogger("inferno.engine")


class StepLoop(Protocol):
    """What the intake asks of the step loop; each is called in the step loop's thread, through `post`."""

    def post(self, action: Callable[[], Any]) -> None: ...
    def enqueue(self, request: Request, start: Start) -> None: ...
    def end(self, request: Request) -> None: ...


class Intake:
    """Takes workers' messages; called from the connection thread, except for `fail` and `forget` (any thread)."""

    def __init__(
        self,
        batcher: Batcher,
        prompts: Any,
        loop: StepLoop,
        *,
        request_timeout_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self.batcher = batcher
        self._prompts = prompts
        self._loop = loop
        self._request_timeout = request_timeout_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._pool = PreparePool()
        self._breakers = BreakerTable(batcher.vocab)
        self.is_closed = False  # set when draining: nothing new is prepared

    @property
    def num_waiting(self) -> int:
        """Jobs of the prepare threads that are not finished."""
        return self._pool.num_waiting

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
        for request in requests:
            self._loop.post(functools.partial(self._loop.end, request))

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

    def fail(self, request: Request, code: str, message: str, param: str | None = None,
              retry_after: float | None = None) -> None:  # fmt: skip
        """End a request with an error; any thread; a slot that it holds is freed by the step loop."""
        with self._lock:
            known = request.connection.requests.get(request.id) is request
            if known:
                del request.connection.requests[request.id]
            request.stage = Stage.OVER
        if known and not request.cancelled:
            request.connection.send(Failed(request=request.id, code=code, message=message[:1000], param=param,
                                           retry_after=retry_after))  # fmt: skip

    def forget(self, request: Request) -> None:
        """Drop the record of a request whose last event is on its way; step loop thread."""
        request.stage = Stage.OVER
        request.shared_state = None
        with self._lock:
            if request.connection.requests.get(request.id) is request:
                del request.connection.requests[request.id]

    def _on_prepare(self, connection: Connection, message: Prepare) -> None:
        refusal = None
        with self._lock:
            open_requests = connection.requests
            if message.request in open_requests:
                refusal = ("internal_error", "The request's number is in use.")
            elif self.is_closed:
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
        self._loop.post(lambda: self._loop.end(request))

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
            self.fail(request, error.code, error.message, error.param)
            return
        except Exception:
            _log.exception("a prompt could not be prepared")
            self.fail(request, "internal_error", "The prompt could not be prepared.")
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
            self.fail(request, "invalid_value", str(error), "grammar")
        except ValueError as error:
            self.fail(
                request, "invalid_value", str(error), "logit_bias" if "logit_bias" in str(error) else None
            )
        except EngineError as error:
            self.fail(request, error.code, error.message, error.param)
        except Exception:
            _log.exception("a request could not be started")
            self.fail(request, "internal_error", "The request could not be started.")
        else:
            self._loop.post(lambda: self._loop.enqueue(request, start))

    def _detokenize(self, connection: Connection, message: Detokenize) -> None:
        try:
            data = self.batcher.vocab.detokenize(message.tokens)
        except (ValueError, OverflowError):
            connection.send(Failed(request=message.request, code="invalid_value", param="tokens",
                                   message="A token is outside of the vocabulary."))  # fmt: skip
        else:
            connection.send(Detokenized(request=message.request, data=data))
