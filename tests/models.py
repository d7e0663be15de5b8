"""Where tests find the demo model and llama.cpp's vocabularies; `make env` brings both."""

import ctypes
import functools
import hashlib
import os
import tempfile
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


def requantized(source: Path, file_type: str, target: Path, *, pure: bool = False) -> Path:
    """Write `source` with llama.cpp's own quantizer as `file_type` (a name of llama_ftype, such as Q4_0)."""
    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{file_type}")
    options.nthread = 2
    options.allow_requantize = True
    options.pure = pure
    if llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(options)) != 0:
        raise RuntimeError(f"{source.name} could not be quantized to {file_type}")
    return target


def demo_as(file_type: str) -> Path:
    """Return the demo model requantized, made once and kept beside other things that tests make."""
    if file_type == "Q4_1":
        return demo_model()
    source = demo_model()
    path = CACHE / "requantized" / f"{DEMO_SHA256[:12]}-{file_type}.gguf"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            requantized(source, file_type, Path(folder) / path.name).rename(path)
    return path


def vocab(name: str) -> Path:
    """Return one of llama.cpp's vocabulary-only files, such as `gemma-4`, or skip the test by name."""
    folder = Path(os.environ.get("INFERNO_TEST_VOCABS", CACHE / "vocabs"))
    path = folder / f"ggml-vocab-{name}.gguf"
    if not path.is_file():
        pytest.skip(f"vocabulary absent: {path.name} (run `make env`)")
    return path
