"""Metrics over several processes: one scrape adds up what all wrote, dead ones included."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_WRITER = """
import os
from inferno import metrics
metrics.REQUESTS.labels("/v1/chat/completions", "POST", "2xx").inc(3)
metrics.TTFT_SECONDS.labels("tiny").observe(0.2)
metrics.REQUESTS_IN_PROGRESS.inc(2)
print(os.getpid())
"""
_SCRAPE = """
import sys
from inferno import metrics
for pid in sys.argv[1:]:
    metrics.worker_ended(int(pid))
sys.stdout.write(metrics.render().decode())
"""
_ENGINE = """
from inferno.messages import EngineStats
from inferno.pool.engine_metrics import EngineMetrics
from inferno import metrics
exporter = EngineMetrics()
def report(generation, steps, running, restarts):
    stats = EngineStats(steps=steps, running=running, decode_tokens=10 * steps)
    exporter.update("tiny", generation, stats, is_up=running > 0, num_restarts=restarts)
report(1, 5, 2, 0); report(1, 9, 4, 0); report(2, 0, 0, 1); report(2, 3, 1, 1)
import sys
sys.stdout.write(metrics.render().decode())
"""

_STATES = """
import sys
from inferno.messages import EngineStats
from inferno.pool.engine_metrics import EngineMetrics
from inferno import metrics
exporter = EngineMetrics()
stats = EngineStats(running=3, waiting=2, slots=4, kv_used_tokens=256, kv_total_tokens=1024)
exporter.update("up", 1, stats, is_up=True, num_restarts=0)
exporter.update("down", 1, stats, is_up=True, num_restarts=0)
exporter.update("down", 1, stats, is_up=False, num_restarts=0)
exporter.update("unloaded", 1, stats, is_up=False, is_wanted=False, num_restarts=0)
exporter.audit_failing(True)
sys.stdout.write(metrics.render().decode())
"""


def run(folder: Path, script: str, *arguments: object) -> str:
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout


def value(text: str, sample: str) -> float | None:
    found = re.search(rf"^{re.escape(sample)} (\S+)$", text, re.MULTILINE)
    return None if found is None else float(found.group(1))


def test_one_scrape_adds_up_all_processes(tmp_path: Path) -> None:
    pids = [run(tmp_path, _WRITER).strip() for _ in range(3)]
    text = run(tmp_path, _SCRAPE)
    sample = 'inferno_requests_total{method="POST",route="/v1/chat/completions",status="2xx"}'
    assert value(text, sample) == 9
    assert value(text, 'inferno_time_to_first_token_seconds_count{model="tiny"}') == 3
    assert value(text, 'inferno_time_to_first_token_seconds_bucket{le="0.25",model="tiny"}') == 3
    assert value(text, "inferno_requests_in_progress") == 6
    text = run(tmp_path, _SCRAPE, pids[0])
    assert value(text, sample) == 9
    assert value(text, "inferno_requests_in_progress") == 4


def test_engine_reports_grow_over_restarts(tmp_path: Path) -> None:
    text = run(tmp_path, _ENGINE)
    assert value(text, 'inferno_engine_steps_total{model="tiny"}') == 12
    assert value(text, 'inferno_decode_tokens_total{model="tiny"}') == 120
    assert value(text, 'inferno_requests_running{model="tiny"}') == 1
    assert value(text, 'inferno_engine_restarts_total{model="tiny"}') == 1
    assert value(text, "inferno_audit_failing") == 0
    assert value(text, "inferno_certificate_expiry_timestamp_seconds") == 0
    assert value(text, 'inferno_engine_up{model="tiny"}') == 1
    assert value(text, 'inferno_engine_wanted{model="tiny"}') == 1


def test_an_engine_that_is_gone_has_nothing_running_and_cache_use_is_a_share(tmp_path: Path) -> None:
    text = run(tmp_path, _STATES)
    assert value(text, 'inferno_kv_cache_usage_ratio{model="up"}') == 0.25
    assert value(text, 'inferno_requests_running{model="up"}') == 3
    for name in ("requests_running", "requests_waiting", "kv_used_tokens", "kv_cache_usage_ratio", "engine_up"):
        assert value(text, f'inferno_{name}{{model="down"}}') == 0
    assert value(text, 'inferno_engine_wanted{model="down"}') == 1
    assert value(text, 'inferno_engine_wanted{model="unloaded"}') == 0
    assert value(text, "inferno_audit_failing") == 1


def test_every_metric_has_the_prefix_and_help(tmp_path: Path) -> None:
    run(tmp_path, _WRITER)
    names = re.findall(r"^# HELP (\S+) (.+)$", run(tmp_path, _SCRAPE), re.MULTILINE)
    assert names
    for name, words in names:
        assert name.startswith("inferno_")
        assert words.strip()


@pytest.mark.parametrize("label", ["user", "account", "key", "principal", "ip", "prompt"])
def test_no_label_holds_a_tenants_text(label: str) -> None:
    source = (Path(__file__).resolve().parents[2] / "inferno" / "metrics.py").read_text()
    assert f'"{label}"' not in source


def test_many_observations_at_once_count_as_one_by_one(tmp_path: Path) -> None:
    script = """
import sys
from inferno import metrics
values = [0.0001, 0.005, 0.0051, 0.3, 0.3, 7.0, 599.0, 600.0, 601.0]
for value in values:
    metrics.REQUEST_SECONDS.labels("one").observe(value)
metrics.observe_many(metrics.REQUEST_SECONDS.labels("many"), metrics.DURATION_BUCKETS, values)
sys.stdout.write(metrics.render().decode())
"""
    lines = [line for line in run(tmp_path, script).splitlines() if 'route="' in line]
    one = sorted(line.replace('"one"', "R") for line in lines if '"one"' in line)
    many = sorted(line.replace('"many"', "R") for line in lines if '"many"' in line)
    assert len(one) == 14
    assert one == many


def test_what_a_worker_counted_is_written_within_a_moment_and_whole(tmp_path: Path) -> None:
    script = """
import asyncio, sys, time
from inferno import metrics
from inferno.server import observing
told = observing.Metrics()
async def main():
    for status in (200, 200, 429):
        told.answered("/v1/models", "GET", status, time.perf_counter())
        told.authenticated("key", "accepted")
    told.answered("/v1/models", "BREW", 405, time.perf_counter())
    before = metrics.render().decode()
    assert 'route="/v1/models"' not in before, before
    deadline = time.monotonic() + 30
    while 'route="/v1/models"' not in metrics.render().decode():
        assert time.monotonic() < deadline
        await asyncio.sleep(observing.FLUSH_SECONDS / 5)
    told.open(3, 2)
asyncio.run(main())
told.answered("/v1/models", "GET", 200, time.perf_counter())  # no loop any more: at once
sys.stdout.write(metrics.render().decode())
"""
    text = run(tmp_path, script)
    sample = 'inferno_requests_total{{method="{}",route="/v1/models",status="{}"}}'
    assert value(text, sample.format("GET", 200)) == 3
    assert value(text, sample.format("GET", 429)) == 1
    assert value(text, sample.format("other", 405)) == 1
    assert value(text, 'inferno_request_duration_seconds_count{route="/v1/models"}') == 5
    assert value(text, 'inferno_auth_verdicts_total{kind="key",verdict="accepted"}') == 3
    assert value(text, "inferno_connections") == 3
    assert value(text, "inferno_requests_in_progress") == 2
