"""Every message between our processes, as tagged msgspec structs, with framing, size limits and the version.

Four conversations, each over a socketpair that the supervisor made (inferno.ipc carries the frames):

    supervisor → engine   EngineSettings first, then AttachWorker (+ 1 descriptor), TemplateChild (+ 1), Ping, Drain,
                          ClearPrefixes
    engine → supervisor   LoadProgress, EngineReady | ModelRefused, TemplateWanted, Pong, LogLine
    front → engine        Prepare, Start, Drop, Cancel, Detokenize
    engine → front        EngineHello first, Prepared, Detokenized, Step (one per decode step), Failed
    supervisor → worker   WorkerSettings first, EngineUp (+ 1 descriptor), EngineGone, Reload, Ping, Drain, Answer
    worker → supervisor   WorkerReady, Pong, AuditAppend, Ask

Each side treats the other's as untrusted: unknown tags, unknown fields, wrong types and frames above the limit are a
ProtocolError, and the connection ends. A struct here states ranges that the receiver relies on.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

PROTOCOL_VERSION = 1
MAX_CONTROL_FRAME = 4 << 20  # bytes; supervisor ↔ worker or engine
MAX_ENGINE_FRAME = 64 << 20  # bytes; front ↔ engine: 4 MiB of text is at most 4 Mi token ids
MAX_CHOICES = 16
MAX_STOPS = 16

U32 = Annotated[int, Meta(ge=0, lt=1 << 32)]
U64 = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
TokenId = Annotated[int, Meta(ge=0, lt=1 << 31)]
RequestId = U64  # chosen by the front, unique on one connection
PrincipalTag = Annotated[
    bytes, Meta(min_length=16, max_length=16)
]  # keyed digest of the account; opaque to engines


class _Message(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of messages: immutable, strict about fields."""


# ---------------------------------------------------------------- front → engine


class ChatPrompt(_Message, frozen=True, tag="chat"):
    """Messages for the model's own template. Every string but `role` is client text (CONTRACT 7.7)."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    template_flags: dict[str, bool] = {}  # only enable_thinking, thinking
    add_generation_prompt: bool = True


class TextPrompt(_Message, frozen=True, tag="text"):
    """A raw prompt. Markers in it stay text unless `parse_special` (needs use_special_tokens)."""

    text: str
    parse_special: bool = False
    add_special: bool = True


class TokenPrompt(_Message, frozen=True, tag="tokens"):
    """A prompt given as ids; ids outside of the vocabulary are refused, control ids unless `allow_special`."""

    tokens: list[TokenId]
    allow_special: bool = False


class Prepare(_Message, frozen=True, tag="prepare"):
    """Render and tokenize; the engine keeps the ids until Start or Drop. Nothing is decoded yet."""

    request: RequestId
    principal: PrincipalTag
    prompt: ChatPrompt | TextPrompt | TokenPrompt
    want_tokens: bool = False  # Prepared carries the ids (for /v1/tokenize)


class Sampling(_Message, frozen=True):
    """Sampling parameters; the neutral value of each leaves its stage out. Ranges are the API's."""

    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=1 << 20)] = 0  # 0: off
    top_p: Annotated[float, Meta(ge=0.0, le=1.0)] = 1.0
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    typical_p: Annotated[float, Meta(ge=0.0, le=1.0)] = 1.0
    repeat_penalty: Annotated[float, Meta(ge=0.01, le=10.0)] = 1.0
    repeat_last_n: Annotated[int, Meta(ge=0, le=1 << 20)] = 64  # tokens looked back at by the three penalties
    presence_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    dry_multiplier: Annotated[float, Meta(ge=0.0, le=100.0)] = 0.0
    dry_base: Annotated[float, Meta(ge=1.0, le=100.0)] = 1.75
    dry_allowed_length: Annotated[int, Meta(ge=0, le=1 << 16)] = 2
    dry_penalty_last_n: Annotated[int, Meta(ge=0, le=1 << 20)] = 4096
    dry_sequence_breakers: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=64)]], Meta(max_length=16)
    ] = msgspec.field(default_factory=lambda: ["\n", ":", '"', "*"])
    xtc_probability: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    xtc_threshold: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.1
    mirostat: Annotated[int, Meta(ge=0, le=2)] = 0
    mirostat_tau: Annotated[float, Meta(ge=0.0, le=100.0)] = 5.0
    mirostat_eta: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.1
    logit_bias: dict[TokenId, Annotated[float, Meta(ge=-100.0, le=100.0)]] = {}
    grammar: Annotated[str, Meta(max_length=65536)] | None = None  # GBNF


class Start(_Message, frozen=True, tag="start"):
    """Queue a prepared request for generation."""

    request: RequestId
    sampling: Sampling
    max_tokens: Annotated[int, Meta(ge=1, lt=1 << 31)]
    num_choices: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] = 1
    seed: U64 | None = None  # None: the engine draws one; choice i uses seed + i
    stop: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=1024)]], Meta(max_length=MAX_STOPS)
    ] = []
    min_tokens: Annotated[int, Meta(ge=0, lt=1 << 31)] = 0
    ignore_eos: bool = False
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None  # None: no logprobs at all
    cache_prompt: bool = True
    cache_salt: Annotated[bytes, Meta(max_length=64)] = (
        b""  # prompt_cache_key, inside of the principal's partition
    )
    priority: Annotated[int, Meta(ge=-100, le=100)] = 0  # orders requests of one principal only; higher first
    weight: Annotated[float, Meta(gt=0.0, le=1000.0)] = 1.0  # the principal's share
    timeout_seconds: Annotated[float, Meta(gt=0.0, le=86400.0)] = 600.0


class Drop(_Message, frozen=True, tag="drop"):
    """Forget a prepared request that will not be started."""

    request: RequestId


class Cancel(_Message, frozen=True, tag="cancel"):
    """The client left: free the slots of this request within two decode steps. No answer is sent."""

    request: RequestId


class Detokenize(_Message, frozen=True, tag="detokenize"):
    request: RequestId
    tokens: list[TokenId]


FrontToEngine = Prepare | Start | Drop | Cancel | Detokenize


# ---------------------------------------------------------------- engine → front


class ModelInfo(_Message, frozen=True):
    """What the front must know of a loaded model without ever parsing it."""

    name: str
    context_size: U32  # tokens per slot
    slots: U32
    vocab_size: U32
    fingerprint: str  # system_fingerprint; ends in -approx where bytes are not promised
    has_chat_template: bool
    created: U64  # UNIX seconds; the file's modification time
    architecture: str = ""
    parameters: U64 = 0
    quantization: str = ""
    size_bytes: U64 = 0
    sha256: str = ""
    backend: str = ""  # "CPU", "CUDA0", …
    gpu_layers: U32 = 0
    threads: U32 = 0
    memory_bytes: dict[str, int] = {}  # weights, kv, compute, prefix
    sandbox: dict[str, str] = {}  # what is in force
    settings: dict[str, str] = {}  # flash_attention, chunk quantum, kv type and layout, …


class EngineHello(_Message, frozen=True, tag="hello"):
    version: U32
    model: ModelInfo


class Prepared(_Message, frozen=True, tag="prepared"):
    request: RequestId
    num_tokens: U32
    context_left: U32  # context_size - num_tokens, at least 1; else Failed(context_length_exceeded)
    tokens: list[TokenId] | None = None


class Detokenized(_Message, frozen=True, tag="detokenized"):
    request: RequestId
    data: bytes


class TokenLogprob(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One token's log probability under temperature 1 softmax of the raw logits, with the most likely ones."""

    token: bytes
    logprob: float
    top: list[tuple[bytes, float]] = []
    token_id: int = -1


class Usage(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Counts and times of one finished choice. `completion_tokens` counts sampled tokens, the end token too."""

    prompt_tokens: U32
    completion_tokens: U32
    cached_tokens: U32
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float


class Event(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What one step brought for one choice of one request.

    `text` holds whole code points only; nothing of a stop string, not its first letters either, is ever in it.
    `num_tokens` is how many sampled tokens stand behind this event (0 while text is held back then sent later).
    """

    request: RequestId
    choice: Annotated[int, Meta(ge=0, lt=MAX_CHOICES)]
    num_tokens: U32
    text: str
    logprobs: list[TokenLogprob] | None = None
    finish: Literal["stop", "length"] | None = None
    usage: Usage | None = None  # with finish


class Step(_Message, frozen=True, tag="step"):
    """All that one engine step has for this worker."""

    events: list[Event]


class Failed(_Message, frozen=True, tag="failed"):
    """The request is over. `code` is a key of inferno.errors.CODES; `message` is fixed text with numbers."""

    request: RequestId
    code: str
    message: Annotated[str, Meta(max_length=1000)]
    param: Annotated[str, Meta(max_length=128)] | None = None
    retry_after: float | None = None


EngineToFront = EngineHello | Prepared | Detokenized | Step | Failed


# ---------------------------------------------------------------- supervisor ↔ engine


class EngineSettings(_Message, frozen=True, tag="engine_settings"):
    """All that an engine is told: no secret among it. First message on its control socket."""

    version: U32
    name: str
    paths: list[str]  # one file, or all shards in order
    sha256: list[str] = []  # one for each path, or empty: none is expected
    known_files: dict[str, str] = {}  # verified before: state of the file → its xxh3_128; the same ones skip SHA-256
    allow: list[str] = []  # waived policy faults
    source: Literal["auto", "copy", "direct"] = "auto"
    max_model_bytes: U64 = 1 << 40
    sandbox: Literal["auto", "required", "off"] = "auto"
    slots: U32 | None = None  # None: chosen at load
    context_size: U32 | None = None
    threads: U32 | None = None
    gpu_layers: int = -1
    kv_layout: Literal["streams", "unified"] = "streams"
    flash_attention: Literal["auto", "on", "off"] = "auto"
    kv_cache_type: str | None = None
    target_itl_ms: float = 50.0
    max_queue: U32 = 256
    max_queue_per_user: U32 = 64
    prefix_cache_mb: U32 = 256
    request_timeout_seconds: float = 600.0
    template_timeout_seconds: float = 2.0
    max_frame_bytes: U32 = MAX_ENGINE_FRAME
    public_prefixes: list[str] = []  # system messages, or beginnings of prompts where there is no chat template
    calibration: dict[str, Any] = {}  # of an earlier start on this machine; {}: measure
    log_level: str = "info"
    only_verify: bool = False  # say ModelVerified or ModelRefused, and exit


class AttachWorker(_Message, frozen=True, tag="attach_worker"):
    """With one descriptor: a stream socket whose other end a front worker holds."""

    worker: U32


class TemplateChild(_Message, frozen=True, tag="template_child"):
    """The answer to TemplateWanted, with one descriptor: the socket to a new template child. Without one there is none."""

    pid: U32 = 0


class Ping(_Message, frozen=True, tag="ping"):
    serial: U64


class Drain(_Message, frozen=True, tag="drain"):
    """Take no new work; exit 0 when running work ended, at the latest after `grace_seconds`."""

    grace_seconds: float


class ClearPrefixes(_Message, frozen=True, tag="clear_prefixes"):
    """Empty the prefix store, or only one principal's part of it."""

    principal: PrincipalTag | None = None


class EngineStats(_Message, frozen=True):
    """Gauges and counters since the start, for metrics."""

    running: U32 = 0
    waiting: U32 = 0
    slots: U32 = 0
    kv_used_tokens: U64 = 0
    kv_total_tokens: U64 = 0
    prefix_bytes: U64 = 0
    prefix_entries: U64 = 0
    prefix_hit_tokens: U64 = 0
    prefix_miss_tokens: U64 = 0
    prefill_tokens: U64 = 0
    decode_tokens: U64 = 0
    steps: U64 = 0


class Pong(_Message, frozen=True, tag="pong"):
    serial: U64
    stats: EngineStats | None = None


class LoadProgress(_Message, frozen=True, tag="load_progress"):
    stage: Literal["verify", "load", "calibrate"]
    fraction: float


class ModelVerified(_Message, frozen=True, tag="model_verified"):
    """Sent once, after the verification and before native code sees the file. `sha256`: the digests taken, if any were."""

    sha256: Annotated[list[Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]], Meta(max_length=1024)] = []
    xxh3_128: Annotated[list[Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]], Meta(max_length=1024)] = []
    policy: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=64)] = []  # faults met and waived


class EngineReady(_Message, frozen=True, tag="engine_ready"):
    model: ModelInfo
    calibration: dict[str, Any] = {}


class ModelRefused(_Message, frozen=True, tag="model_refused"):
    """The file is not loaded; the engine exits. `reason` is a verifier slug or `load-failed`, `no-memory`."""

    reason: str
    detail: str
    offset: int | None = None


class LogLine(_Message, frozen=True, tag="log"):
    level: Literal["debug", "info", "warning", "error"]
    text: Annotated[str, Meta(max_length=4096)]


class TemplateWanted(_Message, frozen=True, tag="template_wanted"):
    """The engine may start no program: give it a template child, in place of the one before. One TemplateChild follows."""


SupervisorToEngine = EngineSettings | AttachWorker | TemplateChild | Ping | Drain | ClearPrefixes
EngineToSupervisor = LoadProgress | ModelVerified | EngineReady | ModelRefused | TemplateWanted | Pong | LogLine


# ---------------------------------------------------------------- supervisor ↔ worker


class WorkerSettings(_Message, frozen=True, tag="worker_settings"):
    """First message to a front worker, with the descriptors: listener(s), then one per name in `shared`.

    `settings` is inferno.config's encoded Settings; `secrets` go over this socket and nowhere else.
    """

    version: U32
    worker: U32
    settings: bytes
    secrets: dict[str, bytes] = {}
    listeners: list[str] = []  # "main", "admin": one descriptor each
    shared: list[str] = []  # "epochs", "buckets", …
    table_arguments: dict[str, list[int]] = {}  # by shared table: what it needs to know this worker by
    models: list[dict[str, Any]] = []  # the registry: name, state, detail


class EngineUp(_Message, frozen=True, tag="engine_up"):
    """With one descriptor: this worker's stream socket to the engine of `model`."""

    model: str
    generation: U64
    info: ModelInfo


class EngineGone(_Message, frozen=True, tag="engine_gone"):
    model: str
    generation: U64
    state: Literal["loading", "restarting", "refused", "unloaded"]
    detail: str = ""
    retry_after: float = 5.0


class Reload(_Message, frozen=True, tag="reload"):
    settings: bytes


class Answer(_Message, frozen=True, tag="answer"):
    """To Ask or AuditAppend: `error` is a code of inferno.errors or None."""

    serial: U64
    error: str | None = None
    result: Any = None


class WorkerReady(_Message, frozen=True, tag="worker_ready"):
    worker: U32
    pid: U32


class AuditAppend(_Message, frozen=True, tag="audit_append"):
    """Audit records for the writer, answered after fsync when `durable`."""

    serial: U64
    records: list[dict[str, Any]]
    durable: bool


class Ask(_Message, frozen=True, tag="ask"):
    """A question that only the supervisor can answer: `what` names it (model_load, metrics, audit_tail, …)."""

    serial: U64
    what: str
    arguments: dict[str, Any] = {}


SupervisorToWorker = WorkerSettings | EngineUp | EngineGone | Reload | Ping | Drain | Answer
WorkerToSupervisor = WorkerReady | Pong | AuditAppend | Ask


def decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    """Return a strict decoder of one direction's union of messages."""
    return msgspec.msgpack.Decoder(kind)


ENCODER = msgspec.msgpack.Encoder()
