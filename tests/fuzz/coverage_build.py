"""Builds native modules with edge counters and puts them before the ordinary ones; shared by the fuzzers.

Needs clang: -fsanitize=fuzzer-no-link, with sancov.c as the receiver. The build lies in build/coverage.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build" / "coverage"


def conclude(counters: ctypes.CDLL, module: str, num_findings: int, seed: int) -> int:
    """Say what a run reached and found; returns its exit status. A run that saw no edge has tested nothing."""
    print(f"edges found: {counters.edges_seen()} of {counters.edges_total()} in {Path(module).name} and its kin; "
          f"findings: {num_findings}; seed {seed}")
    if counters.edges_seen() == 0:
        print("no edge was reported: the modules under test are not instrumented")
        return 1
    return 1 if num_findings else 0


def build(modules: str) -> ctypes.CDLL:
    """The library that counts the edges of these modules (names with blanks between)."""
    environment = {**os.environ, "INFERNO_BUILD": "coverage", "INFERNO_EXTENSIONS": modules, "CC": "clang", "LDSHARED": "clang -shared"}
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(BUILD), "--build-temp", str(BUILD / "temp")],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    library = BUILD / "libsancov.so"
    subprocess.run(["clang", "-O2", "-shared", "-fPIC", "-o", str(library), str(Path(__file__).with_name("sancov.c"))],
                   check=True)
    counters = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    for name in ("edges_total", "edges_seen", "take_new"):
        getattr(counters, name).restype = ctypes.c_size_t
    sys.path[:0] = [str(ROOT), str(ROOT / "native")]
    import inferno_native

    inferno_native.__path__.insert(0, str(BUILD / "inferno_native"))
    return counters
