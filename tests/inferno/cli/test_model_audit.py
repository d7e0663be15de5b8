"""What `inferno models` leaves in the audit log, with and without a running server."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from inferno.cli import model_audit
from inferno.cli.models import models
from inferno.datadir import DataDir, DataLock
from inferno.errors import ApiError
from inferno.pool.control import ControlServer
from inferno.pool.verbs import Caller, Verbs
from tests.conftest import DATA


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    subprocess.run([sys.executable, str(DATA / "gguf_corpus" / "make_corpus.py"), str(folder)], check=True,
                   capture_output=True)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    made = DataDir(tmp_path / "data")
    made.make()
    made.make_keys()
    (made.root / "config.toml").write_text(f'[storage]\ndata_dir = "{made.root}"\n')
    return made


def run(data: DataDir, *arguments: object) -> Result:
    return CliRunner().invoke(models, [*map(str, arguments), "--config", str(data.root / "config.toml")])


def records(data: DataDir) -> list[tuple[str, str, str, str]]:
    path = data.root / "audit" / "audit.jsonl"
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["event"], line["target"], line["result"], line["reason"]) for line in lines]


def test_offline_the_command_writes_the_log_itself(corpus: Path, data: DataDir) -> None:
    added = run(data, "add", corpus / "trailing_4096.gguf", "--allow", "trailing-data", "--name", "odd", "--json")
    assert added.exit_code == 0, added.output
    digest = json.loads(added.stdout)["sha256"][0]
    assert run(data, "add", corpus / "block_count_0.gguf").exit_code == 1
    assert records(data) == [
        ("model.verified", "odd", "success", digest),
        ("model.waived", "odd", "success", "trailing-data"),
        ("model.refused", "block_count_0", "failure", "block-count-invalid"),
    ]


def test_without_an_audit_log_the_commands_work(corpus: Path, tmp_path: Path) -> None:
    bare = DataDir(tmp_path / "bare")
    bare.root.mkdir()
    (bare.root / "config.toml").write_text(f'[storage]\ndata_dir = "{bare.root}"\n')
    assert run(bare, "add", corpus / "tiny_llama_q8.gguf").exit_code == 0
    assert records(bare) == []


def test_a_log_that_cannot_be_written_stops_the_change(corpus: Path, data: DataDir) -> None:
    with DataLock(data):
        refused = run(data, "add", corpus / "tiny_llama_q8.gguf", "--name", "m")
    assert refused.exit_code == 1
    assert "another process" in refused.output
    assert json.loads(run(data, "list", "--json").stdout) == []


class Sink:
    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.is_full = False

    def start(self) -> None: ...

    async def append(self, records: list[dict[str, Any]], *, durable: bool) -> None:
        if self.is_full:
            raise ApiError("audit_unavailable", "The audit log cannot be written.")
        self.records += records

    def note(self, fields: dict[str, Any]) -> None: ...

    async def close(self) -> None: ...


@pytest.fixture
def live(data: DataDir) -> Iterator[Sink]:
    sink = Sink()
    verbs = Verbs()
    model_audit.register(verbs, sink)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def opened() -> ControlServer:
        server = ControlServer(data.control_socket, verbs)
        server.open()
        return server

    async def closed() -> None:
        server.close()

    server = asyncio.run_coroutine_threadsafe(opened(), loop).result(60)
    yield sink
    asyncio.run_coroutine_threadsafe(closed(), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_beside_a_server_the_record_goes_through_it(corpus: Path, data: DataDir, live: Sink) -> None:
    assert run(data, "add", corpus / "tiny_llama_q8.gguf", "--name", "m").exit_code == 0
    assert [(fields["event"], fields["target"], fields["actor_type"]) for fields in live.records] == [
        ("model.verified", "m", "command")]
    assert records(data) == []  # the supervisor is the one writer
    live.is_full = True
    assert run(data, "add", corpus / "tiny_llama_f16.gguf", "--name", "n").exit_code == 1
    assert [row["name"] for row in json.loads(run(data, "list", "--json").stdout)] == ["m"]


@pytest.mark.parametrize("arguments", [
    {}, {"notes": []}, {"notes": [{"event": "auth.login", "target": "x"}]},
    {"notes": [{"event": "model.verified", "target": "x" * 257}]}, {"notes": [{"event": "model.verified"}]},
    {"notes": [{"event": "model.verified", "target": "x", "actor": "admin"}]},
])
def test_the_verb_takes_model_notes_only(arguments: dict[str, Any]) -> None:
    sink = Sink()
    verbs = Verbs()
    model_audit.register(verbs, sink)
    with pytest.raises(ApiError) as caught:
        asyncio.run(verbs.call(model_audit.VERB, arguments, Caller(kind="command", uid=7)))
    assert caught.value.code == "invalid_value"
    good = {"notes": [{"event": "model.verified", "target": "x"}]}
    with pytest.raises(ApiError, match="Unknown verb"):
        asyncio.run(verbs.call(model_audit.VERB, good, Caller(kind="worker")))
    assert sink.records == []
    asyncio.run(verbs.call(model_audit.VERB, good, Caller(kind="command", uid=7)))
    assert sink.records[0]["actor"] == "uid:7"
