"""What this build can do of what the configuration can ask for.

A control that is on by default and not built yet is taken as off, is listed in the start summary, and keeps the
server on loopback; anything else that is not built is refused when it is asked for. Building a feature is one line
here: drop its name from NOT_BUILT.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple


class Feature(NamedTuple):
    """One key whose value may ask for something that this build lacks."""

    title: str
    is_asked: Callable[[Any], bool]
    off: Any  # the value that stands in for a control that is not built; None: not a control, refused when asked


FEATURES: dict[str, Feature] = {
    "security.auth_enabled": Feature("authentication", bool, False),
    "security.api_key_enabled": Feature("API keys", bool, False),
    "security.rate_limiting_enabled": Feature("rate limits", bool, False),
    "security.input_validation_enabled": Feature("text guards on input", bool, False),
    "security.output_sanitization_enabled": Feature("redaction of output", bool, False),
    "security.audit_logging_enabled": Feature("audit log", bool, False),
    "security.sandbox": Feature("sandbox of engines", lambda value: value != "off", "off"),
    "server.tls_enabled": Feature("TLS", bool, None),
    "server.tls_client_ca_path": Feature("client certificates", bool, None),
    "server.admin_host": Feature("the listener for operators", bool, None),
    "storage.url": Feature("PostgreSQL", lambda value: str(value).startswith("postgres"), None),
    "limits.url": Feature("rate limits shared between hosts", lambda value: value != "shm:", None),
    "telemetry.otlp_endpoint": Feature("OpenTelemetry traces", bool, None),
}

NOT_BUILT: frozenset[str] = frozenset()

# What an extra of this package brings: the key that asks for it, the extra, a module that only it installs.
EXTRAS: dict[str, tuple[str, str]] = {
    "storage.url": ("postgres", "asyncpg"),
    "limits.url": ("redis", "redis"),
    "telemetry.otlp_endpoint": ("otel", "opentelemetry.exporter.otlp.proto.http"),
}


def missing_extra(key: str, value: Any) -> str | None:
    """Return the extra that must be installed before `key` can have this value; None when nothing is missing."""
    if key not in EXTRAS or not FEATURES[key].is_asked(value):
        return None
    extra, module = EXTRAS[key]
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # a package above it is missing
        found = None
    return None if found is not None else extra


def is_built(key: str) -> bool:
    """Say whether what `key` can ask for exists in this build."""
    return key not in NOT_BUILT
