"""The supervisor over real child processes that keep the protocol (fake_worker, fake_engine)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from msgspec.structs import replace

from inferno import config, features
from inferno.datadir import DataDir, DataLock
from inferno.errors import ApiError, StartError
from inferno.messages import EngineSettings, ModelVerified
from inferno.modelfile import Stamp
from inferno.pool import control
from inferno.pool.process import Timing
from inferno.pool.supervisor import Programs, Supervisor
from inferno.pool.verbs import Caller, Verbs

HERE = Path(__file__).parent
PROGRAMS = Programs(worker=str(HERE / "fake_worker.py"), engine=str(HERE / "fake_engine.py"))
TIMING = Timing(
    ping_interval=0.05, max_unanswered=600, max_unanswered_loading=1200, backoff_first=0.05, stop_grace=1.0
)
IMPATIENT = replace(TIMING, max_unanswered=20)  # for children that are to be found silent
WAIT = 90
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class FakeModels:
    folder = "/models"

    def __init__(self, *names: str, at_start: tuple[str, ...] | None = None) -> None:
        self.verdicts: list[tuple[str, list[Stamp], list[str]]] = []
        self._names = list(names)
        self.calibrations: dict[str, dict[str, Any]] = {}
        self._at_start = list(names) if at_start is None else list(at_start)

    def names(self) -> list[str]:
        return self._names

    def at_start(self) -> list[str]:
        return self._at_start

    def engine_settings(self, name: str) -> EngineSettings:
        if name not in self._names:
            raise ApiError("model_not_found", "No such model.")
        return EngineSettings(version=1, name=name, paths=[f"{self.folder}/{name}.gguf"])

    def loaded(self, settings: EngineSettings, calibration: dict[str, Any]) -> None:
        self.calibrations = {settings.name: calibration}

    def verified(self, settings: EngineSettings, stamps: list[Stamp], message: ModelVerified) -> dict[str, str]:
        self.verdicts.append((settings.name, stamps, message.sha256))
        return {"state": "check"}

    def remove(self, name: str, *, delete_files: bool) -> int:
        self._names.remove(name)
        return 1 if delete_files else 0


class FakeTable:
    def __init__(self, content: bytes) -> None:
        self.fd = os.memfd_create("table")
        os.write(self.fd, content)
        self.gone: list[int] = []

    def worker_started(self, worker: int) -> list[int]:
        return [worker * 10]

    def worker_gone(self, worker: int) -> None:
        self.gone.append(worker)

    def close(self) -> None:
        os.close(self.fd)


class FakeAudit:
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.is_closed = False

    def start(self) -> None:
        pass

    async def append(self, records: list[dict[str, Any]], *, durable: bool) -> None:
        assert durable
        self.events += records

    def note(self, fields: dict[str, Any]) -> None:
        self.events.append(fields)

    async def close(self) -> None:
        self.is_closed = True

    def names(self) -> list[str]:
        return [fields["event"] for fields in self.events]


class Running:
    """A supervisor in this test's loop, and what its workers reported."""

    def __init__(
        self, folder: Path, models: FakeModels, is_open_allowed: bool = False, timing: Timing = TIMING, **values: Any
    ) -> None:
        self.is_open_allowed = is_open_allowed
        self.reports: list[dict[str, Any]] = []
        self.summaries: list[dict[str, Any]] = []
        self.taken_over: list[config.Settings] = []
        self.audit = FakeAudit()
        self.table = FakeTable(b"shared counters")
        self.models = models
        self.data = DataDir(folder)
        self.environ = {"INFERNO_STORAGE_DATA_DIR": str(folder), "INFERNO_SERVER_PORT": "0"}
        self.environ |= {"INFERNO_" + name.upper(): str(value) for name, value in values.items()}
        self.environ.setdefault("INFERNO_SERVER_SHUTDOWN_GRACE_SECONDS", "5")
        self.environ.setdefault("INFERNO_TELEMETRY_METRICS_ENABLED", "false")
        verbs = Verbs()
        verbs.register("test.report", self._report, ("worker",))
        self.supervisor = Supervisor(
            self._load(),
            models,
            secrets={"jwt": b"s" * 32},
            audit=self.audit,
            verbs=verbs,
            make_tables=lambda: {"counters": self.table},
            reload=self._load,
            on_settings=self.taken_over.append,
            announce=self.summaries.append,
            programs=PROGRAMS,
            timing=timing,
        )
        self.task: asyncio.Task[int] | None = None

    def _load(self) -> config.Loaded:
        return config.load(environ=self.environ, folder=self.data.root, is_open_allowed=self.is_open_allowed)

    async def _report(self, arguments: dict[str, Any], caller: Caller) -> None:
        assert caller.kind == "worker"
        self.reports.append(arguments)

    def of(self, what: str, **fields: Any) -> list[dict[str, Any]]:
        return [
            report
            for report in self.reports
            if report["what"] == what and all(report.get(name) == value for name, value in fields.items())
        ]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(WAIT):
            while not condition():
                if self.task is not None and self.task.done():
                    self.task.result()
                await asyncio.sleep(0.01)

    async def end(self, number: int = signal.SIGTERM) -> int:
        assert self.task is not None
        os.kill(os.getpid(), number)
        return await asyncio.wait_for(self.task, WAIT)


@contextlib.asynccontextmanager
async def running(folder: Path, models: FakeModels, **values: Any) -> AsyncIterator[Running]:
    server = Running(folder, models, **values)
    server.task = asyncio.create_task(server.supervisor.run())
    try:
        yield server
    finally:
        if not server.task.done():
            server.supervisor.handle_interrupt()
            server.supervisor.handle_interrupt()
            await asyncio.wait_for(server.task, WAIT)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_start_gives_each_worker_everything_and_connects_it_to_each_engine(tmp_path: Path) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = "0"
    try:
        async with running(tmp_path, FakeModels("good-a", "good-b"), server_workers=2) as server:
            await server.until(lambda: len(server.of("engine_up")) == 4 and server.summaries)
            for report in server.of("settings"):
                assert report["names"] == ["main", "counters"]
                assert report["table_arguments"] == {"counters": [report["worker"] * 10]}
                assert report["secrets"] == ["jwt"]
                assert report["contents"] == [b"shared counters"]
                assert f"127.0.0.1:{report['listens']}" == server.supervisor.address
                # GGML_… is device selection and may be set where the tests run
                assert {name for name in report["environ"] if not name.startswith("GGML_")} <= {
                    "CUDA_VISIBLE_DEVICES",
                    "LANG",
                    "LC_ALL",
                    "LC_CTYPE",
                    "TZ",
                    "LD_LIBRARY_PATH",
                }
                assert report["own_group"] is True
                assert len(report["open_files"]) <= 8
            heard = {report["heard"] for report in server.of("engine_up")}
            assert heard == {f"engine good-{name} for worker {number}" for name in "ab" for number in (1, 2)}
            found = server.summaries[0]
            assert [model["state"] for model in found["models"]] == ["ready", "ready"]
            assert found["models"][0]["slots"] == 4
            assert found["not_built"] == server.supervisor.loaded.not_built
            assert await server.end() == 0
            assert server.audit.names()[0] == "server.start"
            assert server.audit.names()[-1] == "server.stop"
            assert {"model.load", "sandbox.state"} <= set(server.audit.names())
            assert server.audit.is_closed
            assert sorted(server.table.gone) == [1, 2]
            assert not (tmp_path / "control.sock").exists()
    finally:
        del os.environ["CUDA_VISIBLE_DEVICES"]


async def test_a_killed_engine_is_replaced_at_once_and_workers_hear_of_it(tmp_path: Path) -> None:
    async with running(tmp_path, FakeModels("good")) as server:
        await server.until(lambda: server.of("engine_up", generation=1))
        engine = server.supervisor.engines["good"]
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        await server.until(lambda: server.of("engine_up", generation=2))
        assert server.of("engine_gone", state="restarting")[0]["detail"].startswith("signal SIGKILL")
        assert engine.num_restarts == 1
        assert engine.settings.calibration == {"seen": True}
        assert server.models.calibrations == {"good": {"seen": True}}
        assert "engine.crash" in server.audit.names()
        assert await server.end() == 0


async def test_a_verdict_is_kept_once_and_only_of_files_that_stayed_as_they_were(tmp_path: Path) -> None:
    models = FakeModels("verified", "changing", "verified-absent")
    models.folder = str(tmp_path)
    for name in ("verified", "changing"):
        (tmp_path / f"{name}.gguf").write_bytes(b"GGUF")
    stamp = Stamp.at(str(tmp_path / "verified.gguf"))
    assert stamp is not None
    async with running(tmp_path, models) as server:
        await server.until(lambda: server.summaries)
        assert models.verdicts == [("verified", [stamp], ["ab" * 32])]
        assert server.supervisor.engines["verified"].settings.known_files == {"state": "check"}  # as the models say
        assert server.supervisor.engines["changing"].settings.known_files == {}
        records = [fields for fields in server.audit.events if fields["event"] == "model.verified"]
        assert [(fields["target"], fields["reason"]) for fields in records] == [("verified", "ab" * 32)]


async def test_a_silent_engine_is_killed_and_replaced(tmp_path: Path) -> None:
    async with running(tmp_path, FakeModels("mute"), timing=IMPATIENT) as server:
        await server.until(lambda: server.of("engine_up", generation=2))
        assert server.of("engine_gone", state="restarting")


async def test_a_stopped_engine_counts_as_silent(tmp_path: Path) -> None:
    async with running(tmp_path, FakeModels("good"), timing=IMPATIENT) as server:
        await server.until(lambda: server.of("engine_up"))
        engine = server.supervisor.engines["good"]
        pid, generation = engine.pid, engine.generation
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await server.until(lambda: server.of("engine_up", generation=generation + 1))
        assert not alive(pid)


async def test_a_supervisor_that_was_held_up_does_not_blame_a_worker_that_is_ready(tmp_path: Path) -> None:
    timing = replace(TIMING, worker_start=0.0, ping_interval=10.0)
    async with running(tmp_path, FakeModels("good"), timing=timing) as server:
        await server.until(lambda: server.summaries)
        await server.until(lambda: server.of("engine_up"))
        assert len({report["pid"] for report in server.of("settings")}) == 1


async def test_a_refused_model_is_named_and_the_others_are_served(tmp_path: Path) -> None:
    async with running(tmp_path, FakeModels("refused", "good")) as server:
        await server.until(lambda: server.summaries)
        states = {model["name"]: model["state"] for model in server.summaries[0]["models"]}
        assert states == {"refused": "refused", "good": "ready"}
        await server.until(lambda: server.of("engine_gone", model="refused", state="refused"))
        assert server.of("engine_gone", state="refused")[0]["detail"] == "bad-magic: not a GGUF file"
        assert server.supervisor.engines["refused"].generation == 1
        assert "model.refused" in server.audit.names()


async def test_a_template_that_could_not_be_checked_now_is_checked_again(tmp_path: Path) -> None:
    async with running(tmp_path, FakeModels("breathless")) as server:
        await server.until(lambda: server.summaries)
        engine = server.supervisor.engines["breathless"]
        assert (engine.state, engine.generation) == ("refused", 5)
        assert engine.detail == "template-unchecked: no answer in time"


async def test_an_engine_that_always_dies_while_loading_is_given_up(tmp_path: Path) -> None:
    async with running(tmp_path, FakeModels("crashing")) as server:
        await server.until(lambda: server.summaries)
        engine = server.supervisor.engines["crashing"]
        assert engine.state == "refused"
        assert "ended 5 times while it loaded" in engine.detail
        assert engine.generation == 5
        assert await server.end() == 0


async def test_a_killed_worker_is_replaced_and_connected(tmp_path: Path) -> None:
    async with running(tmp_path, FakeModels("good"), server_workers=2) as server:
        await server.until(lambda: len(server.of("engine_up")) == 2)
        os.kill(server.of("settings", worker=1)[0]["pid"], signal.SIGKILL)
        await server.until(lambda: server.of("engine_up", worker=3))
        assert server.of("settings", worker=3)[0]["models"] == [
            {"name": "good", "state": "loading", "detail": ""}
        ]
        assert server.table.gone == [1]
        assert len(server.supervisor.workers()) == 2


async def test_a_silent_worker_is_replaced(tmp_path: Path) -> None:
    async with running(tmp_path, FakeModels(), timing=IMPATIENT, security_max_input_length=12) as server:
        await server.until(lambda: server.of("settings", worker=2))


async def test_workers_that_end_as_they_start_fail_the_start(tmp_path: Path) -> None:
    server = Running(tmp_path, FakeModels("good"), security_max_input_length=11)
    with pytest.raises(StartError, match="the front worker ends as it starts"):
        await asyncio.wait_for(server.supervisor.run(), WAIT)
    assert not (tmp_path / "control.sock").exists()
    DataLock(server.data).acquire()


async def test_drain_is_ordered_and_bounded(tmp_path: Path) -> None:
    values = {"security_max_input_length": 13, "server_shutdown_grace_seconds": 0.5}
    async with running(tmp_path, FakeModels("stubborn"), **values) as server:
        await server.until(lambda: server.of("engine_up"))
        pids = [server.of("settings")[0]["pid"], server.supervisor.engines["stubborn"].pid]
        began = asyncio.get_running_loop().time()
        assert await server.end() == 0
        assert asyncio.get_running_loop().time() - began < 30  # they would never have ended by themselves
        assert server.of("drain")[0]["grace"] == 0.5
        assert not any(alive(pid) for pid in pids if pid is not None)


async def test_a_second_interrupt_ends_everything_now(tmp_path: Path) -> None:
    values = {"security_max_input_length": 13, "server_shutdown_grace_seconds": 600}
    async with running(tmp_path, FakeModels("stubborn"), **values) as server:
        await server.until(lambda: server.of("engine_up"))
        os.kill(os.getpid(), signal.SIGINT)
        await server.until(lambda: server.of("drain"))
        assert await server.end(signal.SIGINT) == 130


async def test_lim_6_sighup_takes_over_reloadable_keys_only(tmp_path: Path) -> None:
    async with running(tmp_path, FakeModels()) as server:
        await server.until(lambda: server.of("settings"))
        server.environ["INFERNO_SECURITY_MAX_INPUT_LENGTH"] = "777"
        server.environ["INFERNO_SERVER_WORKERS"] = "3"
        os.kill(os.getpid(), signal.SIGHUP)
        await server.until(lambda: server.of("appended"))
        assert server.of("reload")[0]["max_input_length"] == 777
        assert server.of("appended")[0]["error"] is None
        assert server.supervisor.settings.server.workers == 1
        assert server.taken_over == [server.supervisor.settings]  # the supervisor's own parts
        assert "config.reload" in server.audit.names()
        assert "input.flagged" in server.audit.names()
        server.environ["INFERNO_SECURITY_MAX_INPUT_LENGTH"] = "0"
        os.kill(os.getpid(), signal.SIGHUP)
        await server.until(lambda: any(fields.get("result") == "failure" for fields in server.audit.events))
        assert server.supervisor.settings.security.max_input_length == 777


async def test_sigusr2_replaces_workers_one_by_one(tmp_path: Path) -> None:
    async with running(tmp_path, FakeModels("good"), server_workers=2) as server:
        await server.until(lambda: len(server.of("engine_up")) == 2)
        os.kill(os.getpid(), signal.SIGUSR2)
        await server.until(lambda: len(server.of("drain")) == 2 and len(server.supervisor.workers()) == 2)
        assert {worker.number for worker in server.supervisor.workers()} == {3, 4}
        await server.until(lambda: len(server.of("engine_up")) == 4)  # the newest may say so after the oldest is told to go
        assert {report["worker"] for report in server.of("engine_up")} == {1, 2, 3, 4}


async def test_verbs_load_and_unload_and_tell(tmp_path: Path) -> None:
    async with running(tmp_path, FakeModels("good", "refused", at_start=())) as server:
        await server.until(lambda: server.of("settings"))
        assert [entry["state"] for entry in server.of("settings")[0]["models"]] == ["unloaded", "unloaded"]

        def ask(verb: str, **arguments: Any) -> Any:
            return control.ask(server.data.control_socket, verb, arguments, timeout_seconds=WAIT)

        loaded = await asyncio.to_thread(ask, "models.load", name="good")
        assert loaded["state"] == "ready"
        await server.until(lambda: server.of("engine_up", model="good"))
        with pytest.raises(ApiError, match="bad-magic"):
            await asyncio.to_thread(ask, "models.load", name="refused")
        with pytest.raises(ApiError) as caught:
            await asyncio.to_thread(ask, "models.load", name="other")
        assert caught.value.code == "model_not_found"
        listed = await asyncio.to_thread(ask, "models.list")
        assert {entry["name"]: entry["state"] for entry in listed} == {"good": "ready", "refused": "refused"}
        stores = await asyncio.to_thread(ask, "cache.state")
        assert [(entry["model"], entry["max_bytes"] % (1 << 20)) for entry in stores] == [("good", 0)]
        assert (await asyncio.to_thread(ask, "cache.clear"))["models"] == ["good"]
        assert (await asyncio.to_thread(ask, "models.unload", name="good"))["state"] == "unloaded"
        await server.until(lambda: server.of("engine_gone", model="good", state="unloaded"))
        status = await asyncio.to_thread(ask, "status")
        assert status["pid"] == os.getpid()
        assert len(status["workers"]) == 1
        changed = await asyncio.to_thread(ask, "config.change", changes={"security.max_input_length": 99})
        assert changed == {"changed": ["security.max_input_length"]}
        with pytest.raises(ApiError, match=r"server\.port cannot be changed"):
            await asyncio.to_thread(ask, "config.change", changes={"server.port": 99})
        with pytest.raises(ApiError) as caught:
            await asyncio.to_thread(ask, "test.report")
        assert caught.value.code == "not_found"
        await asyncio.to_thread(ask, "drain")
        assert server.task is not None
        assert await asyncio.wait_for(server.task, WAIT) == 0


async def test_an_engines_output_is_logged_bounded_and_clean(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with running(tmp_path, FakeModels("noisy")) as server:
        await server.until(lambda: server.of("engine_up"))
        await server.end()
    lines = [record.getMessage() for record in caplog.records if record.name == "inferno.engine"]
    assert any(line.startswith("line ") for line in lines)
    assert len(lines) < 1000
    environment = next(line for line in lines if line.startswith("environment"))
    assert "INFERNO" not in environment
    assert "PATH" not in environment.replace("LD_LIBRARY_PATH", "")


async def test_engine_reports_become_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")  # put back afterwards

    def steps() -> float:
        return (
            prometheus_client.REGISTRY.get_sample_value("inferno_engine_steps_total", {"model": "good"})
            or 0.0
        )

    async with running(tmp_path, FakeModels("good"), telemetry_metrics_enabled="true") as server:
        await server.until(lambda: server.of("engine_up") and steps() >= 10)
        assert (tmp_path / "run" / "metrics").stat().st_mode & 0o777 == 0o700
        assert "PROMETHEUS_MULTIPROC_DIR" in server.of("settings")[0]["environ"]
        before = steps()
        pid = server.supervisor.engines["good"].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await server.until(lambda: steps() > before + 10)


async def test_sec_011_what_is_left_open_is_audited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "NOT_BUILT", frozenset())
    server = Running(
        tmp_path,
        FakeModels(),
        is_open_allowed=True,
        server_host="0.0.0.0",
        security_auth_enabled="false",
        security_tls_required="false",
    )
    server.task = asyncio.create_task(server.supervisor.run())
    await server.until(lambda: server.of("settings"))
    await server.end()
    said = {
        fields["target"]: fields["reason"]
        for fields in server.audit.events
        if fields["event"] == "config.change"
    }
    assert said == {
        "security.auth_enabled": "no authentication on 0.0.0.0",
        "security.tls_required": "plain HTTP on 0.0.0.0",
    }


async def test_two_servers_on_one_data_directory_are_refused(tmp_path: Path) -> None:
    async with running(tmp_path, FakeModels()) as server:
        await server.until(lambda: server.of("settings"))
        second = Running(tmp_path, FakeModels())
        with pytest.raises(
            StartError, match=f"another process \\(pid {os.getpid()}\\) uses this data directory"
        ):
            await second.supervisor.run()
        second.table.close()


async def test_an_address_in_use_is_said_clearly(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = Running(tmp_path, FakeModels(), server_port=port)
        with pytest.raises(StartError, match=f"127.0.0.1:{port} is in use by another program"):
            await server.supervisor.run()
    assert server.audit.names() == []


async def test_a_check_is_an_engine_that_ends_after_its_verdict(tmp_path: Path) -> None:
    models = FakeModels("good", "refused", "verified", "crashing", at_start=("good",))
    async with running(tmp_path, models) as server:
        await server.until(lambda: [engine.state for engine in server.supervisor.engines.values()] == ["ready"])
        check = server.supervisor.check_model
        refused = await check("refused")
        assert (refused["name"], refused["verdict"], refused["reason"]) == ("refused", "invalid", "bad-magic")
        assert (refused["offset"], refused["detail"], refused["sha256"]) == (0, "not a GGUF file", [])
        with pytest.raises(ApiError) as caught:
            await check("crashing")
        assert caught.value.code == "engine_failed"
        with pytest.raises(ApiError) as caught:
            await check("unheard-of")
        assert caught.value.code == "model_not_found"
        assert set(server.supervisor.engines) == {"good"}  # a check loads nothing and disturbs nobody
        assert server.supervisor.engines["good"].generation == 1


async def test_an_engine_that_is_being_started_can_be_stopped(tmp_path: Path) -> None:
    async with running(tmp_path, FakeModels("good", at_start=())) as server:
        await server.until(lambda: server.supervisor.workers())
        engine = server.supervisor.start_engine("good")
        await asyncio.sleep(0)  # its process is being started now
        assert engine.pid is None
        await asyncio.wait_for(engine.stop(5), WAIT)
        assert (engine.state, engine.pid) == ("unloaded", None)


async def test_one_check_at_a_time(tmp_path: Path) -> None:
    async with running(tmp_path, FakeModels("refused", at_start=())) as server:
        first = asyncio.create_task(server.supervisor.check_model("refused"))
        await asyncio.sleep(0)
        with pytest.raises(ApiError) as caught:
            await server.supervisor.check_model("refused")
        assert caught.value.code == "conflict"
        assert (await first)["verdict"] == "invalid"


async def test_only_what_is_not_loaded_is_removed(tmp_path: Path) -> None:
    async with running(tmp_path, FakeModels("good", "refused")) as server:
        engines = server.supervisor.engines
        await server.until(lambda: [engine.state for engine in engines.values()] == ["ready", "refused"])
        with pytest.raises(ApiError) as caught:
            await server.supervisor.remove_model("good", delete_files=False)
        assert caught.value.code == "conflict"
        assert await server.supervisor.remove_model("refused", delete_files=True) == 1
        assert set(engines) == {"good"}
        with pytest.raises(ApiError) as caught:
            server.supervisor.start_engine("refused")
        assert caught.value.code == "model_not_found"
