"""The verbs of the server itself: status, models, configuration, cache, drain.

Asked by commands through the control socket and by workers for the /api/v1 routes, which check who may. Run in the
supervisor.
"""

from __future__ import annotations

import logging
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..config import encode
from ..errors import ApiError, ConfigError
from ..messages import ClearPrefixes
from . import summary
from .verbs import Caller, Verbs

if TYPE_CHECKING:
    from .supervisor import Supervisor

_log = logging.getLogger("inferno.pool")


def register(verbs: Verbs, server: Supervisor) -> None:
    """Add the verbs of the server itself."""
    verbs.register("status", partial(_status, server))
    verbs.register("models.list", partial(_list_models, server))
    verbs.register("models.load", partial(_load_model, server))
    verbs.register("models.unload", partial(_unload_model, server))
    verbs.register("models.verify", partial(_verify_model, server))
    verbs.register("models.remove", partial(_remove_model, server))
    verbs.register("cache.state", partial(_cache_state, server))
    verbs.register("cache.clear", partial(_clear_cache, server))
    verbs.register("config.change", partial(_change_config, server))
    verbs.register("config.effective", partial(_effective_config, server), ("command",))
    verbs.register("reload", partial(_reload_verb, server))
    verbs.register("drain", partial(_drain_verb, server), ("command",))


async def _status(server: Supervisor, arguments: dict[str, Any], caller: Caller) -> Any:
    return {
        **summary.facts(
            server.settings, server.address, list(server.engines.values()), server.loaded.not_built
        ),
        "version": __version__,
        "pid": os.getpid(),
        "uptime_seconds": time.time() - server.began,
        "workers": [
            {
                "number": worker.number,
                "pid": worker.pid,
                "ready": worker.is_ready,
                "draining": worker.is_draining,
            }
            for worker in server.all_workers()
        ],
    }


async def _list_models(server: Supervisor, arguments: dict[str, Any], caller: Caller) -> Any:
    found = []
    for name in sorted({*server.models.names(), *server.engines}):
        engine = server.engines.get(name)
        if engine is None:
            found.append({"name": name, "state": "unloaded"})
            continue
        stage, fraction = engine.progress
        entry = summary.model_facts(engine) | {
            "pid": engine.pid,
            "generation": engine.generation,
            "restarts": engine.num_restarts,
        }
        if engine.state == "loading":
            entry["progress"] = {"stage": stage, "fraction": fraction}
        found.append(entry)
    return found


async def _load_model(server: Supervisor, arguments: dict[str, Any], caller: Caller) -> Any:
    """Load a model; answers when it is ready or refused."""
    engine = server.start_engine(_text(arguments, "name"))
    await engine.settled.wait()
    if engine.state == "refused":
        raise ApiError("conflict", f"The model is refused: {engine.detail}", param="name")
    return summary.model_facts(engine)


async def _unload_model(server: Supervisor, arguments: dict[str, Any], caller: Caller) -> Any:
    name = _text(arguments, "name")
    engine = server.engines.get(name)
    if engine is None or engine.state == "unloaded":
        raise ApiError("conflict", "The model is not loaded.", param="name")
    await engine.stop(server.settings.server.shutdown_grace_seconds)
    server.event("model.unload", target=name)
    return summary.model_facts(engine)


async def _verify_model(server: Supervisor, arguments: dict[str, Any], caller: Caller) -> Any:
    return await server.check_model(_text(arguments, "name"))


async def _remove_model(server: Supervisor, arguments: dict[str, Any], caller: Caller) -> Any:
    name = _text(arguments, "name")
    num_deleted = await server.remove_model(name, delete_files=arguments.get("delete_files") is True)
    return {"name": name, "removed": True, "files_deleted": num_deleted}


async def _cache_state(server: Supervisor, arguments: dict[str, Any], caller: Caller) -> Any:
    """The prefix store of each engine that serves, from its last answer to a ping."""
    return [
        {
            "model": name,
            "bytes": engine.stats.prefix_bytes,
            "max_bytes": engine.settings.prefix_cache_mb << 20,
            "entries": engine.stats.prefix_entries,
            "hit_tokens": engine.stats.prefix_hit_tokens,
            "miss_tokens": engine.stats.prefix_miss_tokens,
        }
        for name, engine in sorted(server.engines.items())
        if engine.state == "ready"
    ]


async def _clear_cache(server: Supervisor, arguments: dict[str, Any], caller: Caller) -> Any:
    principal = arguments.get("principal")
    if principal is not None and not (isinstance(principal, bytes) and len(principal) == 16):
        raise ApiError("invalid_value", "principal: expected 16 bytes.", param="principal")
    cleared = [
        engine.name for engine in server.engines.values() if engine.send(ClearPrefixes(principal=principal))
    ]
    return {"models": cleared}


async def _change_config(server: Supervisor, arguments: dict[str, Any], caller: Caller) -> Any:
    changes = arguments.get("changes")
    if not isinstance(changes, dict):
        raise ApiError("invalid_value", "changes: expected an object of keys.", param="changes")
    try:
        return {"changed": server.change(changes)}
    except ConfigError as error:
        raise ApiError("invalid_value", str(error)) from None


async def _effective_config(server: Supervisor, arguments: dict[str, Any], caller: Caller) -> Any:
    """The settings in force, as a command decodes them: flags, environment and reloads included."""
    return encode(server.settings)


async def _reload_verb(server: Supervisor, arguments: dict[str, Any], caller: Caller) -> Any:
    try:
        taken, left = server.reload()
    except ConfigError as error:
        raise ApiError("conflict", str(error)) from None
    return {"changed": taken, "needs_restart": left}


async def _drain_verb(server: Supervisor, arguments: dict[str, Any], caller: Caller) -> Any:
    _log.info("told to end by a command of uid %d", caller.uid)
    server.end()
    return {"grace_seconds": server.settings.server.shutdown_grace_seconds}


def _text(arguments: dict[str, Any], name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str) or not value:
        raise ApiError("invalid_value", f"{name}: expected a text.", param=name)
    return value
