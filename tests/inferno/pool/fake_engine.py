"""An engine for supervisor tests: a real process that keeps the protocol; its model's name says how it behaves.

good…: serves; refused…: refuses the file; breathless…: cannot check the file's template; crashing…: dies while loading;
mute…: stops answering once it is ready; noisy…: prints a lot; stubborn…: ignores Drain; verified…: says that it verified
its file, twice, with another digest each time; changing…: changes its file before it says so.
"""

import os
import signal
import socket
import sys

from inferno.ipc import BlockingChannel
from inferno.messages import (
    MAX_CONTROL_FRAME,
    AttachWorker,
    Drain,
    EngineReady,
    EngineSettings,
    EngineStats,
    LoadProgress,
    LogLine,
    ModelInfo,
    ModelRefused,
    ModelVerified,
    Ping,
    Pong,
    SupervisorToEngine,
)


def main() -> None:
    channel = BlockingChannel(
        socket.socket(fileno=int(sys.argv[1])), SupervisorToEngine, max_frame_bytes=MAX_CONTROL_FRAME
    )
    first = channel.receive()
    assert first is not None
    settings = first[0]
    assert isinstance(settings, EngineSettings)
    name = settings.name
    if name.startswith(("verified", "changing")):
        if name.startswith("changing"):
            os.utime(settings.paths[0])
        channel.send(LoadProgress(stage="verify", fraction=1.0))
        channel.send(ModelVerified(sha256=["ab" * 32]))
        channel.send(ModelVerified(sha256=["cd" * 32]))
    channel.send(LoadProgress(stage="load", fraction=0.5))
    channel.send(
        LogLine(level="info", text=f"environment {sorted(os.environ)} calibration {settings.calibration}")
    )
    if name.startswith("refused"):
        channel.send(ModelRefused(reason="bad-magic", detail="not a GGUF file", offset=0))
        return
    if name.startswith("breathless"):
        channel.send(ModelRefused(reason="template-unchecked", detail="no answer in time"))
        return
    if name.startswith("crashing"):
        print("GGML_ASSERT failed", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGABRT)
    if name.startswith("noisy"):
        for number in range(3000):
            print(f"line {number}\x1b[31m", flush=number % 100 == 0)
    info = ModelInfo(
        name="its own idea", context_size=512, slots=4, vocab_size=100, fingerprint="fp", has_chat_template=True, created=1,
        threads=2, memory_bytes={"weights": 1 << 20}, sandbox={"seccomp": "on"},
    )  # fmt: skip
    channel.send(EngineReady(model=info, calibration={"seen": True}))
    steps = 0
    while (received := channel.receive()) is not None:
        message, descriptors = received
        match message:
            case Ping():
                steps += 5
                if not name.startswith("mute"):
                    channel.send(Pong(serial=message.serial, stats=EngineStats(running=3, steps=steps)))
            case AttachWorker():
                with socket.socket(fileno=descriptors[0]) as worker:
                    worker.sendall(f"engine {name} for worker {message.worker}".encode())
            case Drain():
                if not name.startswith("stubborn"):
                    return


if __name__ == "__main__":
    main()
