"""POST /v1/completions: raw prompts (text, texts, ids, lists of ids), streamed or not. Front workers."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from ..errors import ApiError
from ..messages import TextPrompt, TokenPrompt
from . import schemas
from .chat import authorise, check_generation, head, ignored_header
from .http import Reply, Request, StreamReply, json_reply
from .logprobs import LegacyLists
from .output import Output, Piece
from .parsing import parse
from .pipeline import Plan, begin, find_model
from .services import Services
from .sse import CompletionFrames, stream_reply

MAX_CHOICES_TOTAL = 128


class Completions:
    """The completion route's handler."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(self, request: Request) -> Reply | StreamReply:
        services = self._services
        body = await request.json_body()
        wanted, ignored = parse(
            body,
            schemas.CompletionRequest,
            refused=schemas.REFUSED_COMPLETION,
            report_unknown=services.settings.server.unknown_fields == "report",
        )
        check(wanted)
        authorise(request, wanted)
        can_use_special = "use_special_tokens" in request.principal.permissions
        if wanted.parse_special and not can_use_special:
            raise ApiError(
                "insufficient_permissions",
                "This needs the permission use_special_tokens.",
                param="parse_special",
            )
        model = find_model(services, request, wanted.model)
        prompts = engine_prompts(wanted, can_use_special=can_use_special)
        prompts, texts = screened_prompts(services, request, prompts)
        guard = services.guards.output(request.context, request.principal, texts)
        num_choices = len(prompts) * wanted.n
        if num_choices > MAX_CHOICES_TOTAL:
            raise ApiError("invalid_value", f"At most {MAX_CHOICES_TOTAL} answers at once.", param="n")
        plan = Plan(
            prompts=prompts,
            sampling=wanted.sampling(),
            max_tokens=wanted.max_tokens,
            num_choices=wanted.n,
            seed=wanted.seed,
            stop=wanted.stops,
            min_tokens=wanted.min_tokens,
            ignore_eos=wanted.ignore_eos,
            top_logprobs=wanted.logprobs,
            cache_prompt=wanted.cache_prompt,
            priority=wanted.priority,
        )
        run = await begin(services, request, model, plan)
        headers = ignored_header(ignored)
        output = Output(run, guard)
        fields = head("cmpl-", "text_completion", run)
        del fields["service_tier"]  # not part of this route's format
        if wanted.stream:
            frames = CompletionFrames(fields, num_choices, wanted.includes_usage, wanted.has_obfuscation)
            return await stream_reply(output, frames, num_choices, wanted.includes_usage, headers)
        try:
            pieces = await output.collect(num_choices)
        finally:
            output.close()
        fields["choices"] = [_choice(piece) for piece in pieces]
        fields["usage"] = run.usage()
        return json_reply(fields, headers=headers)


def check(wanted: schemas.CompletionRequest) -> None:
    """Refuse what is declared but not offered. Raises ApiError 400."""
    check_generation(wanted)
    if wanted.echo:
        raise ApiError("unsupported_parameter", "echo is not supported.", param="echo")
    if wanted.best_of is not None and wanted.best_of != wanted.n:
        raise ApiError(
            "unsupported_parameter", "best_of is supported only where it equals n.", param="best_of"
        )


def engine_prompts(
    wanted: schemas.CompletionRequest, *, can_use_special: bool
) -> list[TextPrompt | TokenPrompt]:
    """Settle the prompt's shape. Raises ApiError 400 for an empty, mixed or too long list."""
    prompt = wanted.prompt
    if isinstance(prompt, str):
        texts: list[str] = [prompt]
    elif not prompt:
        raise ApiError("invalid_value", "The list of prompts is empty.", param="prompt")
    elif all(isinstance(item, int) for item in prompt):
        return [_token_prompt(prompt, can_use_special, "prompt")]
    elif len(prompt) > schemas.MAX_PROMPTS:
        raise ApiError("invalid_value", f"At most {schemas.MAX_PROMPTS} prompts at once.", param="prompt")
    elif all(isinstance(item, list) for item in prompt):
        return [
            _token_prompt(item, can_use_special, f"prompt[{index}]")
            for index, item in enumerate(prompt)
            if isinstance(item, list)
        ]
    elif all(isinstance(item, str) for item in prompt):
        texts = [item for item in prompt if isinstance(item, str)]
    else:
        raise ApiError(
            "invalid_value", "A list of prompts holds one kind only: texts or token ids.", param="prompt"
        )
    return [
        TextPrompt(text=text, parse_special=wanted.parse_special, add_special=wanted.add_special)
        for text in texts
    ]


def screened_prompts(
    services: Services, request: Request, prompts: list[TextPrompt | TokenPrompt]
) -> tuple[list[TextPrompt | TokenPrompt], list[str]]:
    """Return prompts with every text screened, and these texts; token ids have none. Raises ApiError 400."""
    given = [
        ("prompt" if len(prompts) == 1 else f"prompt[{index}]", prompt.text)
        for index, prompt in enumerate(prompts)
        if isinstance(prompt, TextPrompt)
    ]
    texts = services.guards.content(request.context, request.principal, given)
    if texts is None:
        return prompts, [text for _, text in given]
    # Prompts are of one kind: where there is a text, all are texts.
    screened: list[TextPrompt | TokenPrompt] = [
        replace(prompt, text=text) for prompt, text in zip(prompts, texts, strict=True)
    ]
    return screened, list(texts)


def _token_prompt(tokens: list[Any], can_use_special: bool, param: str) -> TokenPrompt:
    if not tokens:
        raise ApiError("invalid_value", "A prompt of no tokens.", param=param)
    if any(token < 0 or token >= 1 << 31 for token in tokens):
        raise ApiError("invalid_value", "Token ids are 0 to 2^31 - 1.", param=param)
    return TokenPrompt(tokens=tokens, allow_special=can_use_special)


def _choice(piece: Piece) -> dict[str, Any]:
    return {
        "index": piece.choice,
        "text": piece.text,
        "logprobs": None if piece.logprobs is None else LegacyLists().lists(piece.logprobs),
        "finish_reason": piece.finish,
    }
