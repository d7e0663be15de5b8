"""What engines measured on this machine, kept in `<data>/calibration.json` for the next start.

An engine that finds its measurement again starts sooner and, since it decides alike, keeps its system_fingerprint. An
entry holds for exactly the files, settings, llama-cpp-python and CPU that it was made with. Losing the file costs a
measurement, nothing else. Used by the supervisor's command, which holds the data directory's lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from ..messages import EngineSettings

MAX_FILE_BYTES = 4 << 20
MAX_ENTRIES = 256
MAX_ENTRY_BYTES = 64 << 10
_log = logging.getLogger("inferno.models")


class Calibrations:
    """The file, read at each question: it is small, and questions are rare."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def find(self, settings: EngineSettings) -> dict[str, Any]:
        """Return what was measured for these settings, or {}."""
        found = self._read().get(_key(settings), {})
        return found if isinstance(found, dict) else {}

    def keep(self, settings: EngineSettings, measured: dict[str, Any]) -> None:
        """Keep a measurement; the oldest entries make room. A disk that refuses is told and lived with."""
        if not measured or len(msgspec.json.encode(measured)) > MAX_ENTRY_BYTES:
            return
        entries = self._read()
        key = _key(settings)
        if entries.get(key) == measured:
            return
        entries.pop(key, None)
        entries[key] = measured
        for old in list(entries)[:-MAX_ENTRIES]:
            del entries[old]
        temporary = self._path.with_name(f"{self._path.name}.new")
        try:
            descriptor = os.open(
                temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.encode(entries))
            os.replace(temporary, self._path)
        except OSError as error:
            _log.warning("%s cannot be written: %s", self._path, error.strerror)

    def _read(self) -> dict[str, Any]:
        try:
            with open(self._path, "rb") as file:
                content = json.loads(file.read(MAX_FILE_BYTES))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError):
            _log.warning("%s cannot be read; engines measure again", self._path)
            return {}
        return content if isinstance(content, dict) else {}


def _key(settings: EngineSettings) -> str:
    """Name what a measurement depends on: files as they are now, settings, library, CPU."""
    plain = replace(settings, calibration={}, known_files={}, sha256=[], log_level="", public_prefixes=[])
    states = []
    for path in settings.paths:
        with contextlib.suppress(OSError):
            status = os.stat(path)
            states.append((status.st_size, status.st_mtime_ns))
    parts = [msgspec.json.encode(plain).decode(), states, _library(), _processor()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _library() -> str:
    try:
        return metadata.version("llama-cpp-python")
    except metadata.PackageNotFoundError:
        return "none"


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith(("model name", "CPU part")):
                return f"{platform.machine()} {line.partition(':')[2].strip()} {os.cpu_count()}"
    return f"{platform.machine()} {platform.processor()} {os.cpu_count()}"
