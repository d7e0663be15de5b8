"""Every metric of the server by its contract name, and one scrape over all processes.

prometheus_client keeps the values of each process in files of one private folder (multiprocess mode), which the
supervisor makes and names in PROMETHEUS_MULTIPROC_DIR before this module is imported in it or in a worker; `render`
then adds up what all of them wrote, so any worker answers for the whole server. Labels hold no tenant text: route,
model, status class, verdict.
"""

from __future__ import annotations

import bisect
import contextlib
import math
import os
from collections import Counter as Counts
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ITL_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0)
_QUEUE_BUCKETS = (0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 120.0, 600.0)
DURATION_BUCKETS = (0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 600.0)

REQUESTS = Counter("inferno_requests", "HTTP requests answered", ["route", "method", "status"])
REQUEST_SECONDS = Histogram(
    "inferno_request_duration_seconds", "Time from request to last byte", ["route"], buckets=DURATION_BUCKETS
)
REQUESTS_IN_PROGRESS = Gauge(
    "inferno_requests_in_progress", "Requests being answered", multiprocess_mode="livesum"
)
CONNECTIONS = Gauge("inferno_connections", "Open client connections", multiprocess_mode="livesum")
TTFT_SECONDS = Histogram(
    "inferno_time_to_first_token_seconds", "From request to first token", ["model"], buckets=_TTFT_BUCKETS
)
ITL_SECONDS = Histogram(
    "inferno_inter_token_seconds", "Between tokens of one stream", ["model"], buckets=_ITL_BUCKETS
)
QUEUE_SECONDS = Histogram("inferno_queue_seconds", "Wait for a slot", ["model"], buckets=_QUEUE_BUCKETS)
PROMPT_TOKENS = Counter("inferno_prompt_tokens", "Prompt tokens of finished requests", ["model"])
CACHED_TOKENS = Counter("inferno_cached_prompt_tokens", "Prompt tokens that a prefix supplied", ["model"])
COMPLETION_TOKENS = Counter("inferno_completion_tokens", "Completion tokens of finished requests", ["model"])
LIMIT_VERDICTS = Counter("inferno_limit_verdicts", "Decisions of rate limits", ["policy", "verdict"])
SCAN_VERDICTS = Counter("inferno_scan_verdicts", "Findings of the text guard", ["category", "action"])
REDACTIONS = Counter("inferno_redactions", "Values taken out of answers", ["kind"])
AUTH_VERDICTS = Counter("inferno_auth_verdicts", "Credentials judged", ["kind", "verdict"])

# Written by the supervisor, from what engines report.
ENGINE_UP = Gauge(
    "inferno_engine_up", "1 while the model is served", ["model"], multiprocess_mode="mostrecent"
)
ENGINE_WANTED = Gauge(
    "inferno_engine_wanted", "1 unless the model was unloaded", ["model"], multiprocess_mode="mostrecent"
)
ENGINE_RESTARTS = Counter("inferno_engine_restarts", "Engines that were replaced", ["model"])
WORKER_RESTARTS = Counter("inferno_worker_restarts", "Front workers that were replaced")
RUNNING = Gauge("inferno_requests_running", "Sequences in slots", ["model"], multiprocess_mode="mostrecent")
WAITING = Gauge(
    "inferno_requests_waiting", "Sequences that wait for a slot", ["model"], multiprocess_mode="mostrecent"
)
SLOTS = Gauge("inferno_slots", "Slots of the model", ["model"], multiprocess_mode="mostrecent")
KV_USED = Gauge("inferno_kv_used_tokens", "KV cache cells in use", ["model"], multiprocess_mode="mostrecent")
KV_TOTAL = Gauge("inferno_kv_total_tokens", "KV cache cells", ["model"], multiprocess_mode="mostrecent")
KV_USAGE = Gauge(
    "inferno_kv_cache_usage_ratio",
    "KV cache cells in use, 0 to 1",
    ["model"],
    multiprocess_mode="mostrecent",
)
PREFIX_BYTES = Gauge(
    "inferno_prefix_cache_bytes", "Bytes in the prefix store", ["model"], multiprocess_mode="mostrecent"
)
PREFIX_HIT_TOKENS = Counter(
    "inferno_prefix_cache_hit_tokens", "Prompt tokens that needed no prefill", ["model"]
)
PREFIX_MISS_TOKENS = Counter(
    "inferno_prefix_cache_miss_tokens", "Prompt tokens that were prefilled", ["model"]
)
PREFILL_TOKENS = Counter("inferno_prefill_tokens", "Tokens prefilled by the engine", ["model"])
DECODE_TOKENS = Counter("inferno_decode_tokens", "Tokens sampled by the engine", ["model"])
STEPS = Counter("inferno_engine_steps", "Decode steps", ["model"])
CERTIFICATE_EXPIRY = Gauge(
    "inferno_certificate_expiry_timestamp_seconds",
    "When the TLS certificate expires, in seconds since 1970",
    multiprocess_mode="mostrecent",
)
AUDIT_FAILING = Gauge(
    "inferno_audit_failing", "1 while the audit log cannot be written", multiprocess_mode="mostrecent"
)


def observe_many(child: Histogram, bounds: Sequence[float], values: Sequence[float]) -> None:
    """Observe values at once: what `observe` does for each, with one write for each bucket that gets any."""
    counts = Counts(bisect.bisect_left(bounds, value) for value in values)
    child._sum.inc(math.fsum(values))
    for index, count in counts.items():
        child._buckets[index].inc(count)


def worker_ended(pid: int) -> None:
    """Drop a dead worker's gauges; its counters stay, so that totals never fall."""
    if os.environ.get(FOLDER_VARIABLE):
        with contextlib.suppress(OSError):
            mark_process_dead(pid)  # type: ignore[no-untyped-call]


def render() -> bytes:
    """Return the text that one scrape of the whole server answers with (CONTENT_TYPE)."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
