"""Runs a fuzzer for a fixed number of inputs from a fixed seed: the same run on any machine. What CI does of them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SEED = 20260101
MAX_SECONDS = 600


def short_run(fuzzer: str, num_inputs: int, min_edges: int) -> str:
    """Return what the fuzzer printed; it must end without a finding and reach the modules' own edges."""
    if shutil.which("clang") is None:
        pytest.skip("clang is absent (make ci-deps)")
    command = [sys.executable, str(Path(__file__).with_name(fuzzer)), str(MAX_SECONDS), "--inputs", str(num_inputs), "--seed", str(SEED)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = re.search(r"edges found: (\d+) of (\d+)", done.stdout)
    assert found is not None
    assert int(found[1]) > min_edges  # not only start-up code
    return done.stdout
