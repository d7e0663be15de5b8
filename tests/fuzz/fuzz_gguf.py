"""Differential fuzzing of the model verifier, guided by the edges that its own C code reports.

    python tests/fuzz/fuzz_gguf.py SECONDS [--inputs N] [--seed N] [--run-share 0.2]     (or: make fuzz-gguf SECONDS=600)

Mutates the corpus; inputs that reach something new in the verifier join it. Laws, each broken one a finding and exit 1:
what the verifier accepts as a container, libggml's parser accepts; what it accepts as a model must not end a process that
loads its vocabulary, loads it whole and decodes once (a clean refusal is fine); the verifier agrees with its slow twin.
The reference judges in a child that may die. The verifier is built by clang with -fsanitize=fuzzer-no-link into
build/coverage; the run prints how many edges it found, and none is a failure.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.fuzz.coverage_build import ROOT, build, conclude

MODULES = "gguf gguf_container gguf_model gguf_vocab"
FINDINGS = ROOT / "build" / "fuzz-gguf"
ANSWER_SECONDS = 30


class Judge:
    """The reference in a child, started again whenever it dies."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.process: subprocess.Popen[bytes] | None = None
        self.deaths = 0

    def start(self) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(ANSWER_SECONDS)
        spare = os.dup(self.fd)

        def place() -> None:
            os.dup2(spare, 3)

        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("gguf_judge.py")), str(theirs.fileno())],
            pass_fds=(3, spare, theirs.fileno()), preexec_fn=place, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        os.close(spare)
        theirs.close()
        self.socket = ours
        if ours.recv(1) != b"!":
            raise SystemExit("the reference does not start; is llama_cpp installed?")

    def ask(self, what: bytes) -> str:
        """'a', 'r', or how the child ended."""
        if self.process is None:
            self.start()
        try:
            self.socket.sendall(what)
            answer = self.socket.recv(1)
        except TimeoutError:
            self.stop()
            return "hang"
        except OSError:
            answer = b""
        if answer:
            return answer.decode()
        status = self.stop()
        self.deaths += 1
        return signal.Signals(-status).name if status < 0 else f"exit {status}"

    def stop(self) -> int:
        process, self.process = self.process, None
        if process is None:
            return 0
        if process.poll() is None:
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                process.kill()
        self.socket.close()
        return process.wait()


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("seconds", type=float)
    arguments.add_argument("--inputs", type=int, default=1 << 62, help="end after so many, though time is left")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--run-share", type=float, default=0.2, help="of accepted models that are loaded and run")
    options = arguments.parse_args()
    counters = build(MODULES)
    from inferno_native import gguf
    from inferno_native.gguf_report import GgufError

    from tests.native import reference_gguf as twin
    from tests.native.gguf_mutations import mutate

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, str(ROOT / "tests/data/gguf_corpus/make_corpus.py"), folder], check=True,
                       capture_output=True)
        seeds = [path.read_bytes() for path in sorted(Path(folder).glob("*.gguf")) if path.is_file()]

    fd = os.memfd_create("input") if hasattr(os, "memfd_create") else tempfile.TemporaryFile().fileno()  # noqa: SIM115

    def verdict(data: bytes, profile: str) -> str:
        os.ftruncate(fd, 0)
        os.pwrite(fd, data, 0)
        try:
            gguf.verify_fd(fd, profile=profile)
        except GgufError as error:
            return error.reason
        return "ok"

    judge = Judge(fd)
    rng = random.Random(options.seed)
    pool = list(seeds)
    findings: list[str] = []
    count: dict[str, int] = {"inputs": 0, "containers": 0, "models": 0, "loaded": 0}

    def finding(law: str, data: bytes, said: Any) -> None:
        FINDINGS.mkdir(parents=True, exist_ok=True)
        path = FINDINGS / f"{law}-{len(findings)}.gguf"
        path.write_bytes(data)
        findings.append(f"{law}: {said} ({path.relative_to(ROOT)})")
        print("FINDING", findings[-1], flush=True)

    def examine(data: bytes) -> None:
        count["inputs"] += 1
        container = verdict(data, "container")
        model = verdict(data, "model")
        for profile, mine in (("container", container), ("model", model)):
            its = twin.judge(data, profile)
            if its != mine:
                finding("twin", data, f"{profile}: verifier {mine}, twin {its}")
        if container == "ok":
            count["containers"] += 1
            answer = judge.ask(b"p")
            if answer != "a":
                finding("parser", data, answer)
        if model == "ok" and rng.random() < options.run_share:
            count["models"] += 1
            for stage in (b"v", b"r"):
                answer = judge.ask(stage)
                count["loaded"] += answer == "a"
                if answer not in ("a", "r"):
                    finding("vocab" if stage == b"v" else "run", data, answer)
                    break

    start = time.monotonic()
    try:
        for data in seeds:
            examine(data)
            counters.take_new()
        while time.monotonic() - start < options.seconds and count["inputs"] < options.inputs and len(findings) < 50:
            data = mutate(rng.choice(pool), rng, rng.choice(pool))
            if len(data) > 1 << 17:
                continue
            examine(data)
            if counters.take_new() and len(pool) < 20000:
                pool.append(data)
    finally:
        judge.stop()
    seconds = time.monotonic() - start
    print(f"{count['inputs']} inputs in {seconds:.0f} s, {count['containers']} sound containers, {count['models']} models "
          f"given to the loader ({count['loaded']} accepted stages), {len(pool) - len(seeds)} inputs kept")
    return conclude(counters, gguf.__file__, len(findings), options.seed)


if __name__ == "__main__":
    raise SystemExit(main())
