"""`inferno chat` and `run`: over a running server, over an engine of their own; Ctrl-C; what a terminal is shown."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from inferno.cli import chat as commands
from inferno.cli import cli, talkers
from inferno.cli.talkers import LocalTalker, ServerTalker, open_talker
from inferno.errors import InfernoError, StartError
from inferno.messages import PROTOCOL_VERSION, EngineSettings

ECHO = str(Path(__file__).parent / "echo_engine.py")


class Handler(BaseHTTPRequestHandler):
    """A server that answers with the last message's words, one event each."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"status":"ok"}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server: Any = self.server
        server.seen.append((self.path, self.headers.get("Authorization"), body))
        last = body["messages"][-1]["content"]
        if last.startswith("!refuse"):
            content = json.dumps(
                {"error": {"message": "No valid credential.", "code": "invalid_api_key"}}
            ).encode()
            self.send_response(401)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self._event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        self.wfile.write(b": heartbeat\n\n")
        for word in last.split(" "):
            self._event({"choices": [{"index": 0, "delta": {"content": word + " "}}]})
        if last.startswith("!late"):
            self._event({"error": {"message": "The engine stopped.", "code": "engine_failed"}})
        self._event({"choices": [], "usage": {}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, content: object) -> None:
        self.wfile.write(b"data: " + json.dumps(content).encode() + b"\n\n")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("INFERNO_API_KEY", raising=False)
    started: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    started.seen = []
    started.url = f"http://127.0.0.1:{started.server_port}"
    thread = threading.Thread(target=started.serve_forever)
    thread.start()
    yield started
    started.shutdown()
    thread.join()
    started.server_close()


def test_run_prints_the_streamed_answer(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERNO_API_KEY", "inf_key")
    arguments = [
        "run",
        "tiny",
        "héllo you",
        "--url",
        server.url,
        "--system",
        "Be brief.",
        "--max-tokens",
        "5",
        "--temperature",
        "0",
    ]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert result.output == "héllo you \n"
    path, key, body = server.seen[0]
    assert path == "/v1/chat/completions"
    assert key == "Bearer inf_key"
    assert body["model"] == "tiny"
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "héllo you"},
    ]
    assert (body["stream"], body["max_tokens"], body["temperature"]) == (True, 5, 0)


def test_run_reads_standard_input_and_the_key_file(server: Any, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(f"[server]\nport = {server.server_port}\n")
    (tmp_path / "cli.key").write_text("inf_of_file\n")
    (tmp_path / "cli.key").chmod(0o600)
    result = CliRunner().invoke(cli, ["run", "tiny", "-"], input="from a pipe", catch_exceptions=False)
    assert result.output == "from a pipe \n"
    assert server.seen[0][1] == "Bearer inf_of_file"


def test_chat_keeps_the_conversation_and_obeys_its_words(server: Any) -> None:
    lines = "one\ntwo\n/clear\nthree\n/exit\nfour\n"
    result = CliRunner().invoke(cli, ["chat", "--url", server.url], input=lines, catch_exceptions=False)
    assert result.exit_code == 0
    sent = [[message["content"] for message in body["messages"]] for _, _, body in server.seen]
    assert sent == [["one"], ["one", "one ", "two"], ["three"]]
    assert "model" not in server.seen[0][2]


def test_refusals_and_late_errors_are_told(server: Any) -> None:
    with pytest.raises(InfernoError, match=r"No valid credential\. Set INFERNO_API_KEY"):
        CliRunner().invoke(cli, ["run", "tiny", "!refuse", "--url", server.url], catch_exceptions=False)
    with pytest.raises(InfernoError, match="The engine stopped"):
        CliRunner().invoke(cli, ["run", "tiny", "!late word", "--url", server.url], catch_exceptions=False)


def test_a_server_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StartError, match="cannot be reached"):
        CliRunner().invoke(cli, ["run", "tiny", "x", "--url", "http://127.0.0.1:9"], catch_exceptions=False)


def test_a_models_words_steer_no_terminal() -> None:
    assert commands.printable("a\x1b[31mb\x07\r\n\tc\x9bd\x7f") == "a[31mb\n\tcd"


class Interrupting:
    """A talker whose answer is interrupted after two words."""

    description = "a test"

    def __init__(self) -> None:
        self.is_closed = False

    def stream(self, messages: Any, options: Any) -> Generator[str, None, None]:
        try:
            yield "one "
            yield "two"
            raise KeyboardInterrupt
        finally:
            self.is_closed = True


def test_ctrl_c_stops_the_answer_and_run_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    talker = Interrupting()
    answer, is_whole = commands._print_answer(talker, [], {})
    assert (answer, is_whole, talker.is_closed) == ("one two", False, True)


def test_ctrl_c_twice_ends_the_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = [KeyboardInterrupt, "hello", KeyboardInterrupt, KeyboardInterrupt, "never"]

    def typed(_prompt: str) -> str:
        event = events.pop(0)
        if event is KeyboardInterrupt:
            raise KeyboardInterrupt
        return str(event)

    monkeypatch.setattr("builtins.input", typed)
    assert list(commands._lines()) == ["hello"]
    assert events == ["never"]


# ---------------------------------------------------------------- an engine of our own


def local(path: Path) -> LocalTalker:
    return LocalTalker(EngineSettings(version=PROTOCOL_VERSION, name="echo", paths=[str(path)]), program=ECHO)


def test_an_engine_of_its_own_answers_and_ends(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    talker = local(tmp_path / "m.gguf")
    talker.open()
    try:
        assert talker._engine is not None
        pid = talker._engine.pid
        text = "".join(talker.stream([{"role": "user", "content": "say this"}], {"max_tokens": 100}))
        assert text == "say this"
        short = "".join(talker.stream([{"role": "user", "content": "say this"}], {"max_tokens": 3}))
        assert short == "say"
        slow = talker.stream([{"role": "user", "content": "!slow and long enough to be stopped"}], {})
        assert next(slow)
        slow.close()
        with pytest.raises(InfernoError):
            list(talker.stream([{"role": "user", "content": "!fail template_failed"}], {}))
        assert "".join(talker.stream([{"role": "user", "content": "still here"}], {})) == "still here"
    finally:
        talker.close()
    assert not Path(f"/proc/{pid}").exists()


def test_a_refused_file_is_told_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"<html>")
    talker = local(tmp_path / "m.gguf")
    with pytest.raises(StartError, match="echo: bad-magic: not a GGUF file"):
        talker.open()
    talker.close()


def test_where_no_server_runs_a_model_must_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(talkers, "running_server", lambda _settings: None)
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(StartError, match="there is no model to load"), open_talker(None, None, None):
        pass


def test_no_server_is_found_where_none_runs(tmp_path: Path) -> None:
    from inferno import config

    environ = {"INFERNO_STORAGE_DATA_DIR": str(tmp_path), "INFERNO_SERVER_PORT": "9"}
    assert talkers.running_server(config.load(environ=environ, folder=tmp_path).settings) is None


def test_server_talker_describes_itself() -> None:
    import ssl

    assert (
        ServerTalker("http://h:1", None, None, ssl.create_default_context()).description
        == "the default model on http://h:1"
    )
