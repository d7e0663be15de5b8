"""A short run of the guards' fuzzer, so that it and its laws stay alive; `make fuzz-guards SECONDS=600` is the long one."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FUZZER = Path(__file__).with_name("fuzz_guards.py")


@pytest.mark.slow
def test_a_short_run_finds_edges_and_no_broken_law() -> None:
    if shutil.which("clang") is None:
        pytest.skip("clang is absent (make ci-deps)")
    # a fixed seed and a fixed number of inputs: the same run on any machine
    command = [sys.executable, str(FUZZER), "600", "--inputs", "4000", "--seed", "20260101"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = re.search(r"edges found: (\d+) of (\d+)", done.stdout)
    assert found is not None
    # the recognisers' own edges, not only the modules' start-up code
    assert int(found[1]) > 4000
    inputs = re.search(r"(\d+) inputs in .*, (\d+) kept", done.stdout)
    assert inputs is not None
    assert int(inputs[1]) > 2000
    assert int(inputs[2]) > 50
