"""The image, really built (buildah on a debootstrap base) and run (podman, runc) with the guide's flags.

Needs root and Debian's buildah, podman, runc and debootstrap (`make ci-deps`); skipped by name without them. The wheel
of llama-cpp-python is one that this machine compiled before, so the build takes minutes and not a quarter of an hour.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import openai
import pytest

from tests.conftest import ROOT
from tests.end_to_end.harness import ADMIN_PASSWORD, JWT_SECRET, children, command_line, eventually
from tests.models import demo_model
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1200)]

TOOLS = ("buildah", "podman", "runc", "debootstrap")
BASE = "localhost/inferno-base:bookworm"
IMAGE = "localhost/inferno:test"
PODMAN = ["podman", "--runtime", "runc", "--cgroup-manager", "cgroupfs"]
GUIDE = ["--security-opt=no-new-privileges", "--cap-drop=ALL", "--read-only"]  # the user's guide, word for word
# What Docker does by itself or this machine needs: no writable /tmp beside a read-only root, the host's network, ulimits
# that a machine without CAP_SYS_RESOURCE can set.
HERE = ["--pull", "never", "--network", "host", "--read-only-tmpfs=false", "--ulimit", "nofile=4096:4096",
        "--ulimit", "nproc=4096:4096"]  # fmt: skip


def call(*command, timeout=900, **options):
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **options)


def checked(*command, **options):
    done = call(*command, **options)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


def llama_wheel():
    cache = Path(os.environ.get("INFERNO_CACHE", Path.home() / ".cache" / "inferno")) / "wheels"
    found = sorted(cache.glob("*/llama_cpp_python-*.whl"), key=lambda path: ("portable" not in str(path), str(path)))
    if not found:
        pytest.skip("no compiled wheel of llama-cpp-python: run make env")
    return found[0]


@pytest.fixture(scope="session")
def image(tmp_path_factory):
    """Build the image from what .dockerignore lets in."""
    if os.geteuid() != 0:
        pytest.skip("images are built by root here")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (make ci-deps)")
    context = tmp_path_factory.mktemp("image")
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line.startswith("!") and line != "!wheels":
            for path in ROOT.glob(line[1:]):
                target = context / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                if path.is_dir():
                    shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
                else:
                    shutil.copyfile(path, target)
    for name in ("Dockerfile", ".dockerignore"):
        shutil.copyfile(ROOT / name, context / name)
    (context / "wheels").mkdir()
    wheel = llama_wheel()
    shutil.copyfile(wheel, context / "wheels" / wheel.name)
    checked(str(ROOT / "deploy" / "base-image.sh"), BASE)
    began = time.monotonic()
    checked("buildah", "bud", "--format", "docker", "--isolation", "chroot", "--network", "host", "--layers",
            "--build-arg", f"BASE={BASE}", "-t", IMAGE, str(context))  # fmt: skip
    size = json.loads(checked("buildah", "inspect", "--type", "image", IMAGE))
    assert size["OCIv1"]["config"]["User"] == "65532:65532"
    size_bytes = json.loads(checked("podman", "image", "inspect", IMAGE))[0]["Size"]
    base_bytes = json.loads(checked("podman", "image", "inspect", BASE))[0]["Size"]
    print(f"\nimage built in {time.monotonic() - began:.0f} s: {size_bytes / 1e6:.0f} MB, base {base_bytes / 1e6:.0f} MB")
    return IMAGE


def test_box_4_the_guide_s_line_is_refused_with_the_complete_one(image):
    """It exits 78: there are no secrets yet; what it prints is what docs/deployment.md shows."""
    done = call(*PODMAN, "run", "--rm", *HERE, *GUIDE, image)
    assert done.returncode == 78, done.stderr
    complete = (ROOT / "deploy" / "container-start.txt").read_text().strip()
    assert complete in done.stderr
    for wanted in (*GUIDE, "INFERNO_JWT_SECRET_FILE", "INFERNO_ADMIN_PASSWORD_FILE", "/var/lib/inferno", ".gguf"):
        assert wanted in complete


@pytest.fixture(scope="module")
def container(image, tmp_path_factory):
    """The complete line, with a free port of the host's loopback instead of a published one."""
    folder = tmp_path_factory.mktemp("container")
    model = folder / "model.gguf"
    shutil.copyfile(demo_model(), model)
    for name, value in (("jwt_secret", JWT_SECRET), ("admin_password", ADMIN_PASSWORD)):
        path = folder / name
        path.write_text(value + "\n")
        path.chmod(0o400)
        os.chown(path, 65532, 65532)
    folder.chmod(0o755)
    port, name = free_port(), f"inferno-test-{os.getpid()}"
    began = time.monotonic()
    checked(
        *PODMAN, "run", "-d", "--name", name, *HERE, *GUIDE,
        "-v", f"{name}:/var/lib/inferno",
        "-v", f"{folder}/jwt_secret:/run/secrets/jwt_secret:ro",
        "-v", f"{folder}/admin_password:/run/secrets/admin_password:ro",
        "-v", f"{model}:/models/model.gguf:ro",
        "-e", "INFERNO_JWT_SECRET_FILE=/run/secrets/jwt_secret",
        "-e", "INFERNO_ADMIN_PASSWORD_FILE=/run/secrets/admin_password",
        "-e", "INFERNO_SECURITY_TLS_REQUIRED=false",
        "-e", "INFERNO_SERVER_HOST=127.0.0.1", "-e", f"INFERNO_SERVER_PORT={port}",
        image, "serve", "--model", "mine=/models/model.gguf",
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    def ready():
        try:
            return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    def ended():
        return checked("podman", "inspect", "--format", "{{.State.Running}}", name).strip() != "true"

    try:
        eventually(lambda: ready() or ended(), 180)
        assert ready(), call("podman", "logs", name).stderr
        print(f"\nready {time.monotonic() - began:.1f} s after podman run")
        yield name, url
    finally:
        call(*PODMAN, "stop", "-t", "40", name, timeout=120)
        call(*PODMAN, "rm", "-f", name, timeout=120)
        call("podman", "volume", "rm", "-f", name, timeout=120)


def status_of(pid):
    return dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)


def root_options(pid):
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == "/":
            return fields[5].split(",")
    raise AssertionError("no root mount")


def test_box_4_a_chat_streams_from_inside_and_every_process_is_confined(container):
    name, url = container
    login = httpx.post(f"{url}/api/v1/auth/login", json={"username": "admin", "password": ADMIN_PASSWORD}, timeout=30)
    headers = {"Authorization": f"Bearer {login.json()['token']}"}
    made = httpx.post(f"{url}/api/v1/auth/api-keys", json={"name": "container"}, headers=headers, timeout=30)
    with openai.OpenAI(base_url=f"{url}/v1", api_key=made.json()["key"], max_retries=0, timeout=120) as client:
        stream = client.chat.completions.create(
            model="mine", messages=[{"role": "user", "content": "Say hello."}], max_tokens=16, stream=True
        )
        parts = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(parts).strip()
    first = int(checked("podman", "inspect", "--format", "{{.State.Pid}}", name))
    family = [first, *children(first)]
    table = []
    for pid in family:
        status = status_of(pid)
        if status["State"].startswith("Z"):  # ended, not yet waited for: no root any more
            continue
        assert status["Uid"].split() == ["65532"] * 4
        assert all(int(status[kind], 16) == 0 for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"))
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        assert "ro" in root_options(pid)
        table.append(
            f"{command_line(pid)[:60]:<60} uid {status['Uid'].split()[0]} CapEff {status['CapEff']} "
            f"NoNewPrivs 1 Seccomp 2 filters {status['Seccomp_filters']} / ro"
        )
    print("\n" + "\n".join(table))
    modules = " ".join(command_line(pid) for pid in family)
    for module in ("inferno.server.worker", "inferno.engine.main"):
        assert module in modules
    # The health check of the image, from inside; then the flags of the guide as the container sees them.
    assert call(*PODMAN, "exec", name, "inferno", "doctor", "--live").returncode == 0
    judged = call(*PODMAN, "exec", name, "inferno", "doctor", "--json")
    report = json.loads(judged.stdout)
    assert judged.returncode == 0, [check for check in report["checks"] if check["verdict"] == "fail"]
    found = {check["id"]: check for check in report["checks"]}
    for id in ("sandbox.capabilities", "sandbox.root", "sandbox.engine.mine", "checklist.dedicated_user", "config.environment"):
        assert found[id]["verdict"] == "pass", found[id]
    print("\n".join(f"{check['verdict']} {check['title']}: {check['value']}" for check in report["checks"]))
    written = call(*PODMAN, "exec", name, "/opt/inferno/bin/python", "-c", "open('/opt/inferno/x', 'w')")
    assert "Read-only file system" in written.stderr


def test_box_4_the_compose_file_starts_the_service(image, tmp_path):
    """As it stands, by podman-compose; only the image's name and, in place of a published port, the host's loopback differ.
    The secrets are made by the commands in the file's first lines."""
    text = (ROOT / "deploy" / "compose.yaml").read_text()
    folder = tmp_path / "deploy"
    folder.mkdir()
    (folder / "compose.yaml").write_text(text)
    commands = [line[4:] for line in text.splitlines() if line.startswith(("#   mkdir", "#   openssl", "#   chmod"))]
    assert len(commands) == 4
    checked("bash", "-ec", "\n".join(commands).replace("sudo ", ""), cwd=tmp_path)
    port, project = free_port(), f"inferno-compose-{os.getpid()}"
    (folder / "here.yaml").write_text(
        f"services:\n  inferno:\n    image: {image}\n    network_mode: host\n    ports: !reset []\n"
        f"    environment: {{INFERNO_SERVER_HOST: 127.0.0.1, INFERNO_SERVER_PORT: '{port}'}}\n"
        "    ulimits: {nofile: 4096, nproc: 4096}\n"
    )
    compose = [sys.executable, "-m", "podman_compose", "--podman-args", "--runtime runc --cgroup-manager cgroupfs",
               "--podman-run-args", "--pull never", "-p", project, "-f", "compose.yaml", "-f", "here.yaml"]  # fmt: skip

    def alive():
        try:
            return httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    try:
        checked(*compose, "up", "-d", "--no-build", cwd=folder)
        name = f"{project}_inferno_1"
        assert eventually(alive, 120), call("podman", "logs", name).stderr
        report = json.loads(checked(*PODMAN, "exec", name, "inferno", "doctor", "--json"))
        found = {check["id"]: check["verdict"] for check in report["checks"]}
        for id in ("checklist.jwt_secret", "checklist.dedicated_user", "sandbox.capabilities", "sandbox.root", "config.environment"):
            assert found[id] == "pass", id
    finally:
        call(*compose, "down", "-v", cwd=folder)


def test_the_image_holds_no_compiler_installer_or_startup_hook(image):
    code = (
        "import shutil, pathlib, sys; "
        "print([t for t in ('gcc', 'cc', 'pip', 'pip3', 'git', 'curl', 'make') if shutil.which(t)], "
        "list(pathlib.Path(sys.prefix).rglob('*.pth')))"
    )
    done = checked(*PODMAN, "run", "--rm", *HERE, *GUIDE, "--entrypoint", "/opt/inferno/bin/python", image, "-c", code)
    assert done.strip() == "[] []"
    config = json.loads(checked("podman", "image", "inspect", image))[0]
    assert config["Config"]["Volumes"] == {"/var/lib/inferno": {}}
    assert config["HealthCheck" if "HealthCheck" in config else "Healthcheck"]["Test"][-2:] == ["doctor", "--live"]
    assert config["Config"]["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    everything = json.dumps(config)
    assert not any(secret in everything for secret in (JWT_SECRET, ADMIN_PASSWORD))


def test_every_module_that_a_process_loads_has_its_bytecode(image):
    """The root is read-only: what is not compiled in the image is compiled at each start of each process."""
    code = (
        "import os, sys, inferno.cli.serve, inferno.server.worker, inferno.engine.main, inferno.engine.template_child; "
        "print([name for name, module in list(sys.modules.items()) if (getattr(module, '__file__', None) or '').endswith('.py')"
        " and not os.path.exists(getattr(module, '__cached__', None) or module.__file__)])"
    )
    done = checked(*PODMAN, "run", "--rm", *HERE, *GUIDE, "--entrypoint", "/opt/inferno/bin/python", image, "-c", code)
    assert done.strip() == "[]"
