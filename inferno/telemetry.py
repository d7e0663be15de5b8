"""Structured logs for every process of ours: text on a terminal, JSON elsewhere, one line a record, no secrets.

Loggers are the standard library's (`logging.getLogger("inferno.<part>")`); fields go into `extra={"fields": {...}}`.
Values that were given to `protect` never leave in a line, whatever put them there; control characters are escaped,
so nobody can forge a line. `request_id` is taken from the context. Knows nothing of who logs what.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Iterable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

from .config import Settings

MAX_LINE = 8192  # characters of one message
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

_protected: list[str] = []
_PATTERNS = re.compile(
    r"inf_[A-Za-z0-9]{4,}_[A-Za-z0-9]{16,}"  # our API keys
    r"|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"  # JSON web tokens
    r"|(?<=://)[^/@\s:]*:[^/@\s]+(?=@)"  # user and password of a URL
)
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_COLOURS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m"}


def protect(values: Iterable[str | bytes]) -> None:
    """Remember secret values that no log line may show."""
    for value in values:
        text = value.decode("latin-1") if isinstance(value, bytes) else value
        if len(text) >= 6 and text not in _protected:
            _protected.append(text)


def clean(text: str) -> str:
    """Return `text` with secrets taken out and control characters escaped."""
    for value in _protected:
        if value in text:
            text = text.replace(value, "[secret]")
    text = _PATTERNS.sub("[secret]", text)
    if len(text) > MAX_LINE:
        text = text[:MAX_LINE] + "…"
    return _CONTROLS.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def clean_lines(text: str) -> str:
    """Return a text of our own making, cleaned line by line."""
    return "\n".join(clean(line) for line in text.split("\n"))


class _Formatter(logging.Formatter):
    """What both forms share: the message, the fields and the exception as clean text."""

    def parts(self, record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
        fields: dict[str, Any] = {}
        identifier = request_id.get()
        if identifier is not None:
            fields["request_id"] = identifier
        given = getattr(record, "fields", None)
        if isinstance(given, dict):
            fields.update(given)
        if record.exc_info is not None:
            fields["exception"] = self.formatException(record.exc_info)
        return clean(record.getMessage()), {name: _plain(value) for name, value in fields.items()}


class JsonFormatter(_Formatter):
    """One JSON object a line: time (UTC, RFC 3339), level, logger, message, fields."""

    def format(self, record: logging.LogRecord) -> str:
        message, fields = self.parts(record)
        moment = (
            datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z")
        )
        line = {
            "time": moment,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
            **fields,
        }
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(_Formatter):
    """A line for people: time, level, part, message, name=value."""

    def __init__(self, *, is_coloured: bool = False) -> None:
        super().__init__()
        self._is_coloured = is_coloured

    def format(self, record: logging.LogRecord) -> str:
        message, fields = self.parts(record)
        exception = fields.pop("exception", None)
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        level = record.levelname.lower()
        if self._is_coloured and record.levelname in _COLOURS:
            level = f"{_COLOURS[record.levelname]}{level}\x1b[0m"
        line = f"{clock} {level:<7} {record.name.removeprefix('inferno.')}: {message}"
        for name, value in fields.items():
            line += f" {name}={value}"
        if exception is not None:
            line += "\n  " + exception.replace("\\u000a", "\n  ")
        return line


def _plain(value: Any) -> Any:
    """Return a field's value as something that JSON writes and that holds no secret."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, dict):
        return {clean(str(name)): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return clean(str(value))


def is_text(log_format: str, stream: TextIO) -> bool:
    """Say whether lines on `stream` are for people."""
    if log_format != "auto":
        return log_format == "text"
    try:
        return stream.isatty()
    except ValueError:
        return False


def setup(
    settings: Settings | None = None, *, level: str | None = None, stream: TextIO | None = None
) -> None:
    """Send all logs of this process to `stream` (stderr) in the configured form; replaces an earlier setup."""
    stream = sys.stderr if stream is None else stream
    log_format = "auto" if settings is None else settings.telemetry.log_format
    level = level or ("info" if settings is None else settings.telemetry.log_level)
    handler = logging.StreamHandler(stream)
    if is_text(log_format, stream):
        handler.setFormatter(TextFormatter(is_coloured=stream.isatty()))
    else:
        handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)  # of libraries, whose debug lines may show what they were given
    logging.getLogger("inferno").setLevel(level.upper())
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a sink that is gone or full stops no work
