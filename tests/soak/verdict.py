"""The verdict on a soak: nothing lost, nothing stuck, nothing that grows. Pure functions over the samples."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
# What each part may gain between the second and the last quarter of the quiet moments: the larger of MiB and share.
ALLOWED_MIB = {"supervisor": 4.0, "worker": 8.0, "engine": 16.0, "template": 2.0}
ALLOWED_SHARE = 0.03
ALLOWED_FDS = 4
MIN_QUIET = 8


def judge(rows: Sequence[Row], lost: Sequence[str]) -> list[str]:
    """Return the faults, none when all is well. Rows of the phase `quiet` were taken when no client had a request."""
    faults = [f"lost request: {entry}" for entry in lost[:10]]
    if len(lost) > 10:
        faults.append(f"and {len(lost) - 10} more lost requests")
    quiet = [row for row in rows if row["phase"] == "quiet"]
    for row in quiet:
        stuck = {name: row[name] for name in ("running", "waiting", "kv_tokens") if row[name]}
        if stuck:
            faults.append(f"at {row['seconds']:.0f} s, with no client left: {stuck}")
    if len(quiet) < MIN_QUIET:
        return [*faults, f"only {len(quiet)} quiet moments; {MIN_QUIET} are needed for a verdict on growth"]
    early, late = quiet[len(quiet) // 4 : len(quiet) // 2], quiet[-(len(quiet) // 4) :]
    for part, floor in ALLOWED_MIB.items():
        before, after = (statistics.median(row[f"{part}_rss_mib"] for row in some) for some in (early, late))
        allowed = max(floor, ALLOWED_SHARE * before)
        if after - before > allowed:
            faults.append(f"{part}: RSS grew from {before:.1f} to {after:.1f} MiB; {allowed:.1f} more are allowed")
        before, after = (max(row[f"{part}_fds"] for row in some) for some in (early, late))
        if after - before > ALLOWED_FDS:
            faults.append(f"{part}: descriptors grew from {before:.0f} to {after:.0f}")
    return faults
