"""A short run of the model fuzzer, so that it and its laws stay alive; `make fuzz-gguf SECONDS=600` is the long one."""

import re

import pytest

from tests.fuzz.short_run import short_run


@pytest.mark.slow
def test_a_short_run_finds_edges_and_no_broken_law() -> None:
    inputs = re.search(r"(\d+) inputs in .*, (\d+) sound containers, (\d+) models", short_run("fuzz_gguf.py", 5000, 1500))
    assert inputs is not None
    assert int(inputs[1]) > 300
    assert int(inputs[2]) > 50
