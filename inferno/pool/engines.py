"""The models that a front worker knows, and the connection to each one's engine as it comes and goes.

Owns the registry's state in this worker, and how long a request waits for a model that is loading or restarting. Fed by
the supervisor's EngineUp and EngineGone. Names are looked up exactly; nothing here touches a path. Runs in workers.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from typing import Any

from ..errors import ApiError
from ..messages import EngineGone, EngineUp, ModelInfo
from .client import EngineClient

RESTART_WAIT_SECONDS = 5.0  # a request waits so long for a running restart or load, then gets 503
_WAITING = {"loading": "model_loading", "restarting": "engine_restarting"}


class Model:
    """One registered model as this worker sees it."""

    __slots__ = ("client", "detail", "generation", "info", "name", "retry_after", "state", "up")

    def __init__(self, name: str, state: str = "loading", detail: str = "") -> None:
        self.name = name
        self.state = state  # ready, loading, restarting, refused, unloaded
        self.detail = detail
        self.generation = 0
        self.info: ModelInfo | None = None
        self.client: EngineClient | None = None
        self.retry_after = 5.0
        self.up = asyncio.Event()


class Engines:
    """All models by exact name."""

    def __init__(self, default: str | None = None, *, wait_seconds: float = RESTART_WAIT_SECONDS) -> None:
        self.models: dict[str, Model] = {}
        self.default = default
        self.wait_seconds = wait_seconds

    def register(self, entries: Iterable[dict[str, Any]]) -> None:
        """Take the registry that the supervisor sent: dicts with name, state, detail."""
        for entry in entries:
            name = str(entry["name"])
            self.models.setdefault(
                name, Model(name, str(entry.get("state", "loading")), str(entry.get("detail", "")))
            )

    def engine_up(self, message: EngineUp, descriptor: int) -> None:
        model = self.models.setdefault(message.model, Model(message.model))
        if model.client is not None:
            model.client.close()
        client = EngineClient(
            socket.socket(fileno=descriptor), message.info, on_close=self._connection_closed
        )
        model.client = client
        model.generation = message.generation
        model.info = message.info
        model.state, model.detail = "ready", ""
        client.start()
        if not client.is_closed:
            model.up.set()

    def engine_gone(self, message: EngineGone) -> None:
        model = self.models.setdefault(message.model, Model(message.model))
        if message.generation < model.generation:
            return
        model.state, model.detail, model.retry_after = message.state, message.detail, message.retry_after
        model.up.clear()
        client, model.client = model.client, None
        if client is not None:
            client.close()

    def is_ready(self) -> bool:
        """Whether at least one model can answer."""
        return any(model.client is not None for model in self.models.values())

    def find(self, name: str | None) -> Model:
        """Return the model of this exact name; None or "default": the default one. Raises ApiError."""
        if name is None or name == "default":
            name = self.default
            if name is None and len(self.models) == 1:
                name = next(iter(self.models))
            if name is None:
                if self.models:
                    raise ApiError(
                        "missing_required_parameter", "Name a model: there is no default.", param="model"
                    )
                raise ApiError("no_model", "No model is configured.", retry_after=30.0)
        model = self.models.get(name)
        if model is None or model.state == "unloaded":
            raise ApiError("model_not_found", "The model does not exist or is not loaded.", param="model")
        return model

    async def connect(self, model: Model) -> EngineClient:
        """Return the model's connection; wait a short while for one that is on its way. Raises ApiError."""
        if model.client is not None:
            return model.client
        if model.state in _WAITING:
            try:
                async with asyncio.timeout(self.wait_seconds):
                    await model.up.wait()
            except TimeoutError:
                pass
            if model.client is not None:
                return model.client
        if model.state in _WAITING:
            message = (
                "The model is being loaded." if model.state == "loading" else "The engine is being replaced."
            )
            raise ApiError(_WAITING[model.state], message, retry_after=model.retry_after)
        if model.state == "unloaded":
            raise ApiError("model_not_found", "The model does not exist or is not loaded.", param="model")
        raise ApiError("no_model", "The model could not be loaded.", retry_after=60.0)

    def close(self) -> None:
        for model in self.models.values():
            if model.client is not None:
                model.client.close()

    def _connection_closed(self, client: EngineClient) -> None:
        for model in self.models.values():
            if model.client is client:
                model.client = None
                model.up.clear()
                if model.state == "ready":
                    model.state = "restarting"
