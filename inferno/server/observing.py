"""What a front worker counts: requests, times, tokens, verdicts. Names and buckets are inferno.metrics'.

Labels hold routes as declared, methods, statuses, models of the registry, rule categories and kinds: no tenant text.
Children of labelled metrics are kept, since a look-up by labels costs as much as the rest. Front workers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Protocol

from ..security.addresses import source_block
from ..security.audit_format import record
from .http import Context

FLUSH_SECONDS = 0.25
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


class Observer(Protocol):
    """Told about requests and generations. Never waits or raises."""

    def answered(self, route: str, method: str, status: int, began: float) -> None: ...
    def first_token(self, model: str, began: float) -> None: ...
    def next_tokens(self, model: str, seconds: float) -> None: ...
    def generated(
        self, model: str, prompt: int, cached: int, completion: int, queue_seconds: float
    ) -> None: ...
    def limited(self, policy: str) -> None: ...
    def screened(self, categories: Sequence[str], action: str) -> None: ...
    def redacted(self, counts: dict[str, int]) -> None: ...
    def authenticated(self, kind: str, verdict: str) -> None: ...
    def open(self, connections: int, requests: int) -> None: ...
    def flush(self) -> None: ...


class NoObserver:
    """metrics_enabled = false."""

    def answered(self, route: str, method: str, status: int, began: float) -> None:
        pass

    def first_token(self, model: str, began: float) -> None:
        pass

    def next_tokens(self, model: str, seconds: float) -> None:
        pass

    def generated(self, model: str, prompt: int, cached: int, completion: int, queue_seconds: float) -> None:
        pass

    def limited(self, policy: str) -> None:
        pass

    def screened(self, categories: Sequence[str], action: str) -> None:
        pass

    def redacted(self, counts: dict[str, int]) -> None:
        pass

    def authenticated(self, kind: str, verdict: str) -> None:
        pass

    def open(self, connections: int, requests: int) -> None:
        pass

    def flush(self) -> None:
        pass


class Metrics:
    """Implements Observer over prometheus_client. Make it once per process, after its environment is set."""

    def __init__(self) -> None:
        from .. import metrics  # reads the shared folder's name from the environment at its import

        self._metrics = metrics
        self._children: dict[tuple[Any, ...], Any] = {}
        self._answers: dict[tuple[str, str, int], int] = {}
        self._credentials: dict[tuple[str, str], int] = {}
        self._times: dict[str, list[float]] = {}
        self._is_flushing = False

    def answered(self, route: str, method: str, status: int, began: float) -> None:
        answer = (route, method, status)
        self._answers[answer] = self._answers.get(answer, 0) + 1
        seconds = time.perf_counter() - began
        times = self._times.get(route)
        if times is None:
            self._times[route] = [seconds]
        else:
            times.append(seconds)
        if not self._is_flushing:
            self._flush_soon()

    def authenticated(self, kind: str, verdict: str) -> None:
        judged = (kind, verdict)
        self._credentials[judged] = self._credentials.get(judged, 0) + 1

    def open(self, connections: int, requests: int) -> None:
        """Tell how many connections are open and requests under way in this worker now."""
        self._metrics.CONNECTIONS.set(connections)
        self._metrics.REQUESTS_IN_PROGRESS.set(requests)

    def flush(self) -> None:
        """Bring what was counted since into the files that scrapes read."""
        self._is_flushing = False
        metrics = self._metrics
        answers, self._answers = self._answers, {}
        for (route, method, status), count in answers.items():
            known = method if method in _METHODS else "other"
            self._child(metrics.REQUESTS, route, known, str(status)).inc(count)
        credentials, self._credentials = self._credentials, {}
        for judged, count in credentials.items():
            self._child(metrics.AUTH_VERDICTS, *judged).inc(count)
        times, self._times = self._times, {}
        for route, values in times.items():
            metrics.observe_many(self._child(metrics.REQUEST_SECONDS, route), metrics.DURATION_BUCKETS, values)

    def _flush_soon(self) -> None:
        """Every request passes here: counts are collected for a moment, since each write to a file costs a microsecond."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        self._is_flushing = True
        loop.call_later(FLUSH_SECONDS, self.flush)

    def first_token(self, model: str, began: float) -> None:
        self._child(self._metrics.TTFT_SECONDS, model).observe(time.perf_counter() - began)

    def next_tokens(self, model: str, seconds: float) -> None:
        self._child(self._metrics.ITL_SECONDS, model).observe(seconds)

    def generated(self, model: str, prompt: int, cached: int, completion: int, queue_seconds: float) -> None:
        metrics = self._metrics
        self._child(metrics.PROMPT_TOKENS, model).inc(prompt)
        self._child(metrics.CACHED_TOKENS, model).inc(cached)
        self._child(metrics.COMPLETION_TOKENS, model).inc(completion)
        self._child(metrics.QUEUE_SECONDS, model).observe(queue_seconds)

    def limited(self, policy: str) -> None:
        self._child(self._metrics.LIMIT_VERDICTS, policy, "refused").inc()

    def screened(self, categories: Sequence[str], action: str) -> None:
        for category in categories:
            self._child(self._metrics.SCAN_VERDICTS, category, action).inc()

    def redacted(self, counts: dict[str, int]) -> None:
        for kind, count in counts.items():
            self._child(self._metrics.REDACTIONS, kind).inc(count)

    def _child(self, metric: Any, *labels: str) -> Any:
        child = self._children.get((metric, *labels))
        if child is None:
            child = self._children[(metric, *labels)] = metric.labels(*labels)
        return child


class AuditNotes(Protocol):
    """Where audit records go that nobody waits for."""

    def note(self, fields: dict[str, Any]) -> None: ...


class GuardReports:
    """Implements guarding.GuardEvents: the audit log gets categories and counts, never the text."""

    def __init__(self, audit: AuditNotes, observer: Observer) -> None:
        self._audit = audit
        self._observer = observer

    def screened(self, context: Context, categories: Sequence[str], action: str) -> None:
        self._observer.screened(categories, action)
        is_blocked = action == "block"
        event = "input.blocked" if is_blocked else "input.flagged"
        self._note(context, event, f"{action}: {', '.join(categories)}", failed=is_blocked)

    def redacted(self, context: Context, counts: dict[str, int]) -> None:
        self._observer.redacted(counts)
        self._note(
            context, "output.redacted", ", ".join(f"{kind}={count}" for kind, count in sorted(counts.items()))
        )

    def fault(self, context: Context) -> None:
        self._note(context, "guard.fault", "the output guard failed", failed=True)

    def _note(self, context: Context, event: str, reason: str, *, failed: bool = False) -> None:
        principal = context.principal
        self._audit.note(
            record(
                event,
                result="failure" if failed else "success",
                reason=reason[:256],
                actor="" if principal is None else principal.id,
                actor_type="" if principal is None else principal.actor_type,
                ip=source_block(context.source).text,
                target="" if principal is None or principal.key_id is None else principal.key_id,
                request_id=context.request_id,
            )
        )
