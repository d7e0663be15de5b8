"""The confinement in the real processes: hostile code inside a real engine and a real template child, and what is shown.

The hostile list (hostile.py) is carried in by a program of the test's own, which runs the engine's main or the template
child's main and breaks into it after the lock. The product has no such hook.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from inferno.engine.sandbox import UNPRIVILEGED_ID
from inferno.engine.template_spawn import Spawned
from inferno.engine.template_wire import Limits
from inferno.engine.templates import TemplateProcess
from tests.end_to_end.harness import ADMIN_PASSWORD, JWT_SECRET, RunningServer, eventually, running
from tests.inferno.engine.client import ChatPrompt, EngineFailed, EngineUnderTest
from tests.models import demo_model

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(sys.platform != "linux", reason="the confinement is Linux's")]
HERE = str(Path(__file__).parent)
ALLOWED_ENGINE = {"thread"}
ALLOWED_TEMPLATE = {"thread", "fork"}  # its workers are forks of it

ENGINE = """
import json, os, sys
sys.path.append({here!r})
import hostile
from inferno.engine import loading, main, sandbox
from inferno.messages import LogLine

user, secret, missing, parent, bystander = {user}, {secret!r}, {missing!r}, {parent}, {bystander}
original_confine, original_serve = loading.confine, main.Engine.serve

def confine(*arguments, **options):
    if user:  # from here on it is an ordinary user's process
        os.setgroups([]); os.setresgid(user, user, user); os.setresuid(user, user, user)
    return original_confine(*arguments, **options)

def serve(self):
    self._channel.send(LogLine(level="info", text="hostile " + json.dumps(hostile.run(secret, parent, bystander))))
    return original_serve(self)

def lacking(*arguments, **options):
    raise OSError("the kernel lacks it")

loading.confine, main.Engine.serve = confine, serve
if missing:
    setattr(sandbox, missing, lacking)
sys.exit(main.main(sys.argv[1:]))
"""
TEMPLATE = """
import json, os, sys
sys.path.append({here!r})
import hostile
from inferno.engine import template_child

user, secret, parent, bystander = {user}, {secret!r}, {parent}, {bystander}
original = template_child.warm_up

def answer(templates, request, limits):
    return template_child.Done(json.dumps(hostile.run(secret, parent, bystander)))

def warm_up():
    original()
    if user:
        os.setgroups([]); os.setresgid(user, user, user); os.setresuid(user, user, user)

template_child._answer, template_child.warm_up = answer, warm_up
sys.exit(template_child.main(sys.argv))
"""


@pytest.fixture
def place(tmp_path):
    """A folder that everybody may enter, with a file that everybody may read: modes are not what refuses."""
    secret = tmp_path / "inferno.db"
    secret.write_text("the user store")
    secret.chmod(0o644)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder.name.startswith(("pytest", "test")):
            folder.chmod(0o755)
    return tmp_path


@pytest.fixture
def bystander(request):
    """A process of the user that the confined one becomes."""
    user = request.node.callspec.params.get("user") or (UNPRIVILEGED_ID if os.geteuid() == 0 else None)
    process = subprocess.Popen(["/bin/sleep", "300"], user=user, cwd="/")
    yield process.pid
    assert process.poll() is None, "it was killed"
    process.kill()
    process.wait()


def write_script(place, text, bystander, *, user=0, missing=""):
    script = place / "program.py"
    script.write_text(
        text.format(here=HERE, user=user, secret=str(place / "inferno.db"), missing=missing, parent=os.getpid(),
                    bystander=bystander)
    )  # fmt: skip
    return (str(script),)


def hostile_results(engine):
    return next(json.loads(line.text[8:]) for line in engine.log if line.text.startswith("hostile "))


def check(results, allowed):
    print(json.dumps(results, indent=1))
    assert {name for name, outcome in results.items() if outcome == "done"} == allowed
    assert len(results) > 45


@pytest.mark.parametrize("source", ["copy", "direct"])
@pytest.mark.parametrize("user", [0, 65534], ids=["as-started", "ordinary-user"])
def test_box_1_sec_169_code_inside_of_a_real_engine_can_do_nothing_else(place, bystander, user, source):
    program = write_script(place, ENGINE, bystander, user=user)
    with EngineUnderTest(demo_model(), program=program, sandbox="required", source=source) as engine:
        check(hostile_results(engine), ALLOWED_ENGINE | ({"inherited_files"} if source == "direct" else set()))
        force = engine.ready.model.sandbox
        assert not [name for name, value in force.items() if value.startswith("unavailable")]
        assert force["user"] == (f"unchanged ({user})" if user or os.geteuid() else "65532")
        answer = engine.attach().run(ChatPrompt(messages=[{"role": "user", "content": "hi"}]))
        assert answer.failed is None  # and it still does its work
        assert answer.text


@pytest.mark.parametrize("user", [0, 65534], ids=["as-started", "ordinary-user"])
def test_box_1_sec_169_code_inside_of_a_real_template_child_can_do_nothing_else(place, bystander, user):
    program = write_script(place, TEMPLATE, bystander, user=user)

    def spawn():
        ours, theirs = socket.socketpair()
        process = subprocess.Popen(
            [sys.executable, "-I", *program, str(theirs.fileno())], pass_fds=[theirs.fileno()],
            env={"LANG": "C.UTF-8"}, cwd="/", start_new_session=True,
        )  # fmt: skip
        theirs.close()

        def end():
            ours.close()
            process.kill()
            process.wait()

        return Spawned(ours, process.pid, end)

    with TemplateProcess("{{ 1 }}", limits=Limits(sandbox="required"), spawn=spawn) as template:
        check(json.loads(template.render([{"role": "user", "content": "x"}])), ALLOWED_TEMPLATE)


@pytest.mark.parametrize("missing", ["_landlock", "_seccomp"])
def test_box_2_sec_172_required_refuses_and_auto_says_what_is_missing(place, bystander, missing):
    program = write_script(place, ENGINE, bystander, missing=missing)
    with pytest.raises(EngineFailed) as caught:
        EngineUnderTest(demo_model(), program=program, sandbox="required")
    assert caught.value.message.reason == "sandbox-unavailable"
    assert f"{missing[1:]} is unavailable" in caught.value.message.detail
    with EngineUnderTest(demo_model(), program=program, sandbox="auto") as engine:
        assert engine.ready.model.sandbox[missing[1:]].startswith("unavailable")
        still = {"open_user_store", "tcp_socket", "exec"}
        open_now = {name for name, outcome in hostile_results(engine).items() if outcome == "done"}
        assert not {"become_root", "ptrace_parent"} & open_now
        if missing == "_landlock":
            assert not still & open_now  # without Landlock the filter refuses to open anything


# ---------------------------------------------------------------- what a running server shows


def status_of(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


@pytest.mark.slow
def test_box_1_sec_168_what_is_in_force_in_a_running_server(tmp_path):
    with running(tmp_path) as server:
        victims = {
            "engine": server.processes("inferno.engine.main"),
            "template": server.processes("inferno.engine.template_child"),
        }
        for name, pids in victims.items():
            assert pids, name
            for pid in pids:
                status = status_of(pid)
                if os.geteuid() == 0:
                    assert set(status["Uid"]) == set(status["Gid"]) == {"65532"}
                    assert status["Groups"] == []
                assert {status[f"Cap{kind}"][0] for kind in ("Inh", "Prm", "Eff", "Amb")} == {"0" * 16}
                assert status["NoNewPrivs"] == ["1"]
                assert status["Seccomp"] == ["2"]
                environment = Path(f"/proc/{pid}/environ").read_bytes()
                for secret in (JWT_SECRET, ADMIN_PASSWORD, "INFERNO_"):
                    assert secret.encode() not in environment
                links = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
                files = {link for link in links if link.startswith("/") and not link.startswith("/memfd:")}
                assert files <= {"/dev/null"} or name == "engine"
                assert not [link for link in files if str(server.data) in link and not link.endswith(".log")]
        states = {state["target"]: state["reason"] for state in server.events("sandbox.state")}
        assert set(states) == {"demo", "demo, template child"}
        for reason in states.values():
            for piece in ("seccomp=allow-list", "landlock=ABI", "no_new_privileges=on", "mode=auto"):
                assert piece in reason
        summary = next(json.loads(line) for line in server.output().splitlines() if '"serving"' in line)
        assert summary["models"][0]["sandbox"]["seccomp"].startswith("allow-list")
        assert summary["models"][0]["sandbox"]["template_landlock"].startswith("ABI")
        with server.http(headers={"Authorization": f"Bearer {server.admin_token()}"}) as client:
            (model,) = [m for m in client.get("/api/v1/models").json()["data"] if m["name"] == "demo"]
        assert json.dumps(model).count("allow-list") >= 2


@pytest.mark.slow
def test_sandbox_off_is_said_everywhere(tmp_path):
    server = RunningServer(tmp_path, config='[security]\nsandbox = "off"\n', model=demo_model())
    try:
        server.start()
        assert eventually(lambda: server.events("sandbox.state"))
        assert all("mode=off" in state["reason"] for state in server.events("sandbox.state"))
        assert '"mode": "off"' in server.output()
    finally:
        server.stop()
