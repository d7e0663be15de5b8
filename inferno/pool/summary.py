"""The start summary: what serves where, with what, and what this build lacks."""

from __future__ import annotations

from typing import Any

from ..config import Settings
from .engine_process import EngineProcess

_MEMORY = ("weights", "kv", "compute", "prefix", "queue")  # of ModelInfo.memory_bytes: what the engine takes


def facts(
    settings: Settings, address: str, engines: list[EngineProcess], not_built: list[str]
) -> dict[str, Any]:
    """Return the summary as fields."""
    return {
        "address": f"{'https' if settings.server.tls_enabled else 'http'}://{address}",
        "workers": settings.server.workers,
        "data_dir": settings.storage.data_dir,
        "authentication": settings.security.auth_enabled,
        "models": [model_facts(engine) for engine in engines],
        "not_built": not_built,
    }


def model_facts(engine: EngineProcess) -> dict[str, Any]:
    """Return one model's state as fields."""
    found: dict[str, Any] = {"name": engine.name, "state": engine.state}
    if engine.detail:
        found["detail"] = engine.detail
    info = engine.info
    if info is not None and engine.state == "ready":
        found |= {
            "slots": info.slots,
            "context": info.context_size,
            "backend": info.backend,
            "threads": info.threads,
            "gpu_layers": info.gpu_layers,
            "memory_bytes": sum(info.memory_bytes.get(name, 0) for name in _MEMORY) or info.size_bytes,
            "sandbox": info.sandbox,
            "fingerprint": info.fingerprint,
            "sha256": info.sha256,
            "settings": info.settings,
        }
    return found


def text(found: dict[str, Any]) -> str:
    """Return the summary for people."""
    lines = [f"Inferno serves {found['address']}/v1 with {_count(found['workers'], 'worker')}"]
    if not found["authentication"]:
        lines.append("  authentication: OFF, everybody who reaches the address may use it")
    for model in found["models"]:
        if model["state"] == "ready":
            place = (
                f"{model['gpu_layers']} GPU layers"
                if model["gpu_layers"]
                else _count(model["threads"], "thread")
            )
            lines.append(
                f"  {model['name']}: {_count(model['slots'], 'slot')} of {model['context']} tokens, {place} "
                f"({model['backend'] or 'CPU'}), {model['memory_bytes'] / (1 << 20):.0f} MiB"
            )
            if model["sandbox"]:
                in_force = ", ".join(f"{name} {value}" for name, value in model["sandbox"].items())
                lines.append(f"    sandbox: {in_force}")
        else:
            lines.append(
                f"  {model['name']}: {model['state']}{': ' + model['detail'] if model.get('detail') else ''}"
            )
    if not found["models"]:
        lines.append("  no model: put a GGUF file into the models folder, or start with --model NAME=PATH")
    if found["not_built"]:
        lines.append(f"  not built yet (loopback only): {', '.join(found['not_built'])}")
    return "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
