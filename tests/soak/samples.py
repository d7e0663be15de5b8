"""What a soak looks at: memory, descriptors and threads of every process by its part, and the server's own gauges."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any

PARTS = {
    "supervisor": "inferno.cli",
    "worker": "inferno.server.worker",
    "engine": "inferno.engine.main",
    "template": "inferno.engine.template_child",
}
GAUGES = {
    "running": "inferno_requests_running",
    "waiting": "inferno_requests_waiting",
    "kv_tokens": "inferno_kv_used_tokens",
    "prefix_mib": "inferno_prefix_cache_bytes",
    "in_progress": "inferno_requests_in_progress",
    "connections": "inferno_connections",
    "restarts": "inferno_engine_restarts_total",
}
_LINE = re.compile(r"^(inferno_\w+)(?:\{[^}]*\})? ([0-9.eE+-]+)$", re.MULTILINE)


def processes(pids: list[int], command_of: Any) -> dict[str, float]:
    """Return the sums of each part: `engine_rss_mib`, `engine_fds`, `engine_threads`, `engine_count`, …"""
    found: dict[str, float] = {f"{part}_{what}": 0.0 for part in PARTS for what in ("rss_mib", "fds", "threads", "count")}
    for pid in pids:
        command = command_of(pid)
        part = next((name for name in reversed(PARTS) if PARTS[name] in command), None)
        if part is None:
            continue
        with contextlib.suppress(OSError, ValueError):  # it may end while it is looked at
            status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
            found[f"{part}_rss_mib"] += int(status["VmRSS"].split()[0]) / 1024 if "VmRSS" in status else 0.0
            found[f"{part}_threads"] += int(status["Threads"])
            found[f"{part}_count"] += 1
            found[f"{part}_fds"] += len(os.listdir(f"/proc/{pid}/fd"))
    return found


def gauges(text: str) -> dict[str, float]:
    """Return the gauges of a scrape, summed over their labels."""
    sums: dict[str, float] = {}
    for name, value in _LINE.findall(text):
        sums[name] = sums.get(name, 0.0) + float(value)
    found = {short: sums.get(name, 0.0) for short, name in GAUGES.items()}
    found["prefix_mib"] /= 1 << 20
    return found
