"""Request bodies as msgspec structs: a type and a range for every field, and what each field's policy is.

A field is implemented, accepted as a documented no-op, or refused by name; nothing is dropped in silence. Fields that
are refused stand in REFUSED with the reason; all others that are not declared are unknown. `null` counts as absent for
every optional field: inferno.server.parsing drops it before these structs see it. Knows no HTTP. Front workers.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from ..messages import MAX_CHOICES, Sampling, TokenId

MAX_MESSAGES = 10_000
MAX_PARTS = 1024
MAX_TOOL_CALLS = 128
MAX_PROMPTS = 64
MAX_BIAS = 1024
MAX_SEED = (1 << 63) - 1
MAX_TOKENS = (1 << 31) - 1

# What JSON Schema lets the published description say besides; these texts validate nothing.
MODEL_ID = Meta(extra_json_schema={"pattern": r"^[A-Za-z0-9][A-Za-z0-9._:@+-]{0,127}$", "examples": ["default"]})
NO_TOOLS = Meta(extra_json_schema={"enum": ["none", "auto", None]})
ONE_MESSAGE = Meta(extra_json_schema={"examples": [[{"role": "user", "content": "Hello"}]]})

Short = Annotated[str, Meta(max_length=512)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
NumTokens = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
Stop = Annotated[str, Meta(min_length=1, max_length=1024)]
Unit = Annotated[float, Meta(ge=0.0, le=1.0)]

# Names that would hand control to the client; refused also where unknown fields are only reported.
FORBIDDEN = frozenset(
    [
        "api_base",
        "api_key",
        "base_url",
        "chat_template",
        "tokenize",
        "prompt_embeds",
        "lora",
        "lora_path",
        "lora_request",
        "adapter",
        "model_path",
        "mmproj",
        "slot_id",
        "id_slot",
        "n_discard",
        "n_keep",
    ]
)
_NOT_BUILT = "This server does not support it yet."
_NOT_OFFERED = "This server does not offer it."
REFUSED: dict[str, str] = {
    "tools": _NOT_BUILT,
    "functions": _NOT_BUILT,
    "audio": _NOT_OFFERED,
    "web_search_options": _NOT_OFFERED,
    "prediction": _NOT_OFFERED,
    "moderation": _NOT_OFFERED,
    "prompt_cache_options": _NOT_OFFERED,
}
REFUSED_COMPLETION: dict[str, str] = {"suffix": _NOT_OFFERED}


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class TemplateFlags(Struct, frozen=True, forbid_unknown_fields=True):
    enable_thinking: bool | None = None
    thinking: bool | None = None


class ResponseFormat(Struct, frozen=True):
    """Only `text` is built; the others are known and refused by name."""

    type: Annotated[
        Literal["text", "json_object", "json_schema"], Meta(extra_json_schema={"const": "text"})
    ]


class Generation(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Fields that chat and text completions share."""

    model: Annotated[str, MODEL_ID] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] = 1
    max_tokens: NumTokens | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=4)] | None = None
    seed: Annotated[int, Meta(ge=0, le=MAX_SEED)] | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] = 1.0
    top_p: Unit = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: Annotated[
        dict[Annotated[str, Meta(pattern=r"^[0-9]{1,10}$")], Annotated[float, Meta(ge=-100.0, le=100.0)]],
        Meta(max_length=MAX_BIAS),
    ] = {}
    user: Short | None = None
    # llama-server's names
    top_k: Annotated[int, Meta(ge=0, le=1 << 20)] = 0
    min_p: Unit = 0.0
    typical_p: Unit = 1.0
    repeat_penalty: Annotated[float, Meta(ge=0.01, le=10.0)] = 1.0
    repeat_last_n: Annotated[int, Meta(ge=0, le=1 << 20)] = 64
    dry_multiplier: Annotated[float, Meta(ge=0.0, le=100.0)] = 0.0
    dry_base: Annotated[float, Meta(ge=1.0, le=100.0)] = 1.75
    dry_allowed_length: Annotated[int, Meta(ge=0, le=1 << 16)] = 2
    dry_penalty_last_n: Annotated[int, Meta(ge=0, le=1 << 20)] = 4096
    dry_sequence_breakers: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=64)]], Meta(max_length=16)
    ] = field(default_factory=lambda: ["\n", ":", '"', "*"])
    xtc_probability: Unit = 0.0
    xtc_threshold: Unit = 0.1
    mirostat: Annotated[int, Meta(ge=0, le=2)] = 0
    mirostat_tau: Annotated[float, Meta(ge=0.0, le=100.0)] = 5.0
    mirostat_eta: Unit = 0.1
    grammar: Annotated[str, Meta(min_length=1, max_length=65536)] | None = None
    ignore_eos: bool = False
    min_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] = 0
    cache_prompt: bool = True
    priority: Annotated[int, Meta(ge=-100, le=100)] = 0

    @property
    def stops(self) -> list[str]:
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage is True

    @property
    def has_obfuscation(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_obfuscation is True

    def sampling(self) -> Sampling:
        """Return the sampling part as the engine takes it."""
        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            typical_p=self.typical_p,
            repeat_penalty=self.repeat_penalty,
            repeat_last_n=self.repeat_last_n,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            dry_multiplier=self.dry_multiplier,
            dry_base=self.dry_base,
            dry_allowed_length=self.dry_allowed_length,
            dry_penalty_last_n=self.dry_penalty_last_n,
            dry_sequence_breakers=self.dry_sequence_breakers,
            xtc_probability=self.xtc_probability,
            xtc_threshold=self.xtc_threshold,
            mirostat=self.mirostat,
            mirostat_tau=self.mirostat_tau,
            mirostat_eta=self.mirostat_eta,
            logit_bias={int(token): bias for token, bias in self.logit_bias.items()},
            grammar=self.grammar,
        )


# ---------------------------------------------------------------- chat messages


class CacheControl(Struct, frozen=True):
    """A no-op: prefixes are cached anyway."""

    type: Short | None = None


class TextPart(Struct, frozen=True, forbid_unknown_fields=True, tag="text", tag_field="type"):
    text: str
    cache_control: CacheControl | None = None


class RefusalPart(Struct, frozen=True, forbid_unknown_fields=True, tag="refusal", tag_field="type"):
    refusal: str


class ImagePart(Struct, frozen=True, tag="image_url", tag_field="type"):
    """Known, and refused: the server fetches and decodes no media."""


class AudioPart(Struct, frozen=True, tag="input_audio", tag_field="type"):
    """Known, and refused."""


class FilePart(Struct, frozen=True, tag="file", tag_field="type"):
    """Known, and refused."""


MEDIA_PARTS = (ImagePart, AudioPart, FilePart)
Parts = Annotated[
    list[TextPart | RefusalPart | ImagePart | AudioPart | FilePart], Meta(min_length=1, max_length=MAX_PARTS)
]


class FunctionCall(Struct, frozen=True, forbid_unknown_fields=True):
    name: Name
    arguments: str
    parsed_arguments: Any = None  # the official client's helper adds it to what it sends back; no-op


class ToolCall(Struct, frozen=True, forbid_unknown_fields=True):
    id: Name
    function: FunctionCall
    type: Literal["function"] = "function"
    index: Annotated[int, Meta(ge=0, le=MAX_TOOL_CALLS)] | None = None


class _Message(Struct, frozen=True, forbid_unknown_fields=True, tag_field="role", kw_only=True):
    name: Name | None = None
    cache_control: CacheControl | None = None


class DeveloperMessage(_Message, frozen=True, tag="developer"):
    content: str | Parts


class SystemMessage(_Message, frozen=True, tag="system"):
    content: str | Parts


class UserMessage(_Message, frozen=True, tag="user"):
    content: str | Parts


class AssistantMessage(_Message, frozen=True, tag="assistant"):
    """Every field that our answers carry is taken back."""

    content: str | Parts | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=MAX_TOOL_CALLS)] | None = None
    function_call: FunctionCall | None = None
    audio: Annotated[dict[str, Any] | None, Meta(extra_json_schema={"enum": [None]})] = None
    annotations: Annotated[list[dict[str, Any]], Meta(max_length=1024)] | None = None
    parsed: Any = None  # the official client's helper adds it to what it sends back; no-op


class ToolMessage(_Message, frozen=True, tag="tool"):
    content: str | Parts
    tool_call_id: Name


ChatMessage = DeveloperMessage | SystemMessage | UserMessage | AssistantMessage | ToolMessage
Messages = Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]


class ChatRequest(Generation, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/chat/completions."""

    messages: Annotated[Messages, ONE_MESSAGE]
    max_completion_tokens: NumTokens | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    chat_template_kwargs: TemplateFlags | None = None
    prompt_cache_key: Annotated[str, Meta(min_length=1, max_length=512)] | None = None
    safety_identifier: Short | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None
    # looked at, and refused unless they ask for what is there anyway
    response_format: ResponseFormat | None = None
    tool_choice: Annotated[str | dict[str, Any] | None, NO_TOOLS] = None
    function_call: Annotated[str | dict[str, Any] | None, NO_TOOLS] = None
    modalities: (
        Annotated[list[Literal["text", "audio", "image"]], Meta(extra_json_schema={"const": ["text"]})] | None
    ) = None
    store: Annotated[bool | None, Meta(extra_json_schema={"enum": [False, None]})] = None
    # documented no-ops
    metadata: (
        Annotated[
            dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
            Meta(max_length=16),
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    prompt_cache_retention: Literal["in-memory", "in_memory", "24h"] | None = None


class CompletionRequest(Generation, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/completions. The prompt's shape (text, texts, ids, lists of ids) is settled by `prompts`."""

    prompt: Annotated[str | list[str | int | list[TokenId]], Meta(extra_json_schema={"examples": ["Once"]})]
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    echo: Annotated[bool, Meta(extra_json_schema={"enum": [False]})] = False
    best_of: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    parse_special: bool = False  # needs use_special_tokens
    add_special: bool = True


class TokenizeRequest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/tokenize: one of prompt and messages."""

    model: Annotated[str, MODEL_ID] | None = None
    prompt: str | None = None
    messages: Annotated[Messages, ONE_MESSAGE] | None = None
    chat_template_kwargs: TemplateFlags | None = None
    add_generation_prompt: bool = True
    parse_special: bool = False
    add_special: bool = True


class DetokenizeRequest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/detokenize."""

    model: Annotated[str, MODEL_ID] | None = None
    tokens: Annotated[list[TokenId], Meta(max_length=1 << 20)]
