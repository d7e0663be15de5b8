"""Shared fixtures: where the larger test data lies."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "data"
CASES = DATA / "cases"
SHARED = Path(os.environ.get("INFERNO_TEST_DATA", ROOT.parent / "shared"))


def shared(relative: str) -> Path:
    """Return a path of the larger test data, or skip the test by name when it is absent."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"larger test data absent: {relative} (set INFERNO_TEST_DATA)")
    return path
