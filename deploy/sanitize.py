"""Build the native modules with AddressSanitizer and UBSan and run the native tests under both.

The instrumented build lives under build/sanitize and never replaces the ordinary one. Leaks are not judged here:
CPython keeps memory until the end of the process on purpose.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "sanitize"
LIBRARY = BUILD / "lib"


def runtime(name: str) -> str:
    found = subprocess.run(["cc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
    if not Path(found).is_absolute():
        raise SystemExit(f"the compiler has no {name}; install build-essential")
    return found


def main() -> int:
    print("» building the native modules with -fsanitize=address,undefined", flush=True)
    build = subprocess.run(
        [sys.executable, "setup.py", "-q", "build", "--build-lib", str(LIBRARY), "--build-temp", str(BUILD / "temp")],
        cwd=ROOT, env={**os.environ, "INFERNO_BUILD": "sanitize"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if build.returncode:
        print(build.stdout[-4000:], build.stderr[-4000:], file=sys.stderr)
        return build.returncode
    environment = {
        **os.environ,
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libubsan.so')}",
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1:detect_odr_violation=0",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
        "INFERNO_SANITIZED": "1",
        "PYTHONPATH": str(LIBRARY),
    }
    targets = sys.argv[1:] or ["tests/native"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", f"pythonpath={LIBRARY} {ROOT}",
               "-m", "not e2e and not slow", *targets]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
