"""Where tests find the demo model and llama.cpp's vocabularies; `make env` brings both."""

import functools
import hashlib
import os
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("INFERNO_CACHE", Path.home() / ".cache" / "inferno"))
DEMO_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


@functools.cache
def _digest(path: Path, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def demo_model() -> Path:
    """Return SmolLM2-135M-Instruct, checked against its SHA-256, or skip the test by name."""
    path = Path(os.environ.get("INFERNO_TEST_MODEL", CACHE / "models" / DEMO_NAME))
    if not path.is_file():
        pytest.skip(f"demo model absent: {DEMO_NAME} (run `make env`)")
    if _digest(path, path.stat().st_mtime_ns) != DEMO_SHA256:
        pytest.fail(f"{DEMO_NAME} does not have the pinned SHA-256")
    return path


def vocab(name: str) -> Path:
    """Return one of llama.cpp's vocabulary-only files, such as `gemma-4`, or skip the test by name."""
    folder = Path(os.environ.get("INFERNO_TEST_VOCABS", CACHE / "vocabs"))
    path = folder / f"ggml-vocab-{name}.gguf"
    if not path.is_file():
        pytest.skip(f"vocabulary absent: {path.name} (run `make env`)")
    return path
