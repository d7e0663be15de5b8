"""Settings: one frozen object, validated once; the only reader of the configuration file and of INFERNO_ variables.

`load` brings flags, environment, file and defaults together, refuses what is unknown, impossible or unsafe with the
file and line or the variable (ConfigError, exit 78), and derives what depends on other keys, so that consumers find
effective values only. `encode` and `decode` carry Settings to the front workers. Secrets are inferno.secrets' matter.

Used by the commands and by the supervisor; workers get the encoded result, engines get neither.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ..errors import ConfigError
from . import rules, sources
from .keys import KEYS, Key
from .rules import is_loopback, value_of
from .schema import (
    SECTIONS,
    Engine,
    Limits,
    ModelEntry,
    Models,
    Security,
    Server,
    Settings,
    Storage,
    Telemetry,
)

__all__ = [
    "KEYS",
    "ConfigError",
    "Engine",
    "Key",
    "Limits",
    "Loaded",
    "ModelEntry",
    "Models",
    "Security",
    "Server",
    "Settings",
    "Storage",
    "Telemetry",
    "changed_keys",
    "decode",
    "encode",
    "is_loopback",
    "load",
    "merge_reload",
    "value_of",
    "with_changes",
]


class Loaded(Struct, frozen=True):
    """The effective settings and what the start wants to say about them."""

    settings: Settings
    file: Path | None
    places: dict[str, str]  # full key name → "FILE, line N", variable or flag; absent: the default
    warnings: list[str]
    not_built: list[str]


def load(
    flags: Mapping[str, Any] | None = None,
    *,
    config: str | None = None,
    models: list[str] | None = None,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
    is_open_allowed: bool = False,
) -> Loaded:
    """Return the effective configuration. Raises ConfigError.

    `flags` maps full key names ("server.port") to values, None for a flag that was not given; `models` are the
    texts of --model. Relative paths of the file are taken from its folder, others from `folder` (the current one).
    """
    environ = os.environ if environ is None else environ
    folder = Path.cwd() if folder is None else folder
    found = sources.Found()
    file = sources.find_file(config, environ, folder)
    if file is not None:
        file = Path(os.path.abspath(file))
        sources.read_file(file, found)
    sources.read_environment(environ, folder, found)
    sources.read_flags(flags or {}, folder, found)
    sources.read_model_flags(models or [], folder, found)

    places = {name: value.where for name, value in found.values.items()}
    settings = _derive(_build(found), file, environ)
    settings, missing = rules.apply_features(settings, places)
    warnings = found.warnings + rules.check(settings, places, missing, is_open_allowed=is_open_allowed)
    return Loaded(settings=settings, file=file, places=places, warnings=warnings, not_built=missing)


def encode(settings: Settings) -> bytes:
    """Return settings as bytes for WorkerSettings and Reload."""
    return msgspec.msgpack.encode(settings)


def decode(data: bytes) -> Settings:
    """Return the settings that `encode` wrote."""
    return msgspec.msgpack.decode(data, type=Settings)


def changed_keys(old: Settings, new: Settings) -> list[str]:
    """Return the full names of keys whose values differ ("models.entries" for the tables of models)."""
    changed = [name for name in KEYS if value_of(old, name) != value_of(new, name)]
    if old.models.entries != new.models.entries:
        changed.append("models.entries")
    return changed


def merge_reload(current: Settings, new: Settings) -> tuple[Settings, list[str], list[str]]:
    """Take over what may change in a running server: (settings, keys taken over, keys that need a restart)."""
    taken, left = [], []
    for name in changed_keys(current, new):
        if name in KEYS and KEYS[name].is_reloadable:
            current = rules.replace_value(current, name, value_of(new, name))
            taken.append(name)
        else:
            left.append(name)
    return current, taken, left


def with_changes(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Return settings with reloadable keys changed, checked as the file's are. Raises ConfigError."""
    for name, value in changes.items():
        key = KEYS.get(name)
        if key is None:
            raise ConfigError(f"{name} is not a known key{sources.nearest(name, KEYS)}")
        if not key.is_reloadable:
            raise ConfigError(f"{name} cannot be changed while the server runs")
        try:
            settings = rules.replace_value(settings, name, key.check(value))
        except ValueError:
            raise ConfigError(f"{name} must be {key.expected}") from None
    return settings


def _build(found: sources.Found) -> Settings:
    sections: dict[str, Any] = {}
    for section, kind in SECTIONS.items():
        given = {
            name.split(".", 1)[1]: item.value
            for name, item in found.values.items()
            if name.startswith(f"{section}.")
        }
        if section == "models":
            given["entries"] = {
                name: ModelEntry(**{attribute: item.value for attribute, item in entry.items()})
                for name, entry in found.models.items()
            }
        sections[section] = kind(**given)
    return Settings(**sections)


def _derive(settings: Settings, file: Path | None, environ: Mapping[str, str]) -> Settings:
    """Fill in what depends on other keys, and put the data directory in place of <data>."""
    data = settings.storage.data_dir
    if not data:
        data = str(file.parent) if file is not None else _home_data_dir(environ)

    def put(text: str | None) -> str | None:
        return None if text is None else text.replace("<data>", data)

    models = replace(
        settings.models,
        dir=put(settings.models.dir) or f"{data}/models",
        entries={
            name: replace(entry, path=put(entry.path)) for name, entry in settings.models.entries.items()
        },
    )
    server = replace(
        settings.server,
        tls_cert_path=put(settings.server.tls_cert_path),
        tls_key_path=put(settings.server.tls_key_path),
        tls_client_ca_path=put(settings.server.tls_client_ca_path),
    )
    tls_required = settings.security.tls_required
    if tls_required is None:
        tls_required = not all(is_loopback(host) for host in (server.host, server.admin_host) if host is not None)
    security = replace(
        settings.security,
        audit_path=put(settings.security.audit_path) or f"{data}/audit/audit.jsonl",
        tls_required=tls_required,
    )
    storage = replace(
        settings.storage, data_dir=data, url=put(settings.storage.url) or f"sqlite:///{data}/inferno.db"
    )
    return replace(settings, models=models, server=server, security=security, storage=storage)


def _home_data_dir(environ: Mapping[str, str]) -> str:
    """Without any configuration file: the user's own data folder."""
    base = environ.get("XDG_DATA_HOME") or os.path.join(
        environ.get("HOME") or os.path.expanduser("~"), ".local", "share"
    )
    return os.path.join(os.path.abspath(base), "inferno")
