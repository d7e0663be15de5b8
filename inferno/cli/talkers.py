"""Where `chat` and `run` get answers: a running server over HTTP, or an engine process of this command's own.

A talker streams the deltas of one answer; closing the stream stops the answer. The HTTP side is the standard library's
client: one request, one event stream. The engine side is the same process and protocol that the server uses.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import queue
import secrets
import ssl
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import click
from msgspec.structs import replace

from .. import config as configuration
from ..config import Settings
from ..datadir import DataDir, read_private, write_new
from ..errors import ApiError, ConfigError, EngineError, InfernoError, StartError
from ..messages import PROTOCOL_VERSION, ChatPrompt, EngineSettings, ModelVerified, Sampling, Start
from ..modelfile import Stamp
from ..pool import control
from ..pool.client import EngineCall, EngineClient
from ..pool.engine_process import EngineProcess
from ..pool.process import Timing
from ..pool.worker_process import WorkerProcess

_PROBE_SECONDS = 2.0
_ANSWER_SECONDS = 600.0
Messages = list[dict[str, str]]


class Talker(Protocol):
    """One source of answers."""

    @property
    def description(self) -> str: ...
    def stream(self, messages: Messages, options: dict[str, Any]) -> Generator[str, None, None]: ...


@contextlib.contextmanager
def open_talker(config: str | None, url: str | None, model: str | None) -> Iterator[Talker]:
    """Give the talker for a command: --url, the running server of this configuration, or an engine of our own."""
    settings = configuration.load(config=config, is_open_allowed=True).settings
    is_file = model is not None and os.path.isfile(model)
    address = url or (None if is_file else running_server(settings))
    if address is not None:
        yield ServerTalker(address, model, api_key(settings), _tls_context(settings))
        return
    with _own_engine(settings, model) as talker:
        yield talker


# ---------------------------------------------------------------- a running server


def running_server(settings: Settings) -> str | None:
    """Return the address of the server that runs on this configuration, or None."""
    with contextlib.suppress(InfernoError, OSError):
        status = control.ask(DataDir(settings.storage.data_dir).control_socket, "status", timeout_seconds=5)
        return _reachable(str(status["address"]))
    server = settings.server
    host = f"[{server.host}]" if ":" in server.host else server.host
    address = _reachable(f"{'https' if server.tls_enabled else 'http'}://{host}:{server.port}")
    parts = urlsplit(address)
    connection = _connect(address, _tls_context(settings), _PROBE_SECONDS)
    try:
        connection.request("GET", "/healthz", headers={"Host": parts.netloc})
        if connection.getresponse().read(100) == b'{"status":"ok"}':
            return address
    except (OSError, http.client.HTTPException, ssl.SSLError):
        pass
    finally:
        connection.close()
    return None


def api_key(settings: Settings) -> str | None:
    """Return the key to send: of INFERNO_API_KEY, else of <data>/cli.key, else none.

    Where authentication is on and the running server is ours (its control socket lets us in, as it does
    `inferno keys create`), a missing cli.key is made. It is audited as any other.
    """
    given = os.environ.get("INFERNO_API_KEY")
    if given:
        return given
    data = DataDir(settings.storage.data_dir)
    if not data.cli_key.exists() and settings.security.auth_enabled and settings.security.api_key_enabled:
        with contextlib.suppress(InfernoError, OSError):
            arguments = {"user": "admin", "name": "cli", "replace": True}
            made = control.ask(data.control_socket, "keys.create", arguments, timeout_seconds=10)
            write_new(data.cli_key, made["key"] + "\n")
            click.echo(f"made a key for this command: {data.cli_key}", err=True)
    return read_private(data.cli_key).strip() if data.cli_key.exists() else None


def _reachable(address: str) -> str:
    """A server that listens everywhere is reached on loopback."""
    return address.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")


def _tls_context(settings: Settings) -> ssl.SSLContext:
    context = ssl.create_default_context()
    certificate = settings.server.tls_cert_path
    if certificate is not None and os.path.exists(certificate):
        context.load_verify_locations(certificate)  # the server's own, for self-signed ones
    return context


def _connect(address: str, context: ssl.SSLContext, timeout_seconds: float) -> http.client.HTTPConnection:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or parts.hostname is None:
        raise ConfigError("--url: expected an address such as http://127.0.0.1:8080")
    if parts.scheme == "https":
        return http.client.HTTPSConnection(
            parts.hostname, parts.port, timeout=timeout_seconds, context=context
        )
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=timeout_seconds)


class ServerTalker:
    """Answers of a server through POST /v1/chat/completions."""

    def __init__(self, address: str, model: str | None, key: str | None, context: ssl.SSLContext) -> None:
        self._address = address
        self._model = model
        self._key = key
        self._context = context

    @property
    def description(self) -> str:
        return f"{self._model or 'the default model'} on {self._address}"

    def stream(self, messages: Messages, options: dict[str, Any]) -> Generator[str, None, None]:
        """Yield an answer's deltas. Raises ApiError (what the server refused) or StartError (it is not reached)."""
        body = {"messages": messages, "stream": True, **options}
        if self._model is not None:
            body["model"] = self._model
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        connection = _connect(self._address, self._context, _ANSWER_SECONDS)
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
            response = connection.getresponse()
            if response.status != 200:
                raise _refusal(response.status, response.read(1 << 16), has_key=self._key is not None)
            yield from _deltas(response)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise StartError(f"the server at {self._address} cannot be reached: {error}") from None
        finally:
            connection.close()


def _deltas(response: http.client.HTTPResponse) -> Iterator[str]:
    """Yield the content deltas of an event stream; an error event raises ApiError."""
    while line := response.readline(1 << 22):
        text = line.strip()
        if not text.startswith(b"data:"):
            continue
        data = text[5:].strip()
        if data == b"[DONE]":
            return
        event = json.loads(data)
        if "error" in event:
            raise _refusal(500, data, has_key=True)
        for choice in event.get("choices", []):
            content = choice.get("delta", {}).get("content")
            if content:
                yield content


def _refusal(status: int, body: bytes, *, has_key: bool) -> InfernoError:
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"the server answered {status}"
    if status == 401:
        message += (
            " The key of INFERNO_API_KEY or <data>/cli.key is not valid here (any more); remove that file for a new one."
            if has_key
            else " Set INFERNO_API_KEY to a key (inferno keys create)."
        )
    return InfernoError(message)


# ---------------------------------------------------------------- an engine of our own


@contextlib.contextmanager
def _own_engine(settings: Settings, model: str | None) -> Iterator[Talker]:
    engine = LocalTalker(_own_settings(settings, model))
    try:
        engine.open()
        yield engine
    finally:
        engine.close()


def _own_settings(settings: Settings, model: str | None) -> EngineSettings:
    """Return what the engine is told: a file as it is, or a model of the catalog; one slot either way."""
    from .served import ServedModels

    served = ServedModels(settings)
    if model is not None and os.path.isfile(model):
        path = os.path.realpath(model)
        engine = settings.engine
        return EngineSettings(
            version=PROTOCOL_VERSION, name=Path(path).stem, paths=[os.path.realpath(path)], slots=1,
            sandbox=settings.security.sandbox, threads=engine.threads, gpu_layers=engine.gpu_layers,
            context_size=engine.context_size, log_level="warning",
        )  # fmt: skip
    names = served.at_start() if model is None else [model]
    if not names:
        raise StartError("no server runs here, and there is no model to load: name one, or a GGUF file")
    return replace(served.engine_settings(names[0]), slots=1, log_level="warning")


class LocalTalker:
    """Answers of an engine process that lives as long as this object. Its event loop runs in a thread of its own, so
    that Ctrl-C reaches the command at once."""

    def __init__(self, settings: EngineSettings, *, program: str = "inferno.engine.main") -> None:
        self._settings = settings
        self._program = program
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
        self._engine: EngineProcess | None = None
        self._client: EngineClient | None = None
        self._principal = secrets.token_bytes(16)

    @property
    def description(self) -> str:
        return f"{self._settings.name}, loaded for this command alone"

    def open(self) -> None:
        """Load the model. Raises StartError with the engine's refusal."""
        self._thread.start()
        self._wait(self._load())

    def close(self) -> None:
        """End the engine and the thread."""
        if not self._thread.is_alive():
            return
        self._wait(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def stream(self, messages: Messages, options: dict[str, Any]) -> Generator[str, None, None]:
        """Yield an answer's deltas. Raises ApiError."""
        deltas: queue.Queue[str | BaseException | None] = queue.Queue()
        answer = asyncio.run_coroutine_threadsafe(self._answer(messages, options, deltas), self._loop)
        try:
            while (delta := deltas.get()) is not None:
                if isinstance(delta, BaseException):
                    raise delta
                yield delta
        finally:
            answer.cancel()

    def _wait(self, coroutine: Any) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result()

    async def _load(self) -> None:
        host = _Host()
        self._engine = EngineProcess(
            self._settings, host, program=self._program, timing=Timing(max_failed_loads=1)
        )
        self._engine.start()
        await self._engine.settled.wait()
        if self._engine.info is None:
            raise StartError(f"{self._settings.name}: {self._engine.detail}")
        ours = self._engine.connect(0)
        if ours is None:
            raise StartError(f"{self._settings.name}: the engine ended")
        self._client = EngineClient(ours, self._engine.info, on_close=lambda _client: None)
        self._client.start()

    async def _end(self) -> None:
        if self._client is not None:
            self._client.close()
        if self._engine is not None:
            await self._engine.stop(1.0)

    async def _answer(
        self, messages: Messages, options: dict[str, Any], deltas: queue.Queue[str | BaseException | None]
    ) -> None:
        if self._client is None:
            deltas.put(StartError("the engine ended"))
            return
        call = self._client.open()
        try:
            await self._generate(call, messages, options, deltas)
            deltas.put(None)
        except (EngineError, ApiError) as error:
            deltas.put(InfernoError(error.message))
        finally:
            call.close()

    async def _generate(
        self, call: EngineCall, messages: Messages, options: dict[str, Any], deltas: queue.Queue[Any]
    ) -> None:
        prepared = await call.prepare(self._principal, ChatPrompt(messages=list(messages)))
        start = Start(
            request=prepared.request,
            sampling=Sampling(temperature=options.get("temperature", 1.0)),
            max_tokens=min(options.get("max_tokens", prepared.context_left), prepared.context_left),
            seed=options.get("seed"),
            timeout_seconds=_ANSWER_SECONDS,
        )
        call.start(start)
        while True:
            for event in await call.events():
                if event.text:
                    deltas.put(event.text)
                if event.finish is not None:
                    return


class _Host:
    """The supervisor's part for one engine without workers: nobody to tell."""

    def workers(self) -> list[WorkerProcess]:
        return []

    def engine_changed(self, engine: EngineProcess) -> None:
        pass

    def engine_loaded(self, settings: EngineSettings, calibration: dict[str, Any]) -> None:
        pass

    def model_verified(self, settings: EngineSettings, stamps: list[Stamp], message: ModelVerified) -> dict[str, str]:
        return {}

    def event(self, event: str, *, target: str = "", result: str = "success", reason: str = "") -> None:
        pass
