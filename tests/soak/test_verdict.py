"""The soak's verdict and graph on invented samples: what must be found is found, and noise is not."""

from __future__ import annotations

import os
import random
import xml.etree.ElementTree
from typing import Any

import pytest

from tests.soak.graph import PANELS, draw
from tests.soak.load import EXCUSED_SECONDS, Tally
from tests.soak.samples import GAUGES, PARTS, gauges, processes
from tests.soak.verdict import judge


def samples(**growth: float) -> list[dict[str, Any]]:
    """Two hours of one quiet moment a minute with noise; `growth` adds to a column, a minute."""
    rng = random.Random(1)
    base = dict.fromkeys(GAUGES, 0.0) | {"engine_rss_mib": 500.0, "worker_rss_mib": 120.0, "supervisor_rss_mib": 80.0,
                                         "template_rss_mib": 30.0}  # fmt: skip
    base |= {f"{part}_fds": 20.0 for part in PARTS}
    rows = []
    for minute in range(120):
        row: dict[str, Any] = {"seconds": 60.0 * minute, "phase": "quiet", "in_flight": 0, **base}
        for part in PARTS:
            row[f"{part}_rss_mib"] += rng.uniform(-1, 1)
        for name, each in growth.items():
            row[name] += each * minute
        rows.append(row)
        rows.append({**row, "seconds": row["seconds"] + 30, "phase": "load", "running": 4.0})
    return rows


def test_a_flat_run_is_well() -> None:
    assert judge(samples(), []) == []


@pytest.mark.parametrize(
    ("name", "each"),
    [("engine_rss_mib", 0.5), ("worker_rss_mib", 0.3), ("supervisor_rss_mib", 0.2), ("template_rss_mib", 0.1), ("worker_fds", 0.2)],
)
def test_what_grows_is_named(name: str, each: float) -> None:
    (fault,) = judge(samples(**{name: each}), [])
    assert fault.startswith(name.split("_")[0])
    assert "grew" in fault


def test_what_is_stuck_or_lost_is_named() -> None:
    rows = samples()
    rows[-2]["running"] = 1.0
    faults = judge(rows, ["no end"] * 12)
    assert sum(fault.startswith("lost request") for fault in faults) == 10
    assert "and 2 more lost requests" in faults
    assert any("'running': 1.0" in fault for fault in faults)


def test_too_short_a_run_gets_no_clean_bill() -> None:
    assert "quiet moments" in judge(samples()[:8], [])[0]


def test_errors_are_excused_near_a_kill_only() -> None:
    tally = Tally()
    tally.note("error", 0.0, "503")
    assert tally.outcomes["error"] == len(tally.lost) == 1
    tally.last_kill = float("inf")
    tally.note("error", 0.0, "503")
    assert (tally.outcomes["excused"], len(tally.lost)) == (1, 1)
    tally.note("lost", 0.0, "no end")  # never excused
    assert len(tally.lost) == 2
    assert EXCUSED_SECONDS < 60


def test_gauges_are_summed_over_labels() -> None:
    text = ('# TYPE inferno_requests_running gauge\ninferno_requests_running{model="a"} 2.0\n'
            'inferno_requests_running{model="b"} 1.0\ninferno_prefix_cache_bytes{model="a"} 2097152.0\n')  # fmt: skip
    found = gauges(text)
    assert (found["running"], found["prefix_mib"], found["waiting"]) == (3.0, 2.0, 0.0)


def test_processes_are_told_apart() -> None:
    found = processes([os.getpid(), 1 << 30], lambda pid: "python -m inferno.engine.main 3" if pid == os.getpid() else "")
    assert found["engine_count"] == 1
    assert found["engine_rss_mib"] > 1
    assert found["engine_fds"] >= 3
    assert found["supervisor_count"] == 0


def test_the_graph_has_a_line_for_every_column() -> None:
    root = xml.etree.ElementTree.fromstring(draw(samples(), [600.0], "a <title> & more"))
    lines = [element for element in root.iter() if element.tag.endswith("polyline")]
    assert len(lines) == sum(len(columns) for _, columns in PANELS)
    assert all(len(line.attrib["points"].split()) == 240 for line in lines)
