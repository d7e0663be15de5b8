"""GET /v1/models, /v1/models/{id}; POST /v1/tokenize, /v1/detokenize: what this caller may use, exact ids and counts.

A model's id is matched exactly against the registry; a model that the key may not use looks missing. Front workers.
"""

from __future__ import annotations

from typing import Any

from ..errors import ApiError, EngineError
from ..messages import ChatPrompt, TextPrompt
from ..pool.client import EngineCall
from ..pool.engines import Model
from ..security.principal import Principal
from . import chat, schemas
from .http import ClientGone, Reply, Request, encode_json, json_reply, to_api_error
from .parsing import parse
from .pipeline import find_model
from .services import Services

_LISTED = frozenset(("ready", "loading", "restarting"))


class Models:
    """Handlers of the four routes."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def list_models(self, request: Request) -> Reply:
        data = [
            _entry(model)
            for model in self._services.engines.models.values()
            if _is_visible(model, request.principal)
        ]
        return json_reply({"object": "list", "data": data})

    async def get_model(self, request: Request) -> Reply:
        model = self._services.engines.models.get(request.params["id"])
        if model is None or not _is_visible(model, request.principal):
            raise ApiError("model_not_found", "The model does not exist.", param="model")
        return json_reply(_entry(model))

    async def tokenize(self, request: Request) -> Reply:
        wanted, ignored = parse(
            await request.json_body(), schemas.TokenizeRequest, report_unknown=self._reports_unknown()
        )
        if (wanted.prompt is None) == (wanted.messages is None):
            raise ApiError("invalid_value", "Send one of prompt and messages.", param="prompt")
        if wanted.parse_special and "use_special_tokens" not in request.principal.permissions:
            raise ApiError(
                "insufficient_permissions",
                "This needs the permission use_special_tokens.",
                param="parse_special",
            )
        prompt: ChatPrompt | TextPrompt
        if wanted.messages is not None:
            chat.check_messages(wanted.messages)
            prompt = ChatPrompt(
                messages=chat.screened_messages(self._services, request, wanted.messages)[0],
                template_flags=chat.template_flags(wanted.chat_template_kwargs),
                add_generation_prompt=wanted.add_generation_prompt,
            )
        else:
            text = wanted.prompt or ""
            screened = self._services.guards.content(request.context, request.principal, [("prompt", text)])
            prompt = TextPrompt(
                text=text if screened is None else screened[0],
                parse_special=wanted.parse_special,
                add_special=wanted.add_special,
            )
        call = await self._open(request, wanted.model)
        try:
            prepared = await call.prepare(self._services.tag(request.principal), prompt, want_tokens=True)
        except EngineError as error:
            raise self._translated(request, error) from None
        finally:
            call.close()
        tokens = prepared.tokens or []
        return Reply(
            200,
            encode_json({"tokens": tokens, "count": len(tokens)}),
            [(b"content-type", b"application/json"), *chat.ignored_header(ignored)],
        )

    async def detokenize(self, request: Request) -> Reply:
        wanted, ignored = parse(
            await request.json_body(), schemas.DetokenizeRequest, report_unknown=self._reports_unknown()
        )
        call = await self._open(request, wanted.model)
        try:
            vocab_size = call.info.vocab_size
            if any(token >= vocab_size for token in wanted.tokens):
                raise ApiError("invalid_value", f"Token ids are below {vocab_size}.", param="tokens")
            data = await call.detokenize(wanted.tokens)
        except EngineError as error:
            raise self._translated(request, error) from None
        finally:
            call.close()
        return json_reply({"text": data.decode("utf-8", "replace")}, headers=chat.ignored_header(ignored))

    async def _open(self, request: Request, name: str | None) -> EngineCall:
        model = find_model(self._services, request, name)
        call = (await self._services.engines.connect(model)).open()
        request.watch_disconnect(call.close)
        return call

    def _reports_unknown(self) -> bool:
        return self._services.settings.server.unknown_fields == "report"

    @staticmethod
    def _translated(request: Request, error: EngineError) -> Exception:
        return ClientGone() if request.is_gone else to_api_error(error)


def _is_visible(model: Model, principal: Principal) -> bool:
    if model.state not in _LISTED:
        return False
    return principal.models is None or model.name in principal.models


def _entry(model: Model) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": model.name,
        "object": "model",
        "created": model.info.created if model.info is not None else 0,
        "owned_by": "inferno",
    }
    if model.info is not None:
        # What a client needs to cut its prompts; the names are those of other servers of this kind.
        entry["max_model_len"] = model.info.context_size
    return entry
