"""How long does the full check of a model file take, beside the two readers that others use?

Measured, in one process and one run, on files in the page cache: `inferno_native.gguf.verify_fd` (structure, metadata and
vocabulary, without digest and without the trial run of templates), libggml's `gguf_init_from_file` with no_alloc (what
llama.cpp's loader uses; the library that the installed llama_cpp brings), and the PyPI package gguf's GGUFReader. Not
measured: disk, digests, templates (bench_digest and the verifier's tests have those), memory.

    python benchmarks/bench_gguf.py FILE.gguf [FILE.gguf ...]

The contenders take turns, so that a busy machine slows all of them; the fastest round and the median are shown, the
ratios are of medians. The last line is JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import logging
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROUNDS = 15
READER_ROUNDS = 3


class InitParams(ctypes.Structure):
    """gguf_init_params of gguf.h."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def reference() -> Callable[[str], None]:
    with contextlib.redirect_stderr(io.StringIO()):
        import llama_cpp
    folder = Path(llama_cpp.__file__).parent / "lib"
    lib = ctypes.CDLL(str(next(path for path in folder.iterdir() if "ggml-base" in path.name)))
    lib.gguf_init_from_file.restype = ctypes.c_void_p
    lib.gguf_init_from_file.argtypes = [ctypes.c_char_p, InitParams]
    lib.gguf_free.argtypes = [ctypes.c_void_p]

    def run(path: str) -> None:
        context = lib.gguf_init_from_file(path.encode(), InitParams(True, None))
        if not context:
            raise SystemExit(f"{path}: the reference refuses it")
        lib.gguf_free(context)

    return run


def ours(path: str) -> None:
    from inferno_native.gguf import verify_fd

    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        verify_fd(fd)
    finally:
        os.close(fd)


def reader(path: str) -> None:
    from gguf import GGUFReader

    GGUFReader(path)


def timed(function: Callable[[str], None], path: str) -> float:
    start = time.perf_counter()
    function(path)
    return (time.perf_counter() - start) * 1e3


def main(paths: list[str]) -> int:
    logging.disable(logging.WARNING)
    theirs = reference()
    results = []
    print(f"{'file':34} {'ours ms':>9} {'libggml ms':>11} {'gguf-py ms':>11} {'ours/libggml':>13} {'gguf-py/ours':>13}")
    for path in paths:
        for function in (ours, theirs):
            timed(function, path)
        rounds: dict[str, list[float]] = {"ours": [], "libggml": [], "gguf_py": []}
        for i in range(ROUNDS):
            rounds["ours"].append(timed(ours, path))
            rounds["libggml"].append(timed(theirs, path))
            if i < READER_ROUNDS:
                rounds["gguf_py"].append(timed(reader, path))
        median = {name: statistics.median(values) for name, values in rounds.items()}
        row = {
            "file": Path(path).name,
            "median_ms": {name: round(value, 3) for name, value in median.items()},
            "fastest_ms": {name: round(min(values), 3) for name, values in rounds.items()},
            "ours_to_libggml": round(median["ours"] / median["libggml"], 3),
            "gguf_py_to_ours": round(median["gguf_py"] / median["ours"], 1),
        }
        results.append(row)
        print(f"{row['file']:34} {median['ours']:9.3f} {median['libggml']:11.3f} {median['gguf_py']:11.1f} "
              f"{row['ours_to_libggml']:13.3f} {row['gguf_py_to_ours']:13.1f}")
    print(json.dumps({
        "benchmark": "gguf", "machine": platform.machine(), "cpus": os.cpu_count(), "load": os.getloadavg()[0],
        "python": platform.python_version(), "rounds": ROUNDS, "results": results,
    }))
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    raise SystemExit(main(sys.argv[1:]))
