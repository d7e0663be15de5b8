"""A soak's samples as one SVG: panels of lines over the same minutes, and a mark at each kill. Plain text, no library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

WIDTH, PANEL, LEFT, RIGHT, TOP, GAP = 960, 170, 70, 190, 40, 50
COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df")
PANELS: list[tuple[str, list[tuple[str, str]]]] = [
    ("resident memory, MiB", [("engine", "engine_rss_mib"), ("workers", "worker_rss_mib"), ("supervisor", "supervisor_rss_mib"),
                              ("template child", "template_rss_mib")]),
    ("requests", [("clients waiting for an answer", "in_flight"), ("in slots", "running"), ("queued", "waiting")]),
    ("prefix store, MiB", [("prefix store", "prefix_mib")]),
    ("descriptors", [("workers", "worker_fds"), ("engine", "engine_fds"), ("supervisor", "supervisor_fds")]),
]  # fmt: skip


def draw(rows: Sequence[dict[str, Any]], kills: Sequence[float], title: str) -> str:
    """Return the SVG; rows have `seconds` and the names in PANELS."""
    end = max((row["seconds"] for row in rows), default=1.0) or 1.0
    height = TOP + len(PANELS) * (PANEL + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{escape(title)}</text>',
    ]
    for index, (name, lines) in enumerate(PANELS):
        parts += _panel(rows, kills, end, TOP + index * (PANEL + GAP) + 20, name, lines)
    return "\n".join([*parts, "</svg>", ""])


def _panel(rows: Sequence[dict[str, Any]], kills: Sequence[float], end: float, top: float, name: str,
           lines: list[tuple[str, str]]) -> list[str]:  # fmt: skip
    width = WIDTH - LEFT - RIGHT
    highest = max((row[key] for row in rows for _, key in lines), default=0.0) * 1.05 or 1.0

    def x(seconds: float) -> float:
        return LEFT + width * seconds / end

    def y(value: float) -> float:
        return top + PANEL * (1 - value / highest)

    parts = [f'<text x="{LEFT}" y="{top - 6}">{escape(name)}</text>',
             f'<rect x="{LEFT}" y="{top}" width="{width}" height="{PANEL}" fill="none" stroke="#999"/>']  # fmt: skip
    for step in range(5):
        value, seconds = highest * step / 4, end * step / 4
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.4g}</text>')
        parts.append(f'<text x="{x(seconds):.1f}" y="{top + PANEL + 15}" text-anchor="middle">{seconds / 60:.1f} min</text>')
    for at in kills:
        parts.append(f'<line x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{top}" y2="{top + PANEL}" stroke="#ccc" stroke-dasharray="3 3"/>')
    for number, (label, key) in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(f"{x(row['seconds']):.1f},{y(row[key]):.1f}" for row in rows)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.3"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{top + 14 + 16 * number}" fill="{colour}">{escape(label)}</text>')
    return parts
