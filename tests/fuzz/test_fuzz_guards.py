"""A short run of the guards' fuzzer, so that it and its laws stay alive; `make fuzz-guards SECONDS=600` is the long one."""

import re

import pytest

from tests.fuzz.short_run import short_run


@pytest.mark.slow
def test_a_short_run_finds_edges_and_no_broken_law() -> None:
    inputs = re.search(r"(\d+) inputs in .*, (\d+) kept", short_run("fuzz_guards.py", 4000, 4000))
    assert inputs is not None
    assert int(inputs[1]) > 2000
    assert int(inputs[2]) > 50
