"""The one place with the contract's order of a request, from the source bucket to the settlement.

    source bucket → credential → request buckets → policy        FrontGate.admit, before any handler;
                                                                 then screening of headers, path and query
    body → validation → screening                                the handler, with what stands in parsing and schemas
    concurrency → prepare → token reservation → start            begin
    events … → settle exactly once                               Run

Knows no wire format. Runs in front workers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from msgspec import Struct

from ..errors import ApiError, EngineError
from ..messages import ChatPrompt, Event, Prepared, Sampling, Start, TextPrompt, TokenPrompt, Usage
from ..pool.client import EngineCall, Listener
from ..pool.engines import Model
from ..security.permissions import Policy, allow
from ..security.principal import Principal
from .http import ClientGone, Request, to_api_error
from .parsing import check_model_name
from .services import Lease, Reservation, Services

logger = logging.getLogger("inferno.requests")
Prompt = ChatPrompt | TextPrompt | TokenPrompt
RECHECK_SECONDS = 0.5  # a running answer asks so often whether its caller still stands and the server goes on
NOTE_TOKENS = 64
NO_RETRY = ("x-should-retry", "false")


class FrontGate:
    """Admission of every request to a route that is not a health route."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def admit(self, request: Request, policy: Policy) -> None:
        services = self._services
        context = request.context
        if policy.buckets:
            await services.meter.source(context)
        if policy.public:
            if policy.buckets:
                self._screen(request)
            return
        try:
            principal = await services.authenticator.authenticate(
                request.headers, request.query, context.source, context.request_id
            )
        except ApiError as error:
            services.observer.authenticated("none", error.code)
            raise
        context.principal = principal
        kind = "session" if principal.actor_type == "user" else principal.actor_type
        services.observer.authenticated(kind, "accepted")
        if policy.buckets:
            await services.meter.requests(context, principal)
        verdict = allow(policy, principal)
        if not verdict.allowed:
            services.recorder.refused(context, principal, verdict.reason)
            require(principal, policy)
        self._screen(request)

    def _screen(self, request: Request) -> None:
        """Refuse what stands in headers, path or query and is an attack on whoever reads it."""
        guards = self._services.guards
        guards.headers(request.context, request.headers)
        if request.query:
            guards.query(request.context, request.query)
        if request.params:
            guards.path(request.context, request.params)

    def answered(self, request: Request, route: str) -> None:
        """Count an answer. Without one: 499 where the client left before it began, as proxies log it, else 500, which
        the outermost layer is about to send."""
        context = request.context
        if not context.status:
            context.status = 499 if request.is_gone else 500
        self._services.observer.answered(route, request.method, context.status, context.began)
        if self._services.tracer is not None:
            self._services.tracer.answered(context, request.headers, route, request.method)
        if logger.isEnabledFor(logging.DEBUG):
            self._log(request, route)

    @staticmethod
    def _log(request: Request, route: str) -> None:
        context = request.context
        fields = {
            "method": request.method,
            "route": route,
            "status": context.status,
            "milliseconds": round((time.perf_counter() - context.began) * 1e3, 1),
        }
        logger.debug("answered", extra={"fields": fields})


def require(principal: Principal, policy: Policy) -> None:
    """Raise 403 unless the principal has the policy's permissions."""
    verdict = allow(policy, principal)
    if not verdict.allowed:
        missing = verdict.reason.removeprefix("missing:")
        raise ApiError("insufficient_permissions", f"This needs the permission {missing}.")


class Plan(Struct, frozen=True):
    """What a handler wants generated: one engine request for each prompt, `num_choices` answers for each."""

    prompts: Sequence[Prompt]
    sampling: Sampling
    max_tokens: int | None = None  # None: until the context or the reservation ends
    num_choices: int = 1
    seed: int | None = None
    stop: list[str] = []
    min_tokens: int = 0
    ignore_eos: bool = False
    top_logprobs: int | None = None
    cache_prompt: bool = True
    cache_salt: bytes = b""
    priority: int = 0


def find_model(services: Services, request: Request, name: str | None) -> Model:
    """Return a model that this caller may use, by exact name. Raises ApiError 400, 403 or 404."""
    check_model_name(name)
    if name is not None:
        services.guards.identifiers(request.context, [("model", name)])
    principal = request.principal
    model = services.engines.find(name)
    if principal.models is not None and model.name not in principal.models:
        raise ApiError("model_not_allowed", "This key may not use the model.", param="model")
    return model


async def begin(services: Services, request: Request, model: Model, plan: Plan) -> Run:
    """Take a slot, prepare, reserve, start. The Run must be closed. Raises ApiError with all given back."""
    if services.is_draining:
        raise ApiError("shutting_down", "The server is stopping.", retry_after=5.0)
    if services.before_inference is not None:
        await services.before_inference()
    run = Run(services, request, model)
    try:
        run.lease = await services.meter.slot(request.context, request.principal)
        client = await services.engines.connect(model)
        call = run.call = client.open()
        request.watch_disconnect(call.close)
        _check_tokens(plan, client.info.vocab_size)
        tag = services.tag(request.principal)
        timeline = run.timeline
        if timeline is not None:
            timeline.preparing()
        prepared = [await call.prepare(tag, prompt) for prompt in plan.prompts]
        if timeline is not None:
            timeline.prepared()
        await run.reserve(plan, prepared)
        run.start(plan, prepared)
    except BaseException as error:
        run.close()
        if isinstance(error, EngineError):
            if request.is_gone:
                raise ClientGone from None
            raise to_api_error(error) from None
        raise
    return run


class Run:
    """One API call at work in an engine. `close` settles exactly once, whatever happened."""

    def __init__(self, services: Services, request: Request, model: Model) -> None:
        self.services = services
        self.request = request
        self.model = model
        self.lease: Lease | None = None
        self.reservation: Reservation | None = None
        self.call: EngineCall | None = None
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        self._offsets: dict[int, int] = {}  # engine request → index of its first choice
        self._counts: dict[int, int] = {}  # choice index → sampled tokens so far
        self._num_noted = 0
        self._checked_at = 0.0
        self._last_event_at = 0.0
        self._gaps: list[float] = []  # seconds between arrivals that metrics do not know yet
        self._silent_seconds = 0.0  # since something came, in whole pieces of waiting
        self._queue_seconds = 0.0
        self._is_started = False
        self._is_closed = False
        self._result = "ok"
        tracer = services.tracer
        self.timeline = None if tracer is None else tracer.timeline(request.context, model.name)

    @property
    def is_finished(self) -> bool:
        return self.call is None or self.call.is_finished

    async def reserve(self, plan: Plan, prepared: Sequence[Prepared]) -> None:
        """Reserve for all choices together; afterwards `granted` is what one choice may generate."""
        self.prompt_tokens = sum(entry.num_tokens for entry in prepared)
        num_answers = len(prepared) * plan.num_choices
        context_left = min(entry.context_left for entry in prepared)
        wanted = None if plan.max_tokens is None else min(plan.max_tokens, context_left) * num_answers
        self.reservation = await self.services.meter.tokens(
            self.request.context,
            self.request.principal,
            self.prompt_tokens,
            wanted,
            context_left * num_answers,
        )
        self.granted = max(1, self.reservation.granted_max_tokens // num_answers)

    def start(self, plan: Plan, prepared: Sequence[Prepared]) -> None:
        if self.call is None:
            raise EngineError("engine_failed", "Nothing was prepared.")
        settings = self.services.settings
        self._is_started = True
        if self.timeline is not None:
            self.timeline.started()
        for index, entry in enumerate(prepared):
            self._offsets[entry.request] = index * plan.num_choices
            limit = self.granted if plan.max_tokens is None else min(self.granted, plan.max_tokens)
            self.call.start(
                Start(
                    request=entry.request,
                    sampling=plan.sampling,
                    max_tokens=max(1, min(limit, entry.context_left)),
                    num_choices=plan.num_choices,
                    seed=plan.seed,
                    stop=plan.stop,
                    min_tokens=plan.min_tokens,
                    ignore_eos=plan.ignore_eos,
                    top_logprobs=plan.top_logprobs,
                    cache_prompt=plan.cache_prompt,
                    cache_salt=plan.cache_salt,
                    priority=plan.priority,
                    weight=self.request.principal.weight,
                    timeout_seconds=settings.engine.request_timeout_seconds,
                )
            )

    async def events(
        self, timeout_seconds: float | None = None, listener: Listener | None = None
    ) -> list[tuple[int, Event]]:
        """Return what came since the last call as (choice index, event); empty when nothing came for so long.

        What `listener` takes at the moment it comes (EngineCall.events) has come too; it must call `take` for it.
        Raises ApiError when the engine failed or the caller lost its right, ClientGone when nobody listens.
        """
        if self.call is None:
            raise EngineError("engine_failed", "Nothing was started.")
        events = await self._next_events(self.call, timeout_seconds, listener)
        if events:
            self._observe_arrival()
        return [(self._count(event), event) for event in events]

    def take(self, event: Event) -> int:
        """Account for an event that a listener got; return the index of its choice."""
        self._silent_seconds = 0.0
        self._observe_arrival()
        return self._count(event)

    def _count(self, event: Event) -> int:
        """Count an event's tokens; return the index of its choice."""
        index = self._offsets[event.request] + event.choice
        counted = self._counts.get(index, 0)
        total = counted + event.num_tokens if event.usage is None else event.usage.completion_tokens
        self._counts[index] = total
        self.completion_tokens += total - counted
        if event.usage is not None:
            self._finished(index, event.usage, is_first=event.choice == 0)
        if self.completion_tokens - self._num_noted >= NOTE_TOKENS and self.reservation is not None:
            self._num_noted = self.completion_tokens
            self.reservation.note(self.prompt_tokens + self.completion_tokens)
        return index

    async def _next_events(
        self, call: EngineCall, timeout_seconds: float | None, listener: Listener | None
    ) -> list[Event]:
        """Wait for events in short pieces: between them the caller and the server are looked at, tokens or none."""
        self._silent_seconds = 0.0
        while True:
            piece = RECHECK_SECONDS
            if timeout_seconds is not None:
                piece = min(piece, timeout_seconds - self._silent_seconds)
            try:
                events = await call.events(piece, listener)
            except EngineError as error:
                if self.request.is_gone:
                    self._result = "cancelled"
                    raise ClientGone from None
                self._result = error.code
                raise self._not_again(to_api_error(error)) from None
            if self.request.is_gone:
                self._result = "cancelled"
                raise ClientGone
            self._recheck()
            self._silent_seconds += piece
            if events or (timeout_seconds is not None and self._silent_seconds >= timeout_seconds):
                return events

    def fail(self, error: Exception) -> None:
        """End the wait for events: what came could not be shown."""
        if self.call is not None:
            code = error.code if isinstance(error, ApiError) else "internal_error"
            self.call.fail(EngineError(code, "An answer could not be shown."))

    def _not_again(self, error: ApiError) -> ApiError:
        """A generation that had begun is not repeated by the client on its own: it may have cost much already."""
        if self.completion_tokens:
            error.headers += (NO_RETRY,)
        return error

    def close(self) -> None:
        """Cancel what still runs, give back what was not used, and record; idempotent, never raises."""
        if self._is_closed:
            return
        self._is_closed = True
        self._observe_gaps()
        if self._result == "ok" and self._is_started and not self.is_finished:
            self._result = "cancelled"
        if self.call is not None:
            self.call.close()
        if self.timeline is not None:
            cached = min(self.cached_tokens, self.prompt_tokens)
            self.timeline.ended(self._result, self.prompt_tokens, self.completion_tokens, cached)
        used = self.prompt_tokens + self.completion_tokens if self._is_started else 0
        if self.reservation is not None:
            self.reservation.settle(used)
        if self.lease is not None:
            self.lease.release()
        if self._is_started:
            self.services.observer.generated(
                self.model.name,
                self.prompt_tokens,
                min(self.cached_tokens, self.prompt_tokens),
                self.completion_tokens,
                self._queue_seconds,
            )
            self.services.recorder.finished(
                self.request.context,
                self.request.principal,
                self.model.name,
                self.prompt_tokens,
                self.completion_tokens,
                self._result,
            )

    def _finished(self, index: int, usage: Usage, *, is_first: bool) -> None:
        """Take over the engine's facts of a choice that ended; those of a prompt come with its first choice."""
        if is_first:
            self.cached_tokens += usage.cached_tokens
            self._queue_seconds = max(self._queue_seconds, usage.queue_seconds)
        if self.timeline is not None:
            self.timeline.finished(index, usage)

    def usage(self) -> dict[str, object]:
        """Return the `usage` object of an answer."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": min(self.cached_tokens, self.prompt_tokens)},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }

    def _observe_arrival(self) -> None:
        now = time.perf_counter()
        if self._last_event_at:
            self._gaps.append(now - self._last_event_at)
        else:
            self.services.observer.first_token(self.model.name, self.request.context.began)
            if self.timeline is not None:
                self.timeline.first_token(now)
        self._last_event_at = now

    def _observe_gaps(self) -> None:
        """Tell metrics of the gaps so far: many at once cost less than one beside each token."""
        gaps, self._gaps = self._gaps, []
        for seconds in gaps:
            self.services.observer.next_tokens(self.model.name, seconds)

    def _recheck(self) -> None:
        now = self.services.clock()
        if now - self._checked_at < RECHECK_SECONDS / 2:
            return
        self._checked_at = now
        self._observe_gaps()
        if now >= self.services.ends_at:
            self._result = "shutting_down"
            raise self._not_again(ApiError("shutting_down", "The server is stopping.", retry_after=5.0))
        if not self.services.authenticator.is_current(self.request.principal):
            self._result = "revoked"
            raise ApiError("invalid_api_key", "No valid credential was sent.")


def _check_tokens(plan: Plan, vocab_size: int) -> None:
    """Refuse token ids outside of the vocabulary before the engine sees them."""
    if any(token >= vocab_size for token in plan.sampling.logit_bias):
        raise ApiError("invalid_value", f"Token ids are below {vocab_size}.", param="logit_bias")
    for prompt in plan.prompts:
        if isinstance(prompt, TokenPrompt) and any(token >= vocab_size for token in prompt.tokens):
            raise ApiError("invalid_value", f"Token ids are below {vocab_size}.", param="prompt")
