"""Which models this server has, and what each one's engine is told.

Names come from the configuration ([models.<name>], --model) and from the files of [models] dir; a name leads to paths
here and nowhere else, so no client's text ever becomes a path. Opens no file: the engine does, and refuses by name.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..config import ModelEntry, Settings
from ..errors import ApiError
from ..messages import PROTOCOL_VERSION, EngineSettings

_SHARD = re.compile(r"^(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.gguf$", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:-]{0,126}[A-Za-z0-9])?")


class Registry:
    """The models of one configuration."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._configured = dict(settings.models.entries)

    def entries(self) -> dict[str, ModelEntry]:
        """Return every model by name; a configured one wins over a file of the same name."""
        found = {
            name: ModelEntry(path=str(path)) for name, path in _files(Path(self._settings.models.dir)).items()
        }
        return {**found, **self._configured}

    def names(self) -> list[str]:
        return sorted(self.entries())

    def at_start(self) -> list[str]:
        """Return the models to load at start: the configured ones and the default; with none, the folder's only one."""
        entries = self.entries()
        wanted = list(self._configured)
        default = self._settings.models.default
        if default is not None and default in entries and default not in wanted:
            wanted.append(default)
        if not wanted and len(entries) == 1:
            wanted = list(entries)
        return wanted

    def engine_settings(self, name: str) -> EngineSettings:
        """Return what the engine of a model is told. Raises ApiError(model_not_found)."""
        entry = self.entries().get(name)
        if entry is None:
            raise ApiError("model_not_found", "No such model.", param="model")
        engine, models = self._settings.engine, self._settings.models
        return EngineSettings(
            version=PROTOCOL_VERSION,
            name=name,
            paths=shards(entry.path),
            sha256=entry.sha256.lower() if entry.sha256 else None,
            allow=list(entry.allow),
            source=models.source,
            max_model_bytes=int(models.max_model_size_gb * (1 << 30)),
            sandbox=self._settings.security.sandbox,
            slots=entry.slots or engine.slots,
            context_size=entry.context_size or engine.context_size,
            threads=engine.threads,
            gpu_layers=engine.gpu_layers if entry.gpu_layers is None else entry.gpu_layers,
            kv_layout=engine.kv_layout,
            flash_attention=engine.flash_attention,
            kv_cache_type=engine.kv_cache_type,
            target_itl_ms=engine.target_itl_ms,
            max_queue=engine.max_queue,
            max_queue_per_user=engine.max_queue_per_user,
            prefix_cache_mb=engine.prefix_cache_mb,
            request_timeout_seconds=engine.request_timeout_seconds,
            log_level=self._settings.telemetry.log_level,
        )


def shards(path: str) -> list[str]:
    """Return the path itself, or all shards in order when it names the first of a set."""
    match = _SHARD.match(os.path.basename(path))
    if match is None:
        return [path]
    folder, count = os.path.dirname(path), int(match["count"])
    if not 1 <= count <= 9999:
        return [path]
    extension = path[-5:]
    names = [f"{match['stem']}-{index:05d}-of-{match['count']}{extension}" for index in range(1, count + 1)]
    return [os.path.join(folder, name) for name in names]


def _files(folder: Path) -> dict[str, Path]:
    """Return the GGUF files of a folder by name: no links out of it, one entry for a set of shards."""
    found: dict[str, Path] = {}
    try:
        listing = sorted(folder.iterdir())
        inside = folder.resolve()
    except OSError:
        return {}
    for path in listing:
        if path.suffix.lower() != ".gguf" or not path.is_file() or not path.resolve().is_relative_to(inside):
            continue
        match = _SHARD.match(path.name)
        if match is not None and int(match["index"]) != 1:
            continue
        name = match["stem"] if match is not None else path.stem
        if _NAME.fullmatch(name) is not None and name != "default":
            found.setdefault(name, path)
    return found
