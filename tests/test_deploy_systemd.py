"""The systemd unit: sound by systemd-analyze, little exposed, and no confinement in it stops the server or its engines.

systemd is no PID 1 where tests run, so nothing here starts the unit; tests/confined.py has the kernel do what the unit
asks of it, and says what it leaves out.
"""

import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.confined import allowed_calls, read_unit
from tests.conftest import ROOT
from tests.end_to_end.harness import GENEROUS, RunningServer
from tests.models import demo_model

UNIT = ROOT / "deploy" / "systemd" / "inferno.service"
MAX_EXPOSURE = 1.3  # of 10; systemd-analyze calls less than 2 "OK"


def analyze(*arguments):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze: apt-get install systemd")
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=300, check=False)


def test_systemd_finds_no_fault_in_the_unit(tmp_path):
    """Not even a warning: an unknown group of system calls is one, and would leave calls out that engines need."""
    unit = tmp_path / "inferno.service"
    unit.write_text(UNIT.read_text().replace("/opt/inferno/bin/inferno ", f"{shutil.which('true')} "))  # it must exist
    done = analyze("verify", "--man=no", str(unit))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_systemd_sees_a_fault_where_there_is_one(tmp_path):
    unit = tmp_path / "inferno.service"
    unit.write_text(UNIT.read_text().replace("@system-service", "@system-services"))
    assert "@system-services" in analyze("verify", "--man=no", str(unit)).stderr


def test_box_4_the_exposure_stays_below_the_bound():
    done = analyze("security", "--offline=true", f"--threshold={round(MAX_EXPOSURE * 10)}", str(UNIT))
    level = re.search(r"Overall exposure level for inferno.service: ([\d.]+)", done.stdout)
    assert level, done.stderr
    assert float(level[1]) <= MAX_EXPOSURE, done.stdout
    assert done.returncode == 0


def test_box_1_the_filter_leaves_what_engines_lock_themselves_with():
    analyze("--version")
    left = allowed_calls(read_unit(UNIT))
    assert {"seccomp", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self", "memfd_create", "capset"} <= left
    assert not {"mount", "ptrace", "bpf", "setuid", "chroot", "reboot", "init_module", "perf_event_open"} & left


@pytest.mark.e2e
@pytest.mark.slow
def test_box_1_a_chat_is_answered_under_the_unit_s_confinement():
    """With sandbox = "required": where the filter took a call that the engine's own lock needs, no model is served."""
    analyze("--version")
    if platform.machine() != "x86_64":
        pytest.skip("tests/confined.py knows x86-64 only")
    place = Path(tempfile.mkdtemp(prefix="inferno-unit-"))
    try:
        model = place / "model.gguf"
        shutil.copyfile(demo_model(), model)
        server = RunningServer(place, config=GENEROUS.replace("[security]", '[security]\nsandbox = "required"'), model=model)
        confined = [sys.executable, str(ROOT / "tests" / "confined.py"), str(UNIT), str(server.data), "--"]
        # The confinement is in force: what it must refuse is refused.
        probe = (
            "import errno, os, socket\n"
            "try: socket.socket(socket.AF_NETLINK)\n"
            "except OSError as error: print(errno.errorcode[error.errno])\n"
            "try: open('/inferno-probe', 'w')\n"
            "except OSError as error: print(errno.errorcode[error.errno])\n"
            "try: os.setuid(1)\n"
            "except OSError as error: print(errno.errorcode[error.errno])\n"
        )
        told = subprocess.run([*confined, sys.executable, "-c", probe], capture_output=True, text=True, timeout=300, check=False)
        assert told.stdout.split()[0] == "EAFNOSUPPORT", told.stderr
        assert told.stdout.split()[1] in {"EROFS", "EACCES"}
        assert told.stdout.split()[2] == "EPERM"
        server.command = [*confined, *server.command]
        try:
            server.start()
            status = dict(
                line.split(":\t", 1)
                for line in Path(f"/proc/{server.processes('inferno.engine.main')[0]}/status").read_text().splitlines()
                if ":\t" in line
            )
            assert (status["NoNewPrivs"], int(status["CapEff"], 16)) == ("1", 0)
            assert int(status["Seccomp_filters"]) >= 2  # the unit's and the engine's own
            client = server.client(server.create_key()["key"])
            answer = client.chat.completions.create(
                model="demo", messages=[{"role": "user", "content": "hi"}], max_tokens=4
            )
            assert answer.choices[0].finish_reason
        finally:
            if server.process is not None and server.process.poll() is None:
                assert server.stop() == 0
        assert "Traceback" not in server.output()
    finally:
        shutil.rmtree(place)
