"""What handlers answer, as structs: the shapes that the published API description promises.

Handlers build plain dictionaries; a test lets a generator of requests compare real answers with these shapes. Used by
nothing else. Front workers.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from ..admin.schemas import Role

Count = Annotated[int, Meta(ge=0)]
Time = Annotated[str, Meta(description="RFC 3339, UTC")]
Finish = Literal["stop", "length"]


class ErrorDetail(Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str


class Error(Struct, frozen=True):
    """Every error has this form; `code` is one of the table in docs/api.md."""

    error: ErrorDetail


# ---------------------------------------------------------------- inference


class PromptDetails(Struct, frozen=True):
    cached_tokens: Count


class CompletionDetails(Struct, frozen=True):
    reasoning_tokens: Count


class Usage(Struct, frozen=True):
    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class LikelyToken(Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[Annotated[int, Meta(ge=0, le=255)]]


class ChosenToken(LikelyToken, frozen=True):
    top_logprobs: list[LikelyToken]


class ChatLogprobs(Struct, frozen=True):
    content: list[ChosenToken] | None
    refusal: None


class AnswerMessage(Struct, frozen=True):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None


class ChatChoice(Struct, frozen=True):
    index: Count
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatCompletion(Struct, frozen=True):
    id: str
    object: Literal["chat.completion"]
    created: Count
    model: str
    system_fingerprint: str | None
    service_tier: Literal["default"]
    choices: list[ChatChoice]
    usage: Usage


class LegacyLogprobs(Struct, frozen=True):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[Count]


class CompletionChoice(Struct, frozen=True):
    index: Count
    text: str
    logprobs: LegacyLogprobs | None
    finish_reason: Finish


class Completion(Struct, frozen=True):
    id: str
    object: Literal["text_completion"]
    created: Count
    model: str
    system_fingerprint: str | None
    choices: list[CompletionChoice]
    usage: Usage


class ModelEntry(Struct, frozen=True, omit_defaults=True):
    id: str
    object: Literal["model"]
    created: Count
    owned_by: str
    max_model_len: Annotated[int, Meta(ge=1, description="Tokens of one request's context")] = 1


class ModelList(Struct, frozen=True):
    object: Literal["list"]
    data: list[ModelEntry]


class Tokenized(Struct, frozen=True):
    tokens: list[Count]
    count: Count


class Detokenized(Struct, frozen=True):
    text: str


# ---------------------------------------------------------------- identity and operation


class Session(Struct, frozen=True):
    token: str
    token_type: Literal["bearer"]
    expires_at: Time


class Ended(Struct, frozen=True):
    ended: Literal[1]


class AllEnded(Struct, frozen=True):
    ended: Literal["all"]


class PasswordChanged(Struct, frozen=True):
    changed: bool
    ended: Literal["all"]


class OwnLimits(Struct, frozen=True):
    max_requests_per_minute: Count | None
    max_requests_per_hour: Count | None
    max_tokens_per_minute: Count | None
    max_concurrent_requests: Count | None
    max_input_length: Count | None


class KeyInUse(Struct, frozen=True):
    id: str
    limits: OwnLimits | None
    redact_profile: str | None


class Left(Struct, frozen=True):
    policy: str
    scope: str
    limit: Count
    remaining: Count
    reset_seconds: float


class Me(Struct, frozen=True):
    id: str
    username: str
    role: str
    credential: str
    permissions: list[str]
    models: list[str] | None
    key: KeyInUse | None
    expires_at: Time | None
    limits: OwnLimits
    remaining: list[Left]


class Key(Struct, frozen=True):
    id: str
    name: str
    owner: str
    last_four: str
    permissions: list[str]
    models: list[str] | None
    limits: OwnLimits
    redact_profile: str | None
    created_at: Time
    expires_at: Time
    expired: bool
    last_used_at: Time | None


class NewKey(Key, frozen=True):
    key: Annotated[str, Meta(description="Shown this once")]


class KeyPage(Struct, frozen=True):
    data: list[Key]
    next: str | None


class Deleted(Struct, frozen=True):
    id: str
    deleted: bool


class User(Struct, frozen=True):
    id: str
    username: str
    role: Role
    disabled: bool
    limits: OwnLimits
    created_at: Time
    updated_at: Time


class UserPage(Struct, frozen=True):
    data: list[User]
    next: str | None


class AuditRecord(Struct, frozen=True):
    seq: Count
    time: Time
    event: str
    actor: str
    actor_type: str
    ip: str
    target: str
    result: str
    reason: str
    request_id: str
    prev: str
    hash: str


class AuditPage(Struct, frozen=True):
    data: list[AuditRecord]
    next: str | None


class AuditVerdict(Struct, frozen=True):
    verdict: Literal["intact", "broken", "unreadable"]
    status: Annotated[int, Meta(ge=0, le=2)]
    records: Count
    last_seq: Count
    last_hash: str
    first_bad: Count | None
    file: str | None
    reason: str


class UsageRow(Struct, frozen=True):
    day: str
    user: str
    key: str | None
    model: str
    requests: Count
    prompt_tokens: Count
    completion_tokens: Count


class UsagePage(Struct, frozen=True):
    data: list[UsageRow]
    next: str | None


class ModelState(Struct, frozen=True):
    """What an operator sees of a model; facts of the engine are there while it is ready."""

    name: str
    state: str
    detail: str = ""
    slots: Count = 0
    context: Count = 0
    backend: str = ""
    threads: Count = 0
    gpu_layers: int = 0
    memory_bytes: Count = 0
    sandbox: dict[str, Any] = {}
    fingerprint: str = ""
    sha256: str = ""  # recorded or taken; empty where neither
    settings: dict[str, str] = {}  # what the engine chose, and how many public prefixes are stored
    pid: int | None = None
    generation: Count = 0
    restarts: Count = 0


class ModelVerdict(Struct, frozen=True):
    """As `inferno models verify` prints it."""

    name: str
    verdict: str
    reason: str | None
    offset: int | None
    detail: str | None
    policy: list[str]
    sha256: list[str]
    seconds: float


class ModelRemoved(Struct, frozen=True):
    name: str
    removed: bool
    files_deleted: Count


class ModelPage(Struct, frozen=True):
    data: list[ModelState]
    next: None


class CacheState(Struct, frozen=True):
    """The prefix store of one model's engine: what it holds now, tokens since the engine started."""

    model: str
    bytes: Count
    max_bytes: Count
    entries: Count
    hit_tokens: Count
    miss_tokens: Count


class CachePage(Struct, frozen=True):
    data: list[CacheState]
    next: None


class CacheCleared(Struct, frozen=True):
    scope: Literal["own", "all"]
    models: list[str]


class ConfigChanged(Struct, frozen=True):
    changed: list[str]


class Health(Struct, frozen=True):
    status: str
