"""Logs: both forms, fields, request ids; no secret and no forged line, whatever is logged."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from inferno import telemetry
from inferno.config import Settings, Telemetry
from inferno.secrets import Secret

log = logging.getLogger("inferno.test")


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Log something in a form and return what came out; the process's own logging is put back."""
    root, before = logging.getLogger(), (list(logging.getLogger().handlers), logging.getLogger().level)
    monkeypatch.setattr(telemetry, "_protected", [])

    def call(log_format: str, message: str, *arguments: Any, level: int = logging.INFO, **fields: Any) -> str:
        stream = io.StringIO()
        telemetry.setup(replace(Settings(), telemetry=Telemetry(log_format=log_format)), stream=stream)  # type: ignore[arg-type]
        log.log(level, message, *arguments, extra={"fields": fields})
        return stream.getvalue()

    yield call
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    logging.captureWarnings(False)
    logging.raiseExceptions = True
    logging.getLogger("inferno").setLevel(logging.NOTSET)


def test_json_lines_have_time_level_logger_message_and_fields(write: Callable[..., str]) -> None:
    line = json.loads(write("json", "model %s loaded", "tiny", slots=4, names=["a"]))
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "inferno.test",
        "message": "model tiny loaded",
        "slots": 4,
        "names": ["a"],
    }


def test_text_lines_are_for_people(write: Callable[..., str]) -> None:
    assert write("text", "ready", pid=7).endswith("info    test: ready pid=7\n")


def test_auto_is_text_on_a_terminal_only() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert telemetry.is_text("auto", Terminal())
    assert not telemetry.is_text("auto", io.StringIO())
    assert telemetry.is_text("text", io.StringIO())
    assert not telemetry.is_text("json", Terminal())


def test_request_ids_come_from_the_context(write: Callable[..., str]) -> None:
    token = telemetry.request_id.set("req_1")
    try:
        assert json.loads(write("json", "x"))["request_id"] == "req_1"
    finally:
        telemetry.request_id.reset(token)


def test_level_is_followed_and_libraries_are_quiet(write: Callable[..., str]) -> None:
    assert write("json", "x", level=logging.DEBUG) == ""
    stream = io.StringIO()
    telemetry.setup(level="debug", stream=stream)
    logging.getLogger("library").info("never")
    log.debug("seen")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["seen"]


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_protected_values_never_leave(write: Callable[..., str], log_format: str) -> None:
    telemetry.protect(["canary-secret-value", b"canary-bytes-value"])
    for text in (
        write(log_format, "it is %s", "canary-secret-value"),
        write(log_format, "it is canary-bytes-value"),
        write(
            log_format,
            "x",
            field="a canary-secret-value b",
            nested={"canary-secret-value": ["canary-bytes-value"]},
        ),
        write(
            log_format,
            "%s %r",
            Secret("canary-other-value"),
            [Secret("canary-other-value")],
            field=Secret("canary-other-value"),
        ),
    ):
        assert text
        assert "canary" not in text


@pytest.mark.parametrize(
    "text",
    [
        "inf_abcdefgh12_0123456789abcdefABCDEF0123456789abcdefghijkl",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhZG1pbiJ9.c2lnbmF0dXJlLXNpZ25hdHVyZQ",
        "postgresql://user:hunter2pass@db/name",
    ],
)
def test_credentials_by_form_never_leave(write: Callable[..., str], text: str) -> None:
    shown = write("json", "got %s", text)
    assert text not in shown
    assert "hunter2pass" not in shown


def test_exceptions_are_logged_whole_and_clean(write: Callable[..., str]) -> None:
    telemetry.protect(["canary-secret-value"])
    stream = io.StringIO()
    telemetry.setup(stream=stream)
    try:
        raise ValueError("canary-secret-value")
    except ValueError:
        log.exception("failed")
    line = json.loads(stream.getvalue())
    assert "ValueError" in line["exception"]
    assert "canary" not in stream.getvalue()


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=80))
def test_nobody_forges_a_line(text: str) -> None:
    for formatter in (telemetry.JsonFormatter(), telemetry.TextFormatter()):
        record = logging.LogRecord("inferno.test", logging.INFO, "", 0, "%s", (text,), None)
        record.fields = {"field": text}
        line = formatter.format(record)
        assert len(line.splitlines()) == 1
        assert "\x1b" not in line
