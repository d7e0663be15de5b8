"""The models of a server: which there are, which load at start, and what each one's engine is told.

Joins the catalog (names, files, digests) with the [engine] section for the supervisor, which knows neither. Opens no
file of a model: its engine does, and refuses it by name.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from inferno_native.gguf_report import GgufError
from msgspec.structs import replace

from ..catalog import Catalog, CatalogError
from ..config import Settings
from ..digests import FileDigests
from ..errors import ApiError, InfernoError
from ..messages import PROTOCOL_VERSION, EngineSettings, ModelVerified
from ..modelfile import Stamp
from .calibrations import Calibrations

_log = logging.getLogger("inferno.models")


class ServedModels:
    """What inferno.pool.supervisor.Models asks for."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._catalog = Catalog(settings.models)
        self._calibrations = Calibrations(Path(settings.storage.data_dir) / "calibration.json")

    def names(self) -> list[str]:
        return sorted(self._catalog.models())

    def at_start(self) -> list[str]:
        """Return the models to load at start: the configured ones and the default; with none, the only one there is."""
        models = self._catalog.models()
        wanted = [name for name, model in models.items() if model.origin == "configured"]
        default = self._settings.models.default
        if default is not None and default in models and default not in wanted:
            wanted.append(default)
        if not wanted and len(models) == 1:
            wanted = list(models)
        return wanted

    def engine_settings(self, name: str) -> EngineSettings:
        """Return what the engine of a model is told. Raises ApiError(model_not_found, conflict)."""
        try:
            model = self._catalog.find(name)
            digests = self._catalog.expected_digests(model)
        except CatalogError:
            raise ApiError("model_not_found", "No such model.", param="model") from None
        except GgufError as error:
            raise ApiError("conflict", str(error), param="model") from None
        settings, engine = self._settings, self._settings.engine
        plain = EngineSettings(
            version=PROTOCOL_VERSION,
            name=name,
            paths=model.full_paths,
            sha256=digests,
            known_files=self._catalog.known_files(model),
            allow=list(model.allow),
            source=settings.models.source,
            max_model_bytes=self._catalog.max_bytes,
            sandbox=settings.security.sandbox,
            slots=model.slots or engine.slots,
            context_size=model.context_size or engine.context_size,
            threads=engine.threads,
            gpu_layers=engine.gpu_layers if model.gpu_layers is None else model.gpu_layers,
            kv_layout=engine.kv_layout,
            flash_attention=engine.flash_attention,
            kv_cache_type=engine.kv_cache_type,
            target_itl_ms=engine.target_itl_ms,
            max_queue=engine.max_queue,
            max_queue_per_user=engine.max_queue_per_user,
            prefix_cache_mb=engine.prefix_cache_mb,
            request_timeout_seconds=engine.request_timeout_seconds,
            public_prefixes=model.public_prefixes,
            log_level=settings.telemetry.log_level,
        )
        return replace(plain, calibration=self._calibrations.find(plain))

    def remove(self, name: str, *, delete_files: bool) -> int:
        """Forget a model that was added; return how many of its files were deleted. Raises ApiError."""
        if name not in self._catalog.models():
            raise ApiError("model_not_found", "No such model.", param="name")
        try:
            entry = self._catalog.remove(name)
        except CatalogError:
            raise ApiError(
                "conflict", "The model was not added: it comes from the configuration or the models folder.", param="name"
            ) from None
        return len(self._catalog.delete_files(entry)) if delete_files else 0

    def loaded(self, settings: EngineSettings, calibration: dict[str, Any]) -> None:
        """Keep what a loaded model's engine measured."""
        self._calibrations.keep(settings, calibration)

    def verified(self, settings: EngineSettings, stamps: list[Stamp], message: ModelVerified) -> dict[str, str]:
        """Keep an engine's verdict under the state of the files, when it compared their digests with the recorded ones.

        Returns what the next start of this engine may know: see EngineSettings.known_files.
        """
        was_compared = len(message.sha256) == len(message.xxh3_128) == len(stamps) and (
            message.sha256[: len(settings.sha256)] == settings.sha256
        )
        try:
            if was_compared:
                digests = [FileDigests(*pair) for pair in zip(message.sha256, message.xxh3_128, strict=True)]
                self._catalog.remember(stamps, "valid", digests, message.policy)
            return self._catalog.known_files(self._catalog.find(settings.name))
        except (OSError, InfernoError) as error:  # the next start hashes again
            _log.warning("the verdict on model %s is not kept: %s", settings.name, error)
            return {}
