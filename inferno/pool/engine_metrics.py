"""What engines report, as metrics: gauges as they are, counters by their growth, so a restart takes nothing back.

Imported by the supervisor once the folder of metric files exists (prometheus_client looks at its import).
"""

from __future__ import annotations

from .. import metrics
from ..messages import EngineStats

_GAUGES = {
    "running": metrics.RUNNING,
    "waiting": metrics.WAITING,
    "slots": metrics.SLOTS,
    "kv_used_tokens": metrics.KV_USED,
    "kv_total_tokens": metrics.KV_TOTAL,
    "prefix_bytes": metrics.PREFIX_BYTES,
}
_COUNTERS = {
    "prefix_hit_tokens": metrics.PREFIX_HIT_TOKENS,
    "prefix_miss_tokens": metrics.PREFIX_MISS_TOKENS,
    "prefill_tokens": metrics.PREFILL_TOKENS,
    "decode_tokens": metrics.DECODE_TOKENS,
    "steps": metrics.STEPS,
}


class EngineMetrics:
    """The exporter of all engines."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[int, EngineStats]] = {}
        self._restarts: dict[str, int] = {}
        for gauge in (metrics.AUDIT_FAILING, metrics.CERTIFICATE_EXPIRY):
            gauge.set(0)  # what was never set is not in a scrape

    def update(
        self,
        model: str,
        generation: int,
        stats: EngineStats,
        *,
        is_up: bool,
        is_wanted: bool = True,
        num_restarts: int,
    ) -> None:
        """Take over one engine's report. One that is not up has nothing running, whatever it said last."""
        metrics.ENGINE_UP.labels(model).set(1 if is_up else 0)
        metrics.ENGINE_WANTED.labels(model).set(1 if is_wanted else 0)
        restarts = metrics.ENGINE_RESTARTS.labels(model)
        restarts.inc(max(0, num_restarts - self._restarts.get(model, 0)))
        self._restarts[model] = num_restarts
        before_generation, before = self._before.get(model, (generation, EngineStats()))
        if before_generation != generation:
            before = EngineStats()
        now = stats if is_up else EngineStats()
        for name, gauge in _GAUGES.items():
            gauge.labels(model).set(getattr(now, name))
        metrics.KV_USAGE.labels(model).set(now.kv_used_tokens / max(1, now.kv_total_tokens))
        for name, counter in _COUNTERS.items():
            counter.labels(model).inc(max(0, getattr(stats, name) - getattr(before, name)))
        self._before[model] = (generation, stats)

    def audit_failing(self, is_failing: bool) -> None:
        metrics.AUDIT_FAILING.set(1 if is_failing else 0)

    def worker_restarted(self) -> None:
        metrics.WORKER_RESTARTS.inc()

    def worker_ended(self, pid: int) -> None:
        metrics.worker_ended(pid)
