"""Each operation of the API in words and types: what it does, the struct that reads its body, what it answers.

A table by method and path; routes and policies are not repeated here but read from the router, and a test compares
both. Body structs are the very ones that handlers decode into. Front workers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .. import schemas
from ..admin import common
from ..admin import schemas as admin
from . import answers

Schema = dict[str, Any]


class Parameter(NamedTuple):
    """A query parameter, at most once in a request."""

    name: str
    schema: Schema
    meaning: str


class Described(NamedTuple):
    """What the API description says of one operation beside its policy."""

    summary: str
    answer: Any = None  # a struct or a JSON type; None where `media` is not JSON
    body: type | None = None
    status: int = 200
    media: str = "application/json"
    streams: bool = False
    query: tuple[Parameter, ...] = ()
    codes: tuple[str, ...] = ()  # error codes beside those of every operation with such a policy and body
    unready: Any = None  # the struct of a 503 that is not an error


_TEXT: Schema = {"type": "string", "maxLength": 512}
_ROWS = (
    Parameter("limit", {"type": "integer", "minimum": 1, "maximum": common.MAX_ROWS, "default": common.DEFAULT_ROWS}, "Rows"),
)  # fmt: skip
_CURSOR = Parameter("after", _TEXT, "The value of `next` of the page before")
_NUMBER_CURSOR = Parameter(
    "after", {"type": "string", "pattern": "^[0-9]{1,15}$"}, "The value of `next` of the page before"
)
_DAY: Schema = {"type": "string", "maxLength": 512, "examples": ["2026-01-31"]}
_NAME = ("model_not_found", "model_not_allowed", "model_loading", "no_model")
_ENGINE = (*_NAME, "engine_failed", "engine_restarting", "overloaded", "deadline_exceeded", "shutting_down")
_TEXT_IN = ("invalid_text", "input_too_long", "input_blocked", "template_failed", "context_length_exceeded")
_GENERATION = (
    *_ENGINE,
    *_TEXT_IN,
    "tokens_exceed_limit",
    "insufficient_permissions",
    "insufficient_quota",
    "redaction_failed",
    "audit_unavailable",
)
_CHANGE = ("audit_unavailable", "store_unavailable", "conflict")

OPERATIONS: dict[tuple[str, str], Described] = {
    ("POST", "/v1/chat/completions"): Described(
        "Answer a conversation", answers.ChatCompletion, schemas.ChatRequest, streams=True, codes=_GENERATION
    ),
    ("POST", "/v1/completions"): Described(
        "Continue a text", answers.Completion, schemas.CompletionRequest, streams=True, codes=_GENERATION
    ),
    ("GET", "/v1/models"): Described("List the models that the caller may use", answers.ModelList),
    ("GET", "/v1/models/{id}"): Described("Show one model", answers.ModelEntry, codes=("model_not_found",)),
    ("POST", "/v1/tokenize"): Described(
        "Count and show the tokens of a text or conversation",
        answers.Tokenized,
        schemas.TokenizeRequest,
        codes=(*_ENGINE, *_TEXT_IN, "insufficient_permissions"),
    ),
    ("POST", "/v1/detokenize"): Described(
        "Turn tokens into text", answers.Detokenized, schemas.DetokenizeRequest, codes=_ENGINE
    ),
    ("POST", "/api/v1/auth/login"): Described(
        "Begin a session", answers.Session, admin.LoginRequest, codes=("invalid_api_key", *_CHANGE)
    ),
    ("POST", "/api/v1/auth/logout"): Described(
        "End this session", answers.Ended, codes=("insufficient_permissions", *_CHANGE)
    ),
    ("POST", "/api/v1/auth/logout-all"): Described(
        "End all of one's sessions", answers.AllEnded, codes=("insufficient_permissions", *_CHANGE)
    ),
    ("POST", "/api/v1/auth/password"): Described(
        "Change one's password",
        answers.PasswordChanged,
        admin.PasswordRequest,
        codes=("weak_password", "insufficient_permissions", *_CHANGE),
    ),
    ("GET", "/api/v1/auth/me"): Described("Show who is calling, permissions, limits and what is left", answers.Me),
    ("GET", "/api/v1/auth/api-keys"): Described(
        "List API keys",
        answers.KeyPage,
        query=(*_ROWS, _CURSOR, Parameter("owner", _TEXT, "An account's id, or `all` (manage_users)")),
        codes=("insufficient_permissions",),
    ),
    ("POST", "/api/v1/auth/api-keys"): Described(
        "Make an API key; `owner` and `redact_profile` need manage_users",
        answers.NewKey,
        admin.ManagedKeyRequest,
        status=201,
        codes=("insufficient_permissions", "model_not_allowed", "not_found", *_CHANGE),
    ),
    ("DELETE", "/api/v1/auth/api-keys/{id}"): Described(
        "Revoke an API key", answers.Deleted, codes=("not_found", *_CHANGE)
    ),
    ("GET", "/api/v1/users"): Described("List accounts", answers.UserPage, query=(*_ROWS, _CURSOR)),
    ("POST", "/api/v1/users"): Described(
        "Make an account", answers.User, admin.UserRequest, status=201, codes=("weak_password", *_CHANGE)
    ),
    ("GET", "/api/v1/users/{id}"): Described("Show an account", answers.User, codes=("not_found",)),
    ("PATCH", "/api/v1/users/{id}"): Described(
        "Change role, limits or whether an account may be used",
        answers.User,
        admin.UserPatch,
        codes=("not_found", *_CHANGE),
    ),
    ("DELETE", "/api/v1/users/{id}"): Described(
        "Delete an account and its keys", answers.Deleted, codes=("not_found", *_CHANGE)
    ),
    ("GET", "/api/v1/audit"): Described(
        "Search the audit log, newest first",
        answers.AuditPage,
        query=(
            *_ROWS,
            _NUMBER_CURSOR,
            *(Parameter(name, _TEXT, "Not before, RFC 3339" if name == "since" else "Before, RFC 3339")
              for name in ("since", "until")),
            *(Parameter(name, _TEXT, "Equal to this field of the record")
              for name in ("actor", "event", "result", "ip", "target", "request_id")),
            Parameter("text", _TEXT, "Stands somewhere in the record"),
        ),
        codes=("audit_unavailable",),
    ),
    ("GET", "/api/v1/audit/verify"): Described(
        "Prove that the audit log is whole", answers.AuditVerdict, codes=("audit_unavailable",)
    ),
    ("GET", "/api/v1/usage"): Described(
        "Requests and tokens by day, account, key and model",
        answers.UsagePage,
        query=(
            *_ROWS,
            _CURSOR,
            Parameter("since", _DAY, "First day"),
            Parameter("until", _DAY, "Last day"),
            Parameter("key_id", _TEXT, "Of this key"),
            Parameter("model", _TEXT, "Of this model"),
            Parameter("user", _TEXT, "Of this account's id (others': manage_users)"),
        ),
        codes=("insufficient_permissions",),
    ),
    ("GET", "/api/v1/models"): Described("List models as operators see them", answers.ModelPage),
    ("POST", "/api/v1/models/{name}/load"): Described(
        "Load a model; answers when it is ready", answers.ModelState, codes=("model_not_found", *_CHANGE)
    ),
    ("POST", "/api/v1/models/{name}/unload"): Described(
        "Unload a model", answers.ModelState, codes=("model_not_found", *_CHANGE)
    ),
    ("POST", "/api/v1/models/{name}/verify"): Described(
        "Verify a model's files now, loaded or not",
        answers.ModelVerdict,
        codes=("model_not_found", "engine_failed", "deadline_exceeded", *_CHANGE),
    ),
    ("DELETE", "/api/v1/models/{name}"): Described(
        "Forget a model that was added and is not loaded",
        answers.ModelRemoved,
        query=(Parameter("files", {"enum": ["keep", "delete"]}, "delete: its files too, if they lie in the models folder"),),
        codes=("model_not_found", *_CHANGE),
    ),
    ("GET", "/api/v1/config"): Described(
        "Show the configuration in force, without secrets", dict[str, dict[str, Any]]
    ),
    ("PATCH", "/api/v1/config"): Described(
        "Change reloadable keys", answers.ConfigChanged, admin.ConfigPatch, codes=_CHANGE
    ),
    ("GET", "/api/v1/cache"): Described("Show the prefix store of each model", answers.CachePage),
    ("DELETE", "/api/v1/cache"): Described(
        "Forget stored prefixes: one's own, or all of them",
        answers.CacheCleared,
        query=(Parameter("scope", {"enum": ["own", "all"]}, "all needs manage_users, and is the default with it"),),
        codes=("audit_unavailable", "insufficient_permissions"),
    ),
    ("GET", "/metrics"): Described("Prometheus metrics of the whole server", media="text/plain", codes=("not_found",)),
    ("GET", "/healthz"): Described("Is the server alive?", answers.Health),
    ("GET", "/readyz"): Described("Can a model answer?", answers.Health, unready=answers.Health),
    ("GET", "/"): Described("Say what this is", media="text/html"),
    ("GET", "/openapi.json"): Described("This description", dict[str, Any]),
    ("GET", "/docs"): Described("This description as a page", media="text/html"),
}
