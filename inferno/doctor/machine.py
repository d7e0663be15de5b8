"""Models, machine, GPU, build and the running server."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from ..catalog import Catalog
from ..errors import InfernoError
from .check import Check, Situation, Verdict, passed

NATIVE_MODULES = ("batching", "buckets", "epochs", "gguf", "llama", "redactor", "scanner")
CONTAINER_START = Path(sys.prefix) / "container-start.txt"  # in the container image only (Dockerfile)
# What a build for x86-64-v3 (the container image's) needs of a CPU.
X86_64_V3 = ("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe")
_GPU_PROBE = (
    "import llama_cpp.llama_cpp as l; l.llama_backend_init(); "
    "print(int(l.llama_supports_gpu_offload()), l.llama_print_system_info().decode().strip(), sep='\\t')"
)


def model_checks(situation: Situation) -> Iterator[Check]:
    """Every model that could be served: there, pinned, without waivers."""
    settings = situation.loaded.settings.models
    try:
        models = Catalog(settings).models()
    except (InfernoError, OSError) as error:
        yield Check("models", "The registry can be read", str(error), "fail", "inferno models list")
        return
    served = [str(model["name"]) for model in (situation.status or {}).get("models", [])]
    if not models and served:
        yield passed("models", "A model is installed", f"given to the server when it was started: {', '.join(served)}")
    elif not models:
        yield Check("models", "A model is installed", "none", "warn", "inferno models add FILE")
    for name, model in models.items():
        id, title = f"models.{name}", f"Model {name}"
        missing = [path for path in model.full_paths if not Path(path).is_file()]
        if missing:
            yield Check(id, title, f"{missing[0]} is not a file", "fail", f"inferno models remove {name}, then add it again")
        elif model.allow:
            yield Check(id, title, f"waived: {', '.join(model.allow)}", "warn", "get a file without these faults")
        elif not model.sha256:
            verdict = "fail" if settings.require_checksum else "warn"
            yield Check(id, title, "no SHA-256 recorded", verdict, f"inferno models add {model.full_paths[0]}")  # type: ignore[arg-type]
        else:
            yield passed(id, title, f"SHA-256 {model.sha256[0][:16]}…, {model.origin}")
    yield passed("models.verification", "Model files are verified before use",
                 f"{settings.verify}; a recorded SHA-256 is {'required' if settings.require_checksum else 'used where there is one'}")
    if settings.source == "direct":
        yield Check("models.source", "Bytes that were verified are the bytes that run", "direct: a writer of the file can "
                    "still change a mapped model", "warn", '[models] source = "copy", or files of mode 0444 that only '
                    "the server's user can replace")  # fmt: skip
    else:
        yield passed("models.source", "Bytes that were verified are the bytes that run", settings.source)


def machine_checks(situation: Situation | None) -> Iterator[Check]:
    """CPU, memory, disk, GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    lacking = lacking_cpu_features()
    if lacking:
        verdict: Verdict = "fail" if CONTAINER_START.is_file() else "warn"
        yield Check("machine.cpu", "CPU", f"{cores} cores, lacks {', '.join(lacking)}", verdict,
                    "build llama-cpp-python on this machine (make env): packages for x86-64-v3 cannot run here")  # fmt: skip
    else:
        yield passed("machine.cpu", "CPU", f"{cores} cores, {platform.machine()}")
    total, available = _memory()
    yield passed("machine.memory", "Memory", f"{available >> 20} MiB available of {total >> 20}")
    if situation is not None:
        place = next(path for path in (situation.data.root, *situation.data.root.parents) if path.exists())
        free = shutil.disk_usage(place).free
        if free < 1 << 30:
            yield Check("machine.disk", "Disk", f"{free >> 20} MiB free at {place}", "warn", "free some space: logs need it")
        else:
            yield passed("machine.disk", "Disk", f"{free >> 30} GiB free at {place}")
    yield passed("machine.system", "System", f"{platform.system()} {platform.release()}, Python {platform.python_version()}")


def build_checks(situation: Situation | None) -> Iterator[Check]:
    """Our native modules, and llama.cpp with its devices (asked in a child: it is native code)."""
    broken = []
    for name in NATIVE_MODULES:
        try:
            importlib.import_module(f"inferno_native.{name}")
        except ImportError as error:
            broken.append(f"{name} ({error})")
    if broken:
        yield Check("build.native", "Native modules load", ", ".join(broken), "fail", "pip install --force-reinstall inferno-server")
    else:
        yield passed("build.native", "Native modules load", f"{len(NATIVE_MODULES)} modules")
    try:
        version = metadata.version("llama-cpp-python")
        probe = subprocess.run([sys.executable, "-I", "-c", _GPU_PROBE], capture_output=True, text=True, timeout=60, check=False)
    except (metadata.PackageNotFoundError, OSError, subprocess.TimeoutExpired) as error:
        yield Check("build.llama", "llama.cpp loads", str(error), "fail", "pip install llama-cpp-python==0.3.36")
        return
    if probe.returncode:
        reason = f"exit {probe.returncode}" + (": the CPU lacks an instruction it was built for" if probe.returncode == -4 else "")
        yield Check("build.llama", "llama.cpp loads", reason, "fail", "build llama-cpp-python on this machine: make env")
        return
    offload, _, info = probe.stdout.strip().splitlines()[-1].partition("\t")
    yield passed("build.llama", "llama.cpp loads", f"llama-cpp-python {version}; {info}")
    layers = situation.loaded.settings.engine.gpu_layers if situation is not None else -1
    if offload == "1":
        yield passed("machine.gpu", "GPU", "this llama.cpp can use one")
    elif layers > 0:
        yield Check("machine.gpu", "GPU", f"gpu_layers = {layers}, but this llama.cpp was built without", "fail",
                    'CMAKE_ARGS="-DGGML_CUDA=ON" pip install --force-reinstall --no-binary :all: llama-cpp-python')  # fmt: skip
    else:
        yield passed("machine.gpu", "GPU", "none used (this llama.cpp is built for the CPU)")


def server_checks(situation: Situation) -> Iterator[Check]:
    """What a running server says of itself."""
    status = situation.status
    if status is None:
        yield passed("server", "Server", "not running")
        return
    workers = status.get("workers", [])
    ready = sum(1 for worker in workers if isinstance(worker, dict) and worker.get("ready"))
    yield passed("server", "Server", f"version {status.get('version')} at {status.get('address')}, {ready} workers ready")
    for model in status.get("models", []):
        id, title = f"server.model.{model['name']}", f"Model {model['name']} is served"
        if model.get("state") == "ready":
            yield passed(id, title, f"{model.get('slots')} slots of {model.get('context')} tokens, {model.get('backend') or 'CPU'}")
        else:
            yield Check(id, title, f"{model.get('state')}: {model.get('detail', '')}", "warn", f"inferno models verify, then load {model['name']}")


def lacking_cpu_features() -> list[str]:
    """Return what this CPU lacks of x86-64-v3; empty on other architectures and where it cannot be seen."""
    flags = _cpu_flags()
    if platform.machine() != "x86_64" or not flags:
        return []
    return [flag for flag in X86_64_V3 if flag not in flags]


def _cpu_flags() -> frozenset[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return frozenset(line.partition(":")[2].split())
    except OSError:
        pass
    return frozenset()


def _memory() -> tuple[int, int]:
    """Return (total, available) bytes."""
    found = {}
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            found[name] = int(rest.split()[0]) << 10
    except (OSError, ValueError, IndexError):
        page = os.sysconf("SC_PAGE_SIZE")
        return page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_PHYS_PAGES")
    return found.get("MemTotal", 0), found.get("MemAvailable", 0)
