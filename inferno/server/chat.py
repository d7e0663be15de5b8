"""POST /v1/chat/completions: parse → authorise → screen → begin → answer.

Owns the chat wire format of whole answers and how validated messages become the engine's prompt. Streams are written by
inferno.server.sse. Front workers.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterator
from typing import Any

from ..errors import ApiError
from ..messages import ChatPrompt
from . import schemas
from .guarding import Take, TextCollector, replay
from .http import Header, Reply, Request, StreamReply, json_reply
from .logprobs import chat_entries
from .output import Output, Piece
from .parsing import parse
from .pipeline import Plan, Run, begin, find_model
from .services import Services
from .sse import ChatFrames, stream_reply


class Chat:
    """The chat route's handler."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, request: Request) -> Reply | StreamReply:
        services = self._services
        body = await request.json_body()
        chat, ignored = parse(
            body,
            schemas.ChatRequest,
            refused=schemas.REFUSED,
            report_unknown=services.settings.server.unknown_fields == "report",
        )
        check(chat)
        authorise(request, chat)
        model = find_model(services, request, chat.model)
        messages, texts = screened_messages(services, request, chat.messages)
        prompt = ChatPrompt(messages=messages, template_flags=template_flags(chat.chat_template_kwargs))
        guard = services.guards.output(request.context, request.principal, texts)
        plan = Plan(
            prompts=[prompt],
            sampling=chat.sampling(),
            max_tokens=max_tokens(chat),
            num_choices=chat.n,
            seed=chat.seed,
            stop=chat.stops,
            min_tokens=chat.min_tokens,
            ignore_eos=chat.ignore_eos,
            top_logprobs=(chat.top_logprobs or 0) if chat.logprobs else None,
            cache_prompt=chat.cache_prompt,
            cache_salt=cache_salt(chat.prompt_cache_key),
            priority=chat.priority,
        )
        run = await begin(services, request, model, plan)
        headers = ignored_header(ignored)
        output = Output(run, guard)
        if chat.stream:
            frames = ChatFrames(
                head("chatcmpl-", "chat.completion.chunk", run),
                chat.n,
                chat.includes_usage,
                chat.has_obfuscation,
            )
            return await stream_reply(output, frames, chat.n, chat.includes_usage, headers)
        try:
            pieces = await output.collect(chat.n)
        finally:
            output.close()
        answer = head("chatcmpl-", "chat.completion", run)
        answer["choices"] = [_choice(piece) for piece in pieces]
        answer["usage"] = run.usage()
        return json_reply(answer, headers=headers)


def head(prefix: str, kind: str, run: Run) -> dict[str, Any]:
    """Return the fields that a whole answer and every chunk of a stream share."""
    info = run.model.info
    return {
        "id": prefix + secrets.token_hex(12),
        "object": kind,
        "created": int(time.time()),
        "model": run.model.name,
        "system_fingerprint": info.fingerprint if info is not None else None,
        "service_tier": "default",
    }


def ignored_header(ignored: list[str]) -> list[Header]:
    return [(b"x-inferno-ignored-fields", ", ".join(ignored).encode("ascii", "replace"))] if ignored else []


def authorise(request: Request, generation: schemas.Generation) -> None:
    """Refuse fields that need a permission of their own."""
    permissions = request.principal.permissions
    if generation.stream and "use_streaming" not in permissions:
        raise ApiError("insufficient_permissions", "This needs the permission use_streaming.", param="stream")
    if generation.grammar is not None and "use_grammar" not in permissions:
        raise ApiError("insufficient_permissions", "This needs the permission use_grammar.", param="grammar")


def check_generation(generation: schemas.Generation) -> None:
    """Rules between fields that both generation routes share."""
    if generation.stream_options is not None and not generation.stream:
        raise ApiError("invalid_value", "stream_options needs stream: true.", param="stream_options")
    for token in generation.logit_bias:
        if int(token) >= 1 << 31:
            raise ApiError("invalid_value", "Token ids are below 2^31.", param="logit_bias")


def check(chat: schemas.ChatRequest) -> None:
    """Refuse what is declared but not offered, and combinations that mean nothing. Raises ApiError 400."""
    check_generation(chat)
    if chat.top_logprobs is not None and not chat.logprobs:
        raise ApiError("invalid_value", "top_logprobs needs logprobs: true.", param="top_logprobs")
    if None is not chat.max_tokens != chat.max_completion_tokens is not None:
        raise ApiError("invalid_value", "max_tokens and max_completion_tokens differ.", param="max_tokens")
    if chat.response_format is not None and chat.response_format.type != "text":
        raise ApiError(
            "unsupported_parameter", "Only response_format text is supported yet.", param="response_format"
        )
    if chat.tool_choice not in (None, "none", "auto"):
        raise ApiError("unsupported_parameter", "Tools are not supported yet.", param="tool_choice")
    if chat.function_call not in (None, "none", "auto"):
        raise ApiError("unsupported_parameter", "Functions are not supported yet.", param="function_call")
    if chat.modalities is not None and chat.modalities != ["text"]:
        raise ApiError("unsupported_parameter", "Only text is generated.", param="modalities")
    if chat.store:
        raise ApiError("unsupported_parameter", "Answers are not stored.", param="store")
    check_messages(chat.messages)


def check_messages(messages: list[schemas.ChatMessage]) -> None:
    """Refuse media parts and messages that say nothing. Raises ApiError 400."""
    for index, message in enumerate(messages):
        _check_message(message, f"messages[{index}]")


def _check_message(message: schemas.ChatMessage, path: str) -> None:
    content = message.content
    if isinstance(content, list):
        for index, part in enumerate(content):
            if isinstance(part, schemas.MEDIA_PARTS):
                raise ApiError(
                    "unsupported_parameter",
                    "Image, audio and file parts are not supported.",
                    param=f"{path}.content[{index}]",
                )
            if isinstance(part, schemas.RefusalPart) and not isinstance(message, schemas.AssistantMessage):
                raise ApiError(
                    "invalid_value", "Only the assistant refuses.", param=f"{path}.content[{index}]"
                )
    if isinstance(message, schemas.AssistantMessage):
        if message.audio is not None:
            raise ApiError("unsupported_parameter", "Audio is not supported.", param=f"{path}.audio")
        if (
            content is None
            and not message.tool_calls
            and message.function_call is None
            and message.refusal is None
        ):
            raise ApiError(
                "invalid_value", "An assistant message needs content or tool_calls.", param=f"{path}.content"
            )


def max_tokens(chat: schemas.ChatRequest) -> int | None:
    return chat.max_tokens if chat.max_completion_tokens is None else chat.max_completion_tokens


def cache_salt(key: str | None) -> bytes:
    return b"" if key is None else hashlib.blake2b(key.encode(), digest_size=16).digest()


def template_flags(flags: schemas.TemplateFlags | None) -> dict[str, bool]:
    if flags is None:
        return {}
    pairs = (("enable_thinking", flags.enable_thinking), ("thinking", flags.thinking))
    return {name: value for name, value in pairs if value is not None}


def screened_messages(
    services: Services, request: Request, messages: list[schemas.ChatMessage]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return messages for the engine with every text screened, and these texts. Raises ApiError 400."""
    guards = services.guards
    guards.identifiers(request.context, _identifiers(messages))
    collector = TextCollector()
    result = engine_messages(messages, collector)
    texts = guards.content(request.context, request.principal, collector.texts)
    if texts is None:
        return result, [text for _, text in collector.texts]
    return engine_messages(messages, replay(texts)), list(texts)


def _identifiers(messages: list[schemas.ChatMessage]) -> Iterator[tuple[str, str]]:
    """Return (param, value) of what is a name in messages."""
    for index, message in enumerate(messages):
        if message.name is not None:
            yield f"messages[{index}].name", message.name
        if isinstance(message, schemas.ToolMessage):
            yield f"messages[{index}].tool_call_id", message.tool_call_id
        elif isinstance(message, schemas.AssistantMessage):
            for number, call in enumerate(message.tool_calls or ()):
                yield f"messages[{index}].tool_calls[{number}].id", call.id
                yield f"messages[{index}].tool_calls[{number}].function.name", call.function.name
            if message.function_call is not None:
                yield f"messages[{index}].function_call.name", message.function_call.name


def _keep(param: str, text: str) -> str:
    return text


def engine_messages(messages: list[schemas.ChatMessage], take: Take = _keep) -> list[dict[str, Any]]:
    """Return messages as templates expect them: text parts joined by a newline, absent fields left out.

    Every text that the client wrote goes through `take`, in a fixed order, with its path.
    """
    return [_engine_message(message, f"messages[{index}]", take) for index, message in enumerate(messages)]


def _engine_message(message: schemas.ChatMessage, path: str, take: Take) -> dict[str, Any]:
    content = _text(message.content, f"{path}.content", take)
    result: dict[str, Any] = {"role": message.__struct_config__.tag, "content": content}
    if message.name is not None:
        result["name"] = message.name
    if isinstance(message, schemas.ToolMessage):
        result["tool_call_id"] = message.tool_call_id
    elif isinstance(message, schemas.AssistantMessage):
        if message.content is None and message.refusal is not None:
            result["content"] = take(f"{path}.refusal", message.refusal)
        if message.reasoning_content is not None:
            result["reasoning_content"] = take(f"{path}.reasoning_content", message.reasoning_content)
        calls = [
            _engine_call(call.id, call.function, f"{path}.tool_calls[{number}].function", take)
            for number, call in enumerate(message.tool_calls or ())
        ]
        if message.function_call is not None:
            calls.append(_engine_call("call_0", message.function_call, f"{path}.function_call", take))
        if calls:
            result["tool_calls"] = calls
    return result


def _engine_call(identifier: str, function: schemas.FunctionCall, path: str, take: Take) -> dict[str, Any]:
    arguments = take(f"{path}.arguments", function.arguments)
    return {
        "id": identifier,
        "type": "function",
        "function": {"name": function.name, "arguments": arguments},
    }


def _text(content: str | list[Any] | None, path: str, take: Take) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return take(path, content)
    parts = (part.refusal if isinstance(part, schemas.RefusalPart) else part.text for part in content)
    return "\n".join(take(f"{path}[{index}]", text) for index, text in enumerate(parts))


def _choice(piece: Piece) -> dict[str, Any]:
    logprobs = None
    if piece.logprobs is not None:
        logprobs = {"content": chat_entries(piece.logprobs), "refusal": None}
    return {
        "index": piece.choice,
        "message": {"role": "assistant", "content": piece.text, "refusal": None},
        "logprobs": logprobs,
        "finish_reason": piece.finish,
    }
