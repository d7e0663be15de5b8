"""The rules between keys: what together would be unsafe, impossible or not built, and is refused.

Works on the effective Settings and on where each value came from. Knows no file and no variable itself.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

import msgspec

from ..errors import ConfigError
from ..features import FEATURES, is_built, missing_extra
from .keys import KEYS
from .schema import Settings


def is_loopback(host: str) -> bool:
    """Say whether a listener on `host` can be reached from this machine only."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.split("%", 1)[0].strip("[]"))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def value_of(settings: Settings, full_name: str) -> Any:
    """Return the value of `section.key`."""
    section, name = full_name.split(".", 1)
    return getattr(getattr(settings, section), name)


def replace_value(settings: Settings, full_name: str, value: Any) -> Settings:
    """Return settings with one key changed."""
    section, name = full_name.split(".", 1)
    changed = msgspec.structs.replace(getattr(settings, section), **{name: value})
    return msgspec.structs.replace(settings, **{section: changed})


def apply_features(settings: Settings, places: Mapping[str, str]) -> tuple[Settings, list[str]]:
    """Turn off the controls that are not built. Returns the settings and the titles of what is missing."""
    missing = []
    for name, feature in FEATURES.items():
        if is_built(name):
            continue
        asked = feature.is_asked(value_of(settings, name))
        if (
            name in places
            and asked
            and not (name == "security.sandbox" and value_of(settings, name) == "auto")
        ):
            raise ConfigError(f"{places[name]}: {name}: {feature.title} is not built in this version")
        if feature.off is not None:
            missing.append(feature.title)
            settings = replace_value(settings, name, feature.off)
    return settings, missing


def check(
    settings: Settings, places: Mapping[str, str], missing: list[str], *, is_open_allowed: bool
) -> list[str]:
    """Refuse what does not go together (ConfigError); return warnings."""
    server, security = settings.server, settings.security
    listens_on_loopback = is_loopback(server.host) and (
        server.admin_host is None or is_loopback(server.admin_host)
    )

    def refuse(name: str, message: str) -> ConfigError:
        return ConfigError(f"{places.get(name, 'configuration')}: {name}: {message}")

    if missing and not listens_on_loopback:
        raise refuse(
            "server.host",
            f"only a loopback address is allowed, since this version does not have: {', '.join(missing)}",
        )
    if not security.auth_enabled and not listens_on_loopback and not is_open_allowed:
        raise refuse(
            "security.auth_enabled",
            f"without authentication {server.host} would be open to everybody who reaches it; set it to true, listen on "
            "127.0.0.1, or start with --i-know-this-is-open",
        )
    if security.tls_required and not server.tls_enabled:
        hosts = f"server.host is {server.host}"
        if server.admin_host is not None:
            hosts += f", server.admin_host is {server.admin_host}"
        raise refuse(
            "security.tls_required",
            f"TLS is required (the default on another address than loopback; {hosts}), but "
            "server.tls_enabled is false; give "
            "tls_cert_path and tls_key_path with tls_enabled=true, or set tls_required=false if TLS ends at a proxy",
        )
    if server.tls_enabled:
        for name in ("tls_cert_path", "tls_key_path"):
            if getattr(server, name) is None:
                raise refuse("server.tls_enabled", f"needs server.{name}")
    if (server.admin_host is None) != (server.admin_port is None):
        given = "server.admin_port" if server.admin_host is None else "server.admin_host"
        raise refuse(given, "admin_host and admin_port go together")
    if server.admin_port is not None and server.admin_port == server.port:
        raise refuse("server.admin_port", "must differ from server.port")
    if server.max_connections_per_ip > server.max_connections and "server.max_connections_per_ip" in places:
        raise refuse(
            "server.max_connections_per_ip", f"must be at most max_connections ({server.max_connections})"
        )
    if (
        settings.engine.max_queue_per_user > settings.engine.max_queue
        and "engine.max_queue_per_user" in places
    ):
        raise refuse("engine.max_queue_per_user", f"must be at most max_queue ({settings.engine.max_queue})")
    with_prefixes = [name for name, entry in settings.models.entries.items() if entry.public_prefixes]
    if with_prefixes and settings.engine.prefix_cache_mb == 0:
        raise refuse(
            "engine.prefix_cache_mb",
            f"models.{with_prefixes[0]}.public_prefixes needs a prefix store, but its size is 0",
        )
    for name in FEATURES:
        extra = missing_extra(name, value_of(settings, name))
        if extra is not None:
            raise refuse(name, f"needs the extra `{extra}`: pip install 'inferno-server[{extra}]'")
    return _warnings(settings, listens_on_loopback)


def _warnings(settings: Settings, listens_on_loopback: bool) -> list[str]:
    warnings = []
    if not settings.security.auth_enabled and not listens_on_loopback:
        warnings.append(
            f"OPEN: no authentication on {settings.server.host}; everybody who reaches it may use this server"
        )
    if not listens_on_loopback and not settings.server.tls_enabled:
        warnings.append(
            "plain HTTP on another address than loopback (tls_required=false): end TLS at a proxy before it"
        )
    for name in (
        "rate_limiting_enabled",
        "input_validation_enabled",
        "output_sanitization_enabled",
        "audit_logging_enabled",
    ):
        if not getattr(settings.security, name) and is_built(f"security.{name}"):
            warnings.append(f"security.{name} is false: {FEATURES[f'security.{name}'].title} off")
    return warnings


def reloadable() -> list[str]:
    """Return the full names of the keys that a running server can change."""
    return [name for name, key in KEYS.items() if key.is_reloadable]
