"""Where tests find the demo model: SmolLM2-135M-Instruct, Q4_1, checked by its SHA-256 once per test process."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

import pytest

DEMO_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEMO_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


@functools.cache
def _find() -> Path | None:
    named = os.environ.get("INFERNO_TEST_MODEL")
    places = [Path(named)] if named else [Path.home() / ".cache" / "inferno" / "models" / DEMO_NAME]
    for place in places:
        if place.is_file():
            digest = hashlib.sha256(place.read_bytes()).hexdigest()
            if digest != DEMO_SHA256:
                raise AssertionError(f"{place.name} has SHA-256 {digest}, expected {DEMO_SHA256}")
            return place
    return None


def demo_model() -> Path:
    """Return the demo model's path, or skip the test by name."""
    place = _find()
    if place is None:
        pytest.skip(f"the demo model {DEMO_NAME} is missing: set INFERNO_TEST_MODEL or run `make serve` once")
    return place
