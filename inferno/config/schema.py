"""Every configuration key: its type, default, range and the sentence that the commented file and the docs print.

One Struct per section of the configuration file. `key(...)` hangs the documentation on the field itself, so that
parsing, `inferno init`, docs/configuration.md and the refusal of a bad value all speak from one place. A `str` key
whose default is "" is derived when the configuration is loaded (see inferno.config.load), so consumers always find
the effective value. Knows nothing of where values come from.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

MODEL_NAME = r"^[A-Za-z0-9](?:[A-Za-z0-9._:/-]{0,126}[A-Za-z0-9])?$"
_HIGHEST = 1 << 31


def key(
    text: str,
    *,
    reload: bool = False,
    path: bool = False,
    url: bool = False,
    derived: str = "",
    example: Any = None,
    ge: float | None = None,
    le: float | None = None,
    pattern: str | None = None,
    expected: str = "",
    item: str = "",
) -> Meta:
    """Describe one key. `derived` says what the default is made of; `item` names the check of each list item."""
    extra = {
        "reload": reload,
        "path": path,
        "url": url,
        "derived": derived,
        "example": example,
        "expected": expected,
        "item": item,
        "lowest": ge,
        "highest": le,
        "pattern": pattern,
    }
    return Meta(description=text, extra=extra)


class _Section(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of sections."""


class Server(_Section, frozen=True):
    """The listener: addresses, connections, deadlines."""

    host: Annotated[
        str,
        key(
            "Address to listen on: an IP address or a host name.",
            pattern=r"^[A-Za-z0-9._:%-]{1,255}$",
            expected="an IP address or a host name",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int,
        key(
            "Port to listen on; 0 lets the system pick a free one, which the start summary shows.",
            ge=0,
            le=65535,
        ),
    ] = 8080
    workers: Annotated[int, key("Front worker processes that share the listening socket.", ge=1, le=64)] = 1
    tls_enabled: Annotated[
        bool, key("Serve HTTPS with the certificate below; then no plain listener exists.")
    ] = False
    tls_cert_path: Annotated[
        str | None,
        key("PEM file with the certificate chain.", reload=True, path=True, example="tls/cert.pem"),
    ] = None
    tls_key_path: Annotated[
        str | None,
        key(
            "PEM file with the private key; must not be readable by others.",
            reload=True,
            path=True,
            example="tls/key.pem",
        ),
    ] = None
    tls_client_ca_path: Annotated[
        str | None,
        key(
            "PEM file of the authorities whose client certificates are required.",
            reload=True,
            path=True,
            example="tls/clients.pem",
        ),
    ] = None
    cors_origins: Annotated[
        list[str],
        key(
            "Exact origins that browsers may call from; empty: cross-origin calls are off.",
            item="origin",
            example=["https://app.example.com"],
        ),
    ] = field(default_factory=list)
    allowed_hosts: Annotated[
        list[str],
        key(
            "Names that the Host header may carry (*.example.com: every name below; with :PORT: on that port only); empty: "
            "localhost, IP addresses and this machine's own name.",
            item="host",
            example=["llm.example.com"],
        ),
    ] = field(default_factory=list)
    max_body_bytes: Annotated[int, key("Largest request body in bytes.", ge=1024, le=1 << 28)] = 4 << 20
    header_timeout_seconds: Annotated[
        float, key("A request's headers must arrive within this time.", ge=0.1, le=600)
    ] = 10.0
    idle_timeout_seconds: Annotated[
        float, key("An idle keep-alive connection is closed after this time.", ge=0.1, le=3600)
    ] = 75.0
    max_connections: Annotated[
        int, key("Connections open at once, over all workers.", ge=1, le=1_000_000)
    ] = 4096
    max_connections_per_ip: Annotated[
        int,
        key(
            "Connections open at once from one source address (trusted proxies are not counted).",
            ge=1,
            le=1_000_000,
        ),
    ] = 512
    shutdown_grace_seconds: Annotated[
        float, key("After SIGTERM running answers may finish within this time.", ge=0.0, le=3600)
    ] = 30.0
    trusted_proxies: Annotated[
        list[str],
        key(
            "Addresses or networks whose forwarding headers are believed.",
            item="network",
            example=["10.0.0.0/8"],
        ),
    ] = field(default_factory=list)
    unknown_fields: Annotated[
        Literal["refuse", "report"],
        key(
            "A request field that this server does not know is refused (400), or ignored and named in "
            "x-inferno-ignored-fields."
        ),
    ] = "refuse"
    admin_host: Annotated[
        str | None,
        key(
            "Address of a second listener for operators; set with admin_port. It has all but inference, and /metrics needs no "
            "credential there. It speaks TLS as the main one does, but on loopback where tls_required is false.",
            pattern=r"^[A-Za-z0-9._:%-]{1,255}$",
            expected="an IP address or a host name",
            example="127.0.0.1",
        ),
    ] = None
    admin_port: Annotated[
        int | None, key("Port of the listener for operators.", ge=1, le=65535, example=9090)
    ] = None


class Security(_Section, frozen=True):
    """Who may call, how often, and what is checked on the way in and out."""

    auth_enabled: Annotated[bool, key("Every API call needs a session or an API key.")] = True
    token_expiry_hours: Annotated[int, key("Lifetime of a login session in hours.", ge=1, le=168)] = 24
    api_key_enabled: Annotated[bool, key("API keys are accepted and can be made.")] = True
    rate_limiting_enabled: Annotated[
        bool,
        key(
            "Request and token limits are enforced. Concurrency, logins, password changes and key creations are limited in "
            "any case."
        ),
    ] = True
    max_requests_per_minute: Annotated[
        int, key("Requests a minute for one account.", reload=True, ge=1, le=10_000_000)
    ] = 60
    max_requests_per_hour: Annotated[
        int, key("Requests an hour for one account.", reload=True, ge=1, le=100_000_000)
    ] = 1000
    input_validation_enabled: Annotated[
        bool,
        key("Client text is scanned for attack patterns and invisible characters, and max_input_length enforced."),
    ] = True
    max_input_length: Annotated[
        int,
        key(
            "Longest single string that a client may send, in characters; an account or a key may have its own.",
            reload=True,
            ge=1,
            le=100_000_000,
        ),
    ] = 10_000
    output_sanitization_enabled: Annotated[
        bool, key("Secrets and personal data are removed from answers.")
    ] = True
    tls_required: Annotated[
        bool | None,
        key(
            "Refuse to serve without TLS. Plain HTTP on another address than loopback needs an explicit "
            "false (TLS ends at a proxy).",
            derived="true unless host and admin_host are loopback",
        ),
    ] = None
    min_tls_version: Annotated[Literal["1.2", "1.3"], key("Oldest TLS version that is spoken.")] = "1.2"
    audit_logging_enabled: Annotated[bool, key("Security events are written to the audit log.")] = True
    max_requests_per_minute_per_ip: Annotated[
        int,
        key(
            "Requests a minute from one source address, before any credential is looked at.",
            ge=1,
            le=10_000_000,
        ),
    ] = 300
    max_requests_per_hour_per_ip: Annotated[
        int, key("Requests an hour from one source address.", ge=1, le=100_000_000)
    ] = 10_000
    max_tokens_per_minute: Annotated[
        int, key("Prompt and completion tokens a minute for one account.", ge=1, le=1_000_000_000)
    ] = 200_000
    max_concurrent_requests_per_user: Annotated[
        int, key("Requests of one account in progress at once.", ge=1, le=100_000)
    ] = 16
    max_keys_per_user: Annotated[int, key("API keys that one account may hold.", ge=1, le=100_000)] = 50
    api_key_default_days: Annotated[
        int, key("Lifetime in days of a key made without an expiry.", ge=1, le=3650)
    ] = 90
    scan_content: Annotated[
        Literal["off", "report", "block"],
        key(
            "What a finding in message text leads to: off: nothing, report: a record in the audit log, block: a refusal "
            "where the text is an attack by itself."
        ),
    ] = "report"
    scan_identifiers: Annotated[
        Literal["off", "report", "block"],
        key("What a finding in names, headers, paths and queries leads to, likewise."),
    ] = "block"
    redact_profile: Annotated[
        Literal["default", "strict", "secrets"],
        key(
            "What is removed from answers: default: secrets and personal data, strict: also private IPv4 addresses, "
            "secrets: secrets only."
        ),
    ] = "default"
    max_logins_per_minute_per_ip: Annotated[
        int, key("Login attempts a minute from one source address.", ge=1, le=100_000)
    ] = 10
    max_key_creations_per_hour: Annotated[
        int, key("API keys that one account may make in an hour.", ge=1, le=100_000)
    ] = 20
    audit_path: Annotated[
        str,
        key(
            "The current audit log file; rotated files lie beside it.",
            path=True,
            derived="<data>/audit/audit.jsonl",
        ),
    ] = ""
    audit_on_failure: Annotated[
        Literal["continue", "refuse"],
        key(
            "When the audit log cannot be written, inference goes on (and the gap is recorded) or is "
            "refused. Security actions are always refused."
        ),
    ] = "continue"
    sandbox: Annotated[
        Literal["auto", "required", "off"],
        key(
            "Confinement of engine processes: auto: as far as the kernel can, required: refuse to start without it, off: "
            "none."
        ),
    ] = "auto"


class ModelEntry(_Section, frozen=True):
    """One model by name: a [models.<name>] table."""

    path: Annotated[
        str, key("The GGUF file, or the first shard of a set.", path=True, example="models/model.gguf")
    ]
    sha256: Annotated[
        str | None,
        key("Expected SHA-256 of the file.", pattern=r"^[0-9a-fA-F]{64}$", expected="64 hexadecimal digits"),
    ] = None
    context_size: Annotated[
        int | None, key("Tokens per slot, in place of [engine] context_size.", ge=128, le=_HIGHEST)
    ] = None
    slots: Annotated[
        int | None, key("Requests decoded at once, in place of [engine] slots.", ge=1, le=1024)
    ] = None
    gpu_layers: Annotated[
        int | None,
        key("Layers on the GPU, in place of [engine] gpu_layers; -1: as many as fit.", ge=-1, le=100_000),
    ] = None
    allow: Annotated[list[str], key("Policy faults of the file that are waived, by reason.", item="slug")] = (
        field(default_factory=list)
    )
    public_prefixes: Annotated[
        list[str],
        key(
            "System messages (for a model without a chat template: beginnings of prompts) that are no secret: computed "
            "when the model loads, and reused for every account.",
            item="prefix",
            example=["You are the assistant of Example Ltd. …"],
        ),
    ] = field(default_factory=list)


class Models(_Section, frozen=True):
    """Which model files may be served."""

    dir: Annotated[
        str, key("Folder of model files; every GGUF in it can be served.", path=True, derived="<data>/models")
    ] = ""
    default: Annotated[
        str | None,
        key(
            'Model used when a request names none, or "default".',
            pattern=MODEL_NAME,
            expected="the name of a model",
            example="smollm2",
        ),
    ] = None
    max_model_size_gb: Annotated[
        float, key("Largest model file (all shards together) in GiB.", ge=0.001, le=16384)
    ] = 64.0
    require_checksum: Annotated[bool, key("Refuse a model whose SHA-256 is not recorded.")] = False
    verify: Annotated[
        Literal["changed", "always"],
        key(
            "Take a file's SHA-256 when it changed since it was verified last, or at every load. Its structure is checked at "
            "every load."
        ),
    ] = "changed"
    source: Annotated[
        Literal["auto", "copy", "direct"],
        key(
            "How weights are read: copy: from a private copy in memory that nobody can change, direct: from the file itself, "
            "auto: copy while the model takes at most half of the free memory."
        ),
    ] = "auto"
    entries: dict[str, ModelEntry] = field(default_factory=dict)


class Engine(_Section, frozen=True):
    """How models are run."""

    threads: Annotated[
        int | None, key("CPU threads of an engine.", derived="the physical cores", ge=1, le=1024, example=4)
    ] = None
    slots: Annotated[
        int | None,
        key(
            "Requests decoded at once per model.",
            derived="chosen from memory and context",
            ge=1,
            le=1024,
            example=8,
        ),
    ] = None
    context_size: Annotated[
        int | None,
        key(
            "Tokens per slot.", derived="chosen from the model and memory", ge=128, le=_HIGHEST, example=4096
        ),
    ] = None
    gpu_layers: Annotated[int, key("Layers on the GPU; -1: as many as fit, 0: none.", ge=-1, le=100_000)] = -1
    target_itl_ms: Annotated[
        float,
        key(
            "Time between two tokens of a running stream that a long prompt may cost, in milliseconds.",
            ge=1,
            le=60_000,
        ),
    ] = 50.0
    kv_layout: Annotated[
        Literal["streams", "unified"],
        key("KV cache per slot (exact and fast), or one cache shared by all slots."),
    ] = "streams"
    flash_attention: Annotated[Literal["auto", "on", "off"], key("Flash attention.")] = "auto"
    kv_cache_type: Annotated[
        Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"] | None,
        key("Number format of the KV cache.", derived="f16", example="q8_0"),
    ] = None
    max_queue: Annotated[
        int, key("Requests of all accounts that may wait for a slot; beyond it: 503.", ge=1, le=1_000_000)
    ] = 256
    max_queue_per_user: Annotated[
        int, key("Requests of one account that may wait for a slot; beyond it: 429.", ge=1, le=1_000_000)
    ] = 64
    prefix_cache_mb: Annotated[
        int, key("Memory for computed prompt prefixes in MiB; 0 turns reuse off.", ge=0, le=1_000_000)
    ] = 256
    request_timeout_seconds: Annotated[float, key("Longest life of one request.", ge=1, le=86_400)] = 600.0


class Storage(_Section, frozen=True):
    """Where state lies."""

    data_dir: Annotated[
        str,
        key(
            "The data directory, <data> elsewhere in this file.",
            path=True,
            derived="the folder of the configuration file",
        ),
    ] = ""
    url: Annotated[
        str,
        key(
            "Database of accounts, keys and usage: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME (needs the extra "
            "`postgres`).",
            url=True,
            derived="sqlite:///<data>/inferno.db",
            pattern=r"^(sqlite:///.+|postgres(ql)?://.+)$",
            expected="sqlite:///FILE or postgresql://…",
        ),
    ] = ""


class Limits(_Section, frozen=True):
    """Where rate limits are counted."""

    url: Annotated[
        str,
        key(
            '"shm:" counts on this host; redis://HOST:PORT/N (rediss:// with TLS; needs the extra `redis`) shares the counts '
            "between hosts.",
            url=True,
            pattern=r"^(shm:|(redis|rediss|valkey|valkeys|unix)://.+)$",
            expected='"shm:" or redis://HOST:PORT/N',
        ),
    ] = "shm:"
    on_failure: Annotated[
        Literal["closed", "open"],
        key(
            "When the counts cannot be reached, inference is refused or goes on. Login and administration "
            "are always refused."
        ),
    ] = "closed"


class Telemetry(_Section, frozen=True):
    """Logs, metrics, traces."""

    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], key("Least severity that is logged.")
    ] = "info"
    log_format: Annotated[
        Literal["auto", "text", "json"], key("auto: text on a terminal, JSON elsewhere.")
    ] = "auto"
    metrics_enabled: Annotated[bool, key("Count for GET /metrics.")] = True
    otlp_endpoint: Annotated[
        str | None,
        key(
            "Where OpenTelemetry traces are sent (OTLP over HTTP); needs the extra `otel`.",
            url=True,
            pattern=r"^https?://.+$",
            expected="an http:// or https:// URL",
            example="http://127.0.0.1:4318",
        ),
    ] = None


class Settings(_Section, frozen=True):
    """The whole configuration, effective and validated. Make it with inferno.config.load, or from parts in tests."""

    server: Server = field(default_factory=Server)
    security: Security = field(default_factory=Security)
    models: Models = field(default_factory=Models)
    engine: Engine = field(default_factory=Engine)
    storage: Storage = field(default_factory=Storage)
    limits: Limits = field(default_factory=Limits)
    telemetry: Telemetry = field(default_factory=Telemetry)


SECTIONS: dict[str, type[_Section]] = {
    "server": Server,
    "security": Security,
    "models": Models,
    "engine": Engine,
    "storage": Storage,
    "limits": Limits,
    "telemetry": Telemetry,
}
