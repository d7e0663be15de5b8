"""Hostile code inside a confined process: what it tries, and that each try is refused. BOX-1, BOX-2."""

import json
import os
import subprocess
import sys

import pytest

from inferno.engine import loading, sandbox, seccomp

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the confinement is Linux's")

# Runs inside the confined child: everything is imported before the lock, as in an engine.
HOSTILE = r"""
import ctypes, json, mmap, os, resource, signal, socket, sys, threading
from inferno.engine.sandbox import SandboxError, confine, landlock_abi

arguments = json.loads(sys.argv[1])
if arguments["user"]:
    os.setgroups([]); os.setresgid(*[arguments["user"]] * 3); os.setresuid(*[arguments["user"]] * 3)
secret = os.open(arguments["secret"], os.O_RDONLY) if arguments["leak"] else None
libc = ctypes.CDLL(None, use_errno=True)

def raw(number, *values):
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(value) for value in values])
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

def start_thread():
    thread = threading.Thread(target=lambda: None); thread.start(); thread.join()

force = confine(arguments["profile"], mode=arguments["mode"], readable=[arguments["own"]], keep_descriptors=[],
                limits={"NOFILE": 64, "FSIZE": 0})
parent = os.getppid()
TRIES = {
    "read_own_file": lambda: open(arguments["own"]).read(),
    "start_thread": start_thread,
    "open_other_file": lambda: open("/etc/passwd").read(),
    "open_secret": lambda: open(arguments["secret"]).read(),
    "open_secret_by_own_dir": lambda: open(os.path.join(os.path.dirname(arguments["own"]), "secret")).read(),
    "write_file": lambda: open(arguments["own"] + ".x", "w"),
    "list_root": lambda: os.listdir("/"),
    "own_environ_file": lambda: open("/proc/self/environ").read(),
    "parent_environ": lambda: open(f"/proc/{parent}/environ").read(),
    "parent_memory": lambda: open(f"/proc/{parent}/mem", "rb").read(1),
    "leaked_descriptor": lambda: os.read(secret if secret is not None else 200, 1),
    "tcp_socket": lambda: socket.socket(),
    "unix_socket": lambda: socket.socket(socket.AF_UNIX),
    "netlink_socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "signal_parent": lambda: os.kill(parent, 0),
    "become_root": lambda: os.setuid(0),
    "executable_memory": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC),
    "ptrace": lambda: raw({"x86_64": 101, "aarch64": 117}[os.uname().machine], 16, parent, 0, 0),
    "io_uring": lambda: raw(425, 1, 0),
    "bpf": lambda: raw({"x86_64": 321, "aarch64": 280}[os.uname().machine], 0, 0, 0),
    "keyctl": lambda: raw({"x86_64": 250, "aarch64": 219}[os.uname().machine], 0, 0, 0),
    "unshare": lambda: raw({"x86_64": 272, "aarch64": 97}[os.uname().machine], 0x10000000),
    "mount": lambda: raw({"x86_64": 165, "aarch64": 40}[os.uname().machine], 0, 0, 0, 0, 0),
    "process_vm_readv": lambda: raw({"x86_64": 310, "aarch64": 270}[os.uname().machine], parent, 0, 0, 0, 0, 0),
    "userfaultfd": lambda: raw({"x86_64": 323, "aarch64": 282}[os.uname().machine], 0),
    "chroot": lambda: os.chroot("/"),
    "raise_file_limit": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096)),
    "core_files_on": lambda: resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20)),
    "make_dumpable": lambda: raw({"x86_64": 157, "aarch64": 167}[os.uname().machine], 4, 1, 0, 0, 0),
    "fork": os.fork,
}
results = {}
for name, action in TRIES.items():
    if arguments["only"] and name not in arguments["only"]:
        continue
    try:
        outcome = action()
        if name == "fork" and outcome == 0:
            os._exit(0)
        if name == "fork":
            os.waitpid(outcome, 0)
        results[name] = "done"
    except BaseException as error:
        results[name] = f"refused: {type(error).__name__}"
print(json.dumps({"force": force, "results": results}))
"""


def hostile(tmp_path, *, profile="engine", mode="required", user=0, leak=False, only=()):
    own, secret = tmp_path / "own", tmp_path / "secret"
    own.write_text("model")
    secret.write_text("secret")
    # The confined process is another user: file modes must not be what refuses it.
    for path in (own, secret):
        path.chmod(0o644)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder.name.startswith(("pytest", "test")):
            folder.chmod(0o755)
    arguments = {"profile": profile, "mode": mode, "user": user, "own": str(own), "secret": str(secret), "leak": leak,
                 "only": list(only)}  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-c", HOSTILE, json.dumps(arguments)], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


ALLOWED_ENGINE = {"read_own_file", "start_thread"}


@pytest.mark.parametrize("user", [0, 65534], ids=["as-started", "ordinary-user"])
def test_box_1_an_engine_can_do_nothing_else(tmp_path, user):
    if user and os.geteuid() != 0:
        user = 0  # already an ordinary user
    report = hostile(tmp_path, user=user, leak=True)
    allowed = {name for name, outcome in report["results"].items() if outcome == "done"}
    assert allowed == ALLOWED_ENGINE
    assert not [piece for piece in report["force"].values() if piece.startswith("unavailable")]


def test_box_1_a_template_child_may_fork_and_nothing_more(tmp_path):
    report = hostile(tmp_path, profile="template")
    allowed = {name for name, outcome in report["results"].items() if outcome == "done"}
    assert allowed <= ALLOWED_ENGINE | {"fork"}
    assert "fork" in allowed


def test_off_says_so(tmp_path):
    report = hostile(tmp_path, mode="off", only=["open_other_file"])
    assert report["force"]["mode"] == "off"
    assert report["results"]["open_other_file"] == "done"


DEVICES = r"""
import json, os, sys
from inferno.engine.sandbox import confine
confine("engine", mode="auto", devices=json.loads(sys.argv[1]), keep_descriptors=[], limits={"FSIZE": 0})
found = {}
for path, flags in (("/dev/zero", os.O_RDWR), ("/dev/full", os.O_RDONLY), ("/etc/passwd", os.O_RDONLY), ("/dev", os.O_RDONLY)):
    try:
        os.open(path, flags)
        found[path] = "open"
    except OSError:
        found[path] = "refused"
print(json.dumps(found))
"""


@pytest.mark.parametrize("devices", [[], ["/dev/zero"]], ids=["without", "with"])
def test_box_1_gpu_device_files_are_opened_by_need_and_no_others(devices):
    done = subprocess.run(
        [sys.executable, "-c", DEVICES, json.dumps(devices)], capture_output=True, text=True, timeout=300, check=True
    )
    opened = {path for path, outcome in json.loads(done.stdout).items() if outcome == "open"}
    assert opened == set(devices)


def test_box_1_device_files_are_named_where_the_library_has_a_gpu(monkeypatch, tmp_path):
    class Library:
        def __init__(self, *kinds):
            self.kinds = kinds

        def devices(self):
            return [(f"device{kind}", "", kind, 0, 0) for kind in self.kinds]

    for name in ("nvidia0", "nvidiactl", "other"):
        (tmp_path / name).touch()
    monkeypatch.setattr(loading, "_DEVICE_FILES", (f"{tmp_path}/nvidia*", f"{tmp_path}/absent*"))
    assert loading._device_files(Library(0)) == []
    assert loading._device_files(Library(0, 1)) == [f"{tmp_path}/nvidia0", f"{tmp_path}/nvidiactl"]


def _without_landlock(monkeypatch):
    def missing(readable, devices):
        raise OSError("the kernel has no Landlock")

    monkeypatch.setattr(sandbox, "_landlock", missing)


def _harmless(monkeypatch):
    """Replace every piece that would change the test process."""
    for name in ("_no_new_privileges", "_no_core_files", "_not_dumpable", "_other_user", "_drop_bounding_set",
                 "_drop_capabilities", "_no_executable_gain"):  # fmt: skip
        monkeypatch.setattr(sandbox, name, lambda: "on")
    monkeypatch.setattr(sandbox, "_limits", lambda limits: "none")


def test_box_2_required_refuses_where_a_piece_is_missing(monkeypatch):
    _harmless(monkeypatch)
    _without_landlock(monkeypatch)
    with pytest.raises(sandbox.SandboxError, match="landlock is unavailable: the kernel has no Landlock"):
        sandbox.confine("engine", mode="required")


def test_box_2_auto_reports_the_missing_piece_and_closes_files_by_filter(monkeypatch):
    _harmless(monkeypatch)
    _without_landlock(monkeypatch)
    seen = {}
    monkeypatch.setattr(
        sandbox, "_seccomp", lambda profile, open_files, gpu: seen.update(open_files=open_files) or "allow-list"
    )
    force = sandbox.confine("engine", mode="auto")
    assert force["landlock"].startswith("unavailable")
    assert force["seccomp"] == "allow-list"
    assert seen == {"open_files": False}


@pytest.mark.parametrize("profile", ["engine", "template"])
@pytest.mark.parametrize("gpu", [False, True])
def test_filters_are_well_formed(profile, gpu):
    code = seccomp.build(profile, own_pid=os.getpid(), open_files=True, gpu=gpu)
    assert len(code) % 8 == 0
    count = len(code) // 8
    assert count < 4096
    for index in range(count):
        operation, if_true, if_false = code[8 * index], code[8 * index + 2], code[8 * index + 3]
        assert operation in {0x20, 0x15, 0x35, 0x45, 0x06}
        if operation in {0x15, 0x35, 0x45}:
            assert index + 1 + max(if_true, if_false) < count
