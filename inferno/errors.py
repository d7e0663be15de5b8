"""The exception tree, and the table of every error code that a client can see.

    InfernoError
    ├── ApiError              what a client is told: code → status and type by CODES; message, param, headers
    ├── ConfigError           an unusable setting; exit 78 (EX_CONFIG)
    ├── StartError            the start is refused for another reason (address taken, file unreadable); exit 1
    ├── ProtocolError         a message from another process that is too large, malformed or out of order
    └── EngineError           an engine process failed; translated to ApiError at the front's edge

Foreign exceptions are translated where they enter. Messages say what was expected and what came; never a prompt,
a secret, a path or a stack.
"""

from __future__ import annotations

from typing import Any, NamedTuple

EX_CONFIG = 78


class ErrorCode(NamedTuple):
    """HTTP status and OpenAI error type of one code, and the sentence that the documentation prints for it."""

    status: int
    type: str
    meaning: str


_REQUEST = "invalid_request_error"
CODES: dict[str, ErrorCode] = {
    # The caller's fault
    "invalid_json": ErrorCode(400, _REQUEST, "The body is not one strict JSON document."),
    "invalid_request": ErrorCode(400, _REQUEST, "The HTTP request itself is malformed or ambiguous."),
    "invalid_value": ErrorCode(400, _REQUEST, "A field has a value outside of its type or range."),
    "missing_required_parameter": ErrorCode(400, _REQUEST, "A required field is absent."),
    "unknown_parameter": ErrorCode(400, _REQUEST, "A field that this server does not know."),
    "unsupported_parameter": ErrorCode(400, _REQUEST, "A field or value that this server does not support."),
    "context_length_exceeded": ErrorCode(
        400, _REQUEST, "Prompt and requested tokens do not fit the context."
    ),
    "invalid_json_schema": ErrorCode(400, _REQUEST, "A response_format schema that cannot be used."),
    "invalid_text": ErrorCode(400, _REQUEST, "A string holds NUL or a lone surrogate."),
    "input_too_long": ErrorCode(400, _REQUEST, "A string is longer than max_input_length."),
    "input_blocked": ErrorCode(400, _REQUEST, "The text guard refused the input."),
    "invalid_host": ErrorCode(400, _REQUEST, "The Host header names no host of this server."),
    "ambiguous_credentials": ErrorCode(400, _REQUEST, "More than one credential, or one in the URL."),
    "tokens_exceed_limit": ErrorCode(400, _REQUEST, "Prompt and max_tokens exceed the token limit's size."),
    "weak_password": ErrorCode(400, _REQUEST, "A new password that the password rules refuse."),
    "template_failed": ErrorCode(
        400, _REQUEST, "The model's chat template refused or failed on the messages."
    ),
    "invalid_api_key": ErrorCode(401, _REQUEST, "No valid credential was sent."),
    "insufficient_permissions": ErrorCode(403, "permission_error", "The caller lacks the permission."),
    "model_not_allowed": ErrorCode(403, "permission_error", "The key may not use this model."),
    "not_found": ErrorCode(404, _REQUEST, "Nothing is here."),
    "model_not_found": ErrorCode(404, _REQUEST, "No such model."),
    "method_not_allowed": ErrorCode(405, _REQUEST, "The path exists, the method does not."),
    "request_timeout": ErrorCode(408, _REQUEST, "The request did not arrive in time."),
    "conflict": ErrorCode(409, _REQUEST, "The object exists already or is protected."),
    "request_too_large": ErrorCode(413, _REQUEST, "The body is larger than max_body_bytes."),
    "uri_too_long": ErrorCode(414, _REQUEST, "The URL is longer than 8 KiB."),
    "unsupported_media_type": ErrorCode(415, _REQUEST, "Only application/json, not compressed, is read."),
    "headers_too_large": ErrorCode(431, _REQUEST, "Headers exceed 16 KiB or 100 lines."),
    # Over a limit
    "rate_limit_exceeded": ErrorCode(
        429, "rate_limit_error", "A rate or concurrency limit; wait Retry-After."
    ),
    "insufficient_quota": ErrorCode(429, "insufficient_quota", "A limit that waiting does not help."),
    # Overloaded, engine failed, our bug
    "internal_error": ErrorCode(500, "server_error", "A fault of ours; the request id finds it in the log."),
    "redaction_failed": ErrorCode(500, "server_error", "The output guard failed; nothing more is sent."),
    "overloaded": ErrorCode(503, "server_error", "The server's queue is full; retry later."),
    "engine_restarting": ErrorCode(503, "server_error", "The model's engine is being replaced."),
    "engine_failed": ErrorCode(503, "server_error", "The engine failed while it worked on this request."),
    "model_loading": ErrorCode(503, "server_error", "The model is being loaded."),
    "no_model": ErrorCode(503, "server_error", "No model is configured."),
    "shutting_down": ErrorCode(503, "server_error", "The server is stopping."),
    "deadline_exceeded": ErrorCode(503, "server_error", "request_timeout_seconds passed."),
    "audit_unavailable": ErrorCode(503, "server_error", "The audit log cannot be written."),
    "store_unavailable": ErrorCode(503, "server_error", "The database or limit store cannot be reached."),
}


class InfernoError(Exception):
    """Base of all of our errors."""


class ApiError(InfernoError):
    """An error that a client sees. `code` is a key of CODES and decides status and type.

    `retry_after` is in seconds (429 and 503). `headers` are extra response headers as (name, value) text pairs.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        entry = CODES[code]
        super().__init__(message)
        self.code = code
        self.status = entry.status
        self.type = entry.type
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """Return the one envelope that every error has."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class ConfigError(InfernoError):
    """A setting that stops the start: says the file and line or the variable, what was expected, a near name."""

    exit_code = EX_CONFIG


class StartError(InfernoError):
    """The start is refused for a reason that is not a setting."""

    exit_code = 1


class ProtocolError(InfernoError):
    """A peer process sent something that the protocol does not allow; the connection is closed."""


class EngineError(InfernoError):
    """An engine could not do its work. `code` is a key of CODES; `retry_after` is in seconds."""

    def __init__(
        self, code: str, message: str, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.code = code if code in CODES else "engine_failed"
        self.message = message
        self.param = param
        self.retry_after = retry_after
